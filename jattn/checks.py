"""The contract of the public functions: an argument that is wrong gets one error that names it.

Each error says what the argument must be, what it was, and, where there is one, the remedy. Shapes and dtypes are
checked always; numbers only where they are known, that is, not while a function is being traced.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def is_concrete(x: Any) -> bool:
    """Whether the numbers of ``x`` are known now, rather than when a compiled function runs.

    Look at them with NumPy: under ``jit``, JAX's operations are traced even on numbers that are known.
    """
    return not isinstance(x, jax.core.Tracer)


def broadcasts_to(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """Whether an array of ``shape`` fits ``full`` by numpy's rules without enlarging it."""
    try:
        return np.broadcast_shapes(shape, full) == tuple(full)
    except ValueError:
        return False


def floating(name: str, x: Any, axes: str, min_ndim: int) -> Array:
    """``x`` as a floating-point array with at least ``min_ndim`` axes, which ``axes`` names in the error."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating point. Got {x.dtype}. Convert it with .astype(jnp.float32).")
    if x.ndim < min_ndim:
        raise ValueError(f"{name} must have the axes {axes}. Got shape {x.shape}.")
    return x


def query_key_value(query: Any, key: Any, value: Any) -> tuple[Array, Array, Array]:
    """The three arrays of an attention, found to belong together."""
    query = floating("query", query, "*b t h d", 3)
    key = floating("key", key, "*b s h d", 3)
    value = floating("value", value, "*b s h e", 3)
    same_batch(query, key, value)
    if value.shape[-3] != key.shape[-3]:
        raise ValueError(
            f"value must have one entry for each key. Got {value.shape[-3]} values (shape {value.shape}) "
            f"and {key.shape[-3]} keys (shape {key.shape})."
        )
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"value must have as many heads as key. Got value heads {value.shape[-2]} and key heads {key.shape[-2]}."
        )
    grouped_heads(query, key)
    return query, key, value


def same_batch(query: Array, *others: Array) -> None:
    """The leading axes of key and value must be those of query."""
    for name, x in zip(("key", "value"), others, strict=False):
        if x.shape[:-3] != query.shape[:-3]:
            raise ValueError(
                f"{name} must have query's batch axes {query.shape[:-3]}, in front of its last three. "
                f"Got shape {x.shape} (query has shape {query.shape})."
            )


def grouped_heads(query: Array, key: Array) -> None:
    """The key heads must divide the query heads."""
    h, k = query.shape[-2], key.shape[-2]
    if k == 0 or h % k:
        raise ValueError(
            f"key must have a number of heads that divides the query's {h}. Got {k}. The layout is *b s h d: "
            "if heads stand before positions, swap those two axes."
        )


def bias(bias: Any, shape: tuple[int, ...]) -> Array:
    """A bias that broadcasts to the logits' ``shape``."""
    bias = jnp.asarray(bias)
    if not jnp.issubdtype(bias.dtype, jnp.floating):
        remedy = " Pass a boolean array as mask." if bias.dtype == jnp.bool_ else ""
        raise ValueError(f"bias must be floating point. Got {bias.dtype}.{remedy}")
    if not broadcasts_to(bias.shape, shape):
        raise ValueError(f"bias must broadcast to {shape}, the axes *b h t s. Got shape {bias.shape}.")
    return bias


def head_gates(gates: Any, batch: tuple[int, ...], heads: int) -> Array:
    """One number per head, or per example and head."""
    gates = jnp.asarray(gates)
    if gates.shape[-1:] != (heads,) or not broadcasts_to(gates.shape, (*batch, heads)):
        raise ValueError(
            f"head_gates must have one entry for each of the {heads} heads, shape {(heads,)} or {(*batch, heads)}. "
            f"Got shape {gates.shape}."
        )
    return gates


def dropout(rate: float, rng: Any = None, *, rng_name: str | None = None) -> None:
    """A dropout rate in [0, 1), and, if ``rng_name`` is given, randomness wherever the rate is above 0."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout_rate must lie in [0, 1). Got {rate}.")
    if rng_name is not None and rate > 0 and rng is None:
        raise ValueError(
            f"{rng_name} must be given when dropout_rate is above 0. Got None with dropout_rate {rate}. "
            "Pass a jax.random.key, or turn dropout off."
        )


def positive(name: str, x: Any) -> None:
    """A number, or several, above 0, where they are known."""
    if is_concrete(x) and not np.all(np.asarray(x) > 0):
        raise ValueError(f"{name} must be positive. Got {x}.")


def divides(name: str, part: int, whole_name: str, whole: int) -> None:
    """A positive integer that divides another."""
    if part < 1 or whole % part:
        raise ValueError(f"{name} must be a positive divisor of {whole_name}, {whole}. Got {part}.")


def one_of(name: str, choice: Any, choices: tuple[Any, ...]) -> None:
    """One of a few choices."""
    if choice not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}. Got {choice!r}.")


def width(name: str, x: Array, features: int) -> None:
    """An array whose last axis has the width that a module was made for."""
    if x.ndim < 1 or x.shape[-1] != features:
        raise ValueError(f"{name} must have {features} features on its last axis. Got shape {x.shape}.")


def tokens(name: str, x: Any, vocab_size: int) -> None:
    """Integers that number the entries of a vocabulary; looked up out of range, they would give NaN."""
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"{name} must be integers, the numbers of tokens. Got {dtype}.")
    if is_concrete(x) and jnp.size(x):
        low, high = np.min(np.asarray(x)), np.max(np.asarray(x))
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"{name} must lie between 0 and {vocab_size - 1}, the vocabulary. Got {low if low < 0 else high}."
            )


def selection(name: str, chosen: Any, n: int) -> np.ndarray:
    """Indices into an axis of ``n`` entries, from None (all), an integer, a slice or a sequence of integers."""
    if chosen is None or isinstance(chosen, slice):
        return np.arange(n)[slice(None) if chosen is None else chosen]
    indices = np.atleast_1d(np.asarray(chosen))
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"{name} must be an integer, a slice or a list of integers. Got {chosen!r}.")
    if indices.size and not (-n <= indices.min() and indices.max() < n):
        raise ValueError(f"{name} must lie between {-n} and {n - 1}. Got {chosen!r}.")
    return indices % n


def score_widths(score: Callable[..., Any], query: Array, key: Array) -> None:
    """Widths that the score can compare, where it can say."""
    check = getattr(score, "check", None)
    if check is not None:
        check(query.shape[-1], key.shape[-1])
