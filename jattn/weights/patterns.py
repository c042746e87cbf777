"""How a line of a table finds names, and makes names: paths with ``#`` for a number, prefixes, regular expressions."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

__all__ = [
    "Anywhere",
    "Binding",
    "NoWay",
    "Path",
    "Pattern",
    "Prefix",
    "Substitution",
    "as_written",
    "both_sides",
    "check_regex",
    "is_regex",
    "pattern_of",
]

_SPECIAL = frozenset("\\^$*+?()[]{}|")  # which a regular expression has, and names have not

Binding = tuple[str, ...]  # what tells one of the names that a pattern stands for from the others


class Pattern(ABC):
    """Stands for some names."""

    head = ""  # how all of the names begin, as far as that is known

    @abstractmethod
    def match(self, name: str) -> Binding | None:
        """What tells this name from the others, None if it is not one of them."""

    @abstractmethod
    def fill(self, found: Binding) -> str:
        """The name that something was told of."""


@dataclass(frozen=True)
class Path(Pattern):
    """A parameter, or a module with all below it; ``#`` is a number."""

    text: str

    @property
    def head(self) -> str:  # type: ignore[override]
        return self.text.partition("#")[0]

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.text).replace(r"\#", r"(\d+)") + r"((?:\..*)?)")

    def match(self, name: str) -> Binding | None:
        match = self._regex.fullmatch(name)
        return match and match.groups()

    def fill(self, found: Binding) -> str:
        pieces = self.text.split("#")
        return "".join(piece + rest for piece, rest in zip(pieces, found, strict=True))


@dataclass(frozen=True)
class Prefix(Pattern):
    """All names that begin so, but for some."""

    text: str
    but: tuple[Pattern, ...] = ()

    @property
    def head(self) -> str:  # type: ignore[override]
        return self.text

    def match(self, name: str) -> Binding | None:
        if not name.startswith(self.text) or any(pattern.match(name) is not None for pattern in self.but):
            return None
        return (name.removeprefix(self.text),)

    def fill(self, found: Binding) -> str:
        return self.text + found[0]


@dataclass(frozen=True)
class Anywhere(Pattern):
    """Names in which a regular expression is found."""

    text: str

    def match(self, name: str) -> Binding | None:
        return (name,) if re.search(self.text, name) else None

    def fill(self, found: Binding) -> str:
        return found[0]


@dataclass(frozen=True)
class Substitution(Pattern):
    """Names in which a regular expression is found; they are told apart by what they are after ``re.sub``."""

    text: str
    replacement: str

    def match(self, name: str) -> Binding | None:
        new, count = re.subn(self.text, self.replacement, name)
        return (new,) if count else None

    def fill(self, found: Binding) -> str:
        return found[0]


@dataclass(frozen=True)
class NoWay(Pattern):
    """The far side of a regular expression, from where nothing leads back."""

    def match(self, name: str) -> Binding | None:
        return None

    def fill(self, found: Binding) -> str:
        return found[0]


def is_regex(text: str) -> bool:
    """Whether a text is a regular expression, rather than a name."""
    return not _SPECIAL.isdisjoint(text)


def _path_of(argument: str, text: str) -> Path:
    """The pattern of a name, with a ValueError for ``argument`` if it is none."""
    if not isinstance(text, str) or not text:
        raise ValueError(f"{argument} must be a name, with # for a number. Got {text!r}.")
    if is_regex(text):
        raise ValueError(f"{argument} must be a name, with # for a number. Got the regular expression {text!r}.")
    return Path(text)


def pattern_of(argument: str, text: str) -> Path | Anywhere:
    """The pattern of a name, where a regular expression may be too."""
    if not isinstance(text, str) or not is_regex(text):
        return _path_of(argument, text)
    check_regex(argument, text)
    return Anywhere(text)


def check_regex(argument: str, text: str, replacement: str = "") -> None:
    """A ValueError for what `re.sub` does not take."""
    try:
        re.sub(text, replacement, "")
    except (re.error, TypeError) as error:
        raise ValueError(f"{argument} must be a regular expression that re.sub takes. Got {text!r}: {error}.") from None


def as_written(function: str, *arguments: Any) -> str:
    """The call that made a line, for its errors."""
    return f"{function}({', '.join(map(repr, arguments))})"


def both_sides(written: str, theirs: Sequence[str], ours: Sequence[str]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The patterns of a line's names, found to stand for each other."""
    sides = [tuple(_path_of(f"{written}'s name", name) for name in names) for names in (theirs, ours)]
    both = (*sides[0], *sides[1])
    if len({pattern.text.count("#") for pattern in both}) > 1:
        raise ValueError(f"{written} must have as many # in each name. Got {', '.join(p.text for p in both)}.")
    if len(set(sides[0])) < len(sides[0]) or len(set(sides[1])) < len(sides[1]):
        raise ValueError(f"{written} must name each entry once. Got one twice.")
    return sides[0], sides[1]
