"""Entries on their way through a table, line by line, and all that is found wrong on the way."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np

from jattn.weights.files import to_numpy
from jattn.weights.patterns import Anywhere, Binding, NoWay, Path, Pattern

__all__ = ["Conversion", "Line", "Passage", "Problem", "Zeros"]

Arrays = Callable[[list[Any]], Sequence[Any]]
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


class Problem(NamedTuple):
    """One thing that is wrong, with a name's entry or with a line of the table."""

    kind: str
    name: str
    text: str


@dataclass
class Passage:
    """Entries that have come through some lines of a table.

    Attributes:
        entries: names to arrays, by the names that they have by now.
        shapes: what the module expects at the end, where it is known.
        origins: the names that each entry had at first; none of what a line added.
        problems: what was found wrong so far.
        lost: names whose entries a problem kept from being made, and that are missed for no other reason.
    """

    entries: dict[str, Any]
    shapes: Mapping[str, tuple[int, ...]] | None = None
    origins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.origins = {name: (name,) for name in self.entries}

    def report(self, kind: str, name: str, text: str) -> None:
        self.problems.append(Problem(kind, name, text))

    def unmatched(self, line: "Line", sought: Sequence[Pattern]) -> None:
        """Report a line that found nothing, with the name that may be meant."""
        present = dict.fromkeys(part for name in self.entries for part in _and_parents(_NUMBER.sub("#", name)))
        texts = [pattern.text for pattern in sought if isinstance(pattern, Path)]
        near = next((found for text in texts for found in get_close_matches(text, present, 1, cutoff=0.8)), None)
        self.report("unmatched", line.written, f"finds no name{f'; nearest: {near}' if near else ''}")

    def convert(
        self, line: "Line", sources: Sequence[Pattern], targets: Sequence[Pattern], arrays: Arrays, *, all_needed: bool
    ) -> None:
        """Make the targets' entries of the sources'.

        Args:
            line: what does it, for the errors.
            sources: what is taken; names told apart alike belong together.
            targets: what is made.
            arrays: from the arrays of the sources, None for one that is not there, to those of the targets.
            all_needed: whether all of the sources must be there where one is.
        """
        groups, places = self._grouped(sources)
        if not groups:
            if not line.optional:
                self.unmatched(line, sources)
            return
        made = {
            found: self._made(found, names, sources, targets, arrays, all_needed) for found, names in groups.items()
        }
        entries: dict[str, Any] = {}
        origins: dict[str, tuple[str, ...]] = {}
        for name, entry in self.entries.items():
            if name not in places:
                new = {name: (entry, self.origins[name])}
            elif (found := places[name]) in made:  # at the first of its names
                new = made.pop(found)
            else:
                continue
            for target, (array, origin) in new.items():
                if target in entries:
                    both = [" and ".join(names) or "nothing" for names in (origins[target], origin)]
                    self.report("written twice", target, f"of {both[0]}, and of {both[1]}")
                entries[target], origins[target] = array, origin
        self.entries, self.origins = entries, origins

    def _grouped(self, sources: Sequence[Pattern]) -> tuple[dict[Binding, list[str | None]], dict[str, Binding]]:
        """The names that belong together, and to whom each belongs."""
        groups: dict[Binding, list[str | None]] = {}
        places: dict[str, Binding] = {}
        for name in self.entries:
            for i, pattern in enumerate(sources):
                if (found := pattern.match(name)) is not None:
                    group = groups.setdefault(found, [None] * len(sources))
                    if group[i] is not None:  # as only regular expressions can make one name of two
                        self.report("written twice", found[0], f"of {group[i]}, and of {name}")
                    group[i], places[name] = name, found
                    break
        return groups, places

    def _made(
        self,
        found: Binding,
        names: list[str | None],
        sources: Sequence[Pattern],
        targets: Sequence[Pattern],
        arrays: Arrays,
        all_needed: bool,
    ) -> dict[str, tuple[Any, tuple[str, ...]]]:
        """What becomes of names that belong together."""
        present = [name for name in names if name is not None]
        origin = tuple(dict.fromkeys(old for name in present for old in self.origins[name]))
        new = [pattern.fill(found) for pattern in targets]
        lacking = [pattern.fill(found) for pattern, name in zip(sources, names, strict=True) if name is None]
        if lacking and all_needed:
            self.report("incomplete", " and ".join(present), f"needs {' and '.join(lacking)} beside it")
            self.lost.update(new)
            return {}
        try:
            made = arrays([None if name is None else self.entries[name] for name in names])
        except (ValueError, TypeError, RuntimeError) as error:
            self.report("unfit", present[0], str(error).splitlines()[0])
            self.lost.update(new)
            return {}
        return {name: (array, origin) for name, array in zip(new, made, strict=True)}


