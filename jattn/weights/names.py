"""The entries of a state dict: renamed by patterns, and held against what a module expects."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jattn.weights.passage import Problem

__all__ = ["Prefixing", "check_entries", "fitting_prefix", "new_name", "problem_lines", "renamed"]

LINES = 30  # of a kind in one error; beyond that nobody reads
_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")  # the 3 of layers.3.weight


def renamed(entries: Mapping[str, Any], rename: Mapping[str, str | None]) -> dict[str, Any]:
    """The entries under the names that a table of patterns gives them.

    Args:
        entries: names to anything.
        rename: regular expressions to replacements, applied in turn to each name, each to what those before it left.
            A replacement of None drops the entries that its pattern matches.

    Raises:
        ValueError: if a pattern is no regular expression or matches no entry, or if two entries get one name.

    Example:

        >>> renamed({"encoder.ids": 0, "encoder.weight": 1}, {r"\\.ids$": None, r"^encoder\\.": ""})
        {'weight': 1}
    """
    if not isinstance(rename, Mapping):
        raise ValueError(f"rename must map regular expressions to replacements. Got a {type(rename).__name__}.")
    matched: set[str] = set()
    origins: dict[str, list[str]] = {}
    for old in entries:
        if (new := new_name(old, rename, matched)) is not None:
            origins.setdefault(new, []).append(old)
    if unmatched := [repr(pattern) for pattern in rename if pattern not in matched]:
        raise ValueError(
            f"rename must have patterns that each match an entry. Got {', '.join(unmatched)} without a match. "
            "They are applied in turn, each to the names that those before it left."
        )
    if clashes := [f"{new} for {' and '.join(olds)}" for new, olds in origins.items() if len(olds) > 1]:
        raise ValueError(f"rename must give each entry a name of its own. Got {', '.join(clashes)}.")
    return {new: entries[olds[0]] for new, olds in origins.items()}


def new_name(name: str, rename: Mapping[str, str | None], matched: set[str] | None = None) -> str | None:
    """One entry's name in `renamed`, None if it is dropped; the patterns that match are added to ``matched``."""
    matched = set() if matched is None else matched
    for pattern, replacement in rename.items():
        try:
            new, count = re.subn(pattern, "" if replacement is None else replacement, name)
        except (re.error, TypeError) as error:
            got = f"{pattern!r}: {replacement!r}"
            raise ValueError(f"rename must map regular expressions to replacements. Got {got}: {error}.") from error
        if count:
            matched.add(pattern)
            if replacement is None:
                return None
        name = new
    return name


