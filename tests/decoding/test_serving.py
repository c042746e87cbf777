"""A queue through a few slots: each job gets what it would get alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import decoding, models
from tests.decoding.test_generation import drawn
from tests.errors import raises
from tests.models.hugging_face.test_gpt2_and_llama import V, made

LIMITS = (5, 2, 9, 4, 7)
PROMPTS = [np.random.default_rng(i).integers(0, V, n) for i, n in enumerate((3, 7, 2, 4, 5))]


@pytest.mark.core
@pytest.mark.parametrize("rng", [None, jax.random.key(3)], ids=["greedy", "drawn"])
def test_each_job_gets_what_it_would_get_alone(rng: Any) -> None:
    model = made("gpt2", max_length=32)
    jobs = [decoding.Job(prompt, n) for prompt, n in zip(PROMPTS, LIMITS, strict=True)]
    served = list(decoding.serve(model, jobs, slots=2, rng=rng, eos=4))
    assert sorted(one.number for one in served) == [0, 1, 2, 3, 4]
    for number, tokens, log_probabilities in served:
        own = None if rng is None else jax.random.fold_in(rng, number)[None]
        alone = decoding.generate(
            model, jnp.asarray(PROMPTS[number])[None], max_new_tokens=LIMITS[number], eos=4, rng=own
        )
        n = int(alone.lengths[0])
        assert tokens.tolist() == alone.tokens[0, :n].tolist()
        np.testing.assert_allclose(log_probabilities, alone.log_probabilities[0, :n], rtol=1e-4, atol=1e-5)


@pytest.mark.core
def test_a_job_is_taken_when_a_slot_is_free() -> None:
    taken: list[int] = []

    def queue() -> Any:
        for i in range(5):
            taken.append(i)
            yield [i]

    served = decoding.serve(drawn(), queue(), slots=2, max_new_tokens=3)
    assert taken == []
    next(served)
    assert taken == [0, 1]
    assert len(list(served)) == 4


def test_an_encoder_decoder_has_a_source_for_each_job() -> None:
    block = dict(num_heads=2, feedforward_features=8, norm="pre")
    side = dict(layers=[block], max_length=20)
    model = models.EncoderDecoder(V, features=8, encoder=side, decoder=side, rngs=nnx.Rngs(0))
    model.eval()
    sources = jax.random.randint(jax.random.key(0), (3, 6), 0, V)
    jobs = [decoding.Job([1], given={"source": source[None]}) for source in sources]
    served = {one.number: one.tokens for one in decoding.serve(model, jobs, slots=2, max_new_tokens=4)}
    together = decoding.generate(model, jnp.ones((3, 1), int), max_new_tokens=4, source=sources)
    for number, tokens in served.items():
        np.testing.assert_array_equal(tokens, together.tokens[number])


@pytest.mark.usefixtures("unchecked")
def test_one_clear_error() -> None:
    with raises("slots must be", "Got 0"):
        decoding.serve(drawn(), [[1]], slots=0, max_new_tokens=2)
    with raises("max_new_tokens must be given", "job 1"):
        list(decoding.serve(drawn(), [decoding.Job([1], 2), [1]], slots=1))
    with raises("jobs must be prompts with one axis, not empty", "(0,)", "job 0"):
        list(decoding.serve(drawn(), [[]], max_new_tokens=2))
    with raises("prompt must lie between 0 and 6", "Got 7"):
        list(decoding.serve(drawn(), [[7]], max_new_tokens=2))
