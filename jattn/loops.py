"""A function over the first axis of its inputs: one after the other on a processor, many at once on an accelerator."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

Each = Callable[[Callable[[Any], Any], Any], Any]  # each(f, xs): f of all, results side by side


def on_cpu() -> bool:
    """Whether cores share the work of one block; an accelerator takes many at once."""
    return jax.default_backend() == "cpu"


def map_with_bias(f: Callable[..., Any], xs: tuple[Any, ...], bias: Array | None, each: Each) -> Any:
    """``each(f, xs)``, with f given also the bias, whose first axis stands for all if its length is 1."""
    if bias is None or bias.shape[0] == 1:
        return each(lambda x: f(*x, None if bias is None else bias[0]), xs)
    return each(lambda x: f(*x), (*xs, bias))


def one_by_one(f: Callable[[Any], Any], xs: Any) -> Any:
    if jax.tree.leaves(xs)[0].shape[0] == 1:  # a loop of one turn would hide numbers that are known
        return jax.tree.map(lambda x: x[None], f(jax.tree.map(lambda x: x[0], xs)))
    return lax.map(f, xs)


def some_by_some(at_once: int) -> Each:
    """So many at once."""

    def each(f: Callable[[Any], Any], xs: Any) -> Any:
        if at_once == 1:
            return one_by_one(f, xs)
        return jax.vmap(f)(xs) if at_once == jax.tree.leaves(xs)[0].shape[0] else lax.map(f, xs, batch_size=at_once)

    return each


def each_matrix(f: Callable[[Any], Any], xs: Any) -> Any:
    """A processor's cores share the work of one; an accelerator takes all at once."""
    return one_by_one(f, xs) if on_cpu() else jax.vmap(f)(xs)


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
