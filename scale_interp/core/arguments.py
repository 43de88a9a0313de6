"""Check the arguments of public functions against their annotations, before any work begins."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from ..errors import ArgumentError, EditError, ScaleInterpError
from .suggest import near


@dataclass(frozen=True)
class AtLeast:
    """The marker of a number that must be at least this large; a smaller one raises ArgumentError (EditError in settings)."""

    least: int


@dataclass(frozen=True)
class Raises:
    """The marker of a `Literal` whose words are checked before any work; another word raises this error.

    Functions check other `Literal`s themselves.
    """

    error: type[ScaleInterpError]


class OwnCheck:
    """The marker of an argument that the function checks itself."""


Count = Annotated[int, AtLeast(1)]
Seed = Annotated[int, AtLeast(0)]


class SelfChecking(Protocol):
    """A class that checks lists of its objects itself, such as Question: `require_items` raises DataError."""

    @classmethod
    def require_items(cls, items: Any) -> Any: ...


F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C")


def checked(function: F) -> F:
    """Check every call's arguments against the function's annotations.

    Further conditions are part of the signature: `Count`, `Seed` and the markers above, in `Annotated`. Lists of a class that has
    `require_items` are checked by that class, and the words of a `Literal` without `Raises` by the function itself.

    Args:
        function: The function to wrap.

    Returns:
        The function with the check in front of it.

    Raises:
        ArgumentError: On a call, for an argument that is unknown, missing, of the wrong type, not finite, or below its least value.
        DataError: On a call, for items that are not questions.

    >>> @checked
    ... def half(of: int) -> float:
    ...     return of / 2
    >>> half("3")
    Traceback (most recent call last):
    scale_interp.errors.ArgumentError: half(of='3'): a str; give a whole number
    >>> @checked
    ... def draw(seed: Seed = 0) -> int:
    ...     return seed
    >>> draw(-1)
    Traceback (most recent call last):
    scale_interp.errors.ArgumentError: draw(seed=-1): below 0; give 0 or more
    """
    check = _Check(function, function.__name__, ArgumentError, function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _plain(args), dict(zip(kwargs, _plain(kwargs.values()), strict=True))
        check(args, kwargs)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def checked_settings(kind: type[C]) -> type[C]:
    """Check the arguments of a dataclass of settings as `checked` checks those of a function.

    Args:
        kind: The dataclass.

    Returns:
        The same class.

    Raises:
        EditError: When an object is made, for an argument that does not fit.

    >>> from scale_interp import FitSettings
    >>> FitSettings(epoch=3)
    Traceback (most recent call last):
    scale_interp.errors.EditError: FitSettings: got an unexpected keyword argument 'epoch'; did you mean 'epochs'? It takes bound, \
