"""A function over the first axis of its inputs: one after the other on a processor, many at once on an accelerator."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

__all__ = ["Each", "a_few_at_once", "broadcast_map", "largest_divisor", "largest_of_all", "one_by_one", "side_by_side"]

Each = Callable[[Callable[[Any], Any], Any], Any]  # each(f, xs): f of all, results side by side


def broadcast_map(f: Callable[[Any], Any], xs: Any, each: Each) -> Any:
    """``each(f, xs)``, where an array whose first axis has length 1 stands for all, and so does a Python number.

    Where nothing has more than one entry there is no loop, which would hide numbers that are known.
    """
    leaves, structure = jax.tree.flatten(xs)
    shared = [isinstance(x, int | float) or x.shape[0] == 1 for x in leaves]

    def of_one(mapped: list[Array]) -> Any:
        entries = iter(mapped)
        given = [
            (x if isinstance(x, int | float) else x[0]) if of_all else next(entries)
            for x, of_all in zip(leaves, shared, strict=True)
        ]
        return f(jax.tree.unflatten(structure, given))

    mapped = [x for x, of_all in zip(leaves, shared, strict=True) if not of_all]
    return each(of_one, mapped) if mapped else jax.tree.map(lambda x: x[None], of_one([]))


def one_by_one(f: Callable[[Any], Any], xs: Any) -> Any:
    return lax.map(f, xs)


def side_by_side(f: Callable[[Any], Any], xs: Any) -> Any:
    return jax.vmap(f)(xs)


def a_few_at_once(n: int) -> Each:
    def each(f: Callable[[Any], Any], xs: Any) -> Any:
        if n == 1:
            return one_by_one(f, xs)
        return side_by_side(f, xs) if n == jax.tree.leaves(xs)[0].shape[0] else lax.map(f, xs, batch_size=n)

    return each


@jax.custom_batching.custom_vmap
def largest_of_all(x: Array) -> Array:
    """The largest entry, also of all that ``vmap`` maps over: one number, so that a choice by it stays a choice."""
    return jnp.max(x)


@largest_of_all.def_vmap
def _(size: int, in_batched: list[bool], x: Array) -> tuple[Array, bool]:
    return largest_of_all(x), False


def largest_divisor(n: int, most: int) -> int:
    """The largest number that divides n and is at most ``most``; 1 if that is less."""
    return next((i for i in range(min(n, most), 1, -1) if n % i == 0), 1)
