"""Catalogs: graphs, programs, clusters, … by name, by path or as objects.

Beside what is shipped, a catalog holds the user's own files, each known by its name without the ending:
``~/.graphopt/clusters/lab.toml`` is the cluster ``lab``. The environment variable ``GRAPHOPT_HOME`` names another
folder than ``~/.graphopt``, or several, as ``PATH`` does; each has a sub-folder a catalog.

A file whose sizes are open (an ONNX file with symbolic dimensions) is given with them: ``model.onnx@batch=1,seq=128``
is one text that goes wherever a path does, and that a solution keeps; see :func:`with_dims`.
"""

from __future__ import annotations

import os
import re
import tomllib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any, Generic, SupportsIndex, TypeVar

import numpy as np

from graphopt_gym.errors import InputError, one_line, quoted, unknown_name
from graphopt_gym.files import read_text
from graphopt_gym.generator import Called, Generator

T = TypeVar("T")
HOME = "GRAPHOPT_HOME"
MOST_EACH = 4096  # things that a range of numbers stands for by their names
ENTRY_POINTS = "graphopt_gym.catalogs"  # the group of other packages' catalogs
_OURS = {
    "graphs": "graphopt_gym.graphs.zoo:GRAPHS",
    "programs": "graphopt_gym.graphs.zoo.programs:CATALOG",
    "architectures": "graphopt_gym.envs.architecture.seeds:CATALOG",
    "clusters": "graphopt_gym.hardware.cluster:CLUSTERS",
    "packages": "graphopt_gym.hardware.package:PACKAGES",
    "machines": "graphopt_gym.hardware.machine:MACHINES",
    "devices": "graphopt_gym.hardware.cluster:DEVICES",
    "links": "graphopt_gym.hardware.cluster:LINKS",
    "workloads": "graphopt_gym.simulator.gang.workloads:WORKLOADS",
}


@cache
def catalogs() -> Mapping[str, Catalog[Any]]:
    """All catalogs by name: ours, and those that installed packages add as entry points of :data:`ENTRY_POINTS`."""
    added = {entry.name: entry.load() for entry in entry_points(group=ENTRY_POINTS)}
    return {name: resolve_name(path) for name, path in _OURS.items()} | added


