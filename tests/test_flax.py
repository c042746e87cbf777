"""`jattn.attention` as the ``attention_fn`` of Flax's modules, NNX and Linen, with the meaning that they give it."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn
from jattn import masks
from tests.errors import raises

B, T, S, H, M = 2, 5, 7, 3, 12
X = jax.random.normal(jax.random.key(0), (B, T, M))
MEMORY = jax.random.normal(jax.random.key(1), (B, S, M))
LENS = jnp.array([7, 3])
REAL = (jnp.arange(S) < LENS[:, None]).astype(float)
CAUSAL = nnx.make_causal_mask(jnp.ones((B, T)))  # float32, as Flax makes it
PADDING = nnx.make_attention_mask(jnp.ones((B, T)), REAL)
CASES: dict[str, tuple[jax.Array, Any]] = {
    "causal, float": (X, CAUSAL),
    "padding, float": (MEMORY, PADDING),
    "boolean": (MEMORY, PADDING != 0),
    "integer": (MEMORY, PADDING.astype(int)),
    "no mask": (MEMORY, None),
}


def in_nnx(attention_fn: Any, x: jax.Array, mask: Any, **options: Any) -> Any:
    call = {name: options.pop(name) for name in ("rngs", "sow_weights", "is_causal") if name in options}
    given = {"num_heads": H, "in_features": M, "decode": False, "deterministic": True, **options}
    attend = nnx.MultiHeadAttention(**given, attention_fn=attention_fn, rngs=nnx.Rngs(0))
    return attend(X, x, mask=mask, **call), attend


def in_linen(attention_fn: Any, x: jax.Array, mask: Any, **options: Any) -> Any:
    call = {name: options.pop(name) for name in ("rngs", "sow_weights") if name in options}
    attend = flax.linen.MultiHeadDotProductAttention(
        num_heads=H, **{"deterministic": True, **options}, attention_fn=attention_fn
    )
    rngs = call.pop("rngs", {})
    parameters = attend.init({"params": jax.random.key(0), **rngs}, X, x, mask=mask)
    return attend.apply({"params": parameters["params"]}, X, x, mask=mask, rngs=rngs, mutable=["intermediates"], **call)


PARENTS = pytest.mark.parametrize(
    ("inside", "theirs"),
    [(in_nnx, nnx.dot_product_attention), (in_linen, flax.linen.dot_product_attention)],
    ids=["nnx", "linen"],
)


@pytest.mark.parametrize("case", CASES)
@PARENTS
def test_the_numbers_are_flax_s(inside: Callable[..., Any], theirs: Any, case: str) -> None:
    x, mask = CASES[case]
    ours, expected = (inside(function, x, mask)[0] for function in (jattn.attention, theirs))
    np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=2e-6)
    if mask is not None:
        assert not np.allclose(expected, inside(theirs, x, None)[0], atol=1e-3), "this mask hides nothing"


@PARENTS
def test_the_dtype_of_the_computation(inside: Callable[..., Any], theirs: Any) -> None:
    ours, expected = (inside(function, X, CAUSAL, dtype=jnp.bfloat16)[0] for function in (jattn.attention, theirs))
    assert ours.dtype == expected.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(float), expected.astype(float), atol=0.03)


@PARENTS
def test_weights_are_left_where_flax_leaves_them(inside: Callable[..., Any], theirs: Any) -> None:
    left = []
    for function in (jattn.attention, theirs):
        _, found = inside(function, X, CAUSAL, sow_weights=True)
        (weights,) = jax.tree.leaves(nnx.state(found, nnx.Intermediate) if inside is in_nnx else found)
        left.append(np.asarray(weights))
    assert left[0].shape == (B, H, T, T)
    np.testing.assert_allclose(*left, rtol=1e-6, atol=1e-7)


def test_is_causal_and_a_mask() -> None:
    mask = jnp.ones((B, 1, T, T)).at[0, :, :, 1].set(0)
    ours, expected = (in_nnx(f, X, mask, is_causal=True)[0] for f in (jattn.attention, nnx.dot_product_attention))
    np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("implementation", ["dense", "streaming"])
def test_dropout_that_all_heads_and_examples_share(implementation: Any) -> None:
    t, s, h = 64, 256, 4
    query, key = jnp.zeros((B, t, h, 8)), jnp.zeros((B, s, 2, 8))
    value = jnp.broadcast_to(jnp.eye(s)[None, :, None], (B, s, 2, s))  # so that the output is the weights
    rng = jax.random.key(5)

    def dropped(broadcast: bool) -> np.ndarray:
        options = dict(dropout_rate=0.4, dropout_rng=rng, broadcast_dropout=broadcast, implementation=implementation)
        return np.asarray(jattn.attention(query, key, value, **options)) == 0

    shared = dropped(True)
    assert (shared == shared[:1, :, :1]).all()
    assert abs(shared.mean() - 0.4) < 0.02
    own = dropped(False)
    assert (own[0, :, 0] == shared[0, :, 0]).all(), "the first head's are those of all"
    assert all((own[i, :, j] != own[0, :, 0]).any() for i in range(B) for j in range(h) if (i, j) != (0, 0))


@pytest.mark.parametrize("broadcast", [True, False])
@PARENTS
def test_dropout_in_a_module(inside: Callable[..., Any], theirs: Any, broadcast: bool) -> None:
    """The module says whether all heads and examples share it: what it passes on is tried on values of one each."""
    calls = []

    @functools.wraps(jattn.attention)
    def seen(*arrays: jax.Array, **options: Any) -> Any:
        calls.append((arrays, options))
        return jattn.attention(*arrays, **options)

    rngs = nnx.Rngs(1) if inside is in_nnx else {"dropout": jax.random.key(1)}
    dropped_out = dict(dropout_rate=0.5, broadcast_dropout=broadcast, deterministic=False, rngs=rngs)
    assert not np.allclose(inside(seen, X, None, **dropped_out)[0], inside(theirs, X, None)[0], atol=1e-3)
    (query, key, _), options = calls[-1]
    each = jnp.broadcast_to(jnp.eye(T)[:, None], (B, T, H, T))
    dropped = np.asarray(jattn.attention(query, key, each, **options)) == 0
    assert dropped.any()
    assert (dropped == dropped[:1, :, :1]).all() == broadcast


def test_a_cache_of_flax_s() -> None:
    outputs = []
    for function in (jattn.attention, nnx.dot_product_attention):
        attend = nnx.MultiHeadAttention(H, M, decode=True, attention_fn=function, rngs=nnx.Rngs(0))
        attend.init_cache(X.shape)
        outputs.append(jnp.concatenate([attend(X[:, i : i + 1]) for i in range(T)], axis=1))
    np.testing.assert_allclose(*outputs, rtol=2e-6, atol=2e-6)


def test_precision_is_that_of_the_products() -> None:
    x = jnp.ones((4, 2, 8))

    def program(precision: Any) -> str:
        return str(jax.make_jaxpr(lambda x: jattn.attention(x, x, x, precision=precision, deterministic=True))(x))

    assert "HIGHEST" in program("highest")
    assert "HIGHEST" in program(jax.lax.Precision.HIGHEST)
    assert "F32_F32_F32" in program(jax.lax.DotAlgorithmPreset.F32_F32_F32)
    assert "HIGHEST" not in program(None)


def test_a_mask_of_jattn_and_gradients() -> None:
    def loss(f: Any, mask: Any) -> Callable[[jax.Array], jax.Array]:
        attend = nnx.MultiHeadAttention(H, M, decode=False, deterministic=True, attention_fn=f, rngs=nnx.Rngs(0))
        return lambda x: jnp.sum(attend(x, mask=mask) ** 2)

    ours = jax.jit(jax.grad(loss(jattn.attention, masks.causal())))(X)
    np.testing.assert_allclose(ours, jax.grad(loss(nnx.dot_product_attention, CAUSAL))(X), rtol=1e-5, atol=1e-6)


def test_the_signature_names_every_argument() -> None:
    """Linen passes no others on, and would leave a mask out without a word."""
    parameters = inspect.signature(jattn.attention).parameters
    bound = [name for name, x in inspect.signature(jattn.bind).parameters.items() if x.kind is x.KEYWORD_ONLY]
    theirs = inspect.signature(flax.linen.dot_product_attention).parameters.keys() - {
        "promote_dtype",
        "einsum_dot_general",
    }
    assert {*bound, *theirs, "is_causal", "return_weights", "implementation"} <= parameters.keys()
    assert {"score", "mask", "bias"} <= inspect.signature(jattn.attention_weights).parameters.keys()
    assert "dropout_rate" not in inspect.signature(jattn.attention_weights).parameters


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "phrases"),
    [
        ({"qk_attn_weights_einsum": jnp.einsum}, ("qk_attn_weights_einsum must be None",)),
        ({"attn_weights_value_einsum": jnp.einsum}, ("attn_weights_value_einsum must be None",)),
        ({"precision": "sharp"}, ("precision must be None or a precision of jax.lax.dot", "Got 'sharp'")),
        ({"precision": ("high", "highest")}, ("precision must be None", "one for both operands")),
        ({"precision": ["high"]}, ("precision must be None or a precision of jax.lax.dot", "['high']")),
        ({"module": 3}, ("module must be a module of Flax's", "Got 3")),
        ({"deterministic": None}, ("deterministic must be True or False", "Got None")),
        ({"is_causal": 1}, ("is_causal must be True or False", "Got 1")),
        ({"deterministic": False, "broadcast_dropout": "yes"}, ("broadcast_dropout must be True or False",)),
        ({"deterministic": False, "dropout_rate": 0.5}, ("dropout_rng must be given",)),
        ({"mask": jnp.ones((4, 9))}, ("mask must", "(4, 9)")),
        ({"determinstic": True}, ("unexpected keyword argument 'determinstic'", "Did you mean 'deterministic'?")),
    ],
)
def test_one_clear_error(wrong: dict[str, Any], phrases: tuple[str, ...]) -> None:
    x = jnp.ones((4, 2, 8))
    with raises(*phrases, kind=TypeError if "determinstic" in wrong else ValueError):
        jattn.attention(x, x, x, **{"deterministic": True, **wrong})
