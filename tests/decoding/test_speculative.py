"""Speculative decoding gives what decoding gives: the same tokens, or tokens of the same distribution."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from jattn import decoding, models
from jattn.decoding import room, rounds
from jattn.nn import Norm, Rotary
from tests.errors import raises

V = 19
PROMPT = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]])
LENS = jnp.array([5, 2, 1])
BLOCK: dict[str, Any] = {"num_heads": 2, "feedforward_features": 16, "norm": "pre"}
ROTARY: dict[str, Any] = {**BLOCK, "norm_kind": "rms", "num_kv_heads": 1, "rotary": Rotary(50.0)}
SIDE: dict[str, Any] = {"layers": [BLOCK], "norm": Norm("layer"), "relative_buckets": 8, "relative_distance": 5}
KINDS: dict[str, Callable[[nnx.Rngs], Any]] = {
    "Mistral's windows, and a block without": lambda rngs: models.TextDecoder(
        V, features=12, layers=[{**ROTARY, "window": 4}, ROTARY], norm=Norm("rms"), rngs=rngs
    ),
    "GPT-2": lambda rngs: models.GPT2(V, max_length=17, features=12, num_heads=2, num_layers=1, rngs=rngs),
    "Llama": lambda rngs: models.Llama(
        V, features=12, num_heads=2, num_kv_heads=1, num_layers=2, feedforward_features=16, rngs=rngs
    ),
    "encoder-decoder": lambda rngs: models.EncoderDecoder(
        V, features=8, encoder=SIDE, decoder=SIDE, tied=False, rngs=rngs
    ),
}
WINDOWS, *OTHERS = KINDS
SEEDS = dict(zip(KINDS, (0, 4, 4, 3), strict=True))  # of models whose continuations differ much


def made(kind: str = WINDOWS, noise: float = 0.0) -> Any:
    """A model; with some noise, one that often agrees with it."""
    model = KINDS[kind](nnx.Rngs(SEEDS[kind]))
    blocks = model.decoder.blocks if hasattr(model, "decoder") else model.blocks
    for block in blocks:
        block.attention.out.kernel[...] *= 20
    graph, parameters = nnx.split(model)
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda x: x + noise * x.std() * rng.standard_normal(x.shape).astype(x.dtype), parameters)
    model = nnx.merge(graph, noisy)
    model.eval()
    return model


def given_to(kind: str) -> dict[str, Any]:
    if kind != "encoder-decoder":
        return {}
    source = jnp.array([[1, 2, 3, 4, 5, 6], [7, 1, 7, 2, 0, 0], [4, 4, 1, 0, 0, 0]])
    return {"source": source, "source_attention_mask": source != 0}


class Shifted(nnx.Module):
    """One that says the token after that which another model says, so that it is always wrong."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def start(self, batch_size: int, room: int) -> Any:
        return self.model.start(batch_size, room)

    def step(self, tokens: Any, state: Any, *, valid_lens: Any = None, each: bool = False) -> Any:
        logits, state = self.model.step(tokens, state, valid_lens=valid_lens, each=each)
        return jnp.roll(logits, 1, axis=-1), state


class Bigrams(nnx.Module):
    """One that knows which tokens follow the last one."""

    def __init__(self, logits: Any) -> None:
        self.logits = nnx.Param(jnp.asarray(logits))

    def start(self, batch_size: int, room: int) -> Any:
        return ()

    def step(self, tokens: Any, state: Any, *, valid_lens: Any = None, each: bool = False) -> Any:
        logits = self.logits[tokens]
        return (logits if each else decoding.last_of(logits, valid_lens)), state


class Remembering(Bigrams):
    """One whose state is not made of caches."""

    def start(self, batch_size: int, room: int) -> Any:
        return jnp.zeros((batch_size, 7))


# ----------------------------------------------------------------------------------------------------------------------
# The most probable tokens.


@pytest.mark.parametrize("kind", [WINDOWS, *(pytest.param(kind, marks=pytest.mark.whole) for kind in OTHERS)])
def test_greedy_is_what_generate_gives(kind: str) -> None:
    """Prompts with padding, texts longer than the window, and examples that end at different times."""
    model, draft = made(kind), made(kind, 0.2)
    options: dict[str, Any] = {"max_new_tokens": 12, "pad": -1, **given_to(kind)}
    said = decoding.generate(model, PROMPT, LENS, **options, eos=0).tokens
    assert min(len(np.unique(row)) for row in said) > 1, "these continuations are too much alike to show anything"
    never = min(set(range(V)) - set(np.asarray(said).flat))
    for eos in (never, int(said[0, 2])):
        expected = decoding.generate(model, PROMPT, LENS, **options, eos=eos)
        found = decoding.speculate(model, draft, PROMPT, LENS, ahead=3, **options, eos=eos)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.lengths, expected.lengths)
        np.testing.assert_allclose(found.log_probabilities, expected.log_probabilities, atol=1e-5)
        if eos == never:
            assert 0 < found.accepted.sum() < found.drafted.sum(), "a draft that is always right or wrong shows less"
        else:
            assert 0 < int(found.lengths[0]) <= 3


def test_drafts_that_are_always_right_or_wrong() -> None:
    """Of 9 tokens after the first, rounds of 4, 4 and 1 where 3 are drafted: the last token is not worth drafting."""
    model = made()
    expected = decoding.generate(model, PROMPT, LENS, max_new_tokens=10)
    for draft, accepted, drafted in ((model, 6, 6), (Shifted(model), 0, 3 * 6 + 2 + 1)):
        found = decoding.speculate(model, draft, PROMPT, LENS, max_new_tokens=10, ahead=3)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        assert found.accepted.tolist() == [accepted] * 3
        assert found.drafted.tolist() == [drafted] * 3
