"""The decoder that all families share: padding on any side, packed texts, hidden states, masks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import models
from jattn.nn import Norm, Rotary
from tests.models.hugging_face.texts import assert_padding_and_packing_change_nothing, drawn

V = 23
BLOCK: dict[str, Any] = {"num_heads": 2, "feedforward_features": 12, "norm": "pre", "norm_kind": "rms"}
KINDS: dict[str, dict[str, Any]] = {
    "rotary": {"layers": [{**BLOCK, "rotary": Rotary(50.0)}, {**BLOCK, "rotary": Rotary(50.0), "window": 3}]},
    "learned": {"layers": [BLOCK, BLOCK], "max_length": 12, "first_position": 2},
    "alibi": {"layers": [BLOCK, BLOCK], "alibi": True},
}
LENS = (6, 4, 3)


@pytest.fixture(scope="module")
def texts() -> list[np.ndarray]:
    return drawn(V, LENS)


def made(kind: str, **types: Any) -> models.TextDecoder:
    model = models.TextDecoder(V, features=8, **KINDS[kind], norm=Norm("rms"), **types, rngs=nnx.Rngs(0))
    model.eval()
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_packing_change_nothing(kind: str, texts: list[np.ndarray]) -> None:
    with jax.enable_x64(True):
        assert_padding_and_packing_change_nothing(made(kind, param_dtype=jnp.float64), texts)


def test_hidden_states() -> None:
    model = made("rotary")
    out = model(jnp.ones((2, 5), int), return_hidden=True, return_weights=True)
    assert [x.shape for x in out.hidden] == [(2, 5, 8)] * 3
    assert [x.shape for x in out.weights] == [(2, 2, 5, 5)] * 2
    np.testing.assert_allclose(model.embedding.attend(out.hidden[-1]), out.output)
    assert model(jnp.ones((2, 5), int), return_hidden=True).weights is None


@pytest.mark.parametrize("tied", [True, False])
def test_logits_have_a_summand_after_the_scale_and_before_the_cap(tied: bool) -> None:
    options: dict[str, Any] = {"layers": [BLOCK], "features": 8, "tied": tied}
    plain = models.TextDecoder(V, **options, rngs=nnx.Rngs(0))
    biased = models.TextDecoder(V, **options, logits_scale=0.5, logits_bias=True, logits_soft_cap=2.0, rngs=nnx.Rngs(0))
    biased.logits_bias[...] = jnp.arange(V, dtype=jnp.float32)
    tokens = jnp.array([[3, 1, 4]])
    expected = 2 * np.tanh((0.5 * np.asarray(plain(tokens)) + np.arange(V)) / 2)
    np.testing.assert_allclose(biased(tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mask", "phrases"),
    [
        (np.ones((2, 4), int), ("attention_mask must have a 1 or a 0 for each token", "(2, 5)", "(2, 4)")),
        (np.full((2, 5), 2), ("attention_mask must hold 1 for real tokens", "other numbers")),
    ],
)
def test_masks_of_another_form(mask: np.ndarray, phrases: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="attention_mask") as raised:
        made("rotary")(jnp.ones((2, 5), int), attention_mask=jnp.asarray(mask))
    assert all(phrase in str(raised.value) for phrase in phrases)


def test_more_tokens_than_positions() -> None:
    model = made("learned")
    assert model(jnp.ones((1, 12), int)).shape == (1, 12, V)
    with pytest.raises(ValueError, match="max_length"):
        model(jnp.ones((1, 13), int))
    with pytest.raises(ValueError, match="max_length"):
        model(jnp.ones((1, 3), int), positions=jnp.array([[0, 5, 12]]))


def test_masks_and_positions_that_are_known_while_tracing() -> None:
    model, tokens = made("learned"), jnp.ones((1, 3), int)
    graph, state = nnx.split(model)
    padded = {"attention_mask": jnp.array([[0, 1, 1]]), "positions": jnp.array([[0, 0, 1]])}

    def run(state: Any, tokens: Any) -> Any:
        return nnx.merge(graph, state)(tokens, **padded)

    np.testing.assert_allclose(jax.jit(run)(state, tokens), run(state, tokens), rtol=1e-5, atol=1e-6)
