"""The entries of a state dict: renamed by a table of patterns, and held against what a module expects."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["check_entries", "new_name", "renamed"]

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
    subject: str, kind: str, expected: Mapping[str, tuple[int, ...]], given: Mapping[str, np.ndarray]
) -> None:
    """Refuse arrays that aren't exactly those expected, in one error that names all that differs.

    Args:
        subject: what they are, for the error: ``state_dict``, or a file.
        kind: what they should fit, for the error.
        expected: names to shapes.
        given: names to arrays.

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
    missing = {name: shape for name, shape in expected.items() if name not in given}
    misshapen = {n: (expected[n], array.shape) for n, array in common.items() if array.shape != expected[n]}
    dtypes = {name: fault for name, array in common.items() if (fault := _fault(array.dtype))}
    places = _grouped(missing)
    lines = [
        *_lines("unknown", unknown, lambda g: f"unknown: {g.label}, shape {g.fact}{_nearest(g, places)}"),
        *_lines("missing", missing, lambda g: f"missing: {g.label}, shape {g.fact}"),
        *_lines("misshapen", misshapen, _misshapen),
        *_lines("of a wrong dtype", dtypes, lambda g: f"{g.fact[0]}: {g.label} {g.fact[1]}"),
        *_prefix_remedy(unknown, missing, bool(common)),
    ]
    if lines:
        raise ValueError("\n  ".join([f"{subject} must fit this {kind}, entry for entry.", *lines]))


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
    size: int


def _grouped(facts: Mapping[str, Hashable]) -> list[_Group]:
    groups: dict[tuple[str, str, Hashable], list[str]] = {}
    for name, fact in facts.items():
        found = _INDEX.search(name)
        head, index, tail = (name[: found.start()], found[0], name[found.end() :]) if found else (name, "", "")
        groups.setdefault((head, tail, fact), []).append(index)
    return [_Group(head + _braced(xs) + tail, fact, len(xs)) for (head, tail, fact), xs in groups.items()]


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
    rest = sum(group.size for group in groups[LINES:])
    return [line(group) for group in groups[:LINES]] + ([f"and {rest} more {kind}"] if rest else [])


def _prefix_remedy(unknown: Collection[str], missing: Collection[str], any_common: bool) -> list[str]:
    """The remedy if the names differ by what a wrapper puts in front of them: ``module.``, ``_orig_mod.``."""
    for longer, shorter in ((unknown, missing), (missing, unknown)):
        prefixes = Counter(n[: i + 1] for n in longer for i, c in enumerate(n) if c == "." and n[i + 1 :] in shorter)
        for prefix, count in prefixes.most_common(1):
            table = {f"^{re.escape(prefix)}": ""} if longer is unknown else {"^": prefix}
            if count > 1 and (longer is unknown or not any_common):
                return [f"remedy: rename={table} would give {count} of {len(unknown)} unknown entries their place"]
    return []
