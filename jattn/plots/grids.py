"""Attention weights as a grid of heatmaps."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import ArrayLike

from jattn._engine import checks
from jattn.plots import arrays
from jattn.plots import tokens as token_text

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["heatmaps", "largest_of_blocks"]

CELLS_PER_INCH = 72  # a figure has 100 dots per inch; a fifth or so of it is for labels
LABEL_INCHES = 0.15  # from one label to the next
LETTER_INCHES = 0.07  # a label's length for each letter, about
LONGEST_LABEL = 20


def heatmaps(
    weights: ArrayLike,
    *,
    tokens: Sequence[str] | None = None,
    query_tokens: Sequence[str] | None = None,
    average: bool = False,
    row_titles: Sequence[str] | None = None,
    column_titles: Sequence[str] | None = None,
    xlabel: str = "key position",
    ylabel: str = "query position",
    size: float = 2.2,
    cmap: str = "viridis",
) -> "Figure":
    """A grid of attention weights, one heatmap for each matrix, all on one colour scale.

    With more positions than dots, a cell stands for a block of them and has the block's largest weight (largest in
    size, if there are negative numbers). A mean would make a single bright point, such as one token that looks far
    back, vanish among thousands of zeros. A larger ``size`` gives smaller blocks.

    Args:
        weights: ``rows columns t s`` (say, layers and heads), ``columns t s`` or ``t s``.
        tokens: of the keys, written at the ticks; also of the queries, unless they have their own. Among many
            positions, as many are written as there is room for.
        query_tokens: of the queries.
        average: one heatmap for each row: the mean of its columns, say, of a layer's heads.
        row_titles: one for each row of the grid, written on its left.
        column_titles: one for each column, written above.
        xlabel, ylabel: of the outer axes.
        size: the side of one heatmap in inches.
        cmap: any of matplotlib's colour maps.

    Returns:
        The figure; save it with ``figure.savefig(path)``.

    Raises:
        ValueError: if weights has other axes, a mask, or numbers that are not real and finite; if the titles or tokens
            are not as many as rows, columns and positions; or if size is not above 0.

    Example:

        >>> figure = heatmaps(np.eye(3).reshape(1, 1, 3, 3), tokens=["the", "cat", "sat"], column_titles=["identity"])
        >>> len(figure.axes)  # the heatmap and the colour bar
        2
    """
    from matplotlib.figure import Figure

    grid = arrays.real_numbers("weights", weights, np.float32)
    size = checks.number("size", size, "(0, inf)")
    if not 2 <= grid.ndim <= 4 or 0 in grid.shape:
        raise ValueError(
            f"weights must have the axes t s, columns t s, or rows columns t s, none of them empty. "
            f"Got shape {grid.shape}."
        )
    grid = grid.reshape((1,) * (4 - grid.ndim) + grid.shape)
    for place in np.ndindex(grid.shape[:2]):  # one at a time, as there may be gigabytes
        if not np.isfinite(grid[place]).all():
            at = tuple(int(i) for i in np.argwhere(~np.isfinite(grid[place]))[0])
            raise ValueError(f"weights must be finite. Got {grid[place][at]} at {(*place, *at)}.")
    if average:
        grid = grid.mean(axis=1, keepdims=True)
    rows, columns, t, s = grid.shape
    for name, titles, n in (("row_titles", row_titles, rows), ("column_titles", column_titles, columns)):
        if titles is not None and len(titles) != n:
            raise ValueError(f"{name} must have {n} entries, one for each. Got {len(titles)}.")
    key_labels = None if tokens is None else shortened(token_text.check_tokens("tokens", tokens, s, "keys"))
    query_labels = key_labels
    if query_tokens is not None:
        query_labels = shortened(token_text.check_tokens("query_tokens", query_tokens, t, "queries"))
    elif key_labels is not None and t != s:
        raise ValueError(f"query_tokens must be given, since weights has {t} queries and {s} keys. Got None.")

    beside, below = (LETTER_INCHES * max(map(len, labels or [""])) for labels in (query_labels, key_labels))
    figure = Figure(figsize=(size * columns + 1.2 + beside, size * rows + 0.6 + below), layout="constrained")
    axes: Any = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    cells = max(1, int(size * CELLS_PER_INCH))
    shown = [[largest_of_blocks(grid[i, j], cells) for j in range(columns)] for i in range(rows)]
    extent = (-0.5, s - 0.5, t - 0.5, -0.5)  # the axes count positions, whatever a cell stands for
    options: dict[str, Any] = dict(cmap=cmap, vmin=np.min(shown), vmax=np.max(shown), extent=extent)
    for i, j in np.ndindex(rows, columns):
        axis = axes[i, j]
        picture = axis.imshow(shown[i][j], aspect="auto", interpolation="nearest", **options)
        write_tokens(axis.xaxis, key_labels, s, size)
        write_tokens(axis.yaxis, query_labels, t, size)
        if i == rows - 1:
            axis.set_xlabel(xlabel)
        if j == 0:
            axis.set_ylabel(ylabel if row_titles is None else f"{row_titles[i]}\n{ylabel}")
        if i == 0 and column_titles is not None:
            axis.set_title(column_titles[j])
    figure.colorbar(picture, ax=axes, shrink=0.7, label="weight")
    return figure


def largest_of_blocks(matrix: np.ndarray, cells: int) -> np.ndarray:
    """At most so many cells a side, each the entry of its block that is farthest from 0.

    Example:

        >>> largest_of_blocks(np.array([[0, 1, 0, 0, 0], [0, 0, 0, 0, 2]]), 3)
        array([[1, 0, 0],
               [0, 0, 2]])
    """
    starts = [np.arange(0, n, math.ceil(n / cells)) for n in matrix.shape]
    if all(len(start) == n for start, n in zip(starts, matrix.shape, strict=True)):
        return matrix

    def reduce(function: np.ufunc) -> np.ndarray:
        return function.reduceat(function.reduceat(matrix, starts[0], axis=0), starts[1], axis=1)

    largest, smallest = reduce(np.maximum), reduce(np.minimum)
    return np.where(-smallest > largest, smallest, largest)


def shortened(labels: list[str]) -> list[str]:
    return [label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…" for label in labels]


def write_tokens(axis: "Axis", labels: list[str] | None, n: int, inches: float) -> None:
    """Tokens, or a few positions, at the ticks."""
    from matplotlib.axis import XAxis
    from matplotlib.ticker import MaxNLocator

    if labels is None:
        axis.set_major_locator(MaxNLocator(5, integer=True))
        return
    places = range(0, n, math.ceil(n * LABEL_INCHES / inches))
    style: dict[str, Any] = dict(parse_math=False, fontsize=8)  # a $ in a token is a $
    if isinstance(axis, XAxis):
        style["rotation"] = 90
    axis.set_ticks(places, [labels[i] for i in places], **style)
