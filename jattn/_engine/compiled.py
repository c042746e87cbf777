"""A function that is one compiled program by itself, and a part of the program around it inside of one."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., Any])


def compiled(*static: str) -> Callable[[F], F]:
    """A decorator: ``jax.jit`` with these static arguments, inlined into a program that calls it.

    Called by itself, also under ``jax.grad`` or ``jax.vmap``, the function is compiled once: no infinity inside of it
    meets ``jax_debug_infs``, and a small call is one dispatch. In a program a function of its own would have XLA order
    the parts of a derivative otherwise: a megabyte more of scratch and 1.2 times as long for ``half padded`` on 128
    tokens in ``python -m benchmarks attention``.
    """

    def of(function: F) -> F:
        by_itself = jax.jit(function, static_argnames=static)
        inlined = jax.jit(function, static_argnames=static, inline=True)

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            return (inlined if _in_a_program((arguments, options)) else by_itself)(*arguments, **options)

        return call  # type: ignore[return-value]

    return of


def _in_a_program(arguments: Any) -> bool:
    """Whether this is being traced for a program, and not just differentiated or batched."""
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
        return False
    return isinstance(jnp.zeros(()), jax.core.Tracer)  # what depends on no argument is computed at once outside
