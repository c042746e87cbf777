"""The contract of the public functions: an argument that is wrong gets one error that names it.

Each error says what the argument must be, what it was, and, where there is one, the remedy. Shapes and dtypes are
checked always; numbers only where they are known, that is, not while a function is being traced.
"""

import difflib
import numbers
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

__all__ = [
    "array",
    "at_most",
    "broadcasts_to",
    "check_rng",
    "count",
    "divides",
    "dropout",
    "example_lengths",
    "flag",
    "floating",
    "head_gates",
    "integer_axis",
    "integers",
    "is_concrete",
    "is_count",
    "is_length",
    "is_symbol",
    "keywords",
    "no_other",
    "number",
    "one_of",
    "positions",
    "positive",
    "query_and_key",
    "query_key_value",
    "real",
    "rngs",
    "scalar",
    "score",
    "selection",
    "tokens",
    "width",
    "window",
]


def is_concrete(x: Any) -> bool:
    """Whether the numbers of ``x`` are known now, rather than when a compiled function runs.

    Look at them with NumPy: under ``jit``, JAX's operations are traced even on numbers that are known.
    """
    return not isinstance(x, jax.core.Tracer)


def broadcasts_to(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """Whether an array of ``shape`` fits ``full`` by numpy's rules without enlarging it; lengths may be symbols."""
    own = full[max(len(full) - len(shape), 0) :]
    return len(shape) <= len(full) and all(n == 1 or n == whole for n, whole in zip(shape, own, strict=True))


def at_most(name: str, n: Any, most_name: str, most: int) -> None:
    """No more positions than there are; a symbol of `jax.export` must be known to be as small."""
    try:
        fits = n <= most
    except jax.errors.InconclusiveDimensionOperation as error:
        raise ValueError(
            f"{name} must have at most {most_name} = {most} positions. Got {n}, a symbol that may be larger: make it "
            f'by jax.export.symbolic_shape("{n}", constraints=["{n} <= {most}"]).'
        ) from error
    if not fits:
        raise ValueError(f"{name} must have at most {most_name} = {most} positions. Got {n}.")


def array(name: str, x: Any, what: str = "an array") -> Array:
    """``x`` as an array, where ``what`` is what the caller may give."""
    if getattr(x, "is_nested", False):
        raise ValueError(
            f"{name} must be one array. Got a nested tensor. Pad it (torch.nested.to_padded_tensor), and say by a mask "
            "or by lengths what is padding."
        )
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {what}. Got {type(x).__name__}: {x!r:.80}.") from error


def no_other(name: str, x: Any) -> None:
    """Nothing that is made for another argument."""
    other = getattr(type(x), "argument", "")
    if other and other != name:
        raise ValueError(f"{name} must be a {name}. Got a {other}, {x!r:.80}; pass it as {other}=.")


def keywords(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """No argument that the function does not have; Python's own error would name the one that it calls."""
    for name in given:
        if name not in (known := tuple(known)):
            near = difflib.get_close_matches(name, known, 1) or [one for one in known if one.endswith(f"_{name}")]
            remedy = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}.{remedy}")


def flag(name: str, x: Any) -> bool:
    """Yes or no."""
    if not isinstance(x, bool | np.bool_):
        raise ValueError(f"{name} must be True or False. Got {x!r:.80}.")
    return bool(x)


def floating(name: str, x: Any, axes: str, min_ndim: int) -> Array:
    """``x`` as a floating-point array with at least ``min_ndim`` axes, which ``axes`` names in the error."""
    x = array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        remedy = "" if jnp.issubdtype(x.dtype, jnp.complexfloating) else " Convert it with .astype(jnp.float32)."
        raise ValueError(f"{name} must be floating point. Got {x.dtype}.{remedy}")
    if jnp.finfo(x.dtype).bits < 16:
        raise ValueError(f"{name} must have 16 bits or more. Got {x.dtype}. Convert it with .astype(jnp.bfloat16).")
    if x.ndim < min_ndim:
        raise ValueError(f"{name} must have the axes {axes}. Got shape {x.shape}.")
    return x


def query_key_value(query: Any, key: Any, value: Any, *, heads: bool = True) -> tuple[Array, Array, Array]:
    """The three arrays of an attention, with or without head axes, found to belong together."""
    query, key = query_and_key(query, key, heads=heads)
    value = floating("value", value, "*b s k e" if heads else "*b s e", 2 + heads)
    _same_batch("value", value, query, heads)
    position = -3 if heads else -2
    if value.shape[position] != key.shape[position]:
        raise ValueError(
            f"value must have one entry for each key. Got {value.shape[position]} values (shape {value.shape}) "
            f"and {key.shape[position]} keys (shape {key.shape})."
        )
    if heads and value.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"value must have as many heads as key. Got value heads {value.shape[-2]} and key heads {key.shape[-2]}."
        )
    return query, key, value


