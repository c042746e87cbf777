"""Which arrays of one side are which of the other's: by name, or else by shape and value."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jattn.parity.arrays import aligned, error

__all__ = ["OutputPair", "pair_arrays", "pair_outputs", "selected"]

MAIN = ("logits", "last_hidden_state")  # the field of Hugging Face's outputs that a port gives alone


class OutputPair(NamedTuple):
    """What is compared under a name: places among the outputs of either side, None where a side has none."""

    name: str
    torch: int | None
    flax: int | None


def pair_outputs(theirs: Sequence[str], ours: Sequence[str]) -> tuple[list[OutputPair], list[str]]:
    """The outputs of both modules by their names, which are empty for items of a tuple, and by their order otherwise.

    Of a module that has the logits among others, and one that gives a single array, these two; then the names of the
    others come back too.
    """
    for names, single, turned in ((theirs, ours, False), (ours, theirs, True)):
        main = next((name for name in MAIN if name in names), None)
        if list(single) == [""] and main is not None:
            at = (0, names.index(main)) if turned else (names.index(main), 0)
            return [OutputPair(main, *at)], [name for name in names if name != main]
    if all(theirs) and all(ours) and set(theirs) & set(ours):
        names = list(dict.fromkeys([*theirs, *ours]))
        return [OutputPair(name, _place(theirs, name), _place(ours, name)) for name in names], []
    number = max(len(theirs), len(ours))
    places = [(i if i < len(theirs) else None, i if i < len(ours) else None) for i in range(number)]
    return [OutputPair(f"output {i}", *at) for i, at in enumerate(places)], []


def _place(names: Sequence[str], name: str) -> int | None:
    return names.index(name) if name in names else None


def selected(result: Any, output: Any, side: str) -> Any:
    """The part of a module's result that is to be compared: all, what a function gives of it, or a field."""
    if output is None or (isinstance(output, str) and hasattr(result, "shape")):
        return result
    if callable(output):
        return output(result)
    if isinstance(result, Mapping) and output in result:
        return result[output]
    if hasattr(result, output) and not callable(getattr(result, output)):
        return getattr(result, output)
    fields = list(result) if isinstance(result, Mapping) else getattr(result, "_fields", None)
    what = f"the fields {', '.join(fields)}" if fields else f"a {type(result).__name__}"
    raise ValueError(
        f"output must be a field of what both give, or a function of it. Got {output!r}, and {side} {what}."
    )


def pair_arrays(
    theirs: Sequence[np.ndarray], ours: Sequence[np.ndarray], their_names: Sequence[str], our_names: Sequence[str]
) -> list[tuple[int, int]]:
    """Places of arrays that belong together, in PyTorch's order.

    What has the same name; the others each with one that fits its shape, the nearest first. What is left over, as
    attention may be given one array or three that are the same, has no partner.
    """
    fitting = {(i, j) for i, x in enumerate(theirs) for j, y in enumerate(ours) if aligned(y, x) is not None}
    pairs = [(i, j) for i, j in sorted(fitting) if their_names[i] and their_names[i] == our_names[j]]
    away = {(i, j): error(ours[j], theirs[i]) for i, j in fitting}
    for i, j in sorted(fitting, key=lambda pair: (away[pair], pair)):
        if not any(i == a or j == b for a, b in pairs):
            pairs.append((i, j))
    return sorted(pairs)
