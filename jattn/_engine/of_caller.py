"""Functions of the caller's that become part of a program: their mistakes in words, rather than JAX's about tracing."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

__all__ = ["an_array", "as_part_of_a_program", "takes"]

_OF_TRACING = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)


@contextlib.contextmanager
def as_part_of_a_program(name: str) -> Iterator[None]:
    """Around a call of the function that the caller knows by this name: an error about tracing says what to write."""
    try:
        yield
    except _OF_TRACING as error:
        raise ValueError(
            f"{name} must be made of operators and functions of jax.numpy, as it is compiled: no function of NumPy's "
            f"on what it is given, and jnp.where(condition, a, b) for an if. Got: {str(error).splitlines()[0]}"
        ) from error


def an_array(name: str, x: Any, what: str) -> Any:
    """What such a function returned, if it is an array or a number."""
    if not isinstance(x, jax.Array | np.ndarray | np.generic | bool | int | float):
        raise ValueError(f"{name} must return {what}. Got {type(x).__name__}: {x!r:.80}.")
    return x


def takes(name: str, f: Any, positional: tuple[str, ...], named: tuple[str, ...] = ()) -> None:
    """Raise ValueError where ``f`` is no function of these arguments."""
    wanted = f"a function of {', '.join((*positional, *named))}"
    if not callable(f) or isinstance(f, type):
        raise ValueError(f"{name} must be {wanted}. Got {f!r}.")
    try:
        signature = inspect.signature(f)
    except ValueError:  # some functions have none that can be seen
        return
    try:
        signature.bind(*positional, **dict.fromkeys(named))
    except TypeError as error:
        raise ValueError(f"{name} must be {wanted}. Got a function of {signature}: {error}.") from error