def check_entries(
    subject: str,
    kind: str,
    expected: Mapping[str, tuple[int, ...]],
    given: Mapping[str, np.ndarray],
    *,
    problems: Iterable[Problem] = (),
    lost: Collection[str] = (),
    origins: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Refuse arrays that aren't exactly those expected, in one error that names all that differs.

    Args:
        subject: what they are, for the error: ``state_dict``, or a file.
        kind: what they should fit, for the error.
        expected: names to shapes.
        given: names to arrays.
        problems: what a table found wrong before.
        lost: the names of entries that are not missing, as they are among the problems.
        origins: of a name that is given, those that the state dict has for it.

    Raises:
        ValueError: if entries are unknown, missing or misshapen, or of a dtype that isn't floating point or that JAX
            would round. Names that differ in one index only share a line.

    Example:

        >>> check_entries("state_dict", "Stack", {"0.weight": (2,), "1.weight": (2,)}, {"0.weigth": np.ones(2)})
        Traceback (most recent call last):
        ValueError: state_dict must fit this Stack, entry for entry.
          unknown: 0.weigth, shape (2,); nearest missing: {0,1}.weight
          missing: {0,1}.weight, shape (2,)
    """
    common = {name: given[name] for name in expected if name in given}
    unknown = {name: array.shape for name, array in given.items() if name not in expected}
    missing = {name: shape for name, shape in expected.items() if name not in given and name not in lost}
    misshapen = {n: (expected[n], array.shape) for n, array in common.items() if array.shape != expected[n]}
    dtypes = {name: fault for name, array in common.items() if (fault := _fault(array.dtype))}
    places = _grouped(missing)
    sources = {name: olds for name, olds in (origins or {}).items() if (name,) != tuple(olds)}
    lines = [
        *problem_lines(problems),
        *_lines(
            "unknown", unknown, lambda g: f"unknown: {g.label}, shape {g.fact}{_from(g, sources)}{_nearest(g, places)}"
        ),
        *_lines("missing", missing, lambda g: f"missing: {g.label}, shape {g.fact}"),
        *_lines("misshapen", misshapen, lambda g: f"{_misshapen(g)}{_from(g, sources)}"),
        *_lines("of a wrong dtype", dtypes, lambda g: f"{g.fact[0]}: {g.label} {g.fact[1]}"),
    ]
    if lines:
        raise ValueError("\n  ".join([f"{subject} must fit this {kind}, entry for entry.", *lines]))


def problem_lines(problems: Iterable[Problem]) -> list[str]:
    """A line for each, names that differ in one index only in one."""
    kinds: dict[str, dict[str, str]] = {}
    for kind, name, text in problems:
        kinds.setdefault(kind, {})[name] = text
    return [
        f"{kind}: {line}"
        for kind, texts in kinds.items()
        for line in _lines(kind, texts, lambda g: f"{g.label} {g.fact}")
    ]


def _fault(dtype: np.dtype) -> tuple[str, str] | None:
    """What is wrong with a dtype."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return str(dtype), "must be floating point"
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        return str(dtype), "would lose digits. Turn on jax_enable_x64, or convert it first"
    return None


class _Group(NamedTuple):
    """Entries of one fact whose names differ in their first index only."""

    label: str
    fact: Any
    names: tuple[str, ...]


def _grouped(facts: Mapping[str, Hashable]) -> list[_Group]:
    groups: dict[tuple[str, str, Hashable], list[tuple[str, str]]] = {}
    for name, fact in facts.items():
        found = _INDEX.search(name)
        head, index, tail = (name[: found.start()], found[0], name[found.end() :]) if found else (name, "", "")
        groups.setdefault((head, tail, fact), []).append((index, name))
    return [
        _Group(head + _braced([index for index, _ in xs]) + tail, fact, tuple(name for _, name in xs))
        for (head, tail, fact), xs in groups.items()
    ]


def _braced(indices: Sequence[str]) -> str:
    """One index as it is, several in the shell's way: {0..11}, {0,3}."""
    if len(indices) == 1:
        return indices[0]
    first, last = int(indices[0]), int(indices[-1])
    if len(indices) > 2 and list(indices) == [str(i) for i in range(first, last + 1)]:
        return f"{{{first}..{last}}}"
    return f"{{{','.join(indices)}}}"


def _nearest(unknown: _Group, missing: Sequence[_Group]) -> str:
    """The missing name that may be meant: like it, or, if its shape is another, very much like it."""
    fitting = [m.label for m in missing if m.fact == unknown.fact]
    others = [m.label for m in missing]
    near = get_close_matches(unknown.label, fitting, 1) or get_close_matches(unknown.label, others, 1, cutoff=0.8)
    return f"; nearest missing: {near[0]}" if near else ""


def _misshapen(group: _Group) -> str:
    expected, given = group.fact
    turn = "; its transpose would fit" if given == expected[::-1] else ""
    return f"misshapen: {group.label} must have shape {expected}. Got {given}{turn}"


def _lines(kind: str, facts: Mapping[str, Hashable], line: Callable[[_Group], str]) -> list[str]:
    groups = _grouped(facts)
    rest = sum(len(group.names) for group in groups[LINES:])
    return [line(group) for group in groups[:LINES]] + ([f"and {rest} more {kind}"] if rest else [])


def _from(group: _Group, origins: Mapping[str, Sequence[str]]) -> str:
    """What the state dict calls these, where that is something else."""
    olds = dict.fromkeys(old for name in group.names for old in origins.get(name, ()))
    return f", from {' and '.join(g.label for g in _grouped(olds))}" if olds else ""


# ----------------------------------------------------------------------------------------------------------------------
# What a wrapper puts in front of all names: ``module.``, ``_orig_mod.``, ``model.``.

_TRIED = 8  # of the most frequent prefixes


class Prefixing(NamedTuple):
    """A prefix that goes, or that comes, and how many names of the module are then given."""

    goes: str
    comes: str
    fitting: int

    def change(self, name: str) -> str:
        return self.comes + name.removeprefix(self.goes)


def fitting_prefix(
    given: Collection[str], expected: Collection[str], move: Callable[[str], Iterable[str]], heads: Iterable[str] = ()
) -> Prefixing | None:
    """The prefix without which, or with which, all or nearly all names would fit.

    Args:
        given: the state dict's names.
        expected: the module's.
        move: from one of the former to what it becomes.
        heads: how names begin that are looked for on the way.

    Example:

        >>> fitting_prefix(["module.weight", "module.bias"], ["weight", "bias"], lambda name: [name])
        Prefixing(goes='module.', comes='', fitting=2)
    """
    places = set(expected)

    def fitting(change: Callable[[str], str]) -> int:
        return len(places.intersection(new for name in given for new in move(change(name))))

    goes = [(prefix, "") for prefix in _frequent_prefixes(given)]
    comes = [("", prefix) for prefix in dict.fromkeys([*_frequent_prefixes(heads), *_frequent_prefixes(expected)])]
    found = [Prefixing(*pair, fitting(Prefixing(*pair, 0).change)) for pair in goes + comes]
    best = max(found, key=lambda each: each.fitting, default=None)
    if best is None or best.fitting < 2 or best.fitting < 0.9 * min(len(given), len(expected)):
        return None
    return best if best.fitting > fitting(lambda name: name) else None


def _frequent_prefixes(names: Iterable[str]) -> list[str]:
    """The shorter ones first among those of as many names."""
    counts = Counter(name[: i + 1] for name in names for i, c in enumerate(name) if c == ".")
    return sorted(counts, key=lambda prefix: (-counts[prefix], len(prefix)))[:_TRIED]