def query_and_key(query: Any, key: Any, *, heads: bool = True) -> tuple[Array, Array]:
    """The two arrays that a score compares."""
    query = floating("query", query, "*b t h d" if heads else "*b t d", 2 + heads)
    key = floating("key", key, "*b s k d" if heads else "*b s d", 2 + heads)
    _same_batch("key", key, query, heads)
    if heads:
        _grouped_heads(query, key)
    return query, key


def _same_batch(name: str, x: Array, query: Array, heads: bool) -> None:
    own = 3 if heads else 2
    if x.shape[:-own] != query.shape[:-own]:
        raise ValueError(
            f"{name} must have query's batch axes {query.shape[:-own]}, in front of its last "
            f"{'three' if heads else 'two'}. Got shape {x.shape} (query has shape {query.shape})."
        )


def _grouped_heads(query: Array, key: Array) -> None:
    h, k = query.shape[-2], key.shape[-2]
    if h == 0:
        raise ValueError(f"query must have at least one head, the axis before its last. Got shape {query.shape}.")
    if k == 0 or h % k:
        raise ValueError(
            f"key must have a number of heads that divides the query's {h}. Got {k}. The layout is *b s k d: "
            "if heads stand before positions, swap those two axes."
        )


def integers(name: str, x: Any, remedy: str = "") -> int | Array:
    """Integers: a Python one as it is, anything else as an array; ``remedy`` is what booleans may be meant for."""
    if isinstance(x, int | np.integer) and not isinstance(x, bool):
        return int(x)
    x = array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers. Got {x.dtype}.{remedy * (x.dtype == jnp.bool_)}")
    return x.astype(int)  # as positions are, which it is added to and compared with


def example_lengths(name: str, lens: Any, batch: tuple[int, ...]) -> int | Array | None:
    """How many tokens of each example are real: one number for all, or one for each; no mask of tokens."""
    if lens is None:
        return None
    if jnp.shape(lens) not in ((), batch):
        remedy = ""
        if jnp.ndim(lens) == len(batch) + 1:
            remedy = f" Of a mask of ones and zeros, padded on the right alone, pass its sum: {name}=mask.sum(-1)."
        raise ValueError(
            f"{name} must be one number for each example, shape {batch}. Got shape {jnp.shape(lens)}.{remedy}"
        )
    return integers(name, lens)


def integer_axis(name: str, x: Any) -> Array:
    """Integers, one for each position."""
    x = jnp.asarray(integers(name, x))
    if x.ndim == 0:
        raise ValueError(f"{name} must have one entry for each position. Got a single number.")
    return x


def positions(name: str, x: Any, batch: tuple[int, ...], n: int) -> Array:
    """Numbers, integers or fractions, one for each position or of each example and position."""
    real(name, x)
    x = jnp.asarray(x)
    if not broadcasts_to(x.shape, (*batch, n)):
        raise ValueError(f"{name} must broadcast to {(*batch, n)}, the axes *b and positions. Got shape {x.shape}.")
    return jnp.broadcast_to(x, (*x.shape[:-1], n))


def head_gates(gates: Any, batch: tuple[int, ...], heads: int) -> Array:
    """One number per head, or per example and head."""
    gates = array("head_gates", gates)
    if jnp.issubdtype(gates.dtype, jnp.complexfloating):
        raise ValueError(f"head_gates must be real. Got {gates.dtype}.")
    if gates.shape[-1:] != (heads,) or not broadcasts_to(gates.shape, (*batch, heads)):
        raise ValueError(
            f"head_gates must have one entry for each of the {heads} heads, shape {(heads,)} or {(*batch, heads)}. "
            f"Got shape {gates.shape}."
        )
    return gates


