"""The lines of a table for fused weights, which are several entries on one side and one on the other."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jattn.weights import layouts
from jattn.weights.files import to_numpy
from jattn.weights.passage import Conversion, Line
from jattn.weights.patterns import as_written, both_sides

__all__ = ["merge", "split", "unstack"]


def split(
    theirs: str,
    ours: Sequence[str],
    *,
    axis: int = 0,
    sizes: Sequence[int] | None = None,
    num_heads: int = 1,
    optional: bool = False,
    back: bool = True,
) -> Line:
    """Several entries of the module that are one in the state dict: a fused query, key and value.

    Args:
        theirs: the name in the state dict.
        ours: the names in the module, in the order in which they lie there.
        axis: along which they lie, counted from the end if negative; of the bias beside a matrix too.
        sizes: how their sizes relate, equal by default; grouped heads as Phi-3 has them are ``(h, k, k)`` heads, or as
            many features.
        num_heads: into how many blocks the axis is cut before each is cut into the parts. The parts of each head lie
            together, ``(h 3 d)``, in GPT-NeoX and BLOOM, where this is h; the groups of Falcon are so too, where it is
            k, of sizes ``(h // k, 1, 1)``. By default all heads of a part lie together, ``(3 h d)``.
        optional: whether it may find nothing.
        back: whether they are one on the way back too; False for a form that only some files have.

    Example:

        >>> from jattn.weights import Table
        >>> parts = ("query", "key", "value")
        >>> qkv = {"qkv.bias": np.array([1, 2, 10, 20, 100, 200])}
        >>> {name: x.tolist() for name, x in Table([split("qkv", parts)]).load(qkv).items()}
        {'query.bias': [1, 2], 'key.bias': [10, 20], 'value.bias': [100, 200]}
        >>> by_head = {"qkv.bias": np.array([1, 10, 100, 2, 20, 200])}
        >>> {name: x.tolist() for name, x in Table([split("qkv", parts, num_heads=2)]).load(by_head).items()}
        {'query.bias': [1, 2], 'key.bias': [10, 20], 'value.bias': [100, 200]}
    """
    return _fused("split", theirs, ours, axis, sizes, num_heads, optional, back)


def merge(
    theirs: Sequence[str],
    ours: str,
    *,
    axis: int = 0,
    sizes: Sequence[int] | None = None,
    num_heads: int = 1,
    optional: bool = False,
) -> Line:
    """Several entries of the state dict that are one in the module; what `split` is the other way round.

    Args:
        theirs: the names in the state dict, in the order in which they lie in the module's.
        ours: the name in the module.
        axis, sizes, num_heads, optional: as in `split`.

    Example:

        >>> from jattn.weights import Table
        >>> table = Table([merge(("q_proj", "k_proj"), "in_proj")])
        >>> table.load({"q_proj.bias": np.array([1, 2]), "k_proj.bias": np.array([3, 4])})
        {'in_proj.bias': array([1, 2, 3, 4])}
    """
    return _fused("merge", ours, theirs, axis, sizes, num_heads, optional, True)


def unstack(theirs: str, ours: Sequence[str], *, optional: bool = False, back: bool = True) -> Line:
    """An entry with a first axis that has one part for each of several entries of the module: stacked experts.

    Args:
        theirs: the name in the state dict.
        ours: the names in the module, in their order along that axis.
        optional, back: as in `split`.

    Example:

        >>> from jattn.weights import Table
        >>> table = Table([unstack("up_proj", ["experts.0.linear1.weight", "experts.1.linear1.weight"])])
        >>> {name: x.shape for name, x in table.load({"up_proj": np.ones((2, 4, 3))}).items()}
        {'experts.0.linear1.weight': (4, 3), 'experts.1.linear1.weight': (4, 3)}
    """
    written = as_written("unstack", theirs, ours)
    one, several = both_sides(written, (theirs,), ours)

    def apart(xs: list[Any]) -> list[np.ndarray]:
        return layouts.unstacked(xs[0], len(ours))

    return Conversion(written, one, several, apart, lambda xs: [np.stack([to_numpy(x) for x in xs])], optional, back)


def _fused(
    function: str,
    whole: str,
    parts: Sequence[str],
    axis: int,
    sizes: Sequence[int] | None,
    num_heads: int,
    optional: bool,
    back: bool,
) -> Line:
    """`split`, and with the sides changed `merge`."""
    written = as_written(function, *((whole, parts) if function == "split" else (parts, whole)))
    if isinstance(parts, str) or len(parts) < 2:
        raise ValueError(f"{written} must have several parts. Got {parts!r}.")
    relative = (1,) * len(parts) if sizes is None else tuple(sizes)
    if len(relative) != len(parts) or not all(isinstance(n, int) and n > 0 for n in (*relative, num_heads)):
        raise ValueError(
            f"{written} must have a positive integer in sizes for each part, and for num_heads. "
            f"Got sizes={sizes} and num_heads={num_heads}."
        )
    one, several = both_sides(written, (whole,), parts)

    def cut(xs: list[Any]) -> list[np.ndarray]:
        return layouts.cut(xs[0], relative, num_heads, axis)

    def put_together(xs: list[Any]) -> list[np.ndarray]:
        return [layouts.put_together(xs, relative, num_heads, axis)]

    if function == "split":
        return Conversion(written, one, several, cut, put_together, optional, back)
    return Conversion(written, several, one, put_together, cut, optional, back)
