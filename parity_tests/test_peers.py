"""The README's table of jattn beside the others: each claim about a peer, on the peer as installed."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jattn

X = jax.random.normal(jax.random.key(0), (1, 3, 2, 4))
ROW = 1  # the query that may attend to nothing
MASK = jnp.ones((3, 3), bool).at[ROW].set(False)
MEAN = X.mean(axis=1)[0]
CLOSE = dict(rtol=1e-5, atol=1e-6)  # float32 sums in another order


def test_a_query_with_nothing_to_attend_to() -> None:
    np.testing.assert_array_equal(jattn.attention(X, X, X, mask=MASK)[0, ROW], 0)
    np.testing.assert_allclose(jax.nn.dot_product_attention(X, X, X, mask=MASK[None, None])[0, ROW], MEAN, **CLOSE)
    np.testing.assert_allclose(nnx.dot_product_attention(X, X, X, mask=MASK[None, None])[0, ROW], MEAN, **CLOSE)

    x = X[0].reshape(3, 8)
    equinox = eqx.nn.MultiheadAttention(2, 8, key=jax.random.key(0))
    mean = jax.vmap(equinox.output_proj)(jax.vmap(equinox.value_proj)(x).mean(axis=0, keepdims=True))
    np.testing.assert_allclose(equinox(x, x, x, mask=MASK)[ROW], mean[0], **CLOSE)

    q = torch.randn(1, 2, 3, 4)
    function = torch.nn.functional.scaled_dot_product_attention
    assert (function(q, q, q, attn_mask=torch.from_numpy(np.array(MASK)))[0, :, ROW] == 0).all()

    module, x = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(1, 3, 8)
    may_not = ~torch.from_numpy(np.array(MASK))
    assert module(x, x, x, attn_mask=may_not)[0][0, ROW].isnan().all()
    zeros = module(x, x, x, attn_mask=may_not, need_weights=False)[0][0, ROW]
    torch.testing.assert_close(zeros, module.out_proj.bias)  # nothing but the output's bias


def test_attention_weights() -> None:
    assert "return_weights" in inspect.signature(jattn.attention).parameters
    assert not [name for name in inspect.signature(jax.nn.dot_product_attention).parameters if "weights" in name]
    assert "sow_weights" in inspect.signature(nnx.MultiHeadAttention.__call__).parameters
    assert not [name for name in inspect.signature(eqx.nn.MultiheadAttention.__call__).parameters if "weights" in name]

    module = torch.nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True).train()
    x = torch.randn(1, 30, 8)
    weights = module(x, x, x)[1]
    assert weights.shape == (1, 30, 30)  # averaged over heads
    assert not torch.allclose(weights.sum(-1), torch.ones(1, 30))  # after dropout


def test_log_sum_exp() -> None:
    def ours(x: jax.Array) -> jax.Array:
        return jattn.dot_product_attention(x, x, x, return_residual=True)[1]

    def theirs(x: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(x, x, x, return_residual=True)[1]

    np.testing.assert_allclose(ours(X), theirs(X), **CLOSE)
    low = X.astype(jnp.bfloat16)
    assert (ours(low).dtype, theirs(low).dtype) == (jnp.float32, jnp.bfloat16)
    assert float(jnp.abs(jax.grad(lambda x: ours(x).sum())(X)).max()) > 0.1
    assert float(jnp.abs(jax.grad(lambda x: theirs(x).sum())(X)).max()) == 0


def test_value_width() -> None:
    narrow = X[..., :3]
    assert jattn.attention(X, X, narrow).shape == narrow.shape
    for function in (jax.nn.dot_product_attention, nnx.dot_product_attention):
        with pytest.raises(ValueError, match="value shape should be"):
            function(X, X, narrow)
    q = torch.randn(1, 2, 3, 4)
    assert torch.nn.functional.scaled_dot_product_attention(q, q, q[..., :3]).shape[-1] == 3
    theirs = inspect.signature(torch.nn.MultiheadAttention).parameters
    assert "kdim" in theirs  # the width of what is projected, to heads of embed_dim / num_heads, keys and values alike
    assert not [name for name in theirs if "head_dim" in name]
    assert "vo_size" in inspect.signature(eqx.nn.MultiheadAttention).parameters


def test_grouped_heads() -> None:
    one = X[..., :1, :]
    np.testing.assert_allclose(jattn.attention(X, one, one), jax.nn.dot_product_attention(X, one, one), **CLOSE)
    assert "num_kv_heads" in inspect.signature(nnx.MultiHeadAttention.__init__).parameters
    assert not [name for name in inspect.signature(eqx.nn.MultiheadAttention).parameters if "kv" in name]
    q = torch.randn(1, 2, 3, 4)
    torch.nn.functional.scaled_dot_product_attention(q, q[:, :1], q[:, :1], enable_gqa=True)
    assert not [name for name in inspect.signature(torch.nn.MultiheadAttention).parameters if "kv_heads" in name]


def test_what_the_others_have_no_argument_for() -> None:
    """A window without an array of it, a soft cap of the logits, sinks."""
    peers = {
        "jax.nn": jax.nn.dot_product_attention,
        "Flax": nnx.dot_product_attention,
        "Flax's module": nnx.MultiHeadAttention.__call__,
        "Equinox": eqx.nn.MultiheadAttention.__call__,
    }
    for name, function in peers.items():
        arguments = " ".join(inspect.signature(function).parameters)
        assert ("window" in arguments) == (name == "jax.nn")
        assert not [word for word in ("cap", "sink") if word in arguments]
    text = torch.nn.functional.scaled_dot_product_attention.__doc__
    signature = text[: text.index("->")] + str(inspect.signature(torch.nn.MultiheadAttention.forward))
    assert "is_causal" in signature
    assert not [word for word in ("window", "cap", "sink") if word in signature]

    window, capped = jattn.masks.sliding_window(1, 0), dict(logits_soft_cap=0.1, sinks=jnp.zeros(2))
    np.testing.assert_allclose(
        jattn.attention(X, X, X, mask=window & jattn.masks.causal()),
        jax.nn.dot_product_attention(X, X, X, is_causal=True, local_window_size=(1, 0)),
        **CLOSE,
    )
    text = str(jax.make_jaxpr(lambda x: jax.nn.dot_product_attention(x, x, x, local_window_size=(1, 0)))(X))
    assert "bool[3,3]" in text  # but on cuDNN
    assert "bool[3,3]" not in str(jax.make_jaxpr(lambda x: jax.nn.dot_product_attention(x, x, x))(X))
    assert not np.allclose(jattn.attention(X, X, X, **capped), jattn.attention(X, X, X), atol=1e-2)


@pytest.mark.whole
def test_dropout_inside_grad_of_a_merged_module() -> None:
    x = X[0].reshape(1, 3, 8)

    ours = jattn.nn.MultiHeadAttention(2, 8, dropout_rate=0.5, rngs=nnx.Rngs(0))
    graph, parameters, rest = nnx.split(ours, nnx.Param, ...)
    jax.grad(lambda p: nnx.merge(graph, p, rest)(x, rng=jax.random.key(0)).sum())(parameters)

    flax = nnx.MultiHeadAttention(2, 8, dropout_rate=0.5, decode=False, deterministic=False, rngs=nnx.Rngs(0))
    flax_graph, flax_parameters, flax_rest = nnx.split(flax, nnx.Param, ...)
    jax.grad(lambda p: nnx.merge(flax_graph, p, flax_rest)(x, rngs=nnx.Rngs(dropout=jax.random.key(0))).sum())(
        flax_parameters
    )
    with pytest.raises(Exception, match="Cannot mutate RngCount"):
        jax.grad(lambda p: nnx.merge(flax_graph, p, flax_rest)(x).sum())(flax_parameters)

    equinox = eqx.nn.MultiheadAttention(2, 8, dropout_p=0.5, key=jax.random.key(0))
    eqx.filter_grad(lambda m: m(x[0], x[0], x[0], key=jax.random.key(0)).sum())(equinox)


def test_polarity_of_pytorch_s_boolean_masks() -> None:
    x = torch.randn(1, 1, 3, 8)
    lower = torch.ones(3, 3).tril().bool()
    function = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(function(x, x, x, attn_mask=lower), function(x, x, x, is_causal=True))  # True: may
    weights = torch.nn.MultiheadAttention(8, 1, batch_first=True)(x[0], x[0], x[0], attn_mask=~lower)[1]
    assert float(weights[0].triu(1).detach().abs().max()) == 0  # True: may not
