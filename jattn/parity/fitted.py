"""A setting that no table lists: the number for which a formula gives what was observed."""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.optimize import least_squares

__all__ = ["fitting_numbers"]

POINTS, BEST = 48, 3
NEAR = 1e-7


def fitting_numbers(
    made: Callable[[float], np.ndarray], wanted: np.ndarray, lowest: float, highest: float
) -> Iterator[float]:
    """Positive numbers for which ``made`` may give all that is wanted, those of few digits first.

    By least squares in the logarithm, from the best of some points. What is not finite does not count, so whoever asks
    holds the number against all entries.
    """

    size = float(np.nanmax(np.where(np.isfinite(wanted), abs(wanted), 0.0), initial=0.0)) or 1.0

    def residuals(u: np.ndarray) -> np.ndarray:
        difference = (made(float(np.exp(u[0]))) - wanted).reshape(-1) / size
        return np.where(np.isfinite(difference), difference, 0.0)

    grid = np.linspace(np.log(lowest), np.log(highest), POINTS)[:, None]
    off = [float(np.linalg.norm(residuals(u))) for u in grid]
    for i in np.argsort(off)[:BEST] if max(off) > 0 else ():
        fit = least_squares(residuals, grid[i], jac="3-point", xtol=1e-15, ftol=1e-15, gtol=1e-15)
        x = float(np.exp(fit.x[0]))
        if 2 * fit.cost <= (1e-6 * max(off)) ** 2 and lowest * (1 - NEAR) <= x <= highest * (1 + NEAR):
            yield from dict.fromkeys(y for n in range(1, 17) if abs((y := float(f"{x:.{n}g}")) / x - 1) < NEAR)
