"""The keys that a block of queries can reach: never too few, and no more than necessary for the common masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jattn._mask import as_mask
from jattn.logits import Logits
from jattn.masks import causal, dense, lengths, prefix, segments, sliding_window
from tests import ingredients, strategies

pytestmark = pytest.mark.core

T, S = 5, 7
EACH = {name: as_mask(mask) for name, mask in ingredients.each_mask(2, 3, T, S).items() if mask is not None}
STATIC = {name: mask for name, mask in EACH.items() if not jax.tree.leaves(mask)}
DATA = {name: mask for name, mask in EACH.items() if name not in STATIC}
BLOCKS = [(0, 1), (0, T), (1, 3), (3, T), (4, T)]


def key_range(mask, start, rows: int, s: int):
    """The keys in reach of so many queries of all examples."""
    with jax.numpy_rank_promotion("allow"):  # the fields of all examples have axes that those of a block don't have
        return under(mask).key_range(start, rows, s)


def whole_range(mask, start: int, rows: int, s: int):
    """Keys that all of them may attend to."""
    with jax.numpy_rank_promotion("allow"):
        return under(mask).whole_range(start, rows, s)


def under(mask) -> Logits:
    nothing = [None] * 9
    return Logits(*nothing[:6], mask.aligned(mask.lead()), *nothing[6:])


def span(mask, start: int, stop: int, s: int):
    return key_range(mask, start, stop - start, s)


def as_traced(mask, start: int, stop: int, s: int):
    """The span where the mask's data are known only when the program runs."""
    return jax.eval_shape(lambda mask: span(mask, start, stop, s), mask)


