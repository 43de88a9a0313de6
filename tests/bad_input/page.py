"""Writes docs/bad_input.md from the table of kinds: `python -m tests.bad_input.page`."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import scale_interp as si
from scale_interp.core import strict_json
from scale_interp.core.files import write_bytes
from scale_interp.data import question
from scale_interp.errors import ScaleInterpError
from tests.bad_input import KINDS
from tests.bad_input.kind import Kind
from tests.bad_input.room import Room, offline
from tests.support import ROOT

LONGEST = 230


def page(room: Room) -> str:
    groups = {module: [k for k in KINDS if k.call.__module__.rpartition(".")[2] == module] for module in ROOMS}
    parts = [HEAD.format(kinds=len(KINDS), targets=len({k.target for k in KINDS}))]
    for module, title in ROOMS.items():
        parts += [f"## {title}", f"{len(groups[module]):,} kinds.", table(rows(groups[module], room))]
    limits = {"pixels": question.LARGEST, "file": strict_json.LARGEST_FILE, "line": strict_json.LARGEST_LINE}
    return "\n\n".join([*parts, LIMITS.format(**limits)]) + "\n"


def rows(kinds: Iterable[Kind], room: Room) -> list[dict[str, str]]:
    """A row a target: how many kinds, the errors that came, and the message of the kind in the middle of its list."""
    targets: dict[str, list[tuple[Kind, ScaleInterpError]]] = {}
    for kind in kinds:
        targets.setdefault(kind.target, []).append((kind, message(kind, room)))
    out = []
    for target, own in targets.items():
        kind, error = own[len(own) // 2]
        errors = ", ".join(sorted({type(e).__name__ for _, e in own}))
        row = {"target": f"`{target}`", "kinds": str(len(own)), "errors": errors, "mistake": shown(kind.mistake, room)}
        out.append(row | {"message": shown(str(error), room)})
    return out


def table(rows: list[dict[str, str]]) -> str:
    lines = [[*rows[0]], ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def message(kind: Kind, room: Room) -> ScaleInterpError:
    room.folder = Path(tempfile.mkdtemp(dir=room.root))
    try:
        kind.call(room)
    except ScaleInterpError as error:
        return error
    raise AssertionError(f"{kind.id} is not refused")


def shown(text: str, room: Room) -> str:
    text = re.sub(rf"{re.escape(str(room.root))}/[^/ ]+/|{re.escape(str(ROOT))}/", "", " ".join(text.split()))
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


ROOMS = {
    "arguments": "Arguments of public functions",
    "objects": "Questions, edits, adapters and their use",
    "models": "Models",
    "readers": "Data sets",
    "pictures": "Pictures",
    "results": "Saved results and adapters",
}
HEAD = """# Bad input

What is refused, by which error, and what the message says: {kinds:,} kinds of mistakes at {targets} targets, each a test of its own
(`pytest tests/bad_input`). This page is made of the tests' table by `python -m tests.bad_input.page`.

Every error is a `si.errors.ScaleInterpError`: `ArgumentError` (an argument of a wrong type, not finite, unknown or missing), `ModelError`,
`DataError`, `EditError` (an edit, or settings of one), `FileError` (a saved result) and `LeakError`. The message names the value, says
why it cannot be, and what to do instead. Arguments are checked against the annotations where `si.` is entered, before any work begins.

**Nothing runs that came with a file.** Results and weights are read from safetensors and JSON alone; a pickle (`.bin`, `.pt`, `.pth`,
`.ckpt`) is refused without being read. Code in a model's folder runs only with `trust_remote_code=True`. Pictures are read in
{formats}; PostScript, for which PIL would start another program, is not among them. No path
in a record, or in a list of shards, leaves its folder, be it by `..`, as an absolute path, or through a link.

**Nothing damaged is read as another number.** Saved results hold the SHA-256 of their content. JSON is read by its standard: a key that is
there twice, `NaN`, half a character or a byte that is no UTF-8 is an error. A file of an older version has no checksum and is read as it
is.

The tables give the number of kinds, the errors, and one of the messages for each target.""".replace(
    "{formats}", ", ".join(question.FORMATS)
)
LIMITS = """## Limits

| what | limit | raised by |
|---|---|---|
| pixels of a picture | {pixels:,} | `scale_interp.data.question.LARGEST = ...`; above 178,956,970 also `PIL.Image.MAX_IMAGE_PIXELS` |
| bytes of a JSON file that is read at once | {file:,} | `scale_interp.core.strict_json.LARGEST_FILE = ...` |
| bytes of a line of a file of records | {line:,} | `scale_interp.core.strict_json.LARGEST_LINE = ...` |
| questions of a rendered set | 1,000,000 | scenes that differ run out |

Files of records are read line by line, and pictures are opened one by one when they are asked for. A configuration that describes a far
larger model than its weights is refused before memory for it is filled. What is not caught: a changed byte in the weights of a
model's own folder that leaves them finite, as safetensors files from the hub hold no checksum."""


def main() -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as root, offline(Path(root) / "cache"):
        write_bytes(ROOT / "docs/bad_input.md", page(Room(Path(root), si.load("demo"))).encode())


if __name__ == "__main__":
    main()
