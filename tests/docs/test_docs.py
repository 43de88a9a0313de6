"""Every example of README and docs runs, every command parses, every link leads somewhere."""

import ast
import doctest
import re
import shlex
import tomllib
from typing import NamedTuple
from urllib.parse import urlparse

import pytest
from typer.main import get_command

import scale_interp as si
from scale_interp.cli import app
from tests.support import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"\n\n```text\n(.*?)```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^|\n\n)((?: {4}[^\n]*\n?)+)")
LINK = re.compile(r"!?\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)\)|<(https?://[^>\s]+)>")
PROGRAMS = ("scale-interp", "pip", "python", "pytest", "mkdocs")
NAME = re.compile(r"\bsi((?:\.[A-Za-z_]\w*)+)")


NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?")


class Block(NamedTuple):
    """A fenced block: what is behind the three marks, its text, the line it begins on, and the output that is shown below it."""

    info: str
    text: str
    line: int
    output: str | None


def blocks(page):
    text = page.read_text()
    for found in FENCE.finditer(text):
        indent = len(found["indent"])
        body = "".join(line[indent:] for line in found["body"].splitlines(keepends=True))
        below = OUTPUT.match(text, found.end())
        yield Block(found["info"].strip(), body, text[: found.start()].count("\n") + 2, below and below[1])


def prose(page):
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def named(page):
    return str(page.relative_to(ROOT))


def python_blocks(page):
    return [b for b in blocks(page) if b.info.split()[:1] == ["python"]]


def commands(page):
    """Every command line of a page: in shell blocks, in indented blocks, and in code spans that name more than the program."""
    shells = [b.text for b in blocks(page) if b.info == "sh"] + [found[1] for found in INDENTED.finditer(prose(page))]
    for line in "\n".join(shells).replace("\\\n", " ").splitlines():
        for part in line.strip().split(" && "):
            if part.split()[:1] and part.split()[0] in PROGRAMS:
                yield part.strip()
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page)):
        if span.startswith(("scale-interp ", "pip install ")):
            yield span


def with_python():
    """Pages with examples; the README's run by default, the others where all is run."""
    for page in PAGES:
        if any(b.info == "python" for b in python_blocks(page)):
            yield pytest.param(page, marks=() if page.parent == ROOT else pytest.mark.full)


@pytest.mark.parametrize("page", with_python(), ids=named)
def test_python_blocks_run_in_order_and_need_nothing_else(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "example"}
    for i, block in enumerate(b for b in python_blocks(page) if b.info == "python"):
        if block.text.startswith(">>>"):
            example = doctest.DocTestParser().get_doctest(block.text, names, named(page), named(page), block.line)
            said = []
            doctest.DocTestRunner(verbose=False).run(example, out=said.append, clear_globs=False)
            assert not said, "".join(said)
            names |= example.globs
        else:
            file = tmp_path / f"block_{i}.py"  # a trace of nnsight reads its own source
            file.write_text("\n" * (block.line - 1) + block.text)
            capsys.readouterr()
            try:
                exec(compile(file.read_text(), str(file), "exec"), names)
            except Exception as error:
                raise AssertionError(f"{named(page)}, block at line {block.line}: {type(error).__name__}: {error}") from error
            printed = capsys.readouterr().out
            if block.output is not None:
                assert same(printed, block.output), f"{named(page)}, block at line {block.line} prints\n{printed}"


def same(printed, shown):
    """Equal words, and numbers that differ no more than another machine's rounding may make them."""
    printed, shown = (re.sub(r"\b[0-9a-f]{12}\b", "HASH", text) for text in (printed, shown))
    if NUMBER.sub("#", printed).split() != NUMBER.sub("#", shown).split():
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    return all(float(a.replace(",", "")) == pytest.approx(float(b.replace(",", "")), rel=0.1, abs=0.03) for a, b in pairs)


def test_other_words_or_numbers_are_found():
    assert same("gain +0.210, p = 1e-05", "gain  +0.205, p = 2e-05")
    assert not same("gain +0.210", "loss +0.210")
    assert not same("gain +0.210", "gain +0.150")
    assert not same("3 heads", "4 heads")


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.info != "python" for b in python_blocks(p))], ids=named)
def test_blocks_that_cannot_run_here_say_so_and_compile(page):
    for block in python_blocks(page):
        assert block.info in ("python", "python no-run"), f"{named(page)}, line {block.line}: unknown mark {block.info!r}"
        ast.parse(block.text)


