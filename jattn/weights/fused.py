"""The lines of a table for fused weights, which are several entries on one side and one on the other."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jattn.weights import layouts
from jattn.weights.passage import Conversion, Line
from jattn.weights.patterns import as_written, both_sides

__all__ = ["merge", "split"]


def split(
    theirs: str,
    ours: Sequence[str],
    *,
    axis: int = 0,
    sizes: Sequence[int] | None = None,
    num_heads: int = 1,
    optional: bool = False,
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
    return _fused("split", theirs, ours, axis, sizes, num_heads, optional)


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
    return _fused("merge", ours, theirs, axis, sizes, num_heads, optional)


def _fused(
    function: str,
    whole: str,
    parts: Sequence[str],
    axis: int,
    sizes: Sequence[int] | None,
    num_heads: int,
    optional: bool,
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
        return Conversion(written, one, several, cut, put_together, optional)
    return Conversion(written, several, one, put_together, cut, optional)
