"""Tensors on disk: one safetensors file with readable JSON in its header that says what kind of result it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import FileError
from . import strict_json
from .files import SEAL, as_json, checksum, require_seal, write_bytes

FORMAT = 1
HEADER = {"kind", "format", "meta", SEAL}


def write_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and metadata as one safetensors file.

    Args:
        path: The file.
        kind: What kind of result this is, for the header.
        tensors: The tensors by name.
        meta: Metadata in JSON's types.
    """
    # Copies, as safetensors refuses two tensors that share memory.
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    header: dict[str, Any] = {"kind": kind, "format": FORMAT, "meta": as_json(meta)}
    header[SEAL] = checksum(header, *_bytes(plain))
    # One entry: safetensors writes several entries in no fixed order, and equal results must give equal files.
    write_bytes(path, save(plain, {"scale_interp": json.dumps(header, sort_keys=True)}))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that `write_tensors` wrote.

    Args:
        path: The file.
        kind: What kind of result it must be.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        FileError: The file is missing, damaged, or of another kind.
    """
    if not path.is_file():
        raise FileError(f"no file {path}; give the path of a saved {kind}")
    try:
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get("scale_interp")
            tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise FileError(f"{path} is damaged or not a safetensors file ({error}); save it again") from error
    try:
        header = dict(strict_json.parsed(written or "{}"))
        found, number, meta = header.get("kind", "a foreign file"), header.get("format"), dict(header.get("meta", {}))
    except (AttributeError, TypeError, ValueError) as error:
        raise FileError(f"{path}: its metadata cannot be read ({error}); save it again") from error
    if written and (unknown := header.keys() - HEADER):
        raise FileError(f"{path}: its metadata contain an unknown {max(unknown)!r}; save it again")
    if found != kind:
        raise FileError(f"{path} is not a saved {kind} but {found!r}; give the file of a saved {kind}")
    require_format(path, number)
    require_seal(path, header, "save it again", *_bytes(tensors))
    return tensors, meta


def require_format(path: Path, number: Any) -> None:
    """Check a file's format number.

    Raises:
        FileError: This version does not read the format.
    """
    if number != FORMAT:
        raise FileError(f"{path} has format {number!r}; this version reads format {FORMAT}: save it again with this version")


def _bytes(tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    for name, tensor in sorted(tensors.items()):
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode()
        yield tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def expect(path: Path, tensors: Mapping[str, Tensor], name: str, ndim: int, whole: bool = False) -> Tensor:
    """One tensor of a file, checked.

    Args:
        path: The file, for messages.
        tensors: The file's tensors.
        name: The tensor's name.
        ndim: The number of axes it must have.
        whole: Whether it must contain integers from 0 on; otherwise finite floating-point numbers.

    Returns:
        The tensor.

    Raises:
        FileError: The tensor is missing or does not meet these conditions.
    """
    if name not in tensors:
        raise FileError(f"{path} has no tensor {name!r}; it has {', '.join(tensors) or 'none'}: save it again")
    tensor = tensors[name]
    if tensor.ndim != ndim:
        raise FileError(f"{path}: {name} has {tensor.ndim} axes, not {ndim}; save it again")
    if tensor.is_floating_point() == whole or tensor.is_complex() or tensor.dtype == torch.bool:
        raise FileError(
            f"{path}: {name} is of {tensor.dtype}; it must hold {'whole' if whole else 'floating-point'} numbers: save it again"
        )
    if not torch.isfinite(tensor).all():
        raise FileError(f"{path}: {name} has values that are not finite; save it again")
    if whole and tensor.numel() and int(tensor.min()) < 0:
        raise FileError(f"{path}: {name} must hold whole numbers from 0 on; save it again")
    return tensor