radius, granularity, scope, at, epochs, lr, batch_size, micro_batch, l1, retain_weight, validation, patience, loss, l2, eps, clip, \
accumulate, order, keep, every_epoch
    """
    made = kind.__init__
    check = _Check(made, kind.__name__, EditError, kind)

    @wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        args, kwargs = _plain(args), dict(zip(kwargs, _plain(kwargs.values()), strict=True))
        check((self, *args), kwargs)
        made(self, *args, **kwargs)

    kind.__init__ = init  # type: ignore[method-assign]
    return kind


def _plain(arguments: Iterable[Any]) -> tuple[Any, ...]:
    """Arguments with numpy's numbers and arrays as Python's, which can be saved, seed a generator, and be true or false."""
    return tuple(value.tolist() if isinstance(value, np.generic | np.ndarray) else value for value in arguments)


class _Check:
    """The check of the calls of one function, annotated there or in its class; `error` is raised for an argument that does not fit."""

    def __init__(self, function: Callable[..., Any], name: str, error: type[ScaleInterpError], annotated: Any):
        self.annotated, self.name, self.error = annotated, name, error
        self.signature = inspect.signature(function)
        parameters = self.signature.parameters.values()
        self.known = [p.name for p in parameters if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]

    @cached_property
    def hints(self) -> dict[str, Any]:
        return get_type_hints(self.annotated, include_extras=True)  # at the first call, when all names are defined

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        try:
            given = self.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            unknown = next((key for key in kwargs if key not in self.known), "")
            takes = ", ".join(self.known)
            if suggestion := near(unknown, self.known):
                raise self.error(f"{self.name}: {error}{suggestion} It takes {takes}") from error
            raise self.error(f"{self.name}: {error}; {'use one of' if unknown else 'give what it takes:'} {takes}") from error
        for argument in self.known:
            if argument in given and argument in self.hints:
                self.require(argument, given[argument], *_parts(self.hints[argument]))

    def require(self, argument: str, value: Any, hint: Any, markers: Sequence[Any]) -> None:
        if any(isinstance(marker, OwnCheck) for marker in markers):
            return
        if (kinds := _listed(hint)) and not isinstance(value, Mapping) and value is not None:
            _require_items(value, kinds)
            return
        if not fits(value, hint, literal=False):
            what = "not finite" if isinstance(value, float) and not math.isfinite(value) else _kind(value)
            raise self.error(f"{self.name}({argument}={_short(value)}): {what}; give {words(hint)}")
        for marker in markers:
            if isinstance(marker, Raises) and value is not None and value not in options(hint):
                *listed, last = map(repr, options(hint))
                raise marker.error(f"{argument} {value!r}: choose {', '.join(listed)} or {last}{near(value, options(hint))}")
            if isinstance(marker, AtLeast) and value is not None and value < marker.least:
                raise self.error(f"{self.name}({argument}={_short(value)}): below {marker.least}; give {marker.least} or more")


def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """An annotation without its markers, and the markers; those of `Count | None` are Count's."""
    if get_origin(hint) in (Union, types.UnionType):
        return hint, tuple(marker for member in get_args(hint) for marker in _parts(member)[1])
    return (hint.__origin__, hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def options(hint: Any) -> tuple[Any, ...]:
    """The words of a `Literal`, with or without markers, or None beside them.

    >>> options(Annotated[Literal["a", "b"], Raises(EditError)])
    ('a', 'b')
    """
    hint, _ = _parts(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(word for one in get_args(hint) if one is not type(None) for word in options(one))
    return get_args(hint)


def _listed(hint: Any) -> tuple[type[SelfChecking], ...]:
    """The classes of items that check their lists themselves; empty for other annotations."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    lists = [one for one in options if get_origin(one) is Sequence]
    return tuple(arg for one in lists for arg in get_args(one) if _is_listed(arg))


def _require_items(value: Any, kinds: Sequence[type[SelfChecking]]) -> None:
    if not (hasattr(value, "__len__") and len(value) == 0):  # the function decides whether an empty list is allowed
        first = value[0] if _is_list(value) else value
        next((kind for kind in kinds if isinstance(first, kind)), kinds[-1]).require_items(value)


def _kind(value: Any) -> str:
    return "a class, not an object of it" if isinstance(value, type) else _article(type(value).__name__)


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def _short(value: Any) -> str:
    """The value as a message shows it; a large value is shown by its type alone, as printing it may take long."""
    small = value is None or isinstance(value, bool | int | float | str | Path | type)
    text = repr(value[:60] if isinstance(value, str) else value) if small else f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."


def fits(value: Any, hint: Any, literal: bool = True) -> bool:
    """Whether a value has an annotated type. Numbers must be finite.

    Args:
        value: The value.
        hint: The annotation.
        literal: Whether the words of a `Literal` are checked as well.

    Returns:
        True if the value fits.

    >>> fits([1, 2], list[int]), fits([1, "2"], Sequence[int]), fits(float("nan"), float | None)
    (True, False, False)
    """
    hint, _ = _parts(hint)
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if origin in (Union, types.UnionType):
        return any(_is_listed(one) or fits(value, one, literal) for one in args)
    if origin is Literal:
        return value in args if literal else isinstance(value, str)
    if hint in (float, int, bool):
        return _is_number(value, hint)
    if origin is None:
        return _is_a(value, hint)
    if issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(k, args[0], literal) and fits(v, args[1], literal) for k, v in value.items())
    if origin is tuple and args[-1:] != (Ellipsis,):
        return _is_list(value) and len(value) == len(args) and all(fits(v, one, literal) for v, one in zip(value, args, strict=True))
    if issubclass(origin, Iterable):
        if any(map(_is_listed, args)):
            return True
        if not _is_list(value):
            return origin not in (list, tuple, Sequence) and isinstance(value, origin) and not isinstance(value, str | bytes)
        deep = args and (literal or args[0] in (int, float, str))
        return not (deep and isinstance(value, list | tuple)) or all(fits(v, args[0], literal) for v in value)
    return callable(value) if origin is Callable else isinstance(value, origin)


def _is_listed(hint: Any) -> bool:
    return hasattr(hint, "require_items")


def _is_number(value: Any, kind: type) -> bool:
    truth = isinstance(value, bool) or type(value).__name__ == "bool_"
    if kind is bool or truth:
        return truth and kind is bool
    return isinstance(value, Integral) if kind is int else isinstance(value, Real) and math.isfinite(value)


def _is_list(value: Any) -> bool:
    """Whether this has a length and can be indexed, such as a list, an array or a tensor, and is neither text nor a mapping."""
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str | bytes | Mapping | type)


def _is_a(value: Any, hint: Any) -> bool:
    if hint is None:
        return value is None
    if not isinstance(hint, type):
        return callable(value) if hint is Callable else True
    if Protocol in hint.__mro__:
        return all(hasattr(value, name) for name in vars(hint) if not name.startswith("_")) and not isinstance(value, type)
    # Of an annotated shape only the class is checked here; the function checks axes and dtype.
    return isinstance(value, getattr(hint, "array_type", hint))


def words(hint: Any) -> str:
    """What an annotation asks for, in words.

    >>> words(Sequence[int] | None), words(float)
    ('a list of whole numbers, or None', 'a finite number')
    """
    hint, _ = _parts(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return ", or ".join(dict.fromkeys(words(one) for one in args))
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is not None and issubclass(origin, Mapping):
        return "a mapping"
    if origin is tuple and args[-1:] != (Ellipsis,):
        return f"{len(args)} values: {', '.join(words(one) for one in args)}"
    if origin is not None and issubclass(origin, Iterable):
        return f"a list of {PLURAL.get(args[0], 'values')}" if args else "a list"
    if origin is Callable:
        return "a function"
    kind = getattr(hint, "array_type", hint)
    name = getattr(kind, "__name__", str(hint))
    return SINGULAR.get(hint) or getattr(hint, "asked_for", None) or MENDS.get(name) or _article(name)


SINGULAR: Mapping[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    Path: "a path",
    type(None): "None",
}
PLURAL: Mapping[Any, str] = {int: "whole numbers", float: "finite numbers", str: "texts"}
MENDS = {
    "PreTrainedModel": "a transformers model",
    "ProcessorMixin": "its processor",
    "dtype": "a torch.dtype",
    "Tensor": "a tensor",
}
"""Classes of other packages, by name so that none is imported here; classes of this package have an attribute `asked_for`."""
