"""Pictures of attention. Needs matplotlib (``pip install "jattn[plots]"``), no display, and returns its figures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import ArrayLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heatmaps(
    weights: ArrayLike,
    *,
    row_titles: Sequence[str] | None = None,
    column_titles: Sequence[str] | None = None,
    xlabel: str = "key position",
    ylabel: str = "query position",
    size: float = 2.2,
    cmap: str = "viridis",
) -> "Figure":
    """A grid of attention weights, one heatmap for each matrix, all on one colour scale.

    Args:
        weights: ``rows columns t s`` (say, layers and heads), ``columns t s`` or ``t s``.
        row_titles: one for each row of the grid, written on its left.
        column_titles: one for each column, written above.
        xlabel, ylabel: of the outer axes.
        size: the side of one heatmap in inches.
        cmap: any of matplotlib's colour maps.

    Returns:
        The figure; save it with ``figure.savefig(path)``.

    Raises:
        ValueError: if weights has other axes, or the titles are not as many as rows and columns.

    Example:

        >>> figure = heatmaps(np.eye(10).reshape(1, 1, 10, 10), column_titles=["identity"])
        >>> len(figure.axes)  # the heatmap and the colour bar
        2
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    grid = np.asarray(weights, dtype=np.float32)
    if not 2 <= grid.ndim <= 4:
        raise ValueError(f"weights must have the axes t s, columns t s, or rows columns t s. Got shape {grid.shape}.")
    grid = grid.reshape((1,) * (4 - grid.ndim) + grid.shape)
    rows, columns = grid.shape[:2]
    for name, titles, n in (("row_titles", row_titles, rows), ("column_titles", column_titles, columns)):
        if titles is not None and len(titles) != n:
            raise ValueError(f"{name} must have {n} entries, one for each. Got {len(titles)}.")

    figure = Figure(figsize=(size * columns + 1.2, size * rows + 0.6), layout="constrained")
    axes: Any = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    options: dict[str, Any] = dict(cmap=cmap, vmin=grid.min(), vmax=grid.max(), aspect="auto", interpolation="nearest")
    for i, j in np.ndindex(rows, columns):
        axis = axes[i, j]
        picture = axis.imshow(grid[i, j], **options)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        if i == rows - 1:
            axis.set_xlabel(xlabel)
        if j == 0:
            axis.set_ylabel(ylabel if row_titles is None else f"{row_titles[i]}\n{ylabel}")
        if i == 0 and column_titles is not None:
            axis.set_title(column_titles[j])
    figure.colorbar(picture, ax=axes, shrink=0.7, label="weight")
    return figure