def dropout(rate: float, rng: Any = None, *, rng_name: str | None = None) -> None:
    """A dropout rate in [0, 1), and, if ``rng_name`` is given, randomness wherever the rate is above 0."""
    if not isinstance(rate, int | float | np.number) or not 0 <= rate < 1:
        raise ValueError(f"dropout_rate must lie in [0, 1), a Python number. Got {rate!r}.")
    if rng_name is not None and rate > 0 and rng is None:
        raise ValueError(
            f"{rng_name} must be given when dropout_rate is above 0. Got None with dropout_rate {rate}. "
            "Pass a jax.random.key, or turn dropout off (a module's eval() does)."
        )
    if rng is not None:
        check_rng(rng_name or "rng", rng)


def check_rng(name: str, x: Any) -> None:
    """One key of ``jax.random``."""
    dtype = x.dtype if isinstance(x, jax.Array | np.ndarray) else np.dtype(object)
    new = jnp.issubdtype(dtype, jax.dtypes.prng_key) and jnp.shape(x) == ()
    if not new and not (dtype == jnp.uint32 and _is_raw_key(x)):
        remedy = " Pass rngs.dropout()." if hasattr(x, "dropout") else ""
        raise ValueError(f"{name} must be a jax.random.key. Got {x!r:.80}.{remedy}")


def rngs(x: Any) -> None:
    """Flax's streams of keys."""
    from flax import nnx  # which functions do without

    if not isinstance(x, nnx.Rngs):
        remedy = f"Pass nnx.Rngs({x})." if is_count(x) else "Pass nnx.Rngs(0)."
        raise ValueError(f"rngs must be a flax.nnx.Rngs. Got {x!r:.80}. {remedy}")


def _is_raw_key(x: Any) -> bool:
    """Whether these are the numbers of one key, as ``jax.random.PRNGKey`` gives them."""
    try:
        return jax.eval_shape(jax.random.wrap_key_data, x).shape == ()
    except TypeError:
        return False


def scalar(name: str, x: Any) -> None:
    """One number, finite where it is known."""
    real(name, x)
    if jnp.shape(x) != ():
        raise ValueError(f"{name} must be one number. Got shape {jnp.shape(x)}.")
    if is_concrete(x) and not np.isfinite(x):
        raise ValueError(f"{name} must be finite. Got {x}.")


def real(name: str, x: Any) -> None:
    """A number, or several."""
    try:
        dtype = getattr(x, "dtype", None) or np.asarray(x).dtype
    except ValueError:  # lists of different lengths
        dtype = np.dtype(object)
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise ValueError(f"{name} must be a real number. Got {x!r:.80}.")


def number(name: str, x: Any, interval: str = "[0, inf)", *, integer: bool = False) -> Any:
    """One number in an interval, such as ``"[0, 1)"``, as Python's own; if it is not known now, as it is."""
    if not is_concrete(x):
        return x
    known = x.item() if isinstance(x, jax.Array | np.ndarray | np.generic) and np.ndim(x) == 0 else x
    low, high = map(float, interval[1:-1].split(","))
    kind: Any = numbers.Integral if integer else numbers.Real
    if (
        not isinstance(known, kind)
        or isinstance(known, bool)
        or not low <= known <= high
        or (known == low and interval[0] == "(")
        or (known == high and interval[-1] == ")")
    ):
        raise ValueError(f"{name} must be {'an integer' if integer else 'a number'} in {interval}. Got {x!r:.80}.")
    return known


def positive_integers(**given: Any) -> None:
    """How wide a layer is, and how many of something it has: integers from 1, by their names; None is not looked at."""
    for name, n in given.items():
        if n is not None:
            number(name, n, "[1, inf)", integer=True)


def positive(name: str, x: Any, *, finite: bool = False, remedy: str = "") -> None:
    """A number, or several, above 0, where they are known."""
    real(name, x)
    if is_concrete(x) and not np.all(np.asarray(x) > 0):
        raise ValueError(f"{name} must be positive. Got {x}.")
    if finite and is_concrete(x) and not np.all(np.isfinite(x)):
        raise ValueError(f"{name} must be finite. Got {x}.{remedy}")


