"""Every mask as a matrix written out by hand."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from jattn import masks
from jattn.masks import causal, causal_lower_right, dense, lengths, prefix, segments, sliding_window

pytestmark = pytest.mark.core


def matrix(*rows: str) -> np.ndarray:
    """``matrix("10", "11")``: one string a query, one character a key."""
    return np.array([[character == "1" for character in row] for row in rows])


def examples(*matrices: np.ndarray) -> np.ndarray:
    """One matrix an example, with the head axis that masks with data have: ``b 1 t s``."""
    return np.stack(matrices)[:, None]


def assert_allows(mask: masks.Mask, expected: np.ndarray) -> None:
    """The values, the shape and the dtype."""
    actual = np.asarray(mask.as_array(*expected.shape[-2:]))
    np.testing.assert_array_equal(actual, expected, strict=True)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        pytest.param(causal(), matrix("10000", "11000", "11100"), id="causal"),
        pytest.param(causal(), matrix("100", "110", "111", "111", "111"), id="causal, more queries than keys"),
        pytest.param(causal(offset=2), matrix("11100", "11110", "11111"), id="offset"),
        pytest.param(causal(offset=-1), matrix("00000", "10000", "11000"), id="negative offset"),
        pytest.param(causal(offset=9), matrix("11111", "11111"), id="offset past the last key"),
        pytest.param(causal(offset=-9), matrix("00000", "00000"), id="offset before the first key"),
        pytest.param(sliding_window(2, 1), matrix("11000", "11100", "11110", "01111"), id="window"),
        pytest.param(sliding_window(0, 0), matrix("100", "010", "001", "000"), id="window of oneself"),
        pytest.param(sliding_window(1, 0, offset=2), matrix("01100", "00110", "00011"), id="window, offset"),
        pytest.param(
            sliding_window(0, 2, offset=-2), matrix("10000", "11000", "11100", "01110"), id="window, negative"
        ),
        pytest.param(prefix(2), matrix("11000", "11000", "11000"), id="prefix"),
        pytest.param(prefix(0), matrix("000", "000"), id="empty prefix"),
        pytest.param(lengths(2), matrix("11000", "11000", "11000"), id="one length"),
        pytest.param(lengths(jnp.array(2)), matrix("11000", "11000", "11000"), id="one length as an array"),
        pytest.param(lengths(0), matrix("000", "000"), id="no keys"),
        pytest.param(lengths(3), matrix("111", "111"), id="all keys"),
    ],
)
@pytest.mark.every_case
def test_literal(mask, expected):
    assert_allows(mask, expected)


@pytest.mark.parametrize(
    ("t", "s", "expected"),
    [
        (3, 5, matrix("11100", "11110", "11111")),
        (4, 4, matrix("1000", "1100", "1110", "1111")),
        (5, 3, matrix("000", "000", "100", "110", "111")),
    ],
)
def test_causal_lower_right(t, s, expected):
    assert_allows(causal_lower_right(t, s), expected)


def test_causal_offset_per_example():
    expected = examples(matrix("1000", "1100"), matrix("1110", "1111"), matrix("0000", "1000"))
    assert_allows(causal(offset=jnp.array([0, 2, -1])), expected)


def test_window_offset_per_example():
    expected = examples(matrix("0110", "0011"), matrix("1000", "1100"), matrix("0000", "1000"))
    assert_allows(sliding_window(1, 0, offset=jnp.array([2, 0, -1])), expected)


def test_lengths_per_example():
    expected = examples(matrix("1000", "1000"), matrix("1110", "1110"), matrix("0000", "0000"))
    assert_allows(lengths(jnp.array([1, 3, 0])), expected)


def test_lengths_per_query():
    expected = examples(matrix("1000", "1110", "0000"), matrix("1111", "1100", "1000"))
    assert_allows(lengths(jnp.array([[1, 3, 0], [4, 2, 1]])), expected)


def test_padding_given_as_lengths_is_pointed_at():
    real = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]])
    with pytest.warns(UserWarning, match=r"valid_lens are only 0 and 1, .* masks.dense\(real\[:, None, None, :\]"):
        lengths(real)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lengths(real, per_query=True)
        lengths(real + 1)


def test_lengths_per_query_of_one_example():
    assert_allows(lengths(jnp.array([1, 3, 0]), per_query=True), matrix("1000", "1110", "0000"))


def test_lengths_with_two_batch_axes():
    rows = [["100", "100"], ["110", "110"], ["111", "111"], ["000", "000"]]
    expected = np.stack([matrix(*row) for row in rows]).reshape(2, 2, 1, 2, 3)
    assert_allows(lengths(jnp.array([[1, 2], [3, 0]]), per_query=False), expected)


def test_prefix_per_example():
    expected = examples(matrix("1000", "1100", "1110"), matrix("1110", "1110", "1110"))
    assert_allows(causal() | prefix(jnp.array([0, 3])), expected)


def test_segments_of_one_example():
    expected = matrix("11000", "11000", "00110", "00110", "00001")
    assert_allows(segments(jnp.array([0, 0, 1, 1, 2])), expected)


def test_segments_with_other_keys():
    mask = segments(jnp.array([[5, 5, -1], [7, 5, 7]]), jnp.array([[-1, 5, 5, 0], [7, 7, 7, 7]]))
    assert_allows(mask, examples(matrix("0110", "0110", "1000"), matrix("1111", "0000", "1111")))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(matrix("101", "010"), matrix("101", "010"), id="t s"),
        pytest.param(matrix("101"), matrix("101", "101"), id="1 s"),
        pytest.param(matrix("1", "0"), matrix("111", "000"), id="t 1"),
        pytest.param(
            np.stack([matrix("101", "010"), matrix("111", "000")]),
            np.stack([matrix("101", "010"), matrix("111", "000")]),
            id="h t s",
        ),
        pytest.param(
            examples(matrix("101"), matrix("000")),
            examples(matrix("101", "101"), matrix("000", "000")),
            id="b 1 1 s",
        ),
    ],
)
def test_dense(given, expected):
    assert_allows(dense(jnp.asarray(given)), expected)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        pytest.param(causal() & sliding_window(1, 9), matrix("1000", "1100", "0110", "0011"), id="and"),
        pytest.param(causal() | prefix(3), matrix("1110", "1110", "1110", "1111"), id="or"),
        pytest.param(~causal(), matrix("0111", "0011", "0001", "0000"), id="not"),
        pytest.param(~sliding_window(0, 0), matrix("0111", "1011", "1101", "1110"), id="leave one out"),
        pytest.param(~~causal(), matrix("1000", "1100", "1110", "1111"), id="not not"),
        pytest.param(~(causal() & prefix(2)), matrix("0111", "0011", "0011", "0011"), id="not and"),
        pytest.param(
            (causal() & sliding_window(1, 0)) | prefix(1), matrix("1000", "1100", "1110", "1011"), id="and or"
        ),
        pytest.param(
            causal() & lengths(jnp.array([2, 4])),
            examples(matrix("1000", "1100", "1100", "1100"), matrix("1000", "1100", "1110", "1111")),
            id="a padded batch",
        ),
        pytest.param(
            causal() & segments(jnp.array([0, 0, 1, 1])),
            matrix("1000", "1100", "0010", "0011"),
            id="packed sequences",
        ),
        pytest.param(
            ~lengths(jnp.array([1, 3])) | causal(),
            examples(matrix("1111", "1111", "1111", "1111"), matrix("1001", "1101", "1111", "1111")),
            id="not lengths, or causal",
        ),
    ],
)
@pytest.mark.every_case
def test_combination(mask, expected):
    assert_allows(mask, expected)


@pytest.mark.usefixtures("unchecked")  # the annotations name jax's arrays; numpy's work as well
@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_arrays_on_either_side(asarray):
    array = asarray(matrix("0011", "1011", "1111"))
    both, either = matrix("0000", "1000", "1110"), matrix("1011", "1111", "1111")
    for mask in (causal() & array, array & causal()):
        assert_allows(mask, both)
    for mask in (causal() | array, array | causal()):
        assert_allows(mask, either)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_arrays_with_batch_and_heads(asarray):
    array = asarray(np.stack([matrix("10", "10"), matrix("01", "11")]))[None]  # 1 h t s
    expected = np.stack([[matrix("10", "10"), matrix("00", "10")], [matrix("10", "10"), matrix("01", "11")]])
    for mask in (array & lengths(jnp.array([1, 2])), lengths(jnp.array([1, 2])) & array):
        assert_allows(mask, expected)


@pytest.mark.usefixtures("unchecked")
def test_numpy_integers_are_integers():
    assert_allows(sliding_window(np.int64(0), np.int32(1), offset=np.int64(1)), matrix("011", "001"))
    assert_allows(lengths(np.int64(2)), matrix("110"))
    assert_allows(causal_lower_right(np.int64(1), np.int64(3)), matrix("111"))


def test_a_limit_that_no_sequence_has_is_none():
    """Where positions would overflow, in 32 bits or in C's integers."""
    for far in (2**31 - 1, 2**40):
        np.testing.assert_array_equal(masks.sliding_window(far, far).as_array(4, 4), np.ones((4, 4), bool))
        np.testing.assert_array_equal(masks.causal(far).as_array(4, 4), np.ones((4, 4), bool))
        np.testing.assert_array_equal(masks.causal(-far).as_array(4, 4), np.zeros((4, 4), bool))
