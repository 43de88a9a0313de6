"""Results on disk: tensors in safetensors with readable JSON beside or inside them, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import FileError

FORMAT = 1
LIBRARIES = ("torch", "transformers", "nnsight")


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {name: version(name) for name in ("scale-interp", *LIBRARIES)}


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole: a reader, or a crash, sees the old content or the new, nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file; what is not a number becomes null, for which JSON has a word."""
    write_bytes(path, (json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or FileError."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise FileError(f"no file {path}") from error
    except (ValueError, OSError) as error:
        raise FileError(f"{path} is damaged or no JSON ({error}); write it again") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} holds no JSON object")
    return content


def write_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Tensors and metadata as one safetensors file that says what kind of result it is."""
    # One entry: safetensors writes several in no fixed order, and equal results shall be equal files.
    header = {"scale_interp": json.dumps({"kind": kind, "format": FORMAT, "meta": _plain(meta)}, sort_keys=True)}
    write_bytes(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, header))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What write_tensors wrote. Raises FileError for a missing, damaged or foreign file."""
    if not path.is_file():
        raise FileError(f"no file {path}")
    try:
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get("scale_interp")
            tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is damaged or no safetensors file ({error}); save it again") from error
    try:
        header = json.loads(written or "{}")
        found, number, meta = header.get("kind", "a foreign file"), header.get("format"), dict(header.get("meta", {}))
    except (AttributeError, TypeError, ValueError) as error:
        raise FileError(f"{path}: its metadata cannot be read ({error})") from error
    if found != kind:
        raise FileError(f"{path} is no {kind} of scale_interp but {found!r}")
    if number != FORMAT:
        raise FileError(f"{path} has format {number!r}; this version reads format {FORMAT}")
    return tensors, meta


def expect(path: Path, tensors: Mapping[str, Tensor], name: str, ndim: int) -> Tensor:
    """A tensor of the file, checked: there, of this many axes, finite."""
    if name not in tensors:
        raise FileError(f"{path} holds no tensor {name!r}; it has {', '.join(tensors) or 'none'}")
    tensor = tensors[name]
    if tensor.ndim != ndim:
        raise FileError(f"{path}: {name} has {tensor.ndim} axes, not {ndim}")
    if not torch.isfinite(tensor).all():
        raise FileError(f"{path}: {name} holds values that are not finite")
    return tensor
