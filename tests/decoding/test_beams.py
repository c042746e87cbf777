"""Beam search: what it finds is the best there is where it is wide enough, by the rules where it is not."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import decoding
from jattn.decoding import beam_loop, room
from tests.decoding.test_generation import Bigrams, drawn
from tests.errors import raises
from tests.models.hugging_face.test_gpt2_and_llama import LENS, PROMPT, made

V, EOS = 4, 2


class Recurrent(nnx.Module):
    """A model that all tokens before have an effect on, so that the state must be that of the same hypothesis."""

    def __init__(self, seed: int = 0) -> None:
        tables = jax.random.normal(jax.random.key(seed), (3, V, V))
        self.read, self.kept, self.said = (nnx.Param(2 * x) for x in tables)

    def start(self, batch_size: int, room: int) -> jax.Array:
        return jnp.zeros((batch_size, V))

    def step(self, tokens: Any, state: Any, *, valid_lens: Any = None, each: bool = False) -> Any:
        for i, token in enumerate(tokens.T):
            after = jnp.tanh(state @ self.kept[...] + self.read[...][token])
            state = after if valid_lens is None else jnp.where((i < valid_lens)[:, None], after, state)
        assert not each
        return state @ self.said[...], state

    def log_probability(self, prompt: list[int], tokens: tuple[int, ...]) -> float:
        """Of these tokens after the prompt, with what `less_of_the_last` takes, in NumPy."""
        read, kept, said = (np.asarray(x[...], np.float64) for x in (self.read, self.kept, self.said))
        state, total, before = np.zeros(V), 0.0, -1
        for i, token in enumerate([*prompt, *tokens]):
            if i >= len(prompt):
                logits = state @ said
                total += logits[token] - np.log(np.exp(logits).sum()) - 0.5 * (token == before)
            state, before = np.tanh(state @ kept + read[token]), token
        return total


def less_of_the_last(log_probabilities: jax.Array, transcript: decoding.Transcript) -> jax.Array:
    """A processor that knows the tokens of each hypothesis."""
    last = jnp.take_along_axis(transcript.tokens, transcript.lengths[:, None] - 1, 1)
    again = jnp.arange(log_probabilities.shape[1], dtype=last.dtype)[None] == last
    return log_probabilities - jnp.where(again, 0.5, 0.0)


PROMPTS = jnp.array([[3, 1, 0], [1, 1, 3]])
PROMPT_LENS = jnp.array([3, 1])


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.5])
def test_a_wide_beam_finds_the_best_of_all(length_penalty: float) -> None:
    """Of 121 continuations, ended or 4 tokens long, after prompts of different lengths."""
    every = (x for n in range(1, 5) for x in itertools.product(range(V), repeat=n))
    all_there_are = [x for x in every if EOS not in x[:-1] and (x[-1] == EOS or len(x) == 4)]
    assert len(all_there_are) == 121
    model, options = Recurrent(), {"beams": 123, "length_penalty": length_penalty, "early_stopping": "never"}
    found = decoding.beam_search(
        model, PROMPTS, PROMPT_LENS, **options, max_new_tokens=4, eos=EOS, pad=9, processors=[less_of_the_last]
    )
    for i, n in enumerate(PROMPT_LENS.tolist()):
        prompt = PROMPTS[i, :n].tolist()
        scores = [model.log_probability(prompt, x) / len(x) ** length_penalty for x in all_there_are]
        best = sorted(zip(scores, all_there_are, strict=True), reverse=True)
        np.testing.assert_allclose(found.beams.scores[i, :121], [score for score, _ in best], rtol=1e-5)
        rows = [(*x, 9, 9, 9)[:4] for _, x in best]
        assert found.beams.tokens[i, :20].tolist() == [list(x) for x in rows[:20]]
        assert found.beams.lengths[i, :20].tolist() == [len(x) for _, x in best[:20]]
    assert bool(jnp.all(found.beams.scores[:, 121:] == -jnp.inf))
    assert bool(jnp.all(found.beams.lengths[:, 121:] == 0) & jnp.all(found.beams.tokens[:, 121:] == 9))
    for best, of_all in zip(found, found.beams, strict=False):
        np.testing.assert_array_equal(best, of_all[:, 0])


# After 0 the end (3) is most probable; 1 and then 2, again and again, is better the longer it goes on.
CHAIN = np.array([[0, 0.49, 0.01, 0.5], [0, 0.03, 0.92, 0.05], [0, 0, 0.85, 0.15], [1, 0, 0, 0]])
LONG = (0.49 * 0.92 * 0.85**2, [1, 2, 2, 2])
EXPECTED: list[tuple[int, int, Any, list[tuple[float, list[int]]]]] = [
    (0, 1, True, [(0.5, [3])]),
    (0, 1, False, [(0.5, [3])]),  # as log 0.49 / 1 is less than log 0.5 / 1
    (0, 1, "never", [LONG]),  # as log 0.49 / 4 is more
    (0, 2, True, [(0.5, [3]), (0.49 * 0.05, [1, 3])]),
    (0, 2, False, [LONG, (0.5, [3])]),
    (0, 2, "never", [LONG, (0.5, [3])]),
    (2, 1, True, [(0.85**4, [2, 2, 2, 2])]),  # as the end is not among the first at any step
]


@pytest.mark.core
@pytest.mark.parametrize(("start", "beams", "early_stopping", "expected"), EXPECTED)
def test_when_it_stops(start: int, beams: int, early_stopping: Any, expected: list[tuple[float, list[int]]]) -> None:
    model = Bigrams(jnp.asarray(np.log(np.maximum(CHAIN, 1e-30))))
    options: dict[str, Any] = {"max_new_tokens": 4, "eos": 3, "pad": -1}
    found = decoding.beam_search(model, jnp.array([[start]]), beams=beams, early_stopping=early_stopping, **options)
    for (p, tokens), row, n, score in zip(expected, *(x[0].tolist() for x in found.beams), strict=True):
        assert (row, n) == (tokens + [-1] * (4 - len(tokens)), len(tokens))
        assert score == pytest.approx(np.log(p) / len(tokens), rel=1e-6)


def test_what_cannot_be_said_is_never_found() -> None:
    """Of four tokens three may follow 0: the rest of five beams are none."""
    with np.errstate(divide="ignore"):
        model = Bigrams(jnp.asarray(np.log(CHAIN)))
    beams = decoding.beam_search(model, jnp.array([[0]]), beams=5, max_new_tokens=1, pad=7).beams
    assert beams.tokens.tolist() == [[[3], [1], [2], [7], [7]]]
    assert beams.lengths.tolist() == [[1, 1, 1, 0, 0]]
    np.testing.assert_allclose(beams.scores[0], np.log([0.5, 0.49, 0.01, 1e-300, 1e-300]) - [0, 0, 0, np.inf, np.inf])


@pytest.mark.core
def test_nothing_else_in_the_batch_matters() -> None:
    options: dict[str, Any] = {"beams": 2, "max_new_tokens": 6, "eos": EOS}
    for seed, early_stopping in itertools.product(range(3), (True, False)):
        model, options["early_stopping"] = Recurrent(seed), early_stopping
        together = decoding.beam_search(model, PROMPTS, PROMPT_LENS, **options)
        alone = [decoding.beam_search(model, PROMPTS[i : i + 1, :n], **options) for i, n in enumerate((3, 1))]
        jax.tree.map(
            lambda x, *y: np.testing.assert_allclose(x, np.concatenate(y), rtol=1e-5), together, alone[0], alone[1]
        )
    mask = jnp.array([[1, 0, 1, 1], [0, 0, 1, 0]])
    left = decoding.beam_search(model, jnp.array([[3, 0, 1, 0], [0, 0, 1, 0]]), prompt_attention_mask=mask, **options)
    np.testing.assert_array_equal(left.beams.tokens, together.beams.tokens)


@pytest.mark.core
def test_a_number_of_a_processor_for_each_prompt() -> None:
    model, search = Recurrent(), {"beams": 3, "max_new_tokens": 6, "eos": EOS}
    factors = (0.5, 2.0)
    each = [decoding.processors.temperature(jnp.repeat(jnp.array(factors), 3))]
    found = decoding.beam_search(model, PROMPTS, **search, processors=each)
    for i, factor in enumerate(factors):
        expected = decoding.beam_search(model, PROMPTS, **search, processors=[decoding.processors.temperature(factor)])
        np.testing.assert_array_equal(found.beams.tokens[i], expected.beams.tokens[i])
        np.testing.assert_allclose(found.beams.scores[i], expected.beams.scores[i], rtol=1e-5)
    assert (found.scores[0] != expected.scores[0]).item()


@pytest.mark.core
def test_it_goes_on_from_a_state() -> None:
    model, options = Recurrent(1), {"beams": 3, "max_new_tokens": 5}
    whole = decoding.beam_search(model, PROMPTS, **options)
    _, state = model.step(PROMPTS[:, :2], model.start(2, 9))
    np.testing.assert_array_equal(
        decoding.beam_search(model, PROMPTS[:, 2:], state=state, **options).beams.tokens, whole.beams.tokens
    )


@pytest.mark.core
@pytest.mark.whole
def test_growing_caches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("gpt2", max_length=64)
    options: dict[str, Any] = {"max_new_tokens": 16, "beams": 3, "processors": [less_of_the_last] * 6}
    expected = decoding.beam_search(model, PROMPT, LENS, **options)
    monkeypatch.setattr(room, "GROWTH", 5)
    found = decoding.beam_search(model, PROMPT, LENS, **options)
    np.testing.assert_array_equal(found.beams.tokens, expected.beams.tokens)
    np.testing.assert_allclose(found.beams.scores, expected.beams.scores, rtol=1e-5)
    assert len(np.unique(found.tokens)) > 4


def less(amount: jax.Array, log_probabilities: jax.Array, transcript: decoding.Transcript) -> jax.Array:
    return log_probabilities.at[:, 0].add(-amount)


def test_other_numbers_compile_nothing() -> None:
    model = drawn()
    prompts = {t: jnp.asarray(np.full((2, t), 3)) for t in (25, 27)}  # in one bucket, together with the new tokens

    def run(t: int, eos: int, penalty: float, early_stopping: Any, amount: float) -> Any:
        processors = [jax.tree_util.Partial(less, amount)]
        rules: dict[str, Any] = {"length_penalty": penalty, "early_stopping": early_stopping}
        return decoding.beam_search(
            model, prompts[t], beams=2, max_new_tokens=15, eos=eos, processors=processors, **rules
        )

    run(25, 5, 1.0, False, 1.0)
    compiled = [f._cache_size() for f in (beam_loop.begin_search, beam_loop.search_on)]
    for early_stopping, penalty, eos in ((True, 0.0, 4), ("never", -2.0, 6)):
        run(27, eos, penalty, early_stopping, 0.3)
    assert [f._cache_size() for f in (beam_loop.begin_search, beam_loop.search_on)] == compiled


@pytest.mark.core
@pytest.mark.needs_jit
def test_under_jit() -> None:
    model, options = Recurrent(2), {"beams": 3, "max_new_tokens": 6, "eos": EOS}
    outside = decoding.beam_search(model, PROMPTS, PROMPT_LENS, length_penalty=0.3, **options)
    graph, state = nnx.split(model)

    @jax.jit
    def search(state: Any, prompts: jax.Array, length_penalty: jax.Array) -> Any:
        found = nnx.merge(graph, state)
        return decoding.beam_search(found, prompts, PROMPT_LENS, length_penalty=length_penalty, **options)

    inside = search(state, PROMPTS, jnp.float32(0.3))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), inside, outside)


@pytest.mark.whole
def test_bfloat16_is_summed_in_float32() -> None:
    model = Bigrams(drawn().logits[...].astype(jnp.bfloat16))
    assert decoding.beam_search(model, PROMPTS, beams=2, max_new_tokens=3).scores.dtype == jnp.float32


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "phrases"),
    [
        ({"beams": 0}, ("beams must be an integer in [1, inf)", "Got 0")),
        ({"beams": 2.0}, ("beams must be an integer in [1, inf)", "Got 2.0")),
        ({"length_penalty": float("inf")}, ("length_penalty must be a number in (-inf, inf)", "Got inf")),
        ({"length_penalty": None}, ("length_penalty must be a number in (-inf, inf)", "Got None")),
        ({"early_stopping": "soon"}, ("early_stopping must be one of False, True, 'never'", "Got 'soon'")),
        ({"prompt": PROMPTS + 4}, ("prompt must lie between 0 and 3", "Got 7")),
        ({"max_new_tokens": 0}, ("max_new_tokens must be at least 1", "Got 0")),
    ],
)
def test_one_clear_error(wrong: dict[str, Any], phrases: tuple[str, ...]) -> None:
    arguments: dict[str, Any] = {"model": Recurrent(), "prompt": PROMPTS, "beams": 2, "max_new_tokens": 2, **wrong}
    with raises(*phrases):
        decoding.beam_search(**arguments)
