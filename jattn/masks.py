"""Who may attend to whom.

A mask says for each pair of a query and a key whether the query **may** attend to the key: ``True`` where it may. It
is a formula of positions in a small frozen pytree, never a T x S array unless somebody asks for one, so that the same
value serves a short sequence, a long one, and one block of either. Masks combine with ``&``, ``|`` and ``~``::

    causal() & lengths(valid_lens)        # a padded batch, each token sees the past
    causal() | prefix(16)                 # a prefix language model
    ~sliding_window(0, 0)                 # every key but one's own
    where(lambda q, k: q // 64 == k // 64)  # a rule of your own

Positions are 0 ... n - 1, or what `jattn.attention` is given as ``query_positions`` and ``key_positions``. Python
integers in a mask are static under ``jit``; arrays are data, so that new lengths never recompile. Masks that are alike
are equal, and hash alike.
"""

import functools
import operator
import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jattn import _masks
from jattn._engine import checks
from jattn._engine.axes import over
from jattn._engine.function_rule import function_and_arrays
from jattn._engine.grid import Grid
from jattn._engine.of_caller import takes
from jattn._mask import Mask, as_mask

__all__ = [
    "Grid",
    "Mask",
    "all_of",
    "causal",
    "causal_lower_right",
    "dense",
    "dilated_window",
    "lengths",
    "neighbourhood",
    "over",
    "prefix",
    "segments",
    "sliding_window",
    "where",
]


def causal(offset: int | Int[Array, "*b"] = 0) -> Mask:
    """Each query sees the keys up to its own position: key j where j <= i + offset.

    Aligned top-left: query 0 sees key 0. ``offset`` is the position of query 0 among the keys, as in decoding
    with a cache; an array gives each example its own and does not recompile when it changes.

        >>> print(causal().as_array(3, 5).astype(int))
        [[1 0 0 0 0]
         [1 1 0 0 0]
         [1 1 1 0 0]]
        >>> print(causal(offset=1).as_array(3, 5).astype(int))
        [[1 1 0 0 0]
         [1 1 1 0 0]
         [1 1 1 1 0]]
    """
    return _masks.Causal(_near(checks.integers("offset", offset)))


def causal_lower_right(t: int, s: int) -> Mask:
    """Causal with the last query aligned to the last key, for ``t`` queries that continue ``s`` keys.

    PyTorch calls it by the same name; it is ``causal(offset=s - t)``.

        >>> print(causal_lower_right(3, 5).as_array(3, 5).astype(int))
        [[1 1 1 0 0]
         [1 1 1 1 0]
         [1 1 1 1 1]]
    """
    t, s = checks.count("t", t), checks.count("s", s)
    return causal(offset=s - t)


def sliding_window(left: int, right: int, *, offset: int | Int[Array, "*b"] = 0) -> Mask:
    """Each query sees ``left`` keys before its own position, its own, and ``right`` keys after it.

    The counts are those of ``local_window_size`` in ``jax.nn.dot_product_attention``. ``offset`` as in `causal`.

        >>> print(sliding_window(2, 1).as_array(4, 5).astype(int))
        [[1 1 0 0 0]
         [1 1 1 0 0]
         [1 1 1 1 0]
         [0 1 1 1 1]]
    """
    left, right = _sides(left, right)
    return _masks.SlidingWindow(_near(left), _near(right), _near(checks.integers("offset", offset)))


def _sides(left: Any, right: Any) -> tuple[int, int]:
    return checks.count("left", left, ", a number of keys"), checks.count("right", right, ", a number of keys")


def _near(x: Any) -> Any:
    """A number known now, kept from where positions would overflow; no sequence is as long."""
    return max(-_FAR, min(x, _FAR)) if isinstance(x, int) else x


_FAR = 2**30


_OF_PADDING = "Which tokens are real, *b s, is a mask: masks.dense(real[:, None, None, :] != 0)."


def _is_padding(lens: Any) -> bool:
    """Whether lengths of queries look like numbers that say which token is real."""
    if not checks.is_concrete(lens) or lens.shape[-1] < 2:
        return False
    lens = np.asarray(lens)
    return bool(((lens == 0) | (lens == 1)).all() and lens.any())


