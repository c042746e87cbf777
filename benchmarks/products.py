"""The floor under a computation: its own matrix products, and nothing else."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp


def products_of(f: Callable[..., Any], *arguments: Any) -> Callable[[], jax.Array]:
    """A compiled function that does the matrix products of ``f(*arguments)``, on random numbers.

    None waits for another, so what ``f`` does takes at least as long. The largest entry of each is found, so that none
    can be left out and none has to be written to memory of its own.
    """
    dots = list(_dots(jax.make_jaxpr(f)(*arguments).jaxpr))
    operands: dict[Any, jax.Array] = {}
    for _, avals in dots:
        for aval in avals:
            operands.setdefault(_kind(aval), jax.random.normal(jax.random.key(len(operands)), aval.shape, aval.dtype))
    pairs = [[operands[_kind(aval)] for aval in avals] for _, avals in dots]

    @jax.jit
    def run(pairs: list[list[jax.Array]]) -> jax.Array:
        largest = [jax.lax.dot_general(x, y, **how).max() for (how, _), (x, y) in zip(dots, pairs, strict=True)]
        return jnp.stack(largest)

    return lambda: run(pairs)


def _kind(aval: Any) -> tuple[Any, ...]:
    return aval.shape, aval.dtype


def _dots(jaxpr: Any) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """How each product is taken, and of what, as often as a scan repeats it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            how = {name: equation.params[name] for name in ("dimension_numbers", "preferred_element_type")}
            yield how, [x.aval for x in equation.invars]
        parts = list(equation.params.values())
        if equation.params.get("branches_platforms"):  # of which one is lowered
            parts = [_branch_here(**equation.params)]
        for _ in range(equation.params.get("length", 1) if equation.primitive.name == "scan" else 1):
            for inner in jax.tree.leaves(parts, is_leaf=_has_equations):
                if _has_equations(inner):
                    yield from _dots(getattr(inner, "jaxpr", inner))


def _branch_here(branches: Any, branches_platforms: Any, **_: Any) -> Any:
    """The branch of the default device's platform, or the one for those that have none of their own."""
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    own = [branch for branch, names in zip(branches, branches_platforms, strict=True) if names and here in names]
    return own[0] if own else branches[[not names for names in branches_platforms].index(True)]


def _has_equations(x: Any) -> bool:
    return hasattr(getattr(x, "jaxpr", x), "eqns")
