"""How choices are scored: their token ids, and the small tree of tokens that longer choices need.

A choice of one token is scored by its logit, unless log-likelihoods are requested. The log-likelihood of a longer choice
depends on the tokens before its last one. These form a tree below the prompt's last token, with one row per node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.arguments import Raises, options
from ..core.there import there
from ..data.question import Question
from ..errors import DataError
from ..vlm.plain import is_plain
from ..vlm.vlm import VLM

Scoring = Annotated[Literal["auto", "first", "whole", "mean"], Raises(DataError)]
"""How a choice is scored.

"auto": by its logit if all choices of the question are one token, otherwise as "whole". "first": by the logit of its first token.
"whole": by the sum of its tokens' log-likelihoods. "mean": by that sum divided by the number of tokens. If one choice is the beginning
of another, "auto", "whole" and "mean" append the end token to every choice; it counts as one of its tokens.
"""

VOCABULARY_ROWS = 4096
"""How many rows of logits [rows, vocabulary] are in memory at once when log-likelihoods need the whole vocabulary."""


@dataclass(frozen=True)
class Choices:
    """The choices of B questions as R rows to run, and the tokens to read from them.

    Attributes:
        tokens: The prompt's last token and the inner nodes of the tree, [B, R].
        depth: The depth of each node, [B, R].
        own: Which rows of its question a row attends to, [B, R, R].
        row: The row at which token k of choice c is read, [B, C, K].
        token: Its id, [B, C, K].
        used: Whether choice c has a token k, [B, C, K].
        long: Whether choices are scored by log-likelihoods rather than logits, [B].
        per_token: Whether scores are divided by the number of tokens.
    """

    tokens: Int[Tensor, "questions rows"]
    depth: Int[Tensor, "questions rows"]
    own: Bool[Tensor, "questions rows rows"]
    row: Int[Tensor, "questions choices tokens"]
    token: Int[Tensor, "questions choices tokens"]
    used: Bool[Tensor, "questions choices tokens"]
    long: Bool[Tensor, " questions"]
    per_token: bool = False

    def part(self, some: slice) -> Choices:
        """Those of some of the questions."""
        given: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        own: dict[str, Any] = {name: value[some] if isinstance(value, Tensor) else value for name, value in given.items()}
        return Choices(**own)

    @cached_property
    def _some_long(self) -> bool:
        """Asked once, as a GPU is waited for."""
        return bool(self.long.any())

    def likelihoods(self) -> Choices:
        """The same choices, all scored by log-likelihoods over the whole vocabulary."""
        return replace(self, long=torch.ones_like(self.long))

    def read(self, vlm: VLM, hidden: Float[Tensor, "questions variants rows width"]) -> Float[Tensor, "questions variants choices"]:
        """Score the choices.

        Args:
            vlm: The model.
            hidden: The final norm's output, [B, n, R, d].

        Returns:
            Scores [B, n, C]; -inf where a question has fewer choices.
        """
        if self.row.device != hidden.device:  # the last layers of a model on several devices
            here: dict[str, Any] = {
                field.name: there(value, hidden.device) for field in fields(self) if isinstance(value := getattr(self, field.name), Tensor)
            }
            return replace(self, **here).read(vlm, hidden).to(self.row.device)
        head = vlm.head
        at_row = hidden.gather(2, self.row.flatten(1)[:, None, :, None].expand(-1, hidden.shape[1], -1, hidden.shape[-1]))
        picked = vlm.cap(self._columns(head, at_row)).float().unflatten(2, self.row.shape[1:])
        if self._some_long:
            total = self._log_total(vlm, head, hidden)
            total = total.gather(2, self.row.flatten(1)[:, None].expand(-1, hidden.shape[1], -1)).unflatten(2, self.row.shape[1:])
            picked = picked - total * self.long[:, None, None, None]
        scores = (picked * self.used[:, None]).sum(-1)
        if self.per_token:
            scores = scores / self.used.sum(-1).clamp(min=1)[:, None]
        return scores.masked_fill(~self.used.any(-1)[:, None], float("-inf"))

    def _columns(self, head: Any, at_row: Tensor) -> Tensor:
        """Logits [B, n, C * K] of the choices' tokens only; a head that is more than a matrix is run in full."""
        token = self.token.flatten(1)
        if not is_plain(head):
            wanted = token[:, None].expand(-1, at_row.shape[1], -1).flatten()
            rows = zip(at_row.flatten(0, 2).split(VOCABULARY_ROWS), wanted.split(VOCABULARY_ROWS), strict=True)
            return torch.cat([head(part).gather(1, t[:, None])[:, 0] for part, t in rows]).view(at_row.shape[:3])
        token = there(token, head.weight.device)
        picked = torch.einsum("bnkd,bkd->bnk", at_row, F.embedding(token, head.weight).to(at_row.device))
        return picked if getattr(head, "bias", None) is None else picked + head.bias[token][:, None].to(at_row.device)

    def _log_total(self, vlm: VLM, head: torch.nn.Module, hidden: Tensor) -> Tensor:
        flat = hidden.flatten(0, 2)
        parts = [vlm.cap(head(rows)).float().logsumexp(-1) for rows in flat.split(VOCABULARY_ROWS)]
        return torch.cat(parts).view(hidden.shape[:3])