def divides(name: str, part: int, whole_name: str, whole: int) -> None:
    """A positive integer that divides another."""
    if not is_count(part) or part < 1 or whole % part:
        raise ValueError(f"{name} must be a positive divisor of {whole_name}, {whole}. Got {part!r}.")


def one_of(name: str, choice: Any, choices: tuple[Any, ...]) -> None:
    """One of a few choices."""
    try:
        known = choice in choices
    except ValueError:  # an array, which is neither equal nor not
        known = False
    if not known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}. Got {choice!r}.")


def width(name: str, x: Array, features: int) -> None:
    """An array whose last axis has the width that a module was made for."""
    if x.ndim < 1 or x.shape[-1] != features:
        raise ValueError(f"{name} must have {features} features on its last axis. Got shape {x.shape}.")


def tokens(name: str, x: Any, vocab_size: int, axes: str, ndim: int) -> Array:
    """Integers that number the entries of a vocabulary; looked up out of range, they would give NaN."""
    x = array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers, the numbers of tokens. Got {x.dtype}.")
    if x.ndim < ndim or 0 in x.shape:
        raise ValueError(f"{name} must have the axes {axes}, none of them empty. Got shape {x.shape}.")
    if is_concrete(x):
        low, high = np.min(np.asarray(x)), np.max(np.asarray(x))
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"{name} must lie between 0 and {vocab_size - 1}, the vocabulary. Got {low if low < 0 else high}."
            )
    return x


def selection(name: str, chosen: Any, n: int) -> np.ndarray:
    """Indices into an axis of ``n`` entries, from None (all), an integer, a slice or a sequence of integers."""
    if not all(map(is_concrete, jax.tree.leaves(chosen))):
        raise ValueError(f"{name} must be known while tracing. Got a traced array; pass a Python or NumPy one.")
    try:
        if chosen is None or isinstance(chosen, slice):
            return np.arange(n)[slice(None) if chosen is None else chosen]
        indices = np.atleast_1d(np.asarray(chosen, dtype=int if np.size(chosen) == 0 else None))
    except (TypeError, ValueError):  # a slice of no integers, lists of different lengths
        indices = np.empty((0, 0))
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"{name} must be an integer, a slice or a list of integers. Got {chosen!r}.")
    if indices.size and not (-n <= indices.min() and indices.max() < n):
        raise ValueError(f"{name} must lie between {-n} and {n - 1}. Got {chosen!r}.")
    return indices % n


def score(score: Any, query: Array, key: Array) -> None:
    """A function of query and key, for widths that it can compare, where it can say."""
    no_other("score", score)
    if not callable(score) or isinstance(score, type):
        raise ValueError(
            f"score must be a score, such as jattn.scores.Gaussian(), or a function of query and key. Got {score!r}."
        )
    check = getattr(score, "check", None)
    if check is not None:
        check(query.shape[-1], key.shape[-1])


def count(name: str, n: Any, what: str = "") -> int:
    """A non-negative integer as Python's own; ``what`` it counts ends the sentence that says so."""
    if not is_count(n):
        raise ValueError(f"{name} must be a non-negative integer{what}. Got {n!r}.")
    return int(n)


def is_count(n: Any) -> bool:
    """A non-negative integer."""
    return isinstance(n, int | np.integer) and not isinstance(n, bool) and bool(n >= 0)


def is_length(n: Any) -> bool:
    """A non-negative integer, or a symbol of `jax.export` for one."""
    return is_count(n) or is_symbol(n)


def is_symbol(n: Any) -> bool:
    """A length that is known where a program runs, and not while it is traced."""
    return bool(jax.export.is_symbolic_dim(n))


def window(name: str, size: Any) -> tuple[int, int]:
    """One count of keys for both sides, or one for each."""
    sides = (size, size) if isinstance(size, int | np.integer) else size
    if not isinstance(sides, tuple | list) or len(sides) != 2 or not all(map(is_count, sides)):
        raise ValueError(f"{name} must be a non-negative integer, a number of keys, or (left, right). Got {size!r}.")
    return int(sides[0]), int(sides[1])
