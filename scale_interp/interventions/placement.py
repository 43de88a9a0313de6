"""Where prompts would be kept on this machine: every place with its room and its measured cost, and how many prompts go where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..data.question import Question
from ..execution.memory import prompt_bytes
from ..vlm.vlm import VLM
from .prefix import read_prefix
from .storage import PlaceName, now, rooms, seconds_per_byte


@dataclass(frozen=True)
class Place:
    """A place for prompts.

    Attributes:
        name: "memory", "host", "disk" or "recompute".
        room: Bytes that fit.
        seconds: What it takes to get one gigabyte back, measured; 0 for memory.
    """

    name: PlaceName
    room: int
    seconds: float


@torch.no_grad()
def measure_places(vlm: VLM, question: Question) -> tuple[Place, ...]:
    """Every place for prompts like this question's on this machine, in the order in which they are used.

    Args:
        vlm: The model.
        question: A question like those to come; its prompt is read twice, and the second time counts.

    Returns:
        The places that `vlm.prefix_cache` allows, and reading again.
    """
    for _ in range(2):
        started = now(vlm.device)
        prefix = read_prefix(vlm, [question])
        seconds = now(vlm.device) - started
    room = rooms(vlm, vlm.prefix_cache)
    found = [Place(name, n, 0.0 if name == "memory" else 1e9 * seconds_per_byte(name, str(vlm.device))) for name, n in room.items()]
    found.append(Place("recompute", 2**63 - 1, 1e9 * seconds / prefix.nbytes))
    return tuple(sorted(found, key=lambda place: place.seconds))


def placement(vlm: VLM, places: Sequence[Place], tokens: int, n_questions: int) -> dict[PlaceName, int]:
    """How many prompts of so many tokens would be kept in which place.

    Args:
        vlm: The model.
        places: From `measure_places`.
        tokens: Of a prompt.
        n_questions: How many prompts there are.

    Returns:
        Place -> prompts, in the order of the places; those under "recompute" are read again whenever they are needed.
    """
    left, found = n_questions, {}
    for place in places:
        n = min(left, place.room // prompt_bytes(vlm, tokens))
        if n:
            found[place.name] = n
        left -= n
        if place.name == "recompute":
            break
    return found