def lengths(valid_lens: int | Int[Array, "..."], *, per_query: bool | None = None) -> Mask:
    """Only the first ``valid_lens`` keys are real; the rest is padding that nobody attends to, whatever it holds.

    First as they lie in their array, also where ``key_positions`` say otherwise.

    Args:
        valid_lens: integers from 0 to s, one per example ``*b`` or one per query ``*b t``.
        per_query: whether the last axis of ``valid_lens`` is the query's. By default it is from two axes on,
            as in Dive into Deep Learning's 1-D and 2-D valid lengths.

        >>> print(lengths(jnp.array([2, 3])).as_array(2, 4).astype(int))
        [[[[1 1 0 0]
           [1 1 0 0]]]
        <BLANKLINE>
         [[[1 1 1 0]
           [1 1 1 0]]]]
        >>> print(lengths(jnp.array([[1, 3]])).as_array(2, 4).astype(int))
        [[[[1 0 0 0]
           [1 1 1 0]]]]
    """
    valid_lens = checks.integers("valid_lens", valid_lens, f" {_OF_PADDING}")
    ndim = jnp.ndim(valid_lens)
    if per_query is None:
        per_query = ndim >= 2
        if per_query and _is_padding(valid_lens):
            warnings.warn(
                f"valid_lens are only 0 and 1, and taken for how many keys each query sees. {_OF_PADDING} "
                "If they are lengths, masks.lengths(..., per_query=True) says so.",
                stacklevel=2,
            )
    if per_query and ndim == 0:
        raise ValueError("valid_lens must have a query axis when per_query=True. Got a single length.")
    if per_query:
        return _masks.LengthsPerQuery(jnp.asarray(valid_lens))
    return _masks.Lengths(valid_lens, "valid_lens", by_position=False)


def prefix(n: int | Int[Array, "*b"]) -> Mask:
    """Every query sees the keys at positions below ``n``, one number or one per example, from 0 to the number of keys.

    Use it as ``causal() | prefix(n)``.

    >>> print((causal() | prefix(2)).as_array(4, 4).astype(int))
    [[1 1 0 0]
     [1 1 0 0]
     [1 1 1 0]
     [1 1 1 1]]
    """
    return _masks.Lengths(checks.integers("n", n), "n", by_position=True)


def segments(query_ids: Int[Array, "*b t"], key_ids: Int[Array, "*b s"] | None = None) -> Mask:
    """Several sequences packed into one: a query sees the keys that carry its own segment's number.

    ``key_ids`` defaults to ``query_ids``, for self-attention.

        >>> print(segments(jnp.array([0, 0, 1, 1, 1])).as_array(5, 5).astype(int))
        [[1 1 0 0 0]
         [1 1 0 0 0]
         [0 0 1 1 1]
         [0 0 1 1 1]
         [0 0 1 1 1]]
    """
    own = key_ids is None or key_ids is query_ids
    query_ids = checks.integer_axis("query_ids", query_ids)
    return _masks.Segments(query_ids, query_ids if own else checks.integer_axis("key_ids", key_ids), own)


def dilated_window(left: int, right: int, dilation: int, *, offset: int | Int[Array, "*b"] = 0) -> Mask:
    """Each query sees ``left`` keys before its own position, its own, and ``right`` after it, ``dilation`` apart.

        >>> print(dilated_window(2, 0, 2).as_array(6, 6).astype(int))
        [[1 0 0 0 0 0]
         [0 1 0 0 0 0]
         [1 0 1 0 0 0]
         [0 1 0 1 0 0]
         [1 0 1 0 1 0]
         [0 1 0 1 0 1]]

    Source: Beltagy et al., Longformer, 2020.
    """
    dilation = checks.number("dilation", dilation, "[1, inf)", integer=True)
    left, right = _sides(left, right)
    window = sliding_window(left * dilation, right * dilation, offset=offset)
    return _masks.DilatedWindow(window, dilation)  # type: ignore[arg-type]


