"""The application that the commands belong to, the arguments that several of them take, and how a command ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .printed import console

STOPPED, FAILED, REFUSED = 130, 1, 2
"""Exit codes: Ctrl-C; an unexpected error; an error that says what to do (and, from typer, wrong usage)."""


class Commands(TyperGroup):
    """All commands. Ctrl-C ends one with a line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            console(stderr=True).print("; ".join(["stopped", *getattr(error, "__notes__", [])]))
            raise typer.Exit(STOPPED) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which heads carry spatial reasoning, can scalars repair it, and is the gain real?",
)

Model = Annotated[str, typer.Argument(help="demo or another embedded model, a folder, or a hub id")]
Data = Annotated[str, typer.Option(help="a data set, as `scale-interp data` lists them, such as scenes/relation or jsonl:mine.jsonl")]
Out = Annotated[Path | None, typer.Option(help="the run's folder [default: runs/MODEL-DATA]")]
Folder = Annotated[Path, typer.Argument(help="the run's folder")]
Others = Annotated[
    list[str] | None,
    typer.Option(
        help="a data set whose answers should stay as they are; several may be given [default: other scenes, where these are scenes]"
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="fewer questions and one seed: a first look, not a result")]


def main() -> None:
    """Run the command line.

    An error of this package is printed in one line, with exit code 2; any other error with the place of its traceback, with exit code 1.
    """
    import warnings

    from ..errors import ScaleInterpError

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            app()
    except ScaleInterpError as error:
        _print_error(str(error))
        sys.exit(REFUSED)
    except Exception as error:
        notes = getattr(error, "__notes__", None) or [f"the traceback is in {_written_traceback(error)}"]
        _print_error(f"unexpected {type(error).__name__}: {error}; {'; '.join(notes)}")
        sys.exit(FAILED)


def _print_error(text: str) -> None:
    from rich.markup import escape

    console(stderr=True).print("[bold red]error:[/]", escape(text), highlight=False, soft_wrap=True)


def _show_warning(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
    from rich.markup import escape

    from ..core.progress import lines_above_bars

    with lines_above_bars():
        console(stderr=True).print("[yellow]warning:[/]", escape(str(message)), highlight=False, soft_wrap=True)


def _written_traceback(error: Exception) -> str:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="scale-interp-", suffix=".log", delete=False) as file:
        file.write("".join(traceback.format_exception(error)))
    return file.name
