"""Curves: losses over steps, accuracy over heads removed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import ArrayLike

from jattn.plots import arrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curves"]

Numbers = ArrayLike | Sequence[ArrayLike]
COLOURS = 10  # then they come again, each time with another stroke and marker
STROKES = ("-", "--", ":", "-.")
MARKERS = "os^D"
INSIDE = 10  # more names stand beside the axis
NAMES_PER_COLUMN = 15


def curves(
    series: Mapping[str, Numbers],
    *,
    x: Numbers | None = None,
    spread: Mapping[str, Numbers] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
) -> "Figure":
    """One curve for each name, with a band around it where a spread is given.

    Colours and strokes tell 40 curves apart. The names of more than 10 stand on the right of a
    wider figure.

    Args:
        series: the values of each curve; a NaN leaves a gap.
        x: where they are, the same for all curves; 0, 1, 2 and so on by default.
        spread: how far the band of a curve reaches to either side, such as a standard deviation; not all curves need
            one.
        xlabel, ylabel, title: what to write. The names are written as they are, the rest may have ``$math$`` in it.

    Returns:
        The figure; its one axis is ``figure.axes[0]``, for instance to call ``set_yscale("log")``.

    Raises:
        ValueError: if lengths differ, names are not strings, numbers are not real or have a mask, or a spread has no
            curve or is negative.

    Example:

        >>> accuracy = {"by gradient": [0.97, 0.96, 0.91], "at random": [0.97, 0.90, 0.71]}
        >>> figure = curves(accuracy, x=[0, 4, 8], spread={"at random": [0, 0.02, 0.05]}, xlabel="heads removed")
        >>> len(figure.axes[0].lines)
        2
    """
    from matplotlib.figure import Figure

    values = {name: _numbers("series", name, y) for name, y in arrays.named("series", series).items()}
    if not values:
        raise ValueError("series must have at least one curve. Got none.")
    given = {} if spread is None else arrays.named("spread", spread)
    bands = {name: _numbers("spread", name, y) for name, y in given.items()}
    for name, band in bands.items():
        if name not in values:
            raise ValueError(f"spread must belong to the curves, {', '.join(values)}. Got {name!r}.")
        if band.shape != values[name].shape:
            raise ValueError(f"spread[{name!r}] must have {len(values[name])} numbers, as its curve. Got {len(band)}.")
        if (band < 0).any():
            raise ValueError(f"spread[{name!r}] must not be negative. Got {band.min()}.")
    places = None if x is None else _numbers("x", None, x)
    for name, y in values.items():
        if places is not None and len(y) != len(places):
            raise ValueError(f"series[{name!r}] must have {len(places)} numbers, as x. Got {len(y)}.")

    figure = Figure(figsize=(7, 4.2))
    axis = figure.subplots()
    for i, (name, y) in enumerate(values.items()):
        again = i // COLOURS
        style: dict[str, Any] = dict(
            color=f"C{i % COLOURS}", ls=STROKES[again % 4], marker=MARKERS[again % 4] if len(y) <= 40 else ""
        )
        at = np.arange(len(y)) if places is None else places
        (line,) = axis.plot(at, y, lw=1.8, ms=4, **style)
        if name in bands:
            axis.fill_between(at, y - bands[name], y + bands[name], color=line.get_color(), alpha=0.18, lw=0)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    if len(values) > 1:
        # Handles by hand: matplotlib leaves names that begin with _ out of the legend, and takes $ for mathematics.
        beside: dict[str, Any] = dict(
            loc="upper left", bbox_to_anchor=(1, 1), ncols=-(-len(values) // NAMES_PER_COLUMN)
        )
        legend = axis.legend(axis.lines, list(values), frameon=False, **beside if len(values) > INSIDE else {})
        for text in legend.get_texts():
            text.set_parse_math(False)
        if len(values) > INSIDE:
            box = legend.get_window_extent()
            figure.set_size_inches(7 + box.width / figure.dpi, max(4.2, 1 + box.height / figure.dpi))
    figure.set_layout_engine("constrained")
    return figure


def _numbers(argument: str, name: str | None, x: Numbers) -> np.ndarray:
    """One axis of real numbers."""
    place = argument if name is None else f"{argument}[{name!r}]"
    numbers = arrays.real_numbers(place, x, np.float64, fill="np.nan")
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"{place} must be numbers along one axis. Got shape {numbers.shape}.")
    return numbers