def exists(chain):
    where = si
    for part in chain.strip(".").split("."):
        if not hasattr(where, part):
            fields = getattr(where, "__dataclass_fields__", {})
            return part in fields
        where = getattr(where, part)
    return True


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_name_that_is_mentioned_exists(page):
    code = "\n".join(b.text for b in python_blocks(page))
    spans = "\n".join(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page)))
    missing = {found for found in NAME.findall(code + "\n" + spans) if not exists(found)}
    assert not missing, f"{named(page)}: scale_interp has no {sorted(missing)}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_parse(page):
    for command in commands(page):
        words = shlex.split(command, comments=True)
        if words[:1] == ["scale-interp"]:
            parse(words[1:], f"{named(page)}: {command}")
        elif words[:2] == ["pip", "install"]:
            for extra in re.findall(r"\[([\w,]+)\]", command):
                known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
                assert set(extra.split(",")) <= known.keys(), f"{named(page)}: {command}"
        elif words[:1] == ["python"] and words[1:2] and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), f"{named(page)}: {command}"
        elif words[:2] == ["python", "-m"] and words[2].startswith("docs."):
            assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file(), f"{named(page)}: {command}"


def parse(words, where):
    """What the command line would do with these words, up to running the command."""
    group = get_command(app)
    if not words or words[0].startswith("--"):
        assert set(words) <= {"--help", *(option for p in group.params for option in p.opts)}, f"{where}: no such option"
        return
    with group.make_context("scale-interp", list(words[:1]), resilient_parsing=True) as outer:
        command = group.get_command(outer, words[0])
        assert command is not None, f"{where}: no such command"
        if len(words) == 1:  # the text names a command
            return
        try:
            command.make_context(words[0], list(words[1:]), parent=outer).close()
        except Exception as error:
            raise AssertionError(f"{where}: {getattr(error, 'message', error)}") from error


def test_a_wrong_option_or_command_is_found():
    parse(["run", "demo", "--quick"], "here")
    for wrong in (["run", "--quickly"], ["walk"], ["run", "--top", "many"]):
        with pytest.raises(AssertionError, match="here"):
            parse(wrong, "here")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    for found in LINK.finditer(prose(page)):
        target = found[1] or found[2]
        if re.match(r"[a-z]+:", target):
            parts = urlparse(target)
            assert parts.scheme == "https" and re.fullmatch(r"[\w.-]+\.[a-z]+", parts.netloc), f"{named(page)}: {target}"
        elif not target.startswith("#"):
            path = (page.parent / target.partition("#")[0]).resolve()
            generated = path.is_relative_to(ROOT / "docs/reference") or path == ROOT / "docs/changelog.md"
            assert path.is_file() or (generated and page.is_relative_to(ROOT / "docs")), f"{named(page)}: {target}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs/papers").glob("*.md")), ids=named)
def test_figures_of_a_paper_s_page_stand_on_the_pages_that_it_links(page):
    rows = [line for line in page.read_text().splitlines() if line.startswith("|") and re.search(r"\d\.\d|\d%", line)]
    assert rows
    for row in rows:
        linked = "".join((page.parent / name).read_text() for name in re.findall(r"\]\(([\w./]+\.md)", row))
        figures = re.findall(r"[-+]?\d+\.\d+|\d+%", re.sub(r"\]\([^)]*\)|LLaVA-[\d.]+|134\.1%", "", row))
        missing = [figure for figure in figures if figure not in linked]
        assert not missing, f"{named(page)}: {missing} of {row}"


def test_the_reference_lists_every_public_name_and_command():
    pytest.importorskip("mkdocs")
    from docs.mkdocs import hooks

    pages = hooks.reference()
    listed = set(re.findall(r"^      heading: (\S+)$", "\n".join(pages.values()), re.MULTILINE))
    modules = {"errors", "testbeds", "viz"}
    assert {f"si.{name}" for name in si.__all__ if name not in modules} <= listed
    assert {f"si.viz.{name}" for name in si.viz.__all__} | {f"si.testbeds.{name}" for name in si.testbeds.__all__} <= listed
    assert hooks.origin("interventions", "capture") == "scale_interp.interventions.capture.capture"
    for name, command in get_command(app).commands.items():
        for parameter in command.params:
            option = parameter.opts[0] if parameter.opts[0].startswith("--") else parameter.name.upper()
            assert re.search(rf"^## {name}$.*?`{option}", pages["reference/command_line.md"], re.MULTILINE | re.DOTALL)


def test_docstrings_become_markdown():
    pytest.importorskip("griffe")
    from docs.mkdocs import docstrings

    assert doctest.testmod(docstrings).failed == 0
    assert doctest.testmod(docstrings).attempted > 0
