"""Greedy and beam search: what they find is what the model says, and wrong arguments get one clear error."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import models
from jattn.decoding import generate, loop
from jattn.models import decoding
from tests.errors import raises

V, BOS, EOS, PAD, T = 9, 1, 2, 3, 6
SEARCH: dict[str, Any] = {"bos": BOS, "eos": EOS, "max_length": T}
SOURCE = jnp.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7], [9, 3, 2, 3, 8, 4, 6]])
LENS = jnp.array([7, 4, 2])


def made(seed: int = 0, **options: Any) -> models.Seq2Seq:
    """A model that is sure of itself, so that targets differ much in probability."""
    model = models.Seq2Seq(10, V, embedding_features=4, hidden_features=8, rngs=nnx.Rngs(seed), **options)
    model.decoder.output.kernel[...] *= 6
    model.eval()
    return model


# Without jit the scan would be compiled at each call.
@nnx.jit
def forced(model: models.Seq2Seq, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each token's log-probability and weights by teacher forcing: b t and b t s."""
    fed = jnp.concatenate([jnp.full((len(tokens), 1), BOS), tokens[:, :-1]], axis=1)
    logits, weights = model(SOURCE, fed, LENS, return_weights=True)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0], weights


def test_greedy_takes_the_most_probable() -> None:
    encode = nnx.jit(lambda encoder: encoder(SOURCE, LENS))
    step = nnx.jit(lambda decoder, tokens, state: decoder.step(tokens, state))
    for seed in range(3):
        model = made(seed)
        tokens, state = jnp.full(3, BOS), encode(model.encoder)
        found = models.greedy(model, SOURCE, LENS, **SEARCH)
        for i in range(T):
            logits, state, _ = step(model.decoder, tokens, state)
            tokens = logits.argmax(-1)
            going_on = i < found.lengths
            np.testing.assert_array_equal(found.tokens[going_on, i], tokens[going_on])


@pytest.mark.parametrize("lens", [None, LENS], ids=["whole sources", "valid lengths"])
def test_a_beam_of_one_is_greedy(lens: jax.Array | None) -> None:
    for seed in range(3):
        model, options = made(seed), {**SEARCH, "pad": PAD}
        found, best = (
            models.greedy(model, SOURCE, lens, **options),
            models.beam_search(model, SOURCE, lens, **options, beam_size=1),
        )
        np.testing.assert_array_equal(found.tokens, best.tokens)
        for a, b in zip(found, best, strict=False):
            np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_what_is_said_of_a_target_is_what_the_model_says(beam_size: int) -> None:
    """Its log-probability and its weights are those of teacher forcing, for every beam."""
    for seed in range(3):
        model = made(seed)
        beams = models.beam_search(model, SOURCE, LENS, **SEARCH, beam_size=beam_size, length_penalty=0.5).beams
        for j in range(beam_size):
            log_probability, weights = forced(model, beams.tokens[:, j])
            real = jnp.arange(T) < beams.lengths[:, j, None]
            np.testing.assert_allclose(
                beams.log_probability[:, j], jnp.where(real, log_probability, 0).sum(-1), rtol=1e-5
            )
            np.testing.assert_allclose(beams.weights[:, j], jnp.where(real[..., None], weights, 0), atol=1e-5)


def test_what_has_ended_stays_ended() -> None:
    ended = 0
    for seed in range(6):
        beams = models.beam_search(made(seed), SOURCE, LENS, **SEARCH, beam_size=4, pad=PAD).beams
        for i, j in np.ndindex(3, 4):
            tokens, n = beams.tokens[i, j], int(beams.lengths[i, j])
            assert EOS not in tokens[: n - 1]
            assert n == T or tokens[n - 1] == EOS
            assert bool((tokens[n:] == PAD).all())
            assert float(jnp.abs(beams.weights[i, j, n:]).sum()) == 0
            np.testing.assert_allclose(beams.weights[i, j, :n].sum(-1), 1, rtol=1e-6)
            ended += n < T
    assert ended > 10


