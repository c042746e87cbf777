"""Who may attend to whom.

A mask answers, for any block of query and key positions, whether a query **may** attend to a key: ``True`` where
it may. It is a small frozen pytree, never a T x S array unless somebody asks for one, so that the same value
serves a short sequence, a long one, and one block of either. Masks combine with ``&``, ``|`` and ``~``::

    causal() & lengths(valid_lens)        # a padded batch, each token sees the past
    causal() | prefix(16)                 # a prefix language model
    ~sliding_window(0, 0)                 # every key but one's own

Python integers in a mask are static under ``jit``; arrays are data, so that new lengths never recompile.
"""

import functools
import operator
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jattn import checks
from jattn.mask_types import Causal, Lengths, Mask, Segments, SlidingWindow, as_mask

__all__ = [
    "Mask",
    "all_of",
    "causal",
    "causal_lower_right",
    "dense",
    "lengths",
    "prefix",
    "segments",
    "sliding_window",
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
    return Causal(_near(checks.integers("offset", offset)))


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
    left, right = (checks.count(name, n, ", a number of keys") for name, n in (("left", left), ("right", right)))
    return SlidingWindow(_near(left), _near(right), _near(checks.integers("offset", offset)))


def _near(x: Any) -> Any:
    """A number known now, kept from where positions would overflow; no sequence is as long."""
    return max(-_FAR, min(x, _FAR)) if isinstance(x, int) else x


_FAR = 2**30


def lengths(valid_lens: int | Int[Array, "..."], *, per_query: bool | None = None) -> Mask:
    """Only the first ``valid_lens`` keys are real; the rest is padding that nobody attends to.

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
    valid_lens = checks.integers("valid_lens", valid_lens)
    ndim = jnp.ndim(valid_lens)
    if per_query is None:
        per_query = ndim >= 2
    if per_query and ndim == 0:
        raise ValueError("valid_lens must have a query axis when per_query=True. Got a single length.")
    return Lengths(valid_lens, per_query, "valid_lens")


def prefix(n: int | Int[Array, "*b"]) -> Mask:
    """Every query sees the first ``n`` keys, one number or one per example, from 0 to the number of keys.

    Use it as ``causal() | prefix(n)``.

    >>> print((causal() | prefix(2)).as_array(4, 4).astype(int))
    [[1 1 0 0]
     [1 1 0 0]
     [1 1 1 0]
     [1 1 1 1]]
    """
    return Lengths(checks.integers("n", n), False, "n")


def segments(query_ids: Int[Array, "*b t"], key_ids: Int[Array, "*b s"] | None = None) -> Mask:
    """Several sequences packed into one: a query sees the keys that carry its own segment's number.

    ``key_ids`` defaults to ``query_ids``, for self-attention.

        >>> print(segments(jnp.array([0, 0, 1, 1, 1])).as_array(5, 5).astype(int))
        [[[1 1 0 0 0]
          [1 1 0 0 0]
          [0 0 1 1 1]
          [0 0 1 1 1]
          [0 0 1 1 1]]]
    """
    query_ids = checks.integer_axis("query_ids", query_ids)
    key_ids = query_ids if key_ids is None else checks.integer_axis("key_ids", key_ids)
    return Segments(query_ids, key_ids)


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
