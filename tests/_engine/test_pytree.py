"""Masks inside jit, vmap and scan, and in blocks of queries and keys."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jattn import masks
from jattn._engine.axes import Shape
from jattn._engine.grid import grid_of
from jattn._mask import as_mask
from jattn.masks import causal, lengths, prefix, segments, sliding_window
from tests import ingredients, strategies

pytestmark = pytest.mark.core

H, T, S = 3, 5, 7
EACH = {name: as_mask(mask) for name, mask in ingredients.each_mask(2, H, T, S).items() if mask is not None}
each = pytest.mark.parametrize("mask", EACH.values(), ids=EACH)


def traced(function):
    """The jitted function, and a list that grows whenever it is traced."""
    traces = []

    def counted(*args):
        traces.append(None)
        return function(*args)

    return jax.jit(counted), traces


@each
def test_round_trip(mask):
    leaves, structure = jax.tree.flatten(mask)
    again = jax.tree.unflatten(structure, leaves)
    assert type(again) is type(mask)
    assert jax.tree.structure(again) == structure
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    np.testing.assert_array_equal(again.as_array(T, S), mask.as_array(T, S), strict=True)


@each
def test_jit_argument(mask):
    expected = mask.as_array(T, S)
    actual = jax.jit(lambda mask: mask.as_array(T, S))(mask)
    np.testing.assert_array_equal(actual, expected, strict=True)


@each
def test_structure_does_not_depend_on_what_the_leaves_are(mask):
    def with_nones(mask):  # which are fields without a value, too
        return jax.tree.leaves(mask, is_leaf=lambda x: x is None)

    structure = jax.tree.structure(mask)
    for leaf in (0, "a name", None, object()):
        replaced = jax.tree.unflatten(structure, [leaf] * structure.num_leaves)
        assert with_nones(replaced) == [x if x is None else leaf for x in with_nones(mask)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(lengths(jnp.array([3, 6])), lengths(jnp.array([1, 0])), id="lengths"),
        pytest.param(prefix(jnp.array([3, 6])), prefix(jnp.array([1, 0])), id="prefix"),
        pytest.param(causal(offset=jnp.array([3])), causal(offset=jnp.array([0])), id="causal"),
        pytest.param(
            segments(jnp.arange(5), jnp.arange(7)), segments(jnp.ones(5, int), jnp.ones(7, int)), id="segments"
        ),
        pytest.param(causal() & ~lengths(jnp.array([2])), causal() & ~lengths(jnp.array([5])), id="combination"),
    ],
)
@pytest.mark.needs_jit
def test_new_data_does_not_recompile(first, second):
    as_array, traces = traced(lambda mask: mask.as_array(T, S))
    for mask in (first, second):
        np.testing.assert_array_equal(as_array(mask), mask.as_array(T, S))
    assert len(traces) == 1


@pytest.mark.needs_jit
def test_python_integers_are_static():
    as_array, traces = traced(lambda mask: mask.as_array(T, S))
    for mask in (causal(offset=1), causal(offset=1), causal(offset=2)):
        np.testing.assert_array_equal(as_array(mask), mask.as_array(T, S))
    assert len(traces) == 2


def test_made_under_vmap():
    valid_lens = jnp.array([2, 0, 7])
    actual = jax.vmap(lambda n: lengths(n).as_array(T, S))(valid_lens)
    np.testing.assert_array_equal(actual, lengths(valid_lens).as_array(T, S)[:, 0], strict=True)


PER_EXAMPLE = ["lengths", "causal and lengths", "not causal or lengths"]


@pytest.mark.parametrize("mask", [EACH[name] for name in PER_EXAMPLE], ids=PER_EXAMPLE)
def test_vmap_argument(mask):
    expected = mask.as_array(T, S)[:, 0]
    actual = jax.vmap(lambda mask: mask.as_array(T, S))(mask)
    np.testing.assert_array_equal(actual, expected, strict=True)
    axes = jax.tree.map(lambda _: 0, mask)
    actual = jax.vmap(lambda mask: mask.as_array(T, S), in_axes=(axes,))(mask)
    np.testing.assert_array_equal(actual, expected, strict=True)


def test_scanned():
    mask = causal() & lengths(jnp.array([3, 0, 6]))
    _, actual = jax.lax.scan(lambda carry, mask: (carry, mask.as_array(T, S)), None, mask)
    np.testing.assert_array_equal(actual, mask.as_array(T, S)[:, 0], strict=True)


def taken(mask, rows, cols, heads: int = H):
    """The mask of these queries and keys, whatever their order."""
    lead = mask.lead()
    part = mask.aligned(lead).take(np.arange(heads), rows)
    grid = grid_of(len(rows), S, ndim=lead + 3)
    rows = jnp.asarray(rows).reshape((1,) * (lead + 1) + (-1, 1))
    allowed = part.formula(dataclasses.replace(grid, query=rows, row=rows))
    return np.broadcast_to(allowed, (*allowed.shape[:-2], rows.size, S))[..., cols]


@each
def test_some_rows_and_columns(mask):
    rows, cols = np.array([3, 0, 4, 3]), np.array([6, 2, 2, 0, 5])
    whole = np.asarray(mask.as_array(T, S))
    block = taken(mask, rows, cols).reshape((*whole.shape[:-2], 4, 5))
    np.testing.assert_array_equal(block, whole[..., rows[:, None], cols])


@each
def test_blocks(mask):
    whole, lead = np.asarray(mask.as_array(T, S)), mask.lead()
    for start, rows, first, cols in ((0, 5, 0, 7), (2, 3, 1, 4), (4, 1, 6, 1), (0, 2, 5, 2)):
        part = mask.aligned(lead).rows(start, rows).columns(first, cols)
        block = part.formula(grid_of(rows, cols, start=start, first=first, ndim=lead + 3))
        block = np.broadcast_to(block, (*block.shape[:-2], rows, cols)).reshape(*whole.shape[:-2], rows, cols)
        np.testing.assert_array_equal(block, whole[..., start : start + rows, first : first + cols])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=st.data())
@pytest.mark.whole
def test_any_mask_is_its_matrix(data):
    b, t, s = 2, data.draw(st.sampled_from([1, 4])), data.draw(st.sampled_from([1, 6]))
    mask, allowed = data.draw(strategies.combined(b, t, s))
    mask.check(Shape((b,), 3, t, s))
    actual, allowed = np.asarray(mask.as_array(t, s)), np.broadcast_to(allowed, (b, 1, t, s))
    np.testing.assert_array_equal(np.broadcast_to(actual, allowed.shape), allowed)


@each
def test_alike_masks_are_equal(mask):
    again = jax.tree.map(lambda x: x + 0 if x.dtype != bool else x & True, mask)
    assert again == mask
    assert hash(again) == hash(mask)
    assert all(mask != other for other in EACH.values() if other is not mask)


@pytest.mark.needs_jit
def test_a_mask_as_a_static_argument_is_traced_once():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def as_array(mask):
        traces.append(None)
        return mask.as_array(T, S)

    for mask in (causal() & ~sliding_window(1, 1), causal() & ~sliding_window(1, 1), causal() & ~sliding_window(1, 2)):
        np.testing.assert_array_equal(as_array(mask), mask.as_array(T, S))
    assert len(traces) == 2


def test_masks_are_values_of_one_type():
    assert all(isinstance(mask, masks.Mask) for mask in EACH.values())