@dataclass(frozen=True, eq=False)
class Catalog(Generic[T]):
    """Things of one kind, each under a name. Nothing is read before it is asked for.

    Args:
        name: of the catalog, in the plural, e.g. ``"graphs"``; the user's own lie in a sub-folder of that name.
        noun: what messages call one thing.
        holds: the class of the things.
        readers: what reads a file, by the ending of its name; that under ``""`` reads files of any other ending.
        shipped: gives the shipped things: the file of each, or what makes it.
        splits: names that stand for several of the things.
        main: the split that :meth:`names` gives where none is named; all that are shipped where left out.
        columns, row: of :meth:`table`: what follows a thing's name. ``row`` gets the name where the thing is shipped,
            else None, and the thing.
        notes: below the table.
        keep: whether a shipped thing is made once.
        several: reads what a file holds where that may be more than one thing, for :meth:`table`.
        sized: endings of files whose readers take ``dims``, sizes by name.
        generators: what draws things anew, by the word that its text begins with: see :meth:`generator`.
    """

    name: str
    noun: str
    holds: type[T]
    readers: Mapping[str, Callable[..., T]]
    shipped: Callable[[], Mapping[str, Path | Callable[[], T]]]
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    main: str | None = None
    columns: Sequence[str] = ()
    row: Callable[[str | None, T], Sequence[Any]] = lambda name, thing: ()
    notes: Sequence[str] = ()
    keep: bool = True
    several: Callable[[Path], Sequence[T]] | None = None
    sized: Sequence[str] = ()
    generators: Callable[[], Mapping[str, type[Generator[T]]]] = lambda: MappingProxyType({})
    _kept: dict[str, T] = field(default_factory=dict, init=False, repr=False)
    _references: weakref.WeakKeyDictionary[Any, str] = field(
        default_factory=weakref.WeakKeyDictionary, init=False, repr=False
    )  # of what was read with sizes

    def load(self, given: str | os.PathLike[str] | T, **options: Any) -> T:
        """What a name or a path stands for; a thing is returned as it is, and made again from its :func:`stored_name`.

        A text is a path where it has a separator, or the ending of a file that is there; else it is one of the user's
        own names, else a shipped one. ``options`` are for the reader of a file, such as ``dims``: its open sizes by
        name, which may also follow the path, ``model.onnx@batch=1,seq=128``.

        Raises:
            InputError: no such name or file, the name of a split, sizes that it has not, or a file that cannot be read;
                one line says which.
        """
        dims = check_dims(options.pop("dims", None))
        if isinstance(given, self.holds):
            if dims:
                name = getattr(given, "name", type(given).__name__)
                raise InputError(f"dims are sizes of a file; {self.noun} {name!r} is loaded already")
            return given
        if (drawn := self.generator(given)) is not None:
            if dims:
                raise InputError(f"dims are sizes of a file; {drawn.text!r} is drawn")
            return self._one_of(drawn)
        if isinstance(given, Mapping) and hasattr(self.holds, "from_json"):  # as a solution stores it
            return self.holds.from_json(given)  # type: ignore[attr-defined, no-any-return]
        if not isinstance(given, str | os.PathLike):
            raise InputError(f"{self.noun} is a {type(given).__name__}; give a name, a path or a {self.holds.__name__}")
        base, said = self.split_dims(given)
        dims, source = {**said, **dims}, self._find(base)
        if not dims:
            return self.load_shipped(source) if isinstance(source, str) else self._read(source, **options)
        if isinstance(source, str) or source.suffix.lower() not in self.sized:
            endings = " or ".join(self.sized) or "other"
            what = f"{self.noun} {os.fsdecode(base)!r} has none"
            raise InputError(f"dims are sizes of an {endings} file's symbolic dimensions; {what}")
        thing = self._read(source, dims=dims, **options)
        self._references[thing] = with_dims(base, dims)
        return thing

    def generator(self, given: Any) -> Generator[T] | Called[T] | None:
        """What draws things anew, where that is ``given``: by its text, ``random:num_ops=64-300``, itself, or a
        function that takes a generator of random numbers; None for all else.

        Raises:
            InputError: a text that says what its generator does not know; a generator of other things.
        """
        if isinstance(given, Generator):
            if not isinstance(given, tuple(self.generators().values())):
                raise InputError(f"{given.text!r} draws no {self.noun}; give one that does")
            return given
        if callable(given) and not isinstance(given, self.holds | type):
            return Called(given)
        if not isinstance(given, str):
            return None
        word = given.partition(":")[0]
        known = self.generators()
        if word not in known or given in self or os.path.exists(given):
            return None
        return known[word].parse(given)

    def _one_of(self, drawn: Generator[T] | Called[T]) -> T:
        """The one thing that a generator's text names."""
        if isinstance(drawn, Called):
            raise InputError(f"{self.noun} is a function; environments draw by it, all else needs a {self.noun}")
        if drawn.only is None:
            raise InputError(
                f"{self.noun} {drawn.text!r} stands for many, which environments draw from; give one of them by its "
                f"seed: {drawn.name_of(drawn.low)!r}"
            )
        return drawn.make(drawn.only)

    def drawn(self, drawn: Generator[T] | Called[T], rng: np.random.Generator) -> tuple[T, str | None]:
        """A thing that a generator draws, and the name that it can be loaded by, where it has one.

        Raises:
            InputError: a function returned something else.
        """
        if isinstance(drawn, Called):
            thing = drawn.draw(rng)
            if not isinstance(thing, self.holds):
                raise InputError(
                    f"{self.noun}: {drawn.text} returned a {type(thing).__name__}; return a {self.holds.__name__}"
                )
            return thing, None
        seed = drawn.draw_seed(rng)
        return drawn.make(seed), drawn.name_of(seed)

    def split_dims(self, given: str | os.PathLike[str]) -> tuple[str | os.PathLike[str], dict[str, int]]:
        """A name or path without the sizes that follow it, and those: ``model.onnx@batch=1`` is ``model.onnx`` with
        ``{"batch": 1}``.

        Raises:
            InputError: what follows a file that takes sizes is none.
        """
        text = os.fsdecode(given)
        if not self.sized or "@" not in text or os.path.exists(text):
            return given, {}
        for at in (match.start() for match in re.finditer("@", text)):
            base, said = text[:at], text[at + 1 :]
            ending = os.path.splitext(base)[1].lower()
            if ending not in self.sized and base not in self:
                continue
            sizes = read_dims(said)
            if sizes is None:
                raise InputError(f"{self.noun} {quoted(text)}: give sizes as {base}@batch=1,seq=128")
            return base, sizes
        return given, {}

    def load_shipped(self, name: str) -> T:
        """What is shipped under a name, whatever the user's own names are."""
        if name not in self._kept:
            source = self._shipped[name]
            thing = self._read(source) if isinstance(source, Path) else source()
            if not self.keep:
                return thing
            self._kept[name] = thing
        return self._kept[name]

    def names(self, split: str | None = None) -> list[str]:
        """The names of a split, or those that are shipped and then the user's own.

        Raises:
            InputError: no such split, with the nearest.
        """
        if split is None:
            shipped: Iterable[str] = self.splits[self.main] if self.main else self._shipped
            return list(dict.fromkeys([*shipped, *self._own()[0]]))
        if split not in self.splits:
            raise unknown_name(f"split of the {self.name}", split, self.splits)
        return list(self.splits[split])

    def __contains__(self, name: object) -> bool:
        """Whether it is the name of a thing."""
        return name in self._shipped or name in self._own()[0]

    def path(self, given: str | os.PathLike[str]) -> Path | None:
        """The file that a name or a path stands for; None where a shipped thing has no file of its own.

        Raises:
            InputError: no such name.
        """
        if self.generator(given) is not None:
            return None
        found = self._find(self.split_dims(given)[0])
        source = self._shipped[found] if isinstance(found, str) else found
        return source if isinstance(source, Path) else None

    def expand(self, given: Any, argument: str = "") -> tuple[Any, ...]:
        """What an argument (its name is for messages) stands for that may be several: in place of a split's name, those
        of its names that are not there yet; other names, paths and things as they are.

        Raises:
            InputError: an empty list.
        """
        one = isinstance(given, str | os.PathLike | self.holds) or not isinstance(given, Iterable) or callable(given)
        listed: list[Any] = []
        for item in [given] if one else given:
            if isinstance(item, str) and item in self.splits and item not in self:
                listed += [name for name in self.splits[item] if name not in listed]
            else:
                listed.append(item)
        if not listed:
            raise InputError(f"{argument or self.noun} is an empty list; give at least one {argument or self.noun}")
        return tuple(listed)

    def each(self, given: Any, argument: str = "") -> tuple[Any, ...]:
        """As :meth:`expand`, with a generator of few numbers (``random:seed=0-9``) as the names of all that it draws.

        Raises:
            InputError: as :meth:`expand`; more than :data:`MOST_EACH`.
        """
        found: list[Any] = []
        for one in self.expand(given, argument):
            drawn = self.generator(one)
            if not isinstance(drawn, Generator) or drawn.seed is None:
                found.append(one)
                continue
            low, high = drawn.seed
            if high - low >= MOST_EACH:
                raise InputError(
                    f"{argument or self.noun} {drawn.text!r} is {high - low + 1}; give {MOST_EACH} at most"
                )
            found += [drawn.name_of(seed) for seed in range(low, high + 1)]
        return tuple(found)

    def table(self, given: Any = None) -> tuple[list[str], list[list[Any]], list[str]]:
        """(columns, rows, notes) on what is ``given``, see :meth:`expand`, or on all of :meth:`names`.

        A file of the user's own that cannot be read is left out, and named in a note, where nothing is given. What a
        thing says of itself (its ``notes``, where it has any) is among the notes.
        """
        own, notes = self._own()
        rows = []
        for item in self.names() if given is None else self.expand(given):
            named = isinstance(item, str) and item in self
            try:
                found = self._load_all(item)
            except InputError as error:
                if given is not None or item not in own:
                    raise
                notes.append(f"Left out: {error}")
                continue
            shipped = item if named and item not in own else None
            path = own.get(item) if named else item if isinstance(item, str | os.PathLike) else None
            for thing in found:
                label = item if named else getattr(thing, "name", "")
                rows.append([label, *self.row(shipped, thing), None if path is None else os.fspath(path)])
                notes += [f"{label}: {note}" for note in getattr(thing, "notes", ())]
            if path is not None and named and (item in self._shipped or item in self.splits):
                notes.append(
                    f"{item} is yours, in place of the shipped {self.noun if item in self._shipped else 'split'}."
                )
        columns = [self.noun, *self.columns, "file"]
        if all(row[-1] is None for row in rows):
            columns, rows = columns[:-1], [row[:-1] for row in rows]
        if self.generators():
            words = ", ".join(self.generators())
            notes.append(f"Drawn anew by environments: {words}; with a seed, as in random:seed=0, one of them.")
        if self.splits:
            notes.append(f"Splits, which stand for several {self.name}: {', '.join(self.splits)}.")
        return columns, rows, [*self.notes, *notes]

    def _load_all(self, item: Any) -> Sequence[T]:
        """What a name or a thing stands for, or all that a path's file holds."""
        if self.several is not None and isinstance(item, str | os.PathLike) and item not in self:
            source = self._find(item)
            if isinstance(source, Path):
                return self.several(source)
        return [self.load(item)]

    @property
    def _files(self) -> str:
        return f"a file that ends in {' or '.join(filter(None, self.readers))}"

    @cached_property
    def _shipped(self) -> Mapping[str, Path | Callable[[], T]]:
        return self.shipped()

    def _own(self) -> tuple[dict[str, Path], list[str]]:
        """The user's files by name, and notes on what is left out."""
        found: dict[str, Path] = {}
        notes = []
        given = os.environ.get(HOME)
        for home in filter(None, (given or os.path.join("~", ".graphopt")).split(os.pathsep)):
            folder = Path(os.path.expanduser(home), self.name)
            if given and not os.path.isdir(folder.parent):
                notes.append(f"Left out: {str(folder.parent)!r} of {HOME} is no folder")
            try:
                paths = sorted(folder.iterdir())
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                notes.append(f"Left out: {str(folder)!r} cannot be read: {error.strerror or error}")
                continue
            for path in paths:
                if not path.suffix or path.suffix.lower() not in self.readers or path.name.startswith("."):
                    continue
                if path.stem in found:
                    notes.append(f"Left out: {str(path)!r}, since {str(found[path.stem])!r} comes first")
                elif not path.stem.isprintable():
                    notes.append(f"Left out: {str(path)!r}, whose name does not print")
                else:
                    found[path.stem] = path
        return found, notes

    def _find(self, given: str | os.PathLike[str]) -> str | Path:
        """A shipped name, or a path."""
        text = os.fsdecode(given)
        ending = os.path.splitext(text)[1].lower() in [*filter(None, self.readers)]
        there = os.path.exists(text)
        if isinstance(given, str) and not {os.sep, os.altsep} & set(text) and not (ending and there):
            own = self._own()[0]
            if text in own:
                return own[text]
            if text in self._shipped:
                return text
            if text in self.splits:
                members = ", ".join(self.splits[text][:12]) + (", …" if len(self.splits[text]) > 12 else "")
                what = f"{self.noun} is {text!r}, a split of several {self.name}"
                raise InputError(f"{what}; give one of them: {members}")
            if not ending and not there:
                hint = f"(or give the path of {self._files})"
                known = [*self._shipped, *own, *self.splits, *self.generators()]
                raise unknown_name(self.noun, text, known, hint)
        return Path(text)

    def _read(self, path: Path, **options: Any) -> T:
        where = f"{self.noun} file {quoted(str(path))}"
        reader = self.readers.get(path.suffix.lower(), self.readers.get(""))
        if os.path.isdir(path):
            raise InputError(f"{where} is a folder; give {self._files}")
        if not os.path.exists(path):
            raise InputError(f"{where} does not exist")
        if reader is None:
            raise InputError(f"{where} is of another kind; give {self._files}")
        return reader(path, **options)