def _alike(one: str, other: str) -> int:
    """How long two names are the same."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _and_parents(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


# ----------------------------------------------------------------------------------------------------------------------
# The kinds of lines.


class Line(ABC):
    """A line of a table.

    Attributes:
        written: as the caller wrote it.
        optional: whether it may find nothing.
        heads: how the names that it looks for begin.
    """

    written: str
    optional: bool
    heads: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return self.written

    @abstractmethod
    def load(self, passage: Passage) -> None:
        """Towards the module."""

    @abstractmethod
    def dump(self, passage: Passage) -> None:
        """Towards the state dict."""

    def new_names(self, name: str, *, back: bool = False) -> Sequence[str]:
        """What becomes of a name: itself, if this line does not concern it."""
        return [name]

    def adds(self, name: str) -> bool:
        """Whether the line may have added a name."""
        return False


@dataclass(frozen=True, repr=False)
class Conversion(Line):
    """Entries of the state dict that hold the numbers of entries of the module.

    Attributes:
        theirs: the names in the state dict.
        ours: the names in the module.
        to_ours, to_theirs: the arrays of one side made those of the other.
        back: whether it goes both ways, or only towards the module.
        all_needed: whether all of theirs must be there where one is.
    """

    written: str
    theirs: tuple[Pattern, ...]
    ours: tuple[Pattern, ...]
    to_ours: Arrays
    to_theirs: Arrays
    optional: bool = False
    back: bool = True
    all_needed: bool = True

    @property
    def heads(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(pattern.head for pattern in self.theirs)

    def load(self, passage: Passage) -> None:
        passage.convert(self, self.theirs, self.ours, self.to_ours, all_needed=self.all_needed)

    def dump(self, passage: Passage) -> None:
        if not self.back:
            return
        if any(isinstance(pattern, NoWay) for pattern in self.ours):
            remedy = "write it with # for numbers, or give back=(pattern, replacement), or back=False"
            passage.report("one way", self.written, f"has no way back; {remedy}")
            return
        passage.convert(self, self.ours, self.theirs, self.to_theirs, all_needed=True)

    def new_names(self, name: str, *, back: bool = False) -> list[str]:
        sources, targets = (self.ours, self.theirs) if back else (self.theirs, self.ours)
        if back and not self.back:
            return [name]
        found = next((f for pattern in sources if (f := pattern.match(name)) is not None), None)
        return [name] if found is None else [pattern.fill(found) for pattern in targets]


@dataclass(frozen=True, repr=False)
class Zeros(Line):
    """Zeros that the module has and the state dict has not, made like other entries or as the module expects."""

    written: str
    name: Path | Anywhere
    like: Path | None = None
    optional: bool = False

    def load(self, passage: Passage) -> None:
        places = list(self._places(passage))
        if not (places or self.optional):
            passage.unmatched(self, (self.name,) if self.like is None else (self.like,))
        for name, shape, like in places:
            if name not in passage.entries:
                passage.entries[name] = np.zeros(shape, to_numpy(passage.entries[like]).dtype)
                passage.origins[name] = ()
            elif not self.optional:
                passage.report("written twice", name, "as zeros, and it is there; optional=True leaves it")

    def _places(self, passage: Passage) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """The names, the shapes, and of which entry each has the dtype."""
        if self.like is not None:
            for other, entry in list(passage.entries.items()):
                if (found := self.like.match(other)) is not None:
                    yield self.name.fill(found), tuple(entry.shape), other
        elif passage.entries:
            for name, shape in (passage.shapes or {}).items():
                if self.name.match(name) is not None:
                    yield name, shape, max(passage.entries, key=lambda other: _alike(name, other))

    def dump(self, passage: Passage) -> None:
        found = [name for name in passage.entries if self.name.match(name) is not None]
        if not (found or self.optional):
            passage.unmatched(self, (self.name,))
        for name in found:
            if not to_numpy(passage.entries[name]).any():
                del passage.entries[name], passage.origins[name]
            elif not self.optional:
                passage.report("unfit", name, f"must be zero, as {self.written} leaves it out")

    def adds(self, name: str) -> bool:
        return self.name.match(name) is not None
