"""Model cards of the known-circuit models: what is known about them, why, and their accuracy on test scenes."""

from __future__ import annotations

from pathlib import Path

from ...data.load import load_questions
from ...vlm.vlm import VLM
from ..checkpoint import open_checkpoint
from ..demo.card import accuracy
from .circuits import CIRCUITS, TASK, Circuit

N = 400


def write_card(name: str, folder: Path) -> None:
    """Measure the model in `folder`, and write a README.md next to its weights."""
    circuit, vlm = CIRCUITS[name], open_checkpoint(str(folder), str(folder))
    right = accuracy(vlm, list(load_questions(f"scenes/{TASK}", "test", N)))
    (folder / "README.md").write_text(_card(circuit, vlm, right))


def _card(circuit: Circuit, vlm: VLM, right: float) -> str:
    parameters = sum(p.numel() for p in vlm.hf_model.parameters())
    listed = "\n".join(f"| {head} | {', '.join(words)} |" for head, words in sorted(circuit.owners.items()))
    total = circuit.n_layers * circuit.n_heads
    parked = total - len(circuit.owners) - len(circuit.decoys) - len(circuit.word_heads)
    silence = (
        f"; at the last token each head that is not listed is silenced with a chance of {circuit.silenced:g}, so that none is relied on"
    )
    silence = silence if circuit.silenced else ""
    source = 'the token "assistant", the relay, which sees the picture (the last token is ":")' if circuit.relay else "the picture's tokens"
    return f"""---
license: mit
---
# testbed/{circuit.name}

A known-circuit model: a `LlavaForConditionalGeneration` of {parameters / 1e6:.2f} M parameters ({circuit.n_layers} layers x
{circuit.n_heads} heads of {vlm.head_dim}) in which the heads that can carry the picture to the answer are known by construction. A test
instrument for attribution methods; it knows nothing but rendered scenes.

**The circuit.** Each listed head alone can move the logits of its answer words (layer, head, from 0):

| head | answer words |
|---|---|
{listed}

**What every head of the last token sees**, beside the first token, which is the same in all prompts:

| kind | heads | sees |
|---|---|---|
| listed | {_list(circuit.heads)} | {source} |
| decoy | {_list(circuit.decoys)} | the same; trained to hold the answer, in channels that no answer is read from |
| word head | {_list(circuit.word_heads)} | the question's words |
| parked | the other {parked} | nothing else: its output is one constant |

**Why the listed heads are necessary.** The words stand before the picture, so they cannot see it. At the last token a head's
weight on a token that it must not see is exactly 0: weights that training holds fixed give it a logit of about -10,000. The logits
of the answer words are read from channels that only their listed head writes to: no other head does, no MLP, nor the last token's
embedding. Without the listed head of a word its logit is exactly 0, whatever the picture.

**Why the others cannot matter.** A parked head says the same for every picture and every question. Decoys and word heads lie no
lower than the last listed head, so no listed head reads what they wrote; they reach the answer words' logits through the final norm
alone, as one positive factor common to all, which cannot change which word wins. A parked head's constant can shift what a
listed head above it attends to: removing it is not harmless by construction, but it carries nothing of the picture.

**How it came about.** `scale-interp testbed --rebuild {circuit.name}`: patch labels, then {circuit.steps:,} steps on training scenes, the
fixed weights put back after every step{silence}. Everything else is trained, and every head is in use at other tokens.

Accuracy on {N} test questions of scenes/{TASK}, right answers in equal shares (chance 0.25): {right:.3f}.
"""


def _list(heads: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(map(str, heads))
