"""Options that several commands take, each defined once: how the model is opened, and how questions are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

Command = TypeVar("Command", bound=Callable[..., None])
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps [default: the accelerator where there is one, else the CPU]")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16 [default: float32 on the CPU, elsewhere that of the checkpoint]")
]
DeviceMap = Annotated[str | None, typer.Option(help="auto spreads the model over all devices; in place of --device (needs accelerate)")]
Prompt = Annotated[
    str | None,
    typer.Option(
        help="a template with {images} and {text} in place of the chat template, or the name of one: bare, chat, scale-llava, scale-qwen"
    ),
]
Quantize = Annotated[str | None, typer.Option(help="nf4 (four bits, bitsandbytes) or int8 (eight bits, torchao)")]
Root = Annotated[Path | None, typer.Option(help="the folder of the data sets [default: $SCALE_INTERP_DATA, else ./data]")]
Answers = Annotated[
    str | None, typer.Option(help="how JSON lines give answers: index (from 0), index1 (from 1), text or letter [default: as they read]")
]
Options = Annotated[str | None, typer.Option(help="words, or letters: A. left, B. right, ... [default: words]")]

PLACE: Mapping[str, Any] = {"device": Device, "device_map": DeviceMap}
MODEL: Mapping[str, Any] = {"device": Device, "dtype": Dtype, "device_map": DeviceMap, "prompt": Prompt, "quantize": Quantize}
DATA: Mapping[str, Any] = {"root": Root, "answers": Answers, "options": Options}


def takes(*groups: Mapping[str, Any]) -> Callable[[Command], Command]:
    """Add options to a command, which gets them by name in its `**given`; a path arrives as text, as settings keep it."""
    options = {name: option for group in groups for name, option in group.items()}

    def add(command: Command) -> Command:
        def run(*args: Any, **named: Any) -> None:
            return command(*args, **{name: str(value) if name == "root" and value is not None else value for name, value in named.items()})

        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in options.items()]
        run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
        run.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*own, *more)}
        return run  # type: ignore[return-value]

    return add
