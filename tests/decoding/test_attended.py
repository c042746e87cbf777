"""Whom the tokens of what was generated attended to: as when they were read one after the other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import decoding, models
from jattn.plots import attention_view
from tests.decoding.test_generation import drawn
from tests.errors import raises
from tests.models.hugging_face.test_gpt2_and_llama import LENS, PROMPT, V, made


def as_it_went(model: Any, tokens: np.ndarray, layer: int) -> np.ndarray:
    """The row of each token, when it was the last one so far: ``h n n``."""
    rows = []
    for i in range(len(tokens)):
        weights = model(jnp.asarray(tokens[: i + 1])[None], return_weights=True)[1][layer]
        rows.append(np.pad(weights[0, :, i], ((0, 0), (0, len(tokens) - i - 1))))
    return np.stack(rows, axis=1)


def translator() -> models.EncoderDecoder:
    block: dict[str, Any] = dict(num_heads=2, feedforward_features=16, norm="pre")
    model = models.EncoderDecoder(
        V, features=8, encoder={"layers": [block]}, decoder={"layers": [block] * 2}, rngs=nnx.Rngs(0)
    )
    model.eval()
    return model


def test_rows_are_those_of_each_step() -> None:
    model = made("llama", num_layers=2)
    found = decoding.generate(model, PROMPT, LENS, max_new_tokens=3, eos=5)
    for example in (0, len(PROMPT) - 1):
        tokens, weights = decoding.attention_of(model, PROMPT, found, LENS, example=example, layers=[1])
        said = [*PROMPT[example, : LENS[example]], *found.tokens[example, : found.lengths[example]]]
        np.testing.assert_array_equal(tokens, said)
        assert len(weights) == 1
        np.testing.assert_allclose(weights[0], as_it_went(model, tokens, 1), rtol=1e-5, atol=1e-7)


def test_padding_on_the_left() -> None:
    model = made("llama", num_layers=2)
    real = jnp.arange(PROMPT.shape[1]) < LENS[:, None]
    found = decoding.generate(model, PROMPT, LENS, max_new_tokens=3)
    tokens, weights = decoding.attention_of(model, PROMPT, found, LENS)
    flipped, turned = PROMPT[:, ::-1], real[:, ::-1]
    again = decoding.attention_of(model, flipped, found, prompt_attention_mask=turned)
    n = int(LENS[0])
    np.testing.assert_array_equal(again.tokens, [*tokens[:n][::-1], *tokens[n:]])
    assert [x.shape for x in again.weights] == [x.shape for x in weights]


def test_beams_and_sequences() -> None:
    model = made("llama", num_layers=2)
    beams = decoding.beam_search(model, PROMPT, LENS, beams=2, max_new_tokens=3)
    several = decoding.generate(model, PROMPT, LENS, max_new_tokens=3, rng=jax.random.key(0), sequences=2)
    n = int(LENS[1])
    for found, tokens in ((beams, beams.beams.tokens), (several, several.tokens)):
        attended = decoding.attention_of(model, PROMPT, found, LENS, example=1, sequence=1)
        np.testing.assert_array_equal(attended.tokens[n:], tokens[1, 1])
    best = decoding.attention_of(model, PROMPT, beams, LENS, example=1)
    np.testing.assert_array_equal(best.tokens[n:], beams.tokens[1])


def test_an_encoder_decoder_has_three_kinds() -> None:
    model = translator()
    source, real = jnp.array([[3, 1, 4], [2, 7, 1]]), jnp.array([[1, 1, 0], [1, 1, 1]])
    start = jnp.array([[1], [2]])
    found = decoding.generate(model, start, max_new_tokens=3, source=source, source_attention_mask=real)
    tokens, weights = decoding.attention_of(
        model, start, found, example=0, layers=[0], source=source, source_attention_mask=real
    )
    np.testing.assert_array_equal(tokens, [1, *found.tokens[0]])
    shapes = {kind: [x.shape for x in layers] for kind, layers in weights.items()}
    assert shapes == {
        "encoder self-attention": [(2, 3, 3)],
        "decoder self-attention": [(2, 4, 4)],
        "cross-attention": [(2, 4, 3)],
    }
    assert (weights["cross-attention"][0][..., 2] == 0).all()  # the source's padding
    alone = model(source[:1, :2], jnp.asarray(tokens)[None], return_weights=True)[1]
    np.testing.assert_allclose(weights["cross-attention"][0][..., :2], alone.cross[0][0], rtol=1e-5, atol=1e-7)
    attention_view(["a", "b", "pad"], weights, query_tokens=[str(i) for i in tokens])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(example=3), "example must be an integer in [0, 3)"),
        (dict(sequence=1), "sequence must be an integer in [0, 1)"),
        (dict(layers=[2]), "layers must lie between -2 and 1"),
        (dict(found=3), "found must be what generate, beam_search or speculate returned. Got int"),
        (dict(model=drawn()), "model must return its attention weights"),
        (dict(prompt=PROMPT[0]), "prompt must have the axes b t. Got shape"),
    ],
)
def test_mistakes(change: dict[str, Any], message: str, unchecked: None) -> None:
    model = made("llama", num_layers=2)
    found = decoding.generate(model, PROMPT, LENS, max_new_tokens=2)
    arguments: dict[str, Any] = dict(model=model, prompt=PROMPT, found=found, prompt_valid_lens=LENS) | change
    with raises(message):
        decoding.attention_of(**arguments)


def test_what_the_model_is_not_given() -> None:
    model = made("llama")
    found = decoding.generate(model, PROMPT, LENS, max_new_tokens=2)
    with pytest.raises(TypeError, match=r"argument .source_mask.\. Did you mean .source."):
        decoding.attention_of(model, PROMPT, found, LENS, source_mask=3)
