"""What is drawn, from whatever holds it: real numbers, and names."""

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["named", "real_numbers"]


def real_numbers(name: str, x: Any, dtype: type[np.floating], fill: str = "0") -> np.ndarray:
    """Real numbers, from NumPy, JAX, lists or a tensor in PyTorch's CPU memory, without importing either.

    ``fill`` is what the error suggests in place of what a mask hides.
    """
    if _has_mask(x):
        raise ValueError(
            f"{name} must not be masked, as the mask would be lost. Got a masked array. Use .filled({fill})."
        )
    try:
        array = np.asarray(x)
        # Complex numbers and text are refused, rather than made real.
        return array.astype(dtype, copy=False, casting="unsafe" if array.dtype == object else "same_kind")
    except (TypeError, ValueError, RuntimeError) as error:  # PyTorch raises all three
        raise ValueError(
            f"{name} must be an array of real numbers in the CPU's memory, or a tensor without a gradient "
            f"(tensor.detach().float().cpu()). Got {type(x).__name__}: {error}"
        ) from error


def _has_mask(x: Any) -> bool:
    return isinstance(x, np.ma.MaskedArray) or (isinstance(x, (list, tuple)) and any(map(_has_mask, x)))


def named(name: str, x: Any) -> dict[str, Any]:
    """A mapping from strings, found to be one."""
    if not isinstance(x, Mapping) and not hasattr(x, "items"):  # a table of pandas has them too
        raise ValueError(f"{name} must be a mapping from names to numbers. Got {type(x).__name__}: {x!r:.60}.")
    entries = dict(x.items())
    for key in entries:
        if not isinstance(key, str):
            raise ValueError(f"{name} must have names that are strings. Got {key!r:.60}.")
    return entries