def test_more_time_changes_nothing_once_all_have_ended() -> None:
    model = made(0)
    model.decoder.output.bias[...] = model.decoder.output.bias[...].at[EOS].set(12.0)
    short = models.beam_search(model, SOURCE, LENS, **SEARCH, beam_size=3).beams
    long = models.beam_search(model, SOURCE, LENS, **{**SEARCH, "max_length": 20}, beam_size=3).beams
    assert int(short.lengths.max()) < T
    np.testing.assert_array_equal(short.log_probability, long.log_probability)
    np.testing.assert_array_equal(short.tokens, long.tokens[..., :T])
    assert bool((long.tokens[..., T:] == EOS).all())


def test_the_best_comes_first_and_no_two_beams_are_alike() -> None:
    for length_penalty in (0.0, 1.0):
        found = models.beam_search(made(1), SOURCE, LENS, **SEARCH, beam_size=5, length_penalty=length_penalty)
        score = found.beams.log_probability / found.beams.lengths**length_penalty
        assert bool((jnp.diff(score, axis=1) <= 0).all())
        for tokens in found.beams.tokens:
            assert len({tuple(row.tolist()) for row in tokens}) == 5
        for best, all_beams in zip(found, found.beams, strict=False):
            np.testing.assert_array_equal(best, all_beams[:, 0])


def test_fewer_targets_than_beams() -> None:
    """With one token there are as many as the vocabulary has."""
    beams = models.beam_search(made(), SOURCE, LENS, bos=BOS, eos=EOS, max_length=1, beam_size=V + 2, pad=-1).beams
    np.testing.assert_allclose(jnp.exp(beams.log_probability[:, :V]).sum(-1), 1, rtol=1e-5)
    assert bool((beams.log_probability[:, V:] == -jnp.inf).all())
    assert bool((beams.lengths[:, V:] == 0).all() and (beams.tokens[:, V:] == -1).all())
    assert sorted(beams.tokens[0, :V, 0].tolist()) == list(range(V))


def test_what_follows_the_valid_lengths_leaves_no_trace() -> None:
    other = SOURCE.at[1, 4:].set(0).at[2, 2:].set(0)
    for a, b in zip(*[models.greedy(made(), x, LENS, **SEARCH) for x in (SOURCE, other)], strict=True):
        np.testing.assert_array_equal(a, b)


def test_under_jit_a_new_length_compiles_nothing() -> None:
    graphdef, state = nnx.split(made())
    traces = 0

    @jax.jit
    def search(state: Any, source: jax.Array, lens: jax.Array) -> Any:
        nonlocal traces
        traces += 1
        return models.beam_search(nnx.merge(graphdef, state), source, lens, **SEARCH, beam_size=3)

    for lens in (LENS, LENS - 1, jnp.array([1, 7, 0])):
        inside, outside = search(state, SOURCE, lens), models.beam_search(made(), SOURCE, lens, **SEARCH, beam_size=3)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), inside, outside)
    assert traces == 1


def test_called_as_it_is_a_new_length_compiles_nothing() -> None:
    models.greedy(made(), SOURCE, LENS, **SEARCH)
    functions = (decoding._read, decoding._looked_at, loop.begin, loop.advance)
    compiled = [f._cache_size() for f in functions]
    for source, lens in ((SOURCE, LENS - 1), (SOURCE[::-1], LENS)):
        models.greedy(made(1), source, lens, **SEARCH)
    models.greedy(made(), SOURCE, LENS, **{**SEARCH, "eos": 5})
    assert [f._cache_size() for f in functions] == compiled


@pytest.mark.whole
def test_bfloat16_is_summed_in_float32() -> None:
    found = models.beam_search(made(param_dtype=jnp.bfloat16), SOURCE, LENS, **SEARCH, beam_size=2)
    assert found.log_probability.dtype == found.weights.dtype == jnp.float32


