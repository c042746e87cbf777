"""Rules that are functions of the caller's, with the arrays that they are given by name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jattn._engine import checks
from jattn._engine.axes import Shape, check_axes
from jattn._engine.grid import Grid
from jattn._engine.of_caller import an_array, as_part_of_a_program, takes
from jattn._engine.rule import Rule

__all__ = ["FunctionRule", "function_and_arrays"]


class FunctionRule(Rule):
    """A rule that is a function of the caller's, with arrays that are given to it by name."""

    function: Callable[..., Any]
    arrays: dict[str, Any]
    axes: tuple[tuple[str, str | None], ...]  # of each array, by name

    declared = 'name=("h", array).'

    @property
    def by_caller(self) -> str:
        return "f"

    def call(self, grid: Grid, *arguments: Any) -> Any:
        """What the function returns, a single number as one for all of the grid."""
        with as_part_of_a_program("f"):
            result = self.function(*arguments, **self.arrays)
        assert self.gives is not None
        result = an_array("f", result, self.gives[0])
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
    takes("f", f, positions, tuple(arrays))
    if not jax.tree_util.all_leaves([f]):  # a module, say, whose arrays are no fields of the rule with axes to be cut
        f = f.__call__
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
