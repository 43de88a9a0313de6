"""What the site has beside the pages in this folder: reference, command line, changelog, and source files that pages link to."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import scale_interp as si
from scale_interp.cli import app
from scale_interp.core.names import public_names

log = get_plugin_logger("hooks")
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "scale_interp"
BESIDE = {
    "data": (
        "data.synthetic.generated_questions",
        "data.boxes.questions.box_questions",
        "data.image_controls.without_image",
        "data.image_controls.with_other_image",
        "data.image_controls.with_noise",
    ),
    "evaluation": ("evaluation.falsification.calibration.calibrate",),
}
"""Public names that are imported from their own module."""
NOT_RUN = "not run when these pages are tested: it needs weights from the hub, your own files, or a GPU"
OUTSIDE = re.compile(r"""<(?:script|link|img|iframe|source|video)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'>\s]+)""")
"""What a browser would fetch from somewhere else."""
SOURCE = re.compile(r"\]\(((?:\.\./)+)(scale_interp/[\w/]+\.py)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for uri, content in {**reference(), **changelog(), **sources(Path(config.docs_dir))}.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    markdown = re.sub(r"^```python no-run$", f'```python title="{NOT_RUN}"', markdown, flags=re.MULTILINE)
    up = "../" * page.file.src_uri.count("/")
    return SOURCE.sub(lambda found: f"]({up}source/{found[2].removesuffix('.py')}.md)", markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> None:
    for found in OUTSIDE.finditer(output):
        log.warning("%s fetches %s; the site has to stand alone", page.file.src_uri, found[1])


def reference() -> dict[str, str]:
    """One page per layer with every public name, and the page of the command line."""
    pages = {}
    for layer in si.LAYERS:
        shown = [entry(layer, name, f"si.{name}") for name in exported(layer) if name != "testbeds"]
        shown += [entry(*path.rsplit(".", 1), f"scale_interp.{path}") for path in BESIDE.get(layer, ())]
        pages[f"reference/{layer}.md"] = page(layer, docstring(layer), shown)
    for name, module in (("viz", "viz"), ("testbeds", "models.testbeds"), ("errors", "errors")):
        shown = [entry(module, n, f"si.{name}.{n}") for n in exported(module)]
        if name == "viz":  # a layer above, under a name of viz
            shown.append(entry("explorer", "explore", "si.viz.explore"))
        pages[f"reference/{name}.md"] = page(name, docstring(module), shown)
    pages["reference/command_line.md"] = "\n".join(command_line())
    return pages


def page(title: str, about: str, entries: list[str]) -> str:
    return "\n\n".join((f"# {title}", about, *entries)) + "\n"


def entry(module: str, name: str, called: str) -> str:
    """What mkdocstrings replaces by the docstring: the place of the definition, under the name that users write."""
    return f"::: {origin(module, name)}\n    options:\n      heading: {called}\n      toc_label: {called.removeprefix('si.')}"


def origin(module: str, name: str) -> str:
    """The full path of what a module imports under a name; a submodule may have the same name as its function."""
    for node in parsed(module).body:
        if isinstance(node, ast.ImportFrom) and node.level == 1 and name in (alias.name for alias in node.names):
            return f"scale_interp.{module}.{node.module}.{name}"
    return f"scale_interp.{module}.{name}"


def exported(module: str) -> list[str]:
    """The public names of a module; read and not imported, as torch and plotly are not needed for it."""
    if (PACKAGE / module.replace(".", "/")).is_dir():
        return public_names(PACKAGE / module.replace(".", "/") / "__init__.py")
    return [node.name for node in parsed(module).body if isinstance(node, ast.ClassDef)]


def docstring(module: str) -> str:
    return ast.get_docstring(parsed(module)) or ""


@cache
def parsed(module: str) -> ast.Module:
    path = PACKAGE / module.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def command_line() -> Iterator[str]:
    """Every command with its arguments and options, from the signatures that typer reads."""
    yield from ("# Command line", "", "`scale-interp COMMAND --help` shows the same.", "")
    alone = [("", command) for command in app.registered_commands]
    grouped = [(f"{group.name} ", c) for group in app.registered_groups for c in getattr(group.typer_instance, "registered_commands", ())]
    for group_name, command in alone + grouped:
        assert command.callback is not None
        parameters = list(given(command.callback))
        name = group_name + (command.name or command.callback.__name__)
        arguments = [p.flag if p.required else f"[{p.flag}]" for p in parameters if not p.flag.startswith("--")]
        usage = " ".join(["scale-interp", name, *arguments, *(["[OPTIONS]"] if len(parameters) > len(arguments) else [])])
        yield from (f"## {name}", "", cell(inspect.getdoc(command.callback)), "", "```text", usage, "```", "")
        if parameters:
            yield from ("| | what | default |", "|---|---|---|")
        for p in parameters:
            kind = f" {p.kind.upper()}" if p.flag.startswith("--") and p.kind != "bool" else ""
            yield f"| `{p.flag}{kind}` | {cell(p.help)} | {'required' if p.required else p.default} |"
        yield ""


class Parameter(NamedTuple):
    """An argument (its flag in capitals) or an option of a command."""

    flag: str
    kind: str
    help: str | None
    required: bool
    default: str


def given(command: Callable[..., Any]) -> Iterator[Parameter]:
    for p in inspect.signature(command, eval_str=True).parameters.values():
        hint, *about = get_args(p.annotation) if get_origin(p.annotation) is Annotated else (p.annotation,)
        info = about[0] if about else typer.Option()
        kinds = [part for part in get_args(hint) if part is not type(None)] or [hint]
        kind = getattr((get_args(kinds[0]) or kinds)[0], "__name__", "value")
        if isinstance(info, typer.models.ArgumentInfo):
            flag = p.name.upper()
        else:
            # Inside Annotated typer has taken the first flag for a default, and puts that right only when it builds the command.
            named = [d for d in (info.default, *(info.param_decls or ())) if isinstance(d, str) and d.startswith("--")]
            flag = (named or ["--" + p.name.replace("_", "-")])[0]
        required = p.default is inspect.Parameter.empty
        shown = "" if required or p.default is None or p.default is False else f"`{p.default}`"
        yield Parameter(flag, {"str": "text", "int": "number"}.get(kind, kind), info.help, required, shown)


def cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("<", "&lt;")


def changelog() -> dict[str, str]:
    """CHANGELOG.md as a page; its links go from the repository's root."""
    return {"changelog.md": (ROOT / "CHANGELOG.md").read_text().replace("](docs/", "](")}


def sources(docs: Path) -> dict[str, str]:
    """A page for every source file that a page links to."""
    linked = sorted({path for page in docs.rglob("*.md") for _, path in SOURCE.findall(page.read_text())})
    return {f"source/{path.removesuffix('.py')}.md": f"# `{path}`\n\n````python\n{(ROOT / path).read_text()}````\n" for path in linked}