def read_choices(vlm: VLM, questions: Sequence[Question], last_tokens: Int[Tensor, " questions"], scoring: Scoring = "auto") -> Choices:
    """The choices of B questions as rows and tokens.

    Args:
        vlm: The model.
        questions: The questions.
        last_tokens: The last token of each prompt, [B].
        scoring: How choices are scored.

    Returns:
        The choices.

    Raises:
        DataError: The tokenizer does not distinguish the choices of a question.
    """
    sequences = [choice_sequences(vlm, q, scoring) for q in questions]
    trees = [_tree(s) for s in sequences]
    B, C = len(questions), max(map(len, sequences))
    K, R = max(len(c) for s in sequences for c in s), max(map(len, trees))
    # Lists, as writing one number to a tensor takes longer than all of this.
    tokens = [[last] * R for last in last_tokens.tolist()]
    depth = [[0] * R for _ in range(B)]
    own = [[[r == other for other in range(R)] for r in range(R)] for _ in range(B)]
    row, token, used = ([[[0] * K for _ in range(C)] for _ in range(B)] for _ in range(3))
    for b, (sequence, tree) in enumerate(zip(sequences, trees, strict=True)):
        for node, r in tree.items():
            depth[b][r] = len(node)
            if node:
                tokens[b][r] = node[-1]
                own[b][r] = [mine or above for mine, above in zip(own[b][r], own[b][tree[node[:-1]]], strict=True)]
        for c, ids in enumerate(sequence):
            for k, t in enumerate(ids):
                row[b][c][k], token[b][c][k], used[b][c][k] = tree[tuple(ids[:k])], t, 1
    long = [as_likelihoods(s, scoring) for s in sequences]
    found = {"tokens": tokens, "depth": depth, "own": own, "row": row, "token": token, "used": used, "long": long}
    dtypes = {"own": torch.bool, "used": torch.bool, "long": torch.bool}
    tensors = {name: there(torch.tensor(value, dtype=dtypes.get(name, torch.long)), last_tokens.device) for name, value in found.items()}
    return Choices(**tensors, per_token=scoring == "mean")


def choice_sequences(vlm: VLM, question: Question, scoring: Scoring = "auto") -> list[list[int]]:
    """The token ids of each choice.

    Args:
        vlm: The model.
        question: The question.
        scoring: "first" keeps only the first token of each choice. Otherwise, if one choice is the beginning of another, the end token
            is appended to all choices.

    Returns:
        One list of token ids per choice.

    Raises:
        DataError: These tokens do not distinguish the choices, or the scoring is unknown.
    """
    if scoring not in options(Scoring):
        raise DataError(f"scoring {scoring!r}: choose from {', '.join(map(repr, options(Scoring)))}")
    ids = vlm.choice_ids(question)
    if scoring == "first":
        first = [c[:1] for c in ids]
        if shared := next(((i, j) for j in range(len(ids)) for i in range(j) if first[i] == first[j]), None):
            raise DataError(
                f"question {question.id}: choices {question.choices[shared[0]]!r} and {question.choices[shared[1]]!r} begin with the same "
                f"token of {vlm.name}, so first tokens cannot tell them apart: use scoring='whole' or 'mean'"
            )
        return first
    if len({tuple(c) for c in ids}) < len(ids):
        same = next(question.choices[j] for i, c in enumerate(ids) for j in range(i) if ids[j] == c)
        raise DataError(
            f"question {question.id}: choice {same!r} has the same tokens as another choice ({question.choices}): "
            f"the tokenizer of {vlm.name} does not know these words; use others, or another model"
        )
    begins = any(i != j and b[: len(a)] == a for i, a in enumerate(ids) for j, b in enumerate(ids))
    return [[*c, vlm.tokenizer.eos_token_id] for c in ids] if begins else ids


def as_likelihoods(sequences: list[list[int]], scoring: Scoring) -> bool:
    """Whether these choices are scored by log-likelihoods rather than logits."""
    return scoring in ("whole", "mean") or max(map(len, sequences)) > 1


def _tree(sequences: list[list[int]]) -> dict[tuple[int, ...], int]:
    """Every proper prefix of a choice, the empty one first, numbered so that parents come before children."""
    nodes = {tuple(ids[:k]) for ids in sequences for k in range(len(ids))}
    return {node: i for i, node in enumerate(sorted(nodes, key=lambda n: (len(n), n)))}
