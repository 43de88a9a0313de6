"""What all saved results share: a class declares its content, and saving, reading, checking and showing follow from that.

A result is a dataclass. A field that is annotated with a shape, `Float[Tensor, "questions layers heads"]`, is a tensor of the file. Every
other field is metadata, checked against its annotation. Axes with the same name have the same length, in all tensors of a result and in
metadata annotated with an axis, `Annotated[tuple[int, ...], "points"]`. An axis may also be a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from jaxtyping import AbstractArray, Float
from torch import Tensor

from ..errors import FileError, ScaleInterpError
from .arguments import fits, words
from .files import as_json, read_json, write_json
from .notebook import NotebookView
from .tensors import FORMAT, expect, read_tensors, require_format, write_tensors

T = TypeVar("T")
FORMAT_KEY = "format"
APART = "its parts do not fit together"
HEADS = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Declared:
    """What a class declares: the axes of each tensor and whether it contains integers, and the type and axis of each metadata field."""

    axes: dict[str, tuple[str, ...]]
    whole: dict[str, bool]
    metadata: dict[str, Any]
    along: dict[str, str]


def declared(kind: type[Stored]) -> Declared:
    """What the fields of a class declare.

    Args:
        kind: The class.

    Returns:
        Its tensors with their axes, and its metadata with their types.
    """
    found = Declared({}, {}, {}, {})
    hints = get_type_hints(kind, include_extras=True)
    for name in (field.name for field in fields(kind) if field.name not in kind.not_saved):  # type: ignore[arg-type]
        hint = hints[name]
        if isinstance(hint, type) and issubclass(hint, AbstractArray):
            found.axes[name] = tuple(hint.dim_str.split())
            found.whole[name] = hint.dtype is not Float
            continue
        if get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)
            found.along.update((name, axis) for axis in notes if isinstance(axis, str))  # other notes are for arguments
        found.metadata[name] = hint
    return found


def _require_axes(found: Declared, values: Mapping[str, Any], may_be_empty: Sequence[str]) -> None:
    """Raise Misfit if axes with the same name differ in length, or if an axis is empty."""
    lengths = dict[str, tuple[int, str]]()
    sizes = [(name, axis, len(values[name])) for name, axis in found.along.items()]
    sizes += [(name, axis, size) for name, axes in found.axes.items() for axis, size in zip(axes, values[name].shape, strict=True)]
    for name, axis, size in sizes:
        wanted, where = (int(axis), "it must have") if axis.isdigit() else lengths.setdefault(axis, (size, f"{name} has"))
        if size != wanted:
            raise Misfit(f"{APART}: {name} has length {size} along {axis}, {where} {wanted}")
        if size == 0 and axis not in may_be_empty:
            raise Misfit(f"{APART}: {name} is empty along {axis}")


class Misfit(ValueError):
    """A message about what is wrong with a file's content and what to do; the caller adds the file's name."""

    def __init__(self, what: str, mend: str = "save it again"):
        super().__init__(f"{what}; {mend}")


class Stored(NotebookView):
    """What results and adapters share: which parts go into a file, and how they are checked when they are read."""

    kind: ClassVar[str] = ""
    """The kind that the file records; by default the class's name."""
    kind_key: ClassVar[str] = "kind"
    """The key of the kind in a JSON file."""
    other_kind: ClassVar[str] = "is not a saved {kind} but {found!r}; give the file of a saved {kind}"
    """The message for a JSON file of another kind."""
    not_saved: ClassVar[tuple[str, ...]] = ()
    """Fields that are not saved."""
    may_be_empty: ClassVar[tuple[str, ...]] = ()
    """Axes that may have length 0."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" not in vars(cls):
            cls.kind = cls.__name__

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the metadata as they are stored in a file."""
        found = declared(type(self))
        values = {name: getattr(self, name) for name in found.metadata}
        meta = {name: value.content() if isinstance(value, Stored) else value for name, value in values.items()}
        return {name: getattr(self, name) for name in found.axes}, meta

    def _summary(self) -> dict[str, Any]:
        """Derived values, written only for people who read the file."""
        return {}

    @classmethod
    def _tensors(cls, path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The file's tensors as arguments of the class, each checked."""
        found = declared(cls)
        checked = {name: expect(path, tensors, name, len(axes), found.whole[name]) for name, axes in found.axes.items()}
        if unknown := tensors.keys() - checked.keys():
            raise FileError(f"{path} holds an unknown tensor {min(unknown)!r}; save it again")
        return checked

    @classmethod
    def _arguments(cls, path: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
        """The file's metadata as arguments of the class, each checked."""
        return entries(path, meta, declared(cls).metadata)

    def _validate(self, meta: Mapping[str, Any]) -> None:
        """Raise Misfit if the parts that were read do not fit together; `meta` is the file's metadata."""

    def content(self) -> dict[str, Any]:
        """Everything except the tensors, in JSON's types."""
        return as_json({self.kind_key: self.kind} | self._summary() | self._parts()[1])

    @classmethod
    def from_content(cls, content: Mapping[str, Any], path: Path) -> Self:
        """Build the object from what `content` returned; errors name the path."""
        return cls._read(path, {}, cls._opened(path, content))

    @classmethod
    def _opened(cls, path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
        """A JSON file's content without its kind and format, which are checked; files of older versions have no format."""
        found = content.get(cls.kind_key, "a foreign file")
        if found != cls.kind:
            raise FileError(f"{path} {cls.other_kind.format(found=found, kind=cls.kind)}")
        require_format(path, content.get(FORMAT_KEY, FORMAT))
        return {name: value for name, value in content.items() if name not in (cls.kind_key, FORMAT_KEY)}

    @classmethod
    def _read(cls, path: Path, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> Self:
        """Build the result from checked tensors and unchecked metadata."""
        return build(path, lambda: cls._made(path, tensors, meta))

    @classmethod
    def _made(cls, path: Path, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> Self:
        arguments = {**tensors, **cls._arguments(path, meta)}
        _require_axes(declared(cls), arguments, cls.may_be_empty)
        found = cls(**arguments)
        found._validate(meta)
        if unknown := meta.keys() - found.content().keys():
            raise Misfit(f"it holds an unknown {min(unknown)!r}")
        return found


class Result(Stored):
    """A result in one file: safetensors with metadata as JSON in the header, or JSON alone.

    >>> import tempfile, torch
    >>> from scale_interp import HeadMap
    >>> m, path = HeadMap("mine", "logit diff", torch.rand(4, 2, 8), torch.arange(4)), f"{tempfile.mkdtemp()}/mine.safetensors"
    >>> m.save(path)
    >>> HeadMap.load(path).top(3) == m.top(3)
    True
    """

    file: ClassVar[Literal["safetensors", "json"]] = "safetensors"

    def save(self, path: str | Path) -> None:
        """Write one file atomically, with a checksum.

        Args:
            path: The file. Missing parent folders are created.
        """
        if self.file == "json":
            return write_json(Path(path), self.content() | {FORMAT_KEY: FORMAT}, sealed=True)
        tensors, meta = self._parts()
        write_tensors(Path(path), self.kind, tensors, self._summary() | meta)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The result.

        Raises:
            FileError: The file is missing, damaged, of another kind or format, or its parts do not fit together.
        """
        path = Path(path)
        if cls.file == "json":
            return cls.from_content(read_json(path), path)
        tensors, meta = read_tensors(path, cls.kind)
        return cls._read(path, cls._tensors(path, tensors), meta)


class Adapter(Stored):
    """An edit stored as a folder: a readable configuration and, if it has tensors, a file of weights.

    >>> import tempfile, torch
    >>> from scale_interp import ScAle
    >>> folder = tempfile.mkdtemp()
    >>> ScAle(torch.tensor([[1.0, 0.5]]), torch.ones(1), 1, ((0, 1),)).save_pretrained(folder)
    >>> ScAle.from_pretrained(folder).scalars
    tensor([[1.0000, 0.5000]])
    """

    kind_key = "method"
    other_kind = "describes {found!r}, not a {kind}; give the folder of a saved {kind}"
    config_file: ClassVar[str]
    weights_file: ClassVar[str] = ""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the configuration, and the weights if there are any, each with a checksum.

        Args:
            folder: The folder, which is created.
        """
        if self.weights_file:
            write_tensors(Path(folder) / self.weights_file, self.kind, self._parts()[0], self._weights_meta())
        write_json(Path(folder) / self.config_file, self.content() | {FORMAT_KEY: FORMAT}, sealed=True)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read what `save_pretrained` wrote.

        Args:
            folder: The folder.

        Returns:
            The adapter.

        Raises:
            FileError: A file is missing, damaged, of another kind or format, or the files do not belong together.
        """
        path, weights = Path(folder) / cls.config_file, Path(folder) / cls.weights_file
        meta = cls._opened(path, read_json(path))
        tensors = cls._tensors(weights, read_tensors(weights, cls.kind)[0]) if cls.weights_file else {}
        return cls._read(path, tensors, meta)

    def _weights_meta(self) -> dict[str, Any]:
        """Metadata in the header of the weights, written only for people who read the file."""
        return {}


def entries(path: Path, meta: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a file's metadata, each checked to be present and of the annotated type.

    Args:
        path: The file, for messages.
        meta: The metadata.
        hints: The annotation of each entry.

    Returns:
        The values by name.

    Raises:
        FileError: An entry is missing or has the wrong type.
    """
    if missing := [name for name in hints if name not in meta]:
        why = "entries are missing or wrong where an older version wrote a file, or where it is damaged"
        raise FileError(f"{path} lacks {', '.join(missing)}: {why}; save it again")
    return {name: _value(path, name, meta[name], hint) for name, hint in hints.items()}


def _value(path: Path, name: str, value: Any, hint: Any) -> Any:
    nested = isinstance(hint, type) and issubclass(hint, Stored)
    if not fits(value, dict if nested else hint):
        wanted = "no list of (layer, head) pairs" if hint == HEADS else f"not {words(hint)}"
        raise FileError(f"{path}: {name!r} is {str(value)[:60]!r}, {wanted}; save it again")
    return hint.from_content(value, path) if nested else _restored(value, hint)


def _restored(value: Any, hint: Any) -> Any:
    """JSON's lists, as tuples where the annotation asks for them."""
    args: Sequence[Any] = get_args(hint)
    if get_origin(hint) is tuple:
        hints = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(_restored(one, of) for one, of in zip(value, hints, strict=True))
    if isinstance(value, dict) and len(args) == 2:
        return {key: _restored(one, args[1]) for key, one in value.items()}
    return value


def build(path: Path, make: Callable[[], T]) -> T:
    """Call a constructor on a file's content, and turn every error into a FileError that names the file.

    Args:
        path: The file, for messages.
        make: Builds the object.

    Returns:
        What `make` returns.

    Raises:
        FileError: `make` failed.
    """
    try:
        return make()
    except FileError:
        raise
    except Misfit as error:
        raise FileError(f"{path}: {error}") from error
    except (ScaleInterpError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path}: {error!r} is missing or wrong; save it again") from error


def require_heads(heads: Sequence[tuple[int, int]], n_layers: int, n_heads: int) -> None:
    """Check that a model of this shape has each (layer, head) pair and that no pair is repeated.

    Raises:
        Misfit: A pair is out of range or repeated.
    """
    wrong = [h for h in heads if not (0 <= h[0] < n_layers and 0 <= h[1] < n_heads)]
    if wrong or len(set(heads)) < len(heads):
        what = f"head {wrong[0]} is out of range" if wrong else "a head is there twice"
        raise Misfit(f"{what}, its values are of {n_layers} layers x {n_heads} heads", "save it again, or give its own folder")


def require_below(name: str, numbers: Tensor, below: int) -> None:
    """Check that all numbers are below a bound.

    Raises:
        Misfit: A number is not below it.
    """
    if int(numbers.max()) >= below:
        raise Misfit(f"{name} must hold whole numbers from 0 to {below - 1}")
