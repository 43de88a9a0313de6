"""Files that are written completely or not at all, and JSON with a checksum.

A sealed file contains the SHA-256 of its content, so that a changed byte raises an error instead of changing a number. Nothing that is read
is ever unpickled or executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import FileError
from . import strict_json

SEAL = "sha256"
"""The key of the checksum. A file without one, written by an older version, is read unchecked."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: after a crash, a reader sees the old content or the new content."""
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
    """Write a JSON file.

    Args:
        path: The file.
        content: What to write; numbers that are not finite become null.
        sealed: Whether to add a checksum.
    """
    plain = as_json(content)
    if sealed:
        plain[SEAL] = checksum(plain)
    write_bytes(path, (json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def as_json(value: Any) -> Any:
    """Convert a value to JSON's types: tuples, arrays and tensors become lists, and numbers that are not finite become None."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {k: as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. The checksum of a sealed file is verified and left out.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        FileError: The file is missing, damaged, or does not contain a JSON object.
    """
    try:
        content = strict_json.read(path)
    except FileNotFoundError as error:
        raise FileError(f"no file {path}; give the path of a saved result") from error
    except (ValueError, OSError) as error:
        raise FileError(f"{path} is damaged or no JSON ({error}); write it again") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} holds no JSON object but a {type(content).__name__}; give the file of a saved result")
    require_seal(path, content, f"save it again, or take the line {SEAL!r} out to have it as it is")
    return content


def checksum(content: Mapping[str, Any], *parts: bytes) -> str:
    """The SHA-256 of an object in JSON's types and of the bytes that belong to it, as hexadecimal digits."""
    # Through JSON and back, as keys that are numbers become texts in a file.
    state = hashlib.sha256(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode())
    for part in parts:
        state.update(part)
    return state.hexdigest()


def require_seal(path: Path, content: dict[str, Any], mend: str, *parts: bytes) -> None:
    """Verify the checksum in a file's content, and remove it from the content.

    Raises:
        FileError: The checksum differs from that of the rest of the file.
    """
    if (written := content.pop(SEAL, None)) is not None and written != checksum(content, *parts):
        raise FileError(f"{path} is damaged or was changed (its checksum differs): {mend}")
