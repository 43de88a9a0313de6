"""Layers that keep a state of the whole past instead of keys and values (recurrent and convolutional ones, in hybrids).

Such a layer reads one token after another, so variants cannot stand side by side in one sequence: while it runs, every row is a prompt
of its own in the batch, behind the prompt's state, which is shared and never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers.cache_utils import LinearAttentionLayer

from ..vlm.cache import cache_of

States = Mapping[int, Tensor | None]


class ReadOnly(Tensor):
    """A state to which a layer's own code does not write: Mamba's writes the next one in place, where a gradient still needs this one."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is Tensor.copy_ and isinstance(args[0], cls):
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})


class StateLayer(LinearAttentionLayer):
    """One layer's states after the prompt, each [B, ...]. New ones are returned to the layer and not stored."""

    def __init__(self, conv: States, recurrent: States):
        super().__init__(len(conv))
        self.of_prompt = dict(conv), dict(recurrent)
        self.conv_states, self.recurrent_states = self.of_prompt
        self.has_previous_state = dict.fromkeys(conv, True)
        self.record_past = True  # layers then hand on what they read instead of writing to the state in place

    @property
    def nbytes(self) -> int:
        """The size of the states in bytes."""
        return sum(state.nbytes for states in self.of_prompt for state in states.values() if state is not None)

    def copies(self, n: int) -> None:
        """Show n adjacent copies of each prompt's states to the layer."""
        self.conv_states, self.recurrent_states = (
            {i: None if state is None else state.repeat_interleave(n, 0) for i, state in states.items()} for states in self.of_prompt
        )
        if torch.is_grad_enabled():
            read: dict[int, Tensor | None] = {
                i: None if state is None else state.as_subclass(ReadOnly) for i, state in self.recurrent_states.items()
            }
            self.recurrent_states = read

    def part(self, some: slice) -> StateLayer:
        """Those of some prompts, as views."""
        return StateLayer(*({i: None if state is None else state[some] for i, state in states.items()} for states in self.of_prompt))

    def reader(self) -> StateLayer:
        """Another object with the same states, for one run."""
        return StateLayer(*self.of_prompt)

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any) -> Tensor:
        before = self.conv_states[state_idx]
        return conv_states if before is None else torch.cat([before, conv_states], -1)

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        return recurrent_states


def concatenate_states(parts: list[StateLayer]) -> StateLayer:
    """The states of several batches of prompts as one batch."""

    def joined(kind: int) -> dict[int, Tensor | None]:
        together: dict[int, list[Tensor | None]] = {i: [part.of_prompt[kind][i] for part in parts] for i in parts[0].of_prompt[kind]}
        return {i: torch.cat([s for s in states if s is not None]) if states[0] is not None else None for i, states in together.items()}

    return StateLayer(joined(0), joined(1))


@contextmanager
def rows_in_batch(
    layers: Mapping[int, nn.Module], own: Bool[Tensor, "questions rows rows"], depth: Int[Tensor, "questions rows"]
) -> Iterator[None]:
    """Run these layers with every row in the batch.

    Args:
        layers: The layers that keep a state, by their number.
        own: Which rows of its variant a row follows, itself included, [B, R, R].
        depth: How many others it follows, [B, R].
    """
    before_row = _paths(own, depth)
    hooks: list[Any] = []
    for number, layer in layers.items():
        hooks.append(layer.register_forward_pre_hook(_spread(number, before_row), with_kwargs=True))
        hooks.append(layer.register_forward_hook(_collect(before_row, depth)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _paths(own: Tensor, depth: Tensor) -> Tensor:
    """The rows from the first one to each row, [B, R, K]; a shorter path repeats its last row."""
    B, R, _ = own.shape
    K = int(depth.max()) + 1
    paths = torch.arange(R, device=own.device)[None, :, None].repeat(B, 1, K)
    for b, r, other in own.nonzero().tolist():
        paths[b, r, int(depth[b, other])] = other
    return paths


def _spread(number: int, paths: Tensor) -> Callable:
    B, R, K = paths.shape

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        named = "hidden_states" in kwargs
        hidden = kwargs["hidden_states"] if named else args[0]
        n, d = hidden.shape[1] // R, hidden.shape[-1]
        rows = hidden.reshape(B, n, R, d)
        if K > 1 or R > 1:
            index = paths.to(hidden.device).reshape(B, 1, R * K, 1).expand(-1, n, -1, d)
            rows = rows.gather(2, index)
        rows = rows.reshape(B * n * R, K, d)
        given = cache_of(kwargs)
        given = kwargs["cache_params"] if given is None else given  # the Mamba families' own name
        given.layers[number].copies(n * R)
        kwargs = kwargs | {"attention_mask": None}
        return (args, kwargs | {"hidden_states": rows}) if named else ((rows, *args[1:]), kwargs)

    return hook


def _collect(paths: Tensor, depth: Tensor) -> Callable:
    B, R, K = paths.shape

    def hook(module: nn.Module, args: tuple, out: Any) -> Any:
        rows = out[0] if isinstance(out, tuple) else out
        n, d = len(rows) // (B * R), rows.shape[-1]
        index = depth.to(rows.device)[:, None, :, None, None].expand(B, n, R, 1, d)
        rows = rows.reshape(B, n, R, K, d).gather(3, index).reshape(B, n * R, d)
        return (rows, *out[1:]) if isinstance(out, tuple) else rows

    return hook
