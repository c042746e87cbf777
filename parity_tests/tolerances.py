"""The one table of tolerances. Every error is the largest difference, relative to the largest true entry.

In float64 jattn must reproduce the reference. In lower precision two correct programs differ by rounding, so jattn is
measured against the float64 truth for the same (rounded) numbers, and PyTorch's own error there is the yardstick:

    error(jattn) <= FACTOR * error(PyTorch) + ULPS * eps
"""

from typing import NamedTuple

import ml_dtypes
import numpy as np

FLOAT64 = 1e-10
FACTOR = 2.0
ULPS = 4.0

EPS = {"float32": float(np.finfo(np.float32).eps), "bfloat16": float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps)}


class Looser(NamedTuple):
    """An entry of the table that allows more, and why."""

    limit: float
    reason: str


# (pair, dtype): what it is allowed instead.
LOOSER: dict[tuple[str, str], Looser] = {}


def limit(pair: str, dtype: str, reference_error: float) -> float:
    """The largest error that ``pair`` may have in ``dtype`` where PyTorch's own is ``reference_error``."""
    if (pair, dtype) in LOOSER:
        return LOOSER[pair, dtype].limit
    return FLOAT64 if dtype == "float64" else FACTOR * reference_error + ULPS * EPS[dtype]


# Parameters without a gradient: what all keys share cancels in the softmax. Training moves them by rounding alone, and
# Adam makes that as large as a step. They are measured on the scale of the largest parameter, in float32 not at all.
NO_GRADIENT = ("key.bias",)
