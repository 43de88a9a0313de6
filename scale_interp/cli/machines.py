"""--ray: a command whose batches are distributed over a Ray cluster."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

Ray = Annotated[bool, typer.Option("--ray", help="distribute sweeps and answers over a Ray cluster (by default one that is started here)")]
Address = Annotated[
    str | None, typer.Option("--ray-address", help="address of a running cluster, such as HOST:6379 or auto; implies --ray")
]


def on_machines(command: Callable[..., None]) -> Callable[..., None]:
    """Add --ray and --ray-address to a command."""

    @wraps(command)
    def run(*args: Any, ray: bool, ray_address: str | None, **named: Any) -> None:
        if not (ray or ray_address):
            return command(*args, **named)
        from ..execution import cluster

        with cluster(ray_address):
            return command(*args, **named)

    signature = inspect.signature(command, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, default, kind in (("ray", False, Ray), ("ray_address", None, Address))
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # type: ignore[attr-defined]
    run.__annotations__ = command.__annotations__ | {"ray": Ray, "ray_address": Address}
    return run