def neighbourhood(shape: tuple[int, ...], radius: int | tuple[int, ...]) -> Mask:
    """The positions are a grid of ``shape``, row by row: each sees those at most ``radius`` away along every axis.

    Args:
        shape: how many positions the grid has along each axis, such as ``(height, width)``.
        radius: one number for all axes or one for each; 0 is one's own row.

        >>> print(neighbourhood((2, 3), (1, 0)).as_array(6, 6).astype(int))
        [[1 0 0 1 0 0]
         [0 1 0 0 1 0]
         [0 0 1 0 0 1]
         [1 0 0 1 0 0]
         [0 1 0 0 1 0]
         [0 0 1 0 0 1]]

    Source: Hassani et al., Neighborhood Attention Transformer, 2023; here without moving windows at the edges.
    """
    if not isinstance(shape, tuple | list):
        raise ValueError(f"shape must be a tuple, the lengths of the grid's axes. Got {shape!r}.")
    shape = tuple(checks.number("shape", n, "[1, inf)", integer=True) for n in shape)
    radius = (radius,) * len(shape) if isinstance(radius, int | np.integer) else radius
    if not isinstance(radius, tuple | list) or len(radius) != len(shape) or not all(map(checks.is_count, radius)):
        raise ValueError(f"radius must be a non-negative integer, or one for each axis of {shape}. Got {radius!r}.")
    return _masks.Neighbourhood(shape, tuple(map(int, radius)))


def where(f: Callable[..., Any], /, *, span: Callable[..., Any] | None = None, **arrays: Any) -> Mask:
    """A query may attend to a key where ``f(query, key)`` says so, a function of their positions.

    Args:
        f: from integer arrays of query and key positions, which broadcast against each other, to booleans that
            broadcast to ``*b h t s``. It is compiled together with what it captures, anew where that has changed, so
            give what changes often as an array; and it is also called while tracing, with NumPy's arrays.
        span: which keys may be in reach, if that can be said: from the first and the last position of some queries to
            those of the keys, both included, as in ``lambda first, last: (first - 64, last)``. What lies outside is
            skipped, so it must include every key that f allows, or the result depends on the implementation.
        arrays: what f is given beside the positions, by name: an array as it is, to be indexed by positions; or
            ``(axes, array)`` with axes among ``b h t s`` for one that has an entry for each example, head, query or
            key, which arrives broadcast to ``*b h t s``. For a table by head, give the heads' numbers too,
            ``h=("h", jnp.arange(n))``, and index it by them.

    Example (blocks of two; and heads that look at every second key, at every third key):

        >>> print(where(lambda q, k: q // 2 == k // 2).as_array(4, 4).astype(int))
        [[1 1 0 0]
         [1 1 0 0]
         [0 0 1 1]
         [0 0 1 1]]
        >>> steps = where(lambda q, k, step: k % step == 0, step=("h", jnp.array([2, 3])))
        >>> print(steps.as_array(1, 7).astype(int))
        [[[1 0 1 0 1 0 1]]
        <BLANKLINE>
         [[1 0 0 1 0 0 1]]]
    """
    function, given, axes = function_and_arrays(f, ("query", "key"), arrays)
    if span is not None:
        takes("span", span, ("first", "last"))
    return _masks.FunctionMask(function, given, axes, span)


def dense(array: Bool[Array, "..."]) -> Mask:
    """Any boolean array that broadcasts to ``*b h t s``, ``True`` where a query may attend to a key.

    >>> print(dense(jnp.array([[True, False, True], [False, True, True]])).as_array(2, 3).astype(int))
    [[1 0 1]
     [0 1 1]]
    """
    return as_mask(array)


def all_of(*rules: Mask | Bool[Array, "..."] | None) -> Mask | None:
    """Where every one of ``rules`` allows it; a None allows everything.

    >>> print(all_of(causal(), None, prefix(2)).as_array(3, 3).astype(int))
    [[1 0 0]
     [1 1 0]
     [1 1 0]]
    """
    given = [as_mask(rule) for rule in rules if rule is not None]
    return functools.reduce(operator.and_, given) if given else None
