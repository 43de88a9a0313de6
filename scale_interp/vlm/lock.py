"""One thread at a time on a model: runs change its attention function and its hooks for a moment, and tokenizers their padding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, RLock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..errors import EditError


@dataclass(eq=False)
class Use:
    """Who uses a decoder or a tokenizer.

    Attributes:
        lock: Held by the thread that runs it.
        running: That thread, and how many runs within runs it is in.
        changed: The thread that has changed it for a while, as by an attached edit, and how many changes it has made.
    """

    lock: Any = field(default_factory=RLock)
    running: tuple[int, int] = (0, 0)
    changed: tuple[int, int] = (0, 0)
    hook: Any = None

    def require_unchanged(self) -> None:
        """Raise EditError where another thread has changed it."""
        if self.changed[1] and self.changed[0] != get_ident():
            raise EditError(
                "another thread has attached an edit or an adapter to this model, which would act on this run too: run it in that thread, "
                "or after its `attached` block"
            )

    def guard(self, shared: Any) -> None:
        """Refuse the passes of other threads while there is a run or a change, and no longer."""
        busy = self.running[1] or self.changed[1]
        if busy and self.hook is None and isinstance(shared, nn.Module):
            self.hook = shared.register_forward_pre_hook(own_passes, prepend=True)
        elif not busy and self.hook is not None:
            self.hook.remove()
            self.hook = None


_uses: WeakKeyDictionary[Any, Use] = WeakKeyDictionary()
_adding = Lock()


def _use(shared: Any) -> Use:
    with _adding:
        return _uses.get(shared) or _uses.setdefault(shared, Use())


@contextmanager
def alone(shared: Any) -> Iterator[None]:
    """The block has a decoder, or a tokenizer, for itself: other threads wait, and the same thread may enter again.

    Raises EditError where another thread has changed it, as that may last until this thread has ended.
    """
    use = _use(shared)
    use.require_unchanged()
    with use.lock:
        use.require_unchanged()
        use.running = get_ident(), use.running[1] + 1
        use.guard(shared)
        try:
            yield
        finally:
            use.running = get_ident(), use.running[1] - 1
            use.guard(shared)


@contextmanager
def changed(shared: Any) -> Iterator[None]:
    """The block changes a decoder for its own thread, between runs too: until its end, a run of another thread is an EditError."""
    use = _use(shared)
    with alone(shared):
        use.changed = get_ident(), use.changed[1] + 1
    try:
        yield
    finally:
        with use.lock:
            use.changed = use.changed[0], use.changed[1] - 1
            use.guard(shared)


def forget_guard(copied: nn.Module) -> None:
    """Remove the hook that a deep copy of a running decoder has taken along."""
    for key in [key for key, hook in copied._forward_pre_hooks.items() if hook is own_passes]:
        del copied._forward_pre_hooks[key]


def own_passes(module: nn.Module, args: tuple) -> None:
    """A hook before every pass: raise EditError where the model is in the hands of another thread."""
    use = _uses.get(module)
    if use is None:
        return
    use.require_unchanged()
    if use.running[1] and use.running[0] != get_ident():
        raise EditError(
            "another thread runs this model, which changes it meanwhile: put passes of your own in `with vlm.alone():`, which waits for it"
        )
