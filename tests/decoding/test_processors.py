"""What processors of logits give, by hand; that other settings compile nothing; their errors."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.decoding import Transcript, processors
from tests.errors import raises


@pytest.fixture(autouse=True)
def _infinite_logits_are_meant() -> Iterator[None]:
    """A processor forbids tokens by minus infinity, where `debug_infs` stops, as it should outside of a program."""
    with jax.debug_infs(False):
        yield


INF = np.inf
LOG = np.log(np.array([[0.5, 0.2, 0.25, 0.05], [0.1, 0.6, 0.1, 0.2]]))
# Of two examples: 3 0 3 | 1 3 0 3, and 2 | nothing. What follows has no meaning.
HISTORY = Transcript(
    jnp.array([[3, 0, 3, 1, 3, 0, 3, 2, 2], [2, 1, 1, 1, 1, 1, 1, 1, 1]]),
    jnp.array([7, 1]),
    jnp.array([3, 1]),
    jnp.array([5, 1]),
)
LOGITS = [[1.0, 2.0, -3.0, 0.0], [-1.0, 4.0, -2.0, 0.5]]


def kept(*rows: str) -> np.ndarray:
    """``kept("10", "11")``: one string an example, one character a token."""
    return np.array([[character == "1" for character in row] for row in rows])


SAMPLING = {
    "top_k 1": (processors.top_k(1), kept("1000", "0100")),
    "top_k 2": (processors.top_k(2), kept("1010", "0101")),
    "top_k, as probable as the last": (processors.top_k(3), kept("1110", "1111")),
    "top_k 4": (processors.top_k(4), kept("1111", "1111")),
    "top_k, more than there are": (processors.top_k(2**70), kept("1111", "1111")),
    "top_k, one each": (processors.top_k(jnp.array([1, 2])), kept("1000", "0101")),
    "top_p 0": (processors.top_p(0.0), kept("1000", "0100")),
    "top_p, the first is enough": (processors.top_p(0.45), kept("1000", "0100")),
    "top_p, two": (processors.top_p(0.7), kept("1010", "0101")),
    "top_p, three": (processors.top_p(0.92), kept("1110", "1111")),
    "top_p 1": (processors.top_p(1.0), kept("1111", "1111")),
    "top_p, one each": (processors.top_p(jnp.array([0.92, 0.5])), kept("1110", "0100")),
    "min_p 0": (processors.min_p(0.0), kept("1111", "1111")),
    "min_p": (processors.min_p(0.3), kept("1110", "0101")),
    "min_p 1": (processors.min_p(1.0), kept("1000", "0100")),
    "min_p, one each": (processors.min_p(jnp.array([0.45, 0.1])), kept("1010", "1111")),
    # |-log p - H| is 0.47, 0.45, 0.22, 1.83; and 1.21, 0.58, 1.21, 0.52.
    "typical": (processors.typical(0.1), kept("0010", "0001")),
    "typical, not the most probable": (processors.typical(0.3), kept("0110", "0101")),
    "typical, as near as the last": (processors.typical(0.85), kept("1110", "1111")),
    "typical, one each": (processors.typical(jnp.array([0.96, 0.7])), kept("1111", "0101")),
}


@pytest.mark.core
@pytest.mark.every_case
@pytest.mark.parametrize("name", SAMPLING)
def test_which_stay(name: str) -> None:
    process, expected = SAMPLING[name]
    logits = jnp.asarray(LOG, jnp.float32)
    np.testing.assert_array_equal(process(logits, HISTORY), np.where(expected, logits, -INF), strict=True)


OTHERS: dict[str, tuple[processors.Processor, Any]] = {
    "temperature": (processors.temperature(0.5), [[2, 4, -6, 0], [-2, 8, -4, 1]]),
    "temperature, one each": (processors.temperature(jnp.array([0.5, 2.0])), [[2, 4, -6, 0], [-0.5, 2, -1, 0.25]]),
    "repetition_penalty": (processors.repetition_penalty(2.0), [[0.5, 1, -3, 0], [-1, 4, -4, 0.5]]),
    "repetition_penalty, one each": (
        processors.repetition_penalty(jnp.array([0.5, 4.0])),
        [[2, 4, -3, 0], [-1, 4, -8, 0.5]],
    ),
    "no_repeat_ngrams 1": (processors.no_repeat_ngrams(1), [[-INF, -INF, -3, -INF], [-1, 4, -INF, 0.5]]),
    "no_repeat_ngrams 2": (processors.no_repeat_ngrams(2), [[-INF, -INF, -3, 0], [-1, 4, -2, 0.5]]),
    "no_repeat_ngrams 4": (processors.no_repeat_ngrams(4), [[1, -INF, -3, 0], [-1, 4, -2, 0.5]]),
    "no_repeat_ngrams 5": (processors.no_repeat_ngrams(5), LOGITS),
    "no_repeat_ngrams, more than there is room for": (processors.no_repeat_ngrams(12), LOGITS),
    "bad_words": (
        processors.bad_words([[2, 3], [1, 3, 0, 3, 2], [3, 3, 0, 3, 1]]),
        [[1, 2, -INF, 0], [-1, 4, -2, -INF]],
    ),
    "bad_words, of one token and longer than a text": (
        processors.bad_words([[1], [2, 2, 0]]),
        [[1, -INF, -3, 0], [-1, -INF, -2, 0.5]],
    ),
    "bad_words, beyond the vocabulary": (processors.bad_words([[4], [3, 9]]), LOGITS),
    "bad_words, none": (processors.bad_words([]), LOGITS),
    "suppressed": (processors.suppressed([3, 0]), [[-INF, 2, -3, -INF], [-INF, 4, -2, -INF]]),
    "suppressed, beyond the vocabulary": (processors.suppressed(4), LOGITS),
    "suppressed, none": (processors.suppressed([]), LOGITS),
    "suppressed_at_begin": (processors.suppressed_at_begin(1), [LOGITS[0], [-1, -INF, -2, 0.5]]),
    "forced": (processors.forced({4: 2, 1: 3}), [[-INF, -INF, 0, -INF], LOGITS[1]]),
    "forced, from the last": (processors.forced({-1: 2}), [[-INF, -INF, 0, -INF], [-INF, -INF, 0, -INF]]),
    "forced, two at once": (processors.forced({-1: 2, 0: 1}), [[-INF, -INF, 0, -INF], [-INF, 0, -INF, -INF]]),
    "min_new_tokens": (processors.min_new_tokens(4, 0), [LOGITS[0], [-INF, 4, -2, 0.5]]),
    "min_new_tokens, not yet": (processors.min_new_tokens(5, 0), [[-INF, 2, -3, 0], [-INF, 4, -2, 0.5]]),
    "min_new_tokens, one each": (processors.min_new_tokens(jnp.array([5, 0]), 0), [[-INF, 2, -3, 0], LOGITS[1]]),
    "min_length": (processors.min_length(7, [0, 3]), [LOGITS[0], [-INF, 4, -2, -INF]]),
    "min_length, not yet": (processors.min_length(8, [3]), [[1, 2, -3, -INF], [-1, 4, -2, -INF]]),
    "min_length 0": (processors.min_length(0, 1), LOGITS),
}


@pytest.mark.core
@pytest.mark.every_case
@pytest.mark.parametrize("name", OTHERS)
def test_what_comes_of_them(name: str) -> None:
    process, expected = OTHERS[name]
    np.testing.assert_array_equal(process(jnp.array(LOGITS), HISTORY), np.float32(expected), strict=True)


# ----------------------------------------------------------------------------------------------------------------------
# Dtypes, programs.

ALL = {
    "temperature": processors.temperature(0.7),
    "repetition_penalty": processors.repetition_penalty(1.3),
    "top_k": processors.top_k(2),
    "top_p": processors.top_p(0.7),
    "min_p": processors.min_p(0.3),
    "typical": processors.typical(0.3),
    "no_repeat_ngrams": processors.no_repeat_ngrams(2),
    "bad_words": processors.bad_words([[1], [0, 3, 2]]),
    "suppressed": processors.suppressed([0]),
    "suppressed_at_begin": processors.suppressed_at_begin([0]),
    "forced": processors.forced({0: 2}),
    "min_new_tokens": processors.min_new_tokens(3, 0),
    "min_length": processors.min_length(3, 0),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
@pytest.mark.parametrize("name", ALL)
def test_dtypes_also_where_jax_promotes_nothing(name: str, dtype: Any) -> None:
    """What is computed in float32, rounded once."""
    process = ALL[name]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        logits = jnp.asarray(LOG, dtype)
        wide = process(logits.astype(max(dtype, jnp.float32, key=lambda one: jnp.finfo(one).bits)), HISTORY)
        ours = process(logits, HISTORY)
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours, wide.astype(dtype))


@pytest.mark.usefixtures("unchecked")
def test_settings_of_any_dtype() -> None:
    logits = jnp.array(LOGITS)
    halved = np.array(LOGITS, np.float32) / 2
    for t in (2, np.float64(2), jnp.array(2.0, jnp.bfloat16), jnp.array([2.0, 2.0], jnp.bfloat16)):
        np.testing.assert_array_equal(processors.temperature(t)(logits, HISTORY), halved)
    best = processors.top_k(1)(logits, HISTORY)
    for k in (np.int64(1), jnp.array(1, jnp.int8), np.array([1, 1], np.uint16)):
        np.testing.assert_array_equal(processors.top_k(k)(logits, HISTORY), best)
    for tokens in ((2,), np.int32(2), np.array([2]), jnp.array(2), jnp.array([2], jnp.uint8)):
        assert processors.suppressed(tokens) == processors.suppressed([2])


def test_float64_settings_are_not_rounded() -> None:
    with jax.enable_x64(True):
        logits = jnp.asarray(LOG)
        np.testing.assert_allclose(jax.jit(processors.temperature(0.7))(logits, HISTORY), LOG / 0.7, rtol=1e-15)


@pytest.mark.parametrize("name", ALL)
def test_vmap(name: str) -> None:
    process = ALL[name]
    logits = jnp.asarray(np.stack([LOG, LOG[::-1], 2 * LOG]), jnp.float32)
    histories = [HISTORY, jax.tree.map(lambda x: x[::-1], HISTORY), HISTORY._replace(lengths=jnp.array([5, 4]))]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *histories)
    expected = [process(x, transcript) for x, transcript in zip(logits, histories, strict=True)]
    np.testing.assert_array_equal(jax.jit(jax.vmap(process))(logits, stacked), jnp.stack(expected))


def test_vmap_over_settings() -> None:
    logits = jnp.asarray(LOG, jnp.float32)
    k = jnp.array([1, 4])
    ours = jax.vmap(lambda k: processors.top_k(k)(logits, HISTORY))(k)
    np.testing.assert_array_equal(ours[0], processors.top_k(1)(logits, HISTORY))
    np.testing.assert_array_equal(ours[1], logits)


OTHER_SETTINGS: list[tuple[processors.Processor, processors.Processor]] = [
    (processors.temperature(0.7), processors.temperature(1.5)),
    (processors.top_k(2), processors.top_k(3)),
    (processors.top_p(0.7), processors.top_p(0.2)),
    (processors.min_p(0.3), processors.min_p(0.9)),
    (processors.typical(0.3), processors.typical(0.9)),
    (processors.repetition_penalty(1.3), processors.repetition_penalty(1.9)),
    (processors.bad_words([[1], [0, 3]]), processors.bad_words([[2, 3], [0]])),
    (processors.suppressed([0, 1]), processors.suppressed([2, 1])),
    (processors.suppressed_at_begin(1), processors.suppressed_at_begin(2)),
    (processors.forced({0: 2}), processors.forced({-1: 1})),
    (processors.min_new_tokens(3, 0), processors.min_new_tokens(9, 1)),
    (processors.min_length(3, 0), processors.min_length(9, 1)),
]


@pytest.mark.needs_jit
def test_other_settings_compile_nothing() -> None:
    traced = []

    @jax.jit
    def all_of(applied: list[processors.Processor], logits: jax.Array) -> list[jax.Array]:
        traced.append(applied)
        return [process(logits, HISTORY) for process in applied]

    logits = jnp.array([[0.3, 2.0, -3.0, 0.4], [-1.0, 0.5, -2.0, 1.0]])
    first, second = (all_of([pair[i] for pair in OTHER_SETTINGS], logits) for i in (0, 1))
    assert len(traced) == 1
    assert all(np.any(a != b) for a, b in zip(first, second, strict=True))
    sizes = [[processors.no_repeat_ngrams(n)] for n in (2, 3, 2)]
    for applied in sizes:
        all_of(applied, logits)
    assert len(traced) == 3  # what is no data


def test_equal_where_alike() -> None:
    assert processors.top_k(2) == processors.top_k(2)
    assert processors.top_k(2) != processors.top_k(3)
    assert processors.min_length(2, 0) != processors.min_new_tokens(2, 0)
    assert hash(processors.suppressed([1])) == hash(processors.suppressed([1]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_kth_largest_is_exact(dtype: Any) -> None:
    """Of numbers of every size and sign, many of them neighbours."""
    rng = np.random.default_rng(0)
    info = np.finfo(dtype)
    x = rng.normal(size=(4, 500)).astype(dtype) * np.array([[1], [1e30], [1e-30], [1e-3]], dtype)
    x[0, :100] = np.nextafter(x[0, 100:200], np.inf, dtype=dtype)
    x[1, :6] = [info.max, info.min, -np.inf, 0.0, -0.0, info.tiny]
    x[3, :400] = -np.inf
    with jax.enable_x64(dtype == np.float64):
        process = jax.jit(lambda k: processors.top_k(k)(jnp.asarray(x), transcript))
        transcript = Transcript(*(jnp.ones((4, 1), int), *[jnp.ones(4, int)] * 3))
        for k in (1, 2, 3, 99, 250, 499, 500):
            least = np.sort(x)[:, [-k]]
            np.testing.assert_array_equal(process(jnp.int32(k)), np.where(x < least, -np.inf, x))


@pytest.mark.core
@pytest.mark.needs_jit
def test_in_a_compiled_loop() -> None:
    """One token after the other: the most probable that did not come yet, and 4 at last."""
    applied = [processors.no_repeat_ngrams(1), processors.min_new_tokens(2, 1), processors.forced({-1: 4})]
    logits = jnp.array([[5.0, 9.0, 7.0, 8.0, 1.0, 6.0]] * 2)

    def step(transcript: Transcript) -> Transcript:
        now = logits
        for process in applied:
            now = process(now, transcript)
        return transcript.appended(now.argmax(1), transcript.new < transcript.limits)

    begun = jnp.array([[3, 0, 0, 0, 0, 0, 0], [2, 5, 0, 0, 0, 0, 0]])
    transcript = Transcript(begun, jnp.array([1, 2]), jnp.array([1, 2]), jnp.array([5, 4]))
    ended = jax.jit(lambda x: jax.lax.while_loop(lambda x: jnp.any(x.new < x.limits), step, x))(transcript)
    np.testing.assert_array_equal(ended.tokens, [[3, 2, 5, 1, 0, 4, 0], [2, 5, 3, 0, 1, 4, 0]])
    np.testing.assert_array_equal(ended.lengths, [6, 6])


@pytest.mark.core
def test_gradients_reach_what_stays() -> None:
    logits = jnp.asarray(LOG, jnp.float32)

    def best(logits: jax.Array) -> jax.Array:
        for process in (
            processors.temperature(0.5),
            processors.top_k(3),
            processors.top_p(0.8),
            processors.typical(0.9),
        ):
            logits = process(logits, HISTORY)
        return jax.nn.log_softmax(logits)[:, 2].at[1].set(0).sum()

    odds = np.exp(2 * LOG[0, [0, 2]]) / np.exp(2 * LOG[0, [0, 2]]).sum()
    expected = np.zeros((2, 4))
    expected[0, [0, 2]] = 2 * (np.array([0, 1]) - odds)
    np.testing.assert_allclose(jax.jit(jax.grad(best))(logits), expected, atol=1e-6)


def test_what_is_not_a_number_stays_so() -> None:
    """So that it shows."""
    logits = jnp.array([[0.0, jnp.nan, 1.0, 2.0], [0.0, 3.0, 1.0, 2.0]])
    for process in (processors.top_k(2), processors.top_p(0.5), processors.min_p(0.5), processors.typical(0.5)):
        assert jnp.isnan(process(logits, HISTORY)[0, 1])


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes.


@pytest.mark.every_case
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: processors.temperature(0),
            "t must be a number in (0, inf). Got 0. For the most probable token, decode greedily.",
        ),
        (lambda: processors.temperature("warm"), "t must be a number in (0, inf). Got 'warm'."),
        (lambda: processors.temperature(jnp.array([1.0, -2.0])), "t must be a number in (0, inf). Got -2.0."),
        (lambda: processors.temperature(jnp.ones((2, 4))), "t must be one number, or one for each example. Got shape"),
        (
            lambda: processors.temperature(jnp.ones(3))(jnp.array(LOGITS), HISTORY),
            "t must be one number, or one for each of 2 examples. Got 3 numbers.",
        ),
        (lambda: processors.top_k(0), "k must be an integer in [1, inf). Got 0."),
        (lambda: processors.top_k(2.0), "k must be an integer in [1, inf). Got 2.0."),
        (lambda: jax.jit(processors.top_k)(2.0), "k must be integers. Got float32."),
        (lambda: processors.top_p(1.1), "p must be a number in [0, 1]. Got 1.1."),
        (lambda: processors.min_p(-0.1), "p must be a number in [0, 1]. Got -0.1."),
        (lambda: processors.typical(1.0), "p must be a number in (0, 1). Got 1.0."),
        (lambda: processors.repetition_penalty(0.0), "penalty must be a number in (0, inf). Got 0.0."),
        (lambda: processors.no_repeat_ngrams(0), "n must be at least 1, an integer known while tracing. Got 0."),
        (lambda: jax.jit(processors.no_repeat_ngrams)(2), "n must be at least 1, an integer known while tracing. Got"),
        (
            lambda: processors.bad_words([3, 4]),
            "sequences must be lists of tokens, one or more non-negative integers for each word. Got [3, 4].",
        ),
        (lambda: processors.bad_words([[1], []]), "sequences must be lists of tokens, one or more"),
        (lambda: processors.bad_words([[1, -1]]), "sequences must be lists of tokens, one or more"),
        (lambda: processors.bad_words(["in"]), "sequences must be lists of tokens, one or more"),
        (
            lambda: processors.suppressed([1, -1]),
            "tokens must be tokens, one or several non-negative integers. Got [1, -1].",
        ),
        (lambda: processors.suppressed_at_begin(1.5), "tokens must be tokens, one or several"),
        (lambda: processors.suppressed(jnp.ones((2, 2), int)), "tokens must be tokens, one or several"),
        (lambda: jax.jit(processors.suppressed)(1.5), "tokens must be integers. Got float32."),
        (lambda: processors.forced({}), "tokens must be a mapping of places to tokens, such as {0: 2}. Got {}."),
        (lambda: processors.forced([2]), "tokens must be a mapping of places to tokens, such as {0: 2}. Got [2]."),
        (lambda: processors.forced({0.5: 2}), "a place in tokens must be an integer in (-inf, inf). Got 0.5."),
        (lambda: processors.forced({0: -2}), "tokens must be tokens, one or several non-negative integers. Got [-2]."),
        (lambda: processors.min_new_tokens(-1, 0), "n must be an integer in [0, inf). Got -1."),
        (lambda: processors.min_length(3, "</s>"), "eos must be tokens, one or several non-negative integers."),
        (lambda: processors.min_length(True, 0), "n must be an integer in [0, inf). Got True."),
    ],
)
def test_mistakes(call: Callable[[], Any], message: str) -> None:
    with raises(message):
        call()


def test_nothing_can_be_changed() -> None:
    with raises("k of a TopK can't be changed; make a new one.", kind=AttributeError):
        processors.top_k(2).k = 3  # type: ignore[attr-defined]
