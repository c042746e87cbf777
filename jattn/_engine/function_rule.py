"""Rules that are functions of the caller's, with the arrays that they are given by name."""

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jattn._engine import checks
from jattn._engine.axes import Shape, check_axes
from jattn._engine.grid import Grid
from jattn._engine.rule import Rule


class FunctionRule(Rule):
    """A rule that is a function of the caller's, with arrays that are given to it by name."""

    function: Callable[..., Any]
    arrays: dict[str, Any]
    axes: tuple[tuple[str, str | None], ...]  # of each array, by name

    @property
    def by_caller(self) -> bool:
        return True

    def call(self, *positions: Any) -> Any:
        return self.function(*positions, **self.arrays)

    @staticmethod
    def of_rank(result: Any, grid: Grid) -> Any:
        """What the function returned, a single number as one for all."""
        return jnp.asarray(result).reshape((1,) * grid.row.ndim) if np.ndim(result) == 0 else result

    def map_fields(self: Any, f: Callable[[str, str | None, Any], Any]) -> Any:
        return self._replace(arrays={name: f(name, axes, self.arrays[name]) for name, axes in self.axes})

    def check(self, shape: Shape) -> None:
        for name, axes in self.axes:
            if axes is not None:
                check_axes(name, axes, self.arrays[name], shape)
        super().check(shape)


def function_and_arrays(
    f: Any, positions: tuple[str, ...], arrays: dict[str, Any]
) -> tuple[Any, dict[str, Any], tuple[tuple[str, str | None], ...]]:
    """A function of the caller's, its arrays, and the axes of each that is given as a pair ``(axes, array)``."""
    wanted = f"a function of {', '.join((*positions, *arrays))}"
    if not callable(f) or isinstance(f, type):
        raise ValueError(f"f must be {wanted}. Got {f!r}.")
    try:
        signature = inspect.signature(f)
    except ValueError:  # some functions have none that can be seen
        signature = None
    try:
        if signature is not None:
            signature.bind(*positions, **arrays)
    except TypeError as error:
        raise ValueError(f"f must be {wanted}. Got a function of {signature}: {error}.") from error
    axes: dict[str, str | None] = {}
    for array, x in arrays.items():
        axes[array] = x[0] if isinstance(x, tuple) else None
        if isinstance(x, tuple) and (
            len(x) != 2 or not isinstance(x[0], str) or not x[0] or x[0] != "".join(a for a in "bhts" if a in x[0])
        ):
            raise ValueError(
                f'{array} must be an array, or a pair of axes, in the order of "bhts", and an array. Got {x!r:.80}.'
            )
    given = {name: checks.array(name, x[1] if isinstance(x, tuple) else x) for name, x in arrays.items()}
    return f, given, tuple(axes.items())