def test_it_is_decoded_as_other_models_are() -> None:
    """From its source to its tokens, one or several of them at a time."""
    model, bos = made(), jnp.full((3, 1), BOS)
    expected = models.greedy(model, SOURCE, LENS, **SEARCH)
    found = generate(model, bos, source=SOURCE, source_valid_lens=LENS, max_new_tokens=T, eos=EOS)
    np.testing.assert_array_equal(found.tokens, expected.tokens)

    fed, lens = jnp.concatenate([bos, jnp.array([[4, 5], [6, 7], [8, 0]])], axis=1), jnp.array([3, 2, 1])
    start = model.start(3, 0, source=SOURCE, source_valid_lens=LENS)
    logits, after = model.step(fed, start, valid_lens=lens)
    each, _ = model.step(fed, start, each=True)
    np.testing.assert_allclose(each, model(SOURCE, fed, LENS), rtol=1e-6)
    for i, n in enumerate(lens.tolist()):
        np.testing.assert_allclose(logits[i], each[i, n - 1], rtol=1e-5, atol=1e-6)
        state = jax.tree.map(lambda x, i=i: x[i : i + 1], start)
        last, of_one = model.step(fed[i : i + 1, :n], state)
        np.testing.assert_allclose(last[0], logits[i], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(of_one.hidden[0], after.hidden[i], rtol=1e-5, atol=1e-6)


def test_a_source_for_each_prompt() -> None:
    with raises("source must be one for each of 2 prompts", "Got 3"):
        generate(made(), jnp.full((2, 1), BOS), source=SOURCE, max_new_tokens=T)


def test_a_model_without_dropout_needs_no_eval_mode() -> None:
    model = made(dropout_rate=0.0)
    model.train()
    models.greedy(model, SOURCE, LENS, **SEARCH)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("search", [models.greedy, models.beam_search])
@pytest.mark.parametrize(
    ("wrong", "phrases"),
    [
        ({"bos": 9}, ("bos must be a token's number", "0 to 8", "Got 9")),
        ({"eos": -1}, ("eos must be a token's number", "0 to 8", "Got -1")),
        ({"eos": 2.0}, ("eos must be a token's number", "Got 2.0")),
        ({"pad": "<pad>"}, ("pad must be an integer", "Got '<pad>'")),
        ({"max_length": 0}, ("max_length must be at least 1", "Got 0")),
        ({"max_length": 2.5}, ("max_length must be at least 1, an integer", "Got 2.5")),
        ({"source": SOURCE + 1}, ("source must lie between 0 and 9", "Got 10")),
        ({"source": SOURCE[0]}, ("source must have the axes b s", "Got shape (7,)")),
        ({"source_valid_lens": jnp.array([7, 8, 7])}, ("valid_lens", "8")),
        (
            {"source_valid_lens": jnp.array([7, 7])},
            ("source_valid_lens must have one entry for each source", "Got shape (2,)"),
        ),
        ({"source_valid_lens": 7}, ("source_valid_lens must have one entry for each source", "Got shape ()")),
        ({"model": nnx.Linear(2, 2, rngs=nnx.Rngs(0))}, ("model must be a jattn.models.Seq2Seq", "Got Linear")),
    ],
)
def test_one_clear_error(search: Any, wrong: dict[str, Any], phrases: tuple[str, ...]) -> None:
    arguments = {"model": made(), "source": SOURCE, "source_valid_lens": LENS, **SEARCH, **wrong}
    with raises(*phrases):
        search(**arguments, **({"beam_size": 2} if search is models.beam_search else {}))


def test_training_mode() -> None:
    model = made()
    model.train()
    with raises("model must be in eval mode", "Got one in training mode", "model.eval()"):
        models.greedy(model, SOURCE, **SEARCH)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "phrases"),
    [
        ({"beam_size": 0}, ("beam_size must be at least 1", "Got 0")),
        ({"beam_size": True}, ("beam_size must be at least 1", "Got True")),
        ({"length_penalty": -0.5}, ("length_penalty must be a number from 0", "Got -0.5")),
        ({"length_penalty": float("nan")}, ("length_penalty must be a number from 0", "Got nan")),
        ({"length_penalty": None}, ("length_penalty must be a number from 0", "Got None")),
    ],
)
def test_one_clear_error_of_the_beam(wrong: dict[str, Any], phrases: tuple[str, ...]) -> None:
    with raises(*phrases):
        models.beam_search(made(), SOURCE, LENS, **{**SEARCH, "beam_size": 2, **wrong})
