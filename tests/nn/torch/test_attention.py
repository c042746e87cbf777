"""nn.torch.MultiheadAttention without PyTorch: shapes, the polarity of masks, and every error."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import masks, nn
from tests.nn.torch import B, H, M, S, T, future, key, query

rngs = nnx.Rngs(0)


def attention(*args: Any, **options: Any) -> nn.torch.MultiheadAttention:
    return nn.torch.MultiheadAttention(*(args or (M, H)), **options, rngs=rngs)


@pytest.mark.parametrize("extra", [{}, {"add_bias_kv": True}, {"add_bias_kv": True, "add_zero_attn": True}], ids=str)
def test_shapes(extra: dict[str, Any]) -> None:
    s = S + len(extra)
    module = attention(**extra)
    output, weights = module(query, key, key)
    assert (output.shape, weights.shape) == ((T, B, M), (B, T, s))
    assert module(query, key, key, average_attn_weights=False)[1].shape == (B, H, T, s)
    output, weights = module(query[:, 0], key[:, 0], key[:, 0])
    assert (output.shape, weights.shape) == ((T, M), (T, s))
    assert module(query[:, 0], key[:, 0], key[:, 0], average_attn_weights=False)[1].shape == (H, T, s)
    assert module(query, key, key, need_weights=False)[1] is None


def test_same_as_multi_head_attention_with_the_mask_turned_around() -> None:
    """On the same parameters: True bars here and allows there."""
    ported = attention(batch_first=True)
    ours = nn.MultiHeadAttention(H, M, use_bias=True, rngs=rngs)
    for name in ("query", "key", "value"):
        nnx.update(getattr(ours, name), nnx.state(getattr(ported, name)))
    ours.out.kernel[...] = ported.out_proj.kernel[...].reshape(H, M // H, M)
    x, y = query.swapaxes(0, 1), key.swapaxes(0, 1)
    output, weights = ported(x, y, y, attn_mask=future, average_attn_weights=False)
    expected, expected_weights = ours(x, y, mask=masks.causal(), return_weights=True)
    np.testing.assert_allclose(output, expected, atol=1e-6)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-6)
    assert (weights[..., future] == 0).all()


def test_batch_first_only_swaps_axes() -> None:
    first, last = attention(batch_first=True), attention()
    nnx.update(first, nnx.state(last))
    output, weights = first(*(x.swapaxes(0, 1) for x in (query, key, key)))
    expected, expected_weights = last(query, key, key)
    np.testing.assert_allclose(output.swapaxes(0, 1), expected, atol=1e-6)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-6)


@pytest.mark.parametrize("extra", ["add_bias_kv", "add_zero_attn"])
def test_the_extra_key_is_open_to_all(extra: str) -> None:
    """Where everything else is barred, it has all of the weight."""
    _, weights = attention(**{extra: True})(query, key, key, key_padding_mask=jnp.ones((B, S), bool))
    np.testing.assert_array_equal(weights, np.broadcast_to(np.arange(S + 1) == S, (B, T, S + 1)).astype(np.float32))


def test_weights_are_those_after_dropout() -> None:
    module, rng = attention(dropout=0.5), jax.random.key(0)
    _, dropped = module(query, key, key, average_attn_weights=False, rng=rng)
    module.eval()
    _, whole = module(query, key, key, average_attn_weights=False)
    kept = dropped != 0
    assert 0.3 < kept.mean() < 0.7
    np.testing.assert_allclose(dropped, jnp.where(kept, 2 * whole, 0), rtol=1e-6)


def test_hint_is_checked_where_the_mask_is_known_and_traced_where_not() -> None:
    """Either way the mask decides."""
    module = attention()
    run = jax.jit(lambda mask: module(query, key, key, attn_mask=mask, is_causal=True)[0])
    np.testing.assert_allclose(run(future), module(query, key, key, attn_mask=future, is_causal=True)[0], atol=1e-6)
    additive = jnp.where(future, -jnp.inf, 0)
    by_head = jnp.broadcast_to(additive, (B * H, T, S))
    np.testing.assert_allclose(run(future), module(query, key, key, attn_mask=by_head, is_causal=True)[0], atol=1e-6)


def test_gradients_of_empty_rows() -> None:
    """Zero by default; on request NaN, for the queries of those rows and for all keys and values that they saw."""
    barred = jnp.zeros((T, S), bool).at[2].set(True)
    for empty_rows in ("zeros", "nan"):
        module = attention(empty_rows=empty_rows)
        output, weights = module(query, key, key, attn_mask=barred)
        gradient = jax.grad(lambda q, m=module: m(q, key, key, attn_mask=barred)[0].sum())(query)
        for x in (output, weights.swapaxes(0, 1), gradient):
            assert bool(jnp.isnan(x[2]).all()) == (empty_rows == "nan")
            assert not jnp.isnan(x[jnp.arange(T) != 2]).any()
        if empty_rows == "zeros":
            assert (weights[:, 2] == 0).all()
            assert (gradient[2] == 0).all()
    x, _ = attention(empty_rows="nan")(query, key, key, need_weights=False, attn_mask=barred)
    assert not jnp.isnan(x).any()


# ----------------------------------------------------------------------------------------------------------------------
# Errors.


def attend(module: Any = None, q: Any = query, k: Any = key, v: Any = None, **arguments: Any) -> Any:
    return (module or attention())(q, k, k if v is None else v, **arguments)


def attend_with_a_traced_hint() -> Any:
    module = attention()
    return jax.jit(lambda hint: module(query, key, key, is_causal=hint))(True)


ERRORS = [
    (lambda: attention(M, 5), "num_heads must be a positive divisor of embed_dim, 12. Got 5."),
    (lambda: attention(M, 3.0), "num_heads must be a positive divisor of embed_dim, 12. Got 3.0."),
    (lambda: attention(M, 0), "num_heads must be a positive divisor of embed_dim, 12. Got 0."),
    (lambda: attention(0, 1), "embed_dim must be an integer in [1, inf). Got 0."),
    (lambda: attention(kdim=0), "kdim must be an integer in [1, inf). Got 0."),
    (lambda: attention(vdim=2.5), "vdim must be an integer in [1, inf). Got 2.5."),
    (lambda: attention(dropout=1.0), "dropout must be a number in [0, 1). Got 1.0."),
    (lambda: attention(bias="no"), "bias must be True or False. Got 'no'."),
    (lambda: attention(batch_first="no"), "batch_first must be True or False. Got 'no'."),
    (lambda: attention(empty_rows="mean"), "empty_rows must be one of 'zeros', 'nan'. Got 'mean'."),
    (lambda: attend(q=query[0, 0]), "query must have the axes t b m or t m. Got shape (12,)."),
    (lambda: attend(q=query[None]), "query must have the axes t b m or t m. Got shape (1, 5, 2, 12)."),
    (
        lambda: attend(attention(batch_first=True), q=query[None]),
        "query must have the axes b t m or t m. Got shape (1, 5, 2, 12).",
    ),
    (
        lambda: attend(q=query.astype(int)),
        "query must be floating point. Got int32. Convert it with .astype(jnp.float32).",
    ),
    (lambda: attend(q=query[..., :8]), "query must have 12 features on its last axis. Got shape (5, 2, 8)."),
    (lambda: attend(attention(kdim=10)), "key must have 10 features on its last axis. Got shape (7, 2, 12)."),
    (lambda: attend(attention(vdim=9)), "value must have 9 features on its last axis. Got shape (7, 2, 12)."),
    (
        lambda: attend(k=key[:, :1]),
        "key must have query's batch, axes t b m or t m. Got shape (7, 1, 12), query (5, 2, 12).",
    ),
    (
        lambda: attend(k=key[:, 0]),
        "key must have query's batch, axes t b m or t m. Got shape (7, 12), query (5, 2, 12).",
    ),
    (
        lambda: attend(v=key[1:]),
        "value must have key's axes but for the last. Got shape (6, 2, 12), key (7, 2, 12).",
    ),
    (
        lambda: attend(key_padding_mask=jnp.zeros((S, B), bool)),
        "key_padding_mask must have shape (2, 7), the axes b s. Got shape (7, 2).",
    ),
    (
        lambda: attend(q=query[:, 0], k=key[:, 0], key_padding_mask=jnp.zeros((B, S), bool)),
        "key_padding_mask must have shape (7,), the axes s. Got shape (2, 7).",
    ),
    (
        lambda: attend(key_padding_mask=jnp.zeros((B, S), int)),
        "key_padding_mask must be boolean, True where a query may not attend, or floating point, added to the scores. "
        "Got int32. Convert it with .astype(bool).",
    ),
    (
        lambda: attend(attn_mask=future.T),
        "attn_mask must have shape (5, 7), the axes t s or (6, 5, 7), the axes (b h) t s. Got shape (7, 5).",
    ),
    (
        lambda: attend(attn_mask=jnp.zeros((B, T, S))),
        "attn_mask must have shape (5, 7), the axes t s or (6, 5, 7), the axes (b h) t s. Got shape (2, 5, 7).",
    ),
    (
        lambda: attend(attn_mask=future.astype(jnp.uint8)),
        "attn_mask must be boolean, True where a query may not attend, or floating point, added to the scores. "
        "Got uint8. Convert it with .astype(bool).",
    ),
    (
        lambda: attend(is_causal=True),
        "is_causal must come with the causal attn_mask, of which it is a hint. Got attn_mask None. "
        "Pass attn_mask=~jnp.tri(5, 7, dtype=bool).",
    ),
    (
        lambda: attend(attn_mask=~future, is_causal=True),
        "is_causal must be False unless attn_mask is the causal mask. Got another. "
        "Leave is_causal out: attn_mask decides alone.",
    ),
    (
        lambda: attend(attn_mask=jnp.where(future, -1e9, 0), is_causal=True),
        "is_causal must be False unless attn_mask is the causal mask. Got another.",
    ),
    (
        attend_with_a_traced_hint,
        "is_causal must be a Python bool. Got a traced one. Leave is_causal out: attn_mask decides alone.",
    ),
    (lambda: attend(static_k=jnp.ones(3)), "static_k must be left out, as the layer projects keys and values itself."),
    (lambda: attend(static_v=None), "static_v must be left out"),
    (
        lambda: attend(attention(dropout=0.5)),
        "rng must be given when dropout_rate is above 0. Got None with dropout_rate 0.5.",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:50] for _, message in ERRORS])
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
