"""nn.torch.Transformer, its stacks and layers without PyTorch: weights, transformations, and every error."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import nn
from tests.nn.torch import B, H, M, S, T, future, key, query

rngs = nnx.Rngs(0)


def test_weights_of_a_transformer() -> None:
    model = nn.torch.Transformer(M, H, 3, 2, 8, 0.0, rngs=rngs)
    output, (encoder, decoder) = model(key, query, return_weights=True)
    assert output.shape == (T, B, M)
    assert [w.shape for w in encoder] == [(B, H, S, S)] * 3
    assert [(w.shape, m.shape) for w, m in decoder] == [((B, H, T, T), (B, H, T, S))] * 2
    for weights in jax.tree.leaves((encoder, decoder)):
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)


def test_weights_of_a_layer_are_those_before_dropout() -> None:
    layer = nn.torch.TransformerEncoderLayer(M, H, 8, 0.5, rngs=rngs)
    _, weights = layer(query, return_weights=True, rng=jax.random.key(0))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)


def test_under_jit_grad_and_vmap() -> None:
    """Merged inside, with dropout on."""
    model = nn.torch.TransformerEncoder(nn.torch.TransformerEncoderLayer(M, H, 8, rngs=rngs), 1)
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def gradient(parameters: Any, rng: jax.Array) -> Any:
        return jax.grad(lambda p: nnx.merge(graph, p, rest)(query, rng=rng).var())(parameters)

    of_each = jax.vmap(gradient, in_axes=(None, 0))(parameters, jax.random.split(jax.random.key(0), 2))
    for leaf in jax.tree.leaves(of_each):
        assert leaf.shape[0] == 2
        assert jnp.isfinite(leaf).all()


def test_custom_encoder() -> None:
    class Echo(nnx.Module):
        def __call__(self, src: Any, **_: Any) -> Any:
            return src

    model = nn.torch.Transformer(M, H, 1, 1, 8, 0.0, custom_encoder=Echo(), rngs=rngs)
    np.testing.assert_array_equal(model(key, query), model.decoder(query, key))


def test_clones_share_nothing() -> None:
    layer = nn.torch.TransformerEncoderLayer(M, H, 8, rngs=rngs)
    encoder = nn.torch.TransformerEncoder(layer, 2)
    encoder.layers[0].linear1.kernel[...] = jnp.zeros((M, 8))
    assert (layer.linear1.kernel[...] != 0).any()
    assert (encoder.layers[1].linear1.kernel[...] != 0).any()


# ----------------------------------------------------------------------------------------------------------------------
# Errors.


def encoder_layer(**arguments: Any) -> Any:
    return nn.torch.TransformerEncoderLayer(M, H, 8, 0.0, rngs=rngs)(**{"src": query, **arguments})


def decoder_of_one() -> nn.torch.TransformerDecoder:
    return nn.torch.TransformerDecoder(nn.torch.TransformerDecoderLayer(M, H, 8, 0.0, rngs=rngs), 1)


def decoder(**arguments: Any) -> Any:
    return decoder_of_one()(**{"tgt": query, "memory": key, **arguments})


def decoder_with_a_traced_hint() -> Any:
    module = decoder_of_one()
    return jax.jit(lambda hint: module(query, key, tgt_is_causal=hint))(True)


ERRORS = [
    (
        lambda: nn.torch.TransformerEncoderLayer(M, 5, rngs=rngs),
        "nhead must be a positive divisor of d_model, 12. Got 5.",
    ),
    (
        lambda: nn.torch.TransformerEncoderLayer(M, H, 0, rngs=rngs),
        "dim_feedforward must be an integer in [1, inf). Got 0.",
    ),
    (lambda: nn.torch.Transformer(M, H, dropout=1.0, rngs=rngs), "dropout must be a number in [0, 1). Got 1.0."),
    (
        lambda: nn.torch.TransformerEncoderLayer(M, H, norm_first="no", rngs=rngs),
        "norm_first must be True or False. Got 'no'.",
    ),
    (
        lambda: nn.torch.TransformerEncoderLayer(M, H, layer_norm_eps=-1, rngs=rngs),
        "layer_norm_eps must be a number in [0, inf). Got -1.",
    ),
    (
        decoder_with_a_traced_hint,
        "tgt_is_causal must be a Python bool. Got a traced one.",
    ),
    (
        lambda: nn.torch.TransformerEncoderLayer(M, H, activation="swish", rngs=rngs),
        "activation must be one of 'relu', 'gelu'",
    ),
    (lambda: encoder_layer(src=query[0, 0]), "src must have the axes t b m, b t m or t m. Got shape (12,)."),
    (lambda: encoder_layer(src=query[..., 1:]), "src must have 12 features on its last axis. Got shape (5, 2, 11)."),
    (lambda: encoder_layer(src=query[None]), "src must have the axes t b m or t m. Got shape (1, 5, 2, 12)."),
    (
        lambda: encoder_layer(src_mask=future),
        "src_mask must have shape (5, 5), the axes t s or (6, 5, 5), the axes (b h) t s. Got shape (5, 7).",
    ),
    (
        lambda: encoder_layer(src_key_padding_mask=jnp.zeros((T, B), bool)),
        "src_key_padding_mask must have shape (2, 5), the axes b s. Got shape (5, 2).",
    ),
    (lambda: encoder_layer(is_causal=True), "is_causal must come with the causal src_mask, of which it is a hint."),
    (lambda: decoder(memory=key[:, :1]), "memory must have tgt's batch, axes t b m or t m. Got shape (7, 1, 12)"),
    (lambda: decoder(memory=key[..., 1:]), "memory must have 12 features on its last axis. Got shape (7, 2, 11)."),
    (lambda: decoder(tgt_is_causal=True), "tgt_is_causal must come with the causal tgt_mask, of which it is a hint."),
    (
        lambda: decoder(memory_mask=~future, memory_is_causal=True),
        "memory_is_causal must be False unless memory_mask is the causal mask. Got another.",
    ),
    (
        lambda: decoder(memory_key_padding_mask=jnp.zeros((B, T), bool)),
        "memory_key_padding_mask must have shape (2, 7), the axes b s. Got shape (2, 5).",
    ),
    (
        lambda: nn.torch.TransformerEncoder(nn.torch.TransformerEncoderLayer, 2),
        "encoder_layer must be a module, of which copies are made. Got <class",
    ),
    (
        lambda: nn.torch.TransformerDecoder(nn.torch.TransformerDecoderLayer(M, H, 8, rngs=rngs), 0),
        "num_layers must be an integer in [1, inf). Got 0.",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:50] for _, message in ERRORS])
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