def reached(allowed: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The keys that some query of the block may attend to."""
    block = allowed[..., start:stop, :]
    return np.flatnonzero(block.any(axis=tuple(range(block.ndim - 1))))


def assert_contains(mask, allowed: np.ndarray, start: int, stop: int) -> None:
    s = allowed.shape[-1]
    lo, hi = map(int, span(mask, start, stop, s))
    assert 0 <= lo <= hi <= s
    keys = reached(allowed, start, stop)
    if keys.size:
        assert lo <= keys[0] <= keys[-1] < hi


def assert_tight(mask, allowed: np.ndarray, start: int, stop: int) -> None:
    lo, hi = map(int, span(mask, start, stop, allowed.shape[-1]))
    keys = reached(allowed, start, stop)
    assert (lo, hi) == (keys[0], keys[-1] + 1) if keys.size else lo == hi


@pytest.mark.parametrize("mask", STATIC.values(), ids=STATIC)
def test_static_masks_have_static_spans(mask):
    allowed = np.asarray(mask.as_array(T, S))
    for start, stop in BLOCKS:
        assert [type(end) for end in span(mask, start, stop, S)] == [int, int]
        assert_contains(mask, allowed, start, stop)


@pytest.mark.parametrize("mask", EACH.values(), ids=EACH)
@pytest.mark.every_case
def test_what_is_whole_may_be_attended_to_by_all(mask):
    allowed = np.asarray(mask.as_array(T, S))
    for start, stop in BLOCKS:
        lo, hi = map(int, whole_range(mask, start, stop - start, S))
        assert 0 <= lo <= hi <= S
        assert allowed[..., start:stop, lo:hi].all()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (causal(), (0, 2)),
        (sliding_window(3, 1), (0, 3)),
        (~sliding_window(9, 0), (4, 7)),
        (lengths(4), (0, 4)),
        (causal() | prefix(5), (0, 5)),
        (causal(offset=4) & lengths(5), (0, 5)),
        (segments(jnp.array([[1, 0, 0, 0, 3]]), jnp.array([[1, 0, 0, 1, 2, 2, 0]])), (1, 3)),
        (~causal(), (4, 7)),
        (dense(jnp.ones((T, S), bool)), (0, 0)),
    ],
)
def test_what_is_whole(mask, expected):
    """For queries 1 to 3 of 5, of 7 keys."""
    assert tuple(map(int, whole_range(mask, 1, 3, S))) == expected


@pytest.mark.parametrize("mask", DATA.values(), ids=DATA)
def test_masks_with_data_have_scalar_arrays_for_spans(mask):
    allowed = np.asarray(mask.as_array(T, S))
    for start, stop in BLOCKS:
        ends = as_traced(mask, start, stop, S)
        assert all(end.shape == () and jnp.issubdtype(end.dtype, jnp.integer) for end in ends)
        assert_contains(mask, allowed, start, stop)


@pytest.mark.parametrize("mask", EACH.values(), ids=EACH)
def test_traced_blocks(mask):
    for rows in (1, 2):
        starts = jnp.arange(T - rows + 1)
        ends = jax.lax.map(lambda start, rows=rows: tuple(map(jnp.asarray, key_range(mask, start, rows, S))), starts)
        expected = [tuple(map(int, key_range(mask, start, rows, S))) for start in starts.tolist()]
        assert list(zip(*(end.tolist() for end in ends), strict=True)) == expected


def test_spans_by_hand():
    assert span(causal(), 2, 4, 7) == (0, 4)
    assert span(causal(offset=2), 2, 4, 7) == (0, 6)
    assert span(sliding_window(1, 2), 2, 4, 7) == (1, 6)
    assert span(sliding_window(1, 2), 0, 1, 7) == (0, 3)
    assert span((causal() & sliding_window(1, 2)), 2, 4, 7) == (1, 4)
    assert span((prefix(2) | sliding_window(0, 0)), 4, 6, 7) == (0, 6)
    assert span(lengths(3), 0, 5, 7) == (0, 3)
    assert span(dense(jnp.ones((5, 7), bool)), 2, 4, 7) == (0, 7)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(data=st.data())
@pytest.mark.whole
def test_contains_every_key_that_any_query_reaches(data):
    b, t, s = 2, data.draw(st.sampled_from([1, 4])), data.draw(st.sampled_from([1, 6]))
    mask, allowed = data.draw(strategies.combined(b, t, s))
    allowed = np.broadcast_to(allowed, (b, 1, t, s))
    for start in range(t):
        assert_contains(mask, allowed, start, data.draw(st.integers(start + 1, t)))


@settings(deadline=None, derandomize=True, max_examples=80)
@given(data=st.data())
def test_tight(data):
    t, s = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    left, right, offset = (data.draw(st.integers(low, 4)) for low in (0, 0, -4))
    valid_lens = data.draw(st.integers(0, s))
    away = strategies.distance(t, s, offset)
    length = np.broadcast_to(np.arange(s) < valid_lens, (t, s))
    start = data.draw(st.integers(0, t - 1))
    stop = data.draw(st.integers(start + 1, t))
    assert_tight(causal(offset), away <= 0, start, stop)
    assert_tight(sliding_window(left, right, offset=offset), (-left <= away) & (away <= right), start, stop)
    assert_tight(lengths(valid_lens), length, start, stop)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    valid_lens=strategies.integers((2, 4), 0, 6),
    steps=strategies.integers((2, 6), 0, 1),
    block=st.integers(0, 3).flatmap(lambda start: st.tuples(st.just(start), st.integers(start + 1, 4))),
)
def test_tight_with_data(valid_lens, steps, block):
    per_query, per_example = lengths(jnp.asarray(valid_lens)), lengths(jnp.asarray(valid_lens[:, 0]))
    assert_tight(per_query, np.arange(6) < valid_lens[:, None, :, None], *block)
    assert_tight(per_example, np.broadcast_to(np.arange(6) < valid_lens[:, :1, None, None], (2, 1, 4, 6)), *block)
    ids = np.cumsum(steps, axis=1)  # sorted, as packed sequences are
    same = (ids[:, :, None] == ids[:, None, :])[:, None]
    assert_tight(segments(jnp.asarray(ids)), same, *block)


@pytest.mark.usefixtures("unchecked")  # the annotations name signed integers; unsigned ones work as well
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32", "int32"])
def test_integers_of_any_width(dtype):
    t = s = 400
    numbers = jnp.array([0, 100], dtype)
    away = strategies.distance(t, s, np.array([0, 100]))
    first = np.broadcast_to(np.arange(s) < np.array([0, 100])[:, None, None, None], away.shape)
    expected = {
        "causal": (causal(offset=numbers), away <= 0),
        "window": (sliding_window(3, 5, offset=numbers), (away >= -3) & (away <= 5)),
        "lengths": (lengths(numbers), first),
        "prefix": (prefix(numbers), first),
    }
    for name, (mask, allowed) in expected.items():
        np.testing.assert_array_equal(np.broadcast_to(mask.as_array(t, s), allowed.shape), allowed, err_msg=name)
        for start, stop in ((0, 1), (150, 390), (350, 400)):
            assert_contains(mask, allowed, start, stop)
