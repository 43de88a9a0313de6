"""Results on disk: tensors in safetensors with readable JSON beside or inside them, written whole or not at all.

What is written holds the SHA-256 of its content, so that a changed byte is an error and never another number. Nothing that is read is
ever unpickled or run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import FileError, ScaleInterpError
from . import strict_json
from .arguments import fits, words

FORMAT = 1
LIBRARIES = ("torch", "transformers", "nnsight")
SEAL = "sha256"
"""The key of the checksum; a file without one, as an older version wrote it, is read as it is."""
T = TypeVar("T")


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


def write_json(path: Path, content: Mapping[str, Any], sealed: bool = False) -> None:
    """A JSON file; what is not a number becomes null, for which JSON has a word. sealed: with a checksum."""
    plain = _plain(content)
    if sealed:
        plain[SEAL] = _checksum(plain)
    write_bytes(path, (json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or FileError; the checksum of a sealed one is compared and left out."""
    try:
        content = strict_json.read(path)
    except FileNotFoundError as error:
        raise FileError(f"no file {path}; give the place of a saved result") from error
    except (ValueError, OSError) as error:
        raise FileError(f"{path} is damaged or no JSON ({error}); write it again") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} holds no JSON object but a {type(content).__name__}; give the file of a saved result")
    _require_seal(path, content, f"save it again, or take the line {SEAL!r} out to have it as it is")
    return content


def _checksum(content: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> str:
    # Through JSON and back, as keys that are numbers become texts in a file.
    state = hashlib.sha256(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode())
    for name, tensor in sorted((tensors or {}).items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _require_seal(path: Path, content: dict[str, Any], mend: str, tensors: Mapping[str, Tensor] | None = None) -> None:
    if (written := content.pop(SEAL, None)) is not None and written != _checksum(content, tensors):
        raise FileError(f"{path} is damaged or was changed (its checksum differs): {mend}")


def write_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Tensors and metadata as one safetensors file that says what kind of result it is."""
    # Copies, as safetensors refuses two tensors of one memory.
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    header: dict[str, Any] = {"kind": kind, "format": FORMAT, "meta": _plain(meta)}
    header[SEAL] = _checksum(header, plain)
    # One entry: safetensors writes several in no fixed order, and equal results shall be equal files.
    write_bytes(path, save(plain, {"scale_interp": json.dumps(header, sort_keys=True)}))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What write_tensors wrote. Raises FileError for a missing, damaged or foreign file."""
    if not path.is_file():
        raise FileError(f"no file {path}; give the place of a saved {kind}")
    try:
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get("scale_interp")
            tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise FileError(f"{path} is damaged or no safetensors file ({error}); save it again") from error
    try:
        header = dict(strict_json.parsed(written or "{}"))
        found, number, meta = header.get("kind", "a foreign file"), header.get("format"), dict(header.get("meta", {}))
    except (AttributeError, TypeError, ValueError) as error:
        raise FileError(f"{path}: its metadata cannot be read ({error}); save it again") from error
    if written and header.keys() - {"kind", "format", "meta", SEAL}:
        raise FileError(f"{path}: its metadata hold an unknown {max(header.keys() - {'kind', 'format', 'meta', SEAL})!r}; save it again")
    if found != kind:
        raise FileError(f"{path} is no {kind} of scale_interp but {found!r}; give the file of a {kind}")
    if number != FORMAT:
        raise FileError(f"{path} has format {number!r}; this version reads format {FORMAT}: save it again with this version")
    _require_seal(path, header, "save it again", tensors)
    return tensors, meta


def expect(path: Path, tensors: Mapping[str, Tensor], name: str, ndim: int, whole: bool = False) -> Tensor:
    """A tensor of the file, checked: there, of this many axes, of finite floating-point (or whole) numbers."""
    if name not in tensors:
        raise FileError(f"{path} holds no tensor {name!r}; it has {', '.join(tensors) or 'none'}: save it again")
    tensor = tensors[name]
    if tensor.ndim != ndim:
        raise FileError(f"{path}: {name} has {tensor.ndim} axes, not {ndim}; save it again")
    if tensor.is_floating_point() == whole or tensor.is_complex() or tensor.dtype == torch.bool:
        raise FileError(
            f"{path}: {name} is of {tensor.dtype}; it must hold {'whole' if whole else 'floating-point'} numbers: save it again"
        )
    if not torch.isfinite(tensor).all():
        raise FileError(f"{path}: {name} holds values that are not finite; save it again")
    return tensor


def numbered(path: Path, tensors: Mapping[str, Tensor], name: str, below: int | None = None) -> Tensor:
    """A tensor [Q] of whole numbers from 0, all of them below `below`, such as the groups of questions."""
    tensor = expect(path, tensors, name, 1, whole=True)
    if len(tensor) and (int(tensor.min()) < 0 or (below is not None and int(tensor.max()) >= below)):
        span = "0 on" if below is None else f"0 to {below - 1}"
        raise FileError(f"{path}: {name} must hold whole numbers from {span}; save it again")
    return tensor


def entry(path: Path, meta: Mapping[str, Any], name: str, hint: Any) -> Any:
    """An entry of a file's metadata, checked: there, and of this type."""
    if name not in meta:
        raise FileError(f"{path}: {name!r} is missing or wrong: an older version wrote it, or it is damaged; save it again")
    if not fits(meta[name], hint):
        raise FileError(f"{path}: {name!r} is {str(meta[name])[:60]!r}, not {words(hint)}; save it again")
    return meta[name]


def together(path: Path, fit: bool) -> None:
    """Raise FileError where the parts of a file do not fit together."""
    if not fit:
        raise FileError(f"{path}: its parts do not fit together; save it again")


def made(path: Path, make: Callable[[], T]) -> T:
    """What is made of a file's content; whatever a constructor finds wrong with it becomes a FileError that names the file."""
    try:
        return make()
    except FileError:
        raise
    except (ScaleInterpError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path}: {error!r} is missing or wrong; save it again") from error


def heads_of(path: Path, found: Any, n_layers: int, n_heads: int) -> tuple[tuple[int, int], ...]:
    """Saved (layer, head) pairs, all of them heads of a model of this shape and each there once."""
    if not isinstance(found, Iterable) or not all(fits(head, tuple[int, int]) for head in found):
        raise FileError(f"{path}: its heads are no list of (layer, head) pairs; save it again")
    heads = tuple((layer, head) for layer, head in found)
    wrong = [h for h in heads if not (0 <= h[0] < n_layers and 0 <= h[1] < n_heads)]
    if wrong or len(set(heads)) < len(heads):
        what = f"head {wrong[0]} is out of range" if wrong else "a head is there twice"
        raise FileError(f"{path}: {what}, its values are of {n_layers} layers x {n_heads} heads; save it again, or give its own folder")
    return heads
