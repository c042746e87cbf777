"""Random masks, each with the same mask written plainly in NumPy."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from jattn import masks


class Drawn(NamedTuple):
    mask: masks.Mask
    allowed: np.ndarray  # broadcasts to b h t s


def integers(shape: tuple[int, ...], low: int, high: int):
    """Integer arrays of a shape, with numbers from low to high."""
    size = int(np.prod(shape))
    return st.lists(st.integers(low, high), min_size=size, max_size=size).map(
        lambda values: np.array(values, np.int32).reshape(shape)
    )


def offsets(b: int):
    """One offset for all examples, or one for each."""
    return st.integers(-3, 3) | integers((b,), -3, 3)


def distance(t: int, s: int, offset) -> np.ndarray:
    """How far a key lies after its query's own position, ``b 1 t s`` or ``t s``."""
    offset = np.asarray(offset)
    offset = offset if offset.ndim == 0 else offset[:, None, None, None]
    return np.arange(s) - np.arange(t)[:, None] - offset


def as_given(x):
    """Python integers stay static, arrays are data."""
    return x if isinstance(x, int) else jnp.asarray(x)


@st.composite
def causal(draw, b: int, t: int, s: int) -> Drawn:
    offset = draw(offsets(b))
    return Drawn(masks.causal(as_given(offset)), distance(t, s, offset) <= 0)


@st.composite
def sliding_window(draw, b: int, t: int, s: int) -> Drawn:
    left, right, offset = draw(st.integers(0, 3)), draw(st.integers(0, 3)), draw(offsets(b))
    away = distance(t, s, offset)
    return Drawn(masks.sliding_window(left, right, offset=as_given(offset)), (-left <= away) & (away <= right))


@st.composite
def lengths(draw, b: int, t: int, s: int) -> Drawn:
    valid_lens = draw(st.integers(0, s) | integers((b,), 0, s) | integers((b, t), 0, s))
    per_query = valid_lens if np.ndim(valid_lens) == 2 else np.reshape(valid_lens, (-1, 1))
    return Drawn(masks.lengths(as_given(valid_lens)), np.arange(s) < per_query[:, None, :, None])


@st.composite
def segments(draw, b: int, t: int, s: int) -> Drawn:
    query_ids, key_ids = draw(integers((b, t), -1, 2)), draw(integers((b, s), -1, 2))
    allowed = (query_ids[:, :, None] == key_ids[:, None, :])[:, None]
    return Drawn(masks.segments(jnp.asarray(query_ids), jnp.asarray(key_ids)), allowed)


@st.composite
def prefix(draw, b: int, t: int, s: int) -> Drawn:
    n = draw(st.integers(0, s) | integers((b,), 0, s))
    return Drawn(masks.prefix(as_given(n)), np.arange(s) < np.asarray(n).reshape(-1, 1, 1, 1))


@st.composite
def dense(draw, b: int, t: int, s: int) -> Drawn:
    shape = draw(st.sampled_from([(t, s), (1, s), (t, 1), (b, 1, t, s)]))
    allowed = draw(integers(shape, 0, 1)).astype(bool)
    return Drawn(masks.dense(jnp.asarray(allowed)), allowed)


def combined(b: int, t: int, s: int):
    """Any mask, and the combinations of up to four of them."""
    one = st.one_of(*(kind(b, t, s) for kind in (causal, sliding_window, lengths, segments, prefix, dense)))
    return st.recursive(
        one,
        lambda some: st.one_of(
            st.tuples(some, some).map(lambda ab: Drawn(ab[0].mask & ab[1].mask, ab[0].allowed & ab[1].allowed)),
            st.tuples(some, some).map(lambda ab: Drawn(ab[0].mask | ab[1].mask, ab[0].allowed | ab[1].allowed)),
            some.map(lambda a: Drawn(~a.mask, ~a.allowed)),
        ),
        max_leaves=4,
    )