@contextmanager
def stored_whole(noun: str) -> Iterator[None]:
    """While a thing is made from what its ``to_json`` gave: whatever is missing or wrong in that is one line.

    Raises:
        InputError: as it is, or in place of what a text that is none of ours raises.
    """
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"{noun} is no stored {noun}: {type(error).__name__}: {one_line(error)}") from None


def stored_name(given: Any, thing: Any) -> Any:
    """What a stored problem calls a thing: the name or path that it was loaded from.

    Of an object: its name, where a catalog has the same under it; else the whole of it, where it has ``to_json``
    (clusters and packages; graphs are too large, and go by their names).
    """
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    if not hasattr(thing, "to_json"):
        references = (catalog._references for catalog in catalogs().values() if isinstance(thing, catalog.holds))
        return next((known[thing] for known in references if thing in known), thing.name)
    for catalog in catalogs().values():
        if isinstance(thing, catalog.holds) and thing.name in catalog:
            try:
                if catalog.load(thing.name).fingerprint == thing.fingerprint:
                    return thing.name
            except InputError:  # a file of the user's own
                pass
    return thing.to_json()


_SIZE = re.compile(r"(.+?)=(\d+)(?:,(?=.)|$)")
_SIZED = re.compile(r"@.+=\d+$")


def check_dims(dims: Any) -> dict[str, int]:
    """Sizes by name, as they are; none for None.

    Raises:
        InputError: something else.
    """
    if dims is None:
        return {}
    if not isinstance(dims, Mapping) or not all(isinstance(name, str) for name in dims):
        raise InputError(f"dims is {quoted(dims)}; give the sizes by name, such as {{'batch': 1}}")
    return dict(dims)


def read_dims(text: str) -> dict[str, int] | None:
    """``"batch=1,seq=128"`` -> ``{"batch": 1, "seq": 128}``; None where it is something else."""
    sizes = list(_SIZE.finditer(text))
    if not sizes or "".join(match[0] for match in sizes) != text:
        return None
    return {match[1]: int(match[2]) for match in sizes}


def with_dims(given: str | os.PathLike[str], dims: Mapping[str, int]) -> str:
    """A path or a name with sizes: ``model.onnx@batch=1,seq=128``; those that it has already stay, where not given.

    Raises:
        InputError: a size that is no whole number.
    """
    text = os.fsdecode(given)
    for name, size in dims.items():
        if isinstance(size, bool) or not isinstance(size, SupportsIndex) or int(size) < 0:
            raise InputError(f"{text}: dimension {name!r} is {quoted(size)}; give an integer of at least 1")
    said = ",".join(f"{name}={int(size)}" for name, size in dims.items())
    return f"{text}{',' if _SIZED.search(text) else '@'}{said}" if said else text


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        InputError: it cannot be read, or is not TOML.
    """
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: not TOML, or an integer of thousands of digits
        raise InputError(f"{path}: not TOML: {one_line(error)}") from None
