"""torch.nn.MultiheadAttention with all of its arguments: outputs, weights, gradients, empty rows, dropout."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from jattn import nn
from jattn._engine.dropout import dropout_keep
from jattn.weights import load_state_dict, state_dict
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import blank, call, randomised

B, T, S, H, M = 2, 5, 7, 3, 12
KDIM, VDIM = 10, 9
FLOAT64 = ("float64",)
rng = np.random.default_rng(0)
query, key, value = rng.standard_normal((T, B, M)), rng.standard_normal((S, B, M)), rng.standard_normal((S, B, M))
thin_key, thin_value = key[..., :KDIM], value[..., :VDIM]
# True where a query may not attend; the first key is open to all, so that no row is empty.
padding = np.array([[0, 0, 0, 0, 0, 1, 1], [0, 1, 0, 0, 1, 0, 0]], bool)
barred = (rng.random((T, S)) < 0.4) & (np.arange(S) > 0)
barred_by_head = (rng.random((B * H, T, S)) < 0.4) & (np.arange(S) > 0)
future = np.arange(S) > np.arange(T)[:, None]
additive = rng.standard_normal((T, S))
additive_by_head = rng.standard_normal((B * H, T, S))
additive_padding = rng.standard_normal((B, S))


def attention(*args: Any, **options: Any) -> dict[str, Any]:
    """jattn.nn.torch.MultiheadAttention and torch.nn.MultiheadAttention, made alike, as `parity` takes them."""
    return {
        "module": blank(lambda: nn.torch.MultiheadAttention(*args, **options, rngs=nnx.Rngs(0))),
        "torch_module": randomised(torch.nn.MultiheadAttention(*args, **options)),
    }


def inputs(**options: Any) -> dict[str, np.ndarray]:
    """Query, key and value for a module of these options."""
    k = thin_key if options.get("kdim") else key
    v = thin_value if options.get("vdim") else value
    return {
        name: np.swapaxes(x, 0, 1) if options.get("batch_first") else x
        for name, x in (("query", query), ("key", k), ("value", v))
    }


# Of each pair of options and call arguments, both values of one meet both values of the other somewhere.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "batch first": ({"batch_first": True}, {"key_padding_mask": padding, "average_attn_weights": False}),
    "no bias": ({"bias": False}, {"attn_mask": barred, "need_weights": False}),
    "bias_kv": ({"add_bias_kv": True}, {"attn_mask": barred_by_head, "average_attn_weights": False}),
    "zero_attn": ({"add_zero_attn": True, "batch_first": True}, {"key_padding_mask": padding, "need_weights": False}),
    "kdim": ({"kdim": KDIM}, {"attn_mask": additive, "key_padding_mask": additive_padding}),
    "vdim": ({"vdim": VDIM, "bias": False}, {"key_padding_mask": additive_padding, "average_attn_weights": False}),
    "kdim, vdim": ({"kdim": KDIM, "vdim": VDIM, "batch_first": True}, {"attn_mask": additive_by_head}),
    "bias_kv, zero_attn": (
        {"add_bias_kv": True, "add_zero_attn": True, "kdim": KDIM, "vdim": VDIM},
        {"attn_mask": additive_by_head, "key_padding_mask": additive_padding},
    ),
    "bias_kv, no bias, batch first": (
        {"add_bias_kv": True, "bias": False, "batch_first": True},
        {"attn_mask": barred, "key_padding_mask": padding, "need_weights": False},
    ),
    "zero_attn, no bias": ({"add_zero_attn": True, "bias": False}, {"attn_mask": additive}),
    "boolean masks": ({}, {"attn_mask": barred_by_head, "key_padding_mask": padding}),
    "causal": ({}, {"attn_mask": future, "is_causal": True}),
    "causal, no weights": ({"batch_first": True}, {"attn_mask": future, "is_causal": True, "need_weights": False}),
    "causal, padding, no weights": (
        {"kdim": KDIM},
        {"attn_mask": future, "is_causal": True, "key_padding_mask": padding, "need_weights": False},
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_attention(parity: Parity, case: str) -> None:
    """Masks that are floating point are inputs, so that their gradients are compared too."""
    options, arguments = OPTIONS[case]
    floats = {n: x for n, x in arguments.items() if isinstance(x, np.ndarray) and x.dtype != bool}
    fixed = {n: x for n, x in arguments.items() if n not in floats}
    dtypes = DTYPES if case in ("bias_kv, zero_attn", "boolean masks") else FLOAT64
    modules = attention(M, H, **options)
    parity("nn.torch.MultiheadAttention", call, call, inputs(**options) | floats, fixed, **modules, dtypes=dtypes)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {"key_padding_mask": padding[1], "attn_mask": barred}),
        ({"add_bias_kv": True, "kdim": KDIM}, {"attn_mask": barred_by_head[:H], "average_attn_weights": False}),
        ({"batch_first": True, "add_zero_attn": True}, {"key_padding_mask": padding[0], "need_weights": False}),
    ],
    ids=["masks", "bias_kv, kdim", "batch first"],
)
def test_attention_without_a_batch(parity: Parity, options: dict[str, Any], arguments: dict[str, Any]) -> None:
    arrays = {name: x[0] if options.get("batch_first") else x[:, 0] for name, x in inputs(**options).items()}
    parity("nn.torch.MultiheadAttention", call, call, arrays, arguments, **attention(M, H, **options), dtypes=FLOAT64)


def test_a_boolean_mask_with_a_float_one(parity: Parity) -> None:
    """PyTorch warns that it will not go on taking them together; until then they mean what they mean alone."""
    arrays = inputs() | {"attn_mask": additive}
    with pytest.warns(UserWarning, match="mismatched"):
        parity(
            "nn.torch.MultiheadAttention",
            call,
            call,
            arrays,
            {"key_padding_mask": padding},
            **attention(M, H),
            dtypes=FLOAT64,
        )


def test_minus_infinity_in_a_float_mask(parity: Parity) -> None:
    fixed_mask = np.where(barred, -np.inf, additive)
    parity(
        "nn.torch.MultiheadAttention",
        lambda m, **x: m(**x, attn_mask=jnp.asarray(fixed_mask, x["query"].dtype)),
        lambda m, **x: m(**x, attn_mask=torch.as_tensor(fixed_mask, dtype=x["query"].dtype)),
        inputs(),
        **attention(M, H),
        dtypes=FLOAT64,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Rows with nothing to attend to.


def test_empty_rows_are_zeros_as_in_pytorch_without_weights(parity: Parity) -> None:
    arguments = {"key_padding_mask": np.array([[1] * S, [0] * S], bool), "need_weights": False}
    for options in ({}, {"batch_first": True, "kdim": KDIM}):
        parity(
            "nn.torch.MultiheadAttention, empty rows",
            call,
            call,
            inputs(**options),
            arguments,
            **attention(M, H, **options),
            dtypes=FLOAT64,
        )


def empty_barred(kind: str) -> np.ndarray:
    mask = barred.copy()
    mask[2] = True
    return mask if kind == "bool" else np.where(mask, -np.inf, additive)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_empty_rows_are_nan_on_request_where_pytorch_has_it(kind: str, need_weights: bool) -> None:
    """The same entries are NaN, of outputs, weights and gradients, and the others equal."""
    mask = empty_barred(kind)
    theirs = randomised(torch.nn.MultiheadAttention(M, H))
    ours = blank(lambda: nn.torch.MultiheadAttention(M, H, empty_rows="nan", rngs=nnx.Rngs(0)))
    tensors = [torch.tensor(x, requires_grad=True) for x in (query, key, value)]
    expected = theirs(*tensors, attn_mask=torch.tensor(mask), need_weights=need_weights)
    leaves = [*tensors, theirs.in_proj_weight, theirs.out_proj.weight]
    gradients = torch.autograd.grad(expected[0].sum(), leaves)
    with jax.enable_x64(True):
        load_state_dict(ours, theirs.state_dict())
        graph, parameters, rest = nnx.split(ours, nnx.Param, ...)

        def run(parameters: Any, *arrays: jax.Array) -> Any:
            module = nnx.merge(graph, parameters, rest)
            output, weights = module(*arrays, attn_mask=jnp.asarray(mask), need_weights=need_weights)
            return output.sum(), (output, weights)

        grad = jax.jit(jax.grad(run, argnums=(0, 1, 2, 3), has_aux=True))
        (of_parameters, *of_inputs), actual = grad(parameters, *(jnp.asarray(x) for x in (query, key, value)))
        named = state_dict(nnx.merge(graph, of_parameters, rest))
    assert np.isnan(np.asarray(actual[0])).any() == need_weights
    for x, y in zip(actual, expected, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            np.testing.assert_allclose(x, y.detach(), rtol=1e-10, atol=1e-12)
    for x, y in zip([*of_inputs, named["in_proj_weight"], named["out_proj.weight"]], gradients, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def test_empty_rows_are_zeros_by_default(parity: Parity) -> None:
    """With weights PyTorch has NaN there, so it is asked without, and for weights on the other rows."""
    mask, full = empty_barred("bool"), np.arange(T) != 2

    def theirs(m: Any, **x: Any) -> Any:
        output, _ = m(**x, attn_mask=torch.as_tensor(mask), need_weights=False)
        return output, m(x["query"][full], x["key"], x["value"], attn_mask=torch.as_tensor(mask[full]))[1]

    def ours(m: Any, **x: Any) -> Any:
        output, weights = m(**x, attn_mask=jnp.asarray(mask))
        return output, weights[:, full]

    parity("nn.torch.MultiheadAttention, empty rows", ours, theirs, inputs(), **attention(M, H))


# ----------------------------------------------------------------------------------------------------------------------
# Dropout, with the mask that jattn draws handed to PyTorch.


def attend_in_torch(m: torch.nn.MultiheadAttention, keep: torch.Tensor, q: Any, k: Any, v: Any) -> Any:
    """nn.MultiheadAttention in training, written out: ``t b m`` in, weights ``b h t s`` after dropout."""

    def heads(x: torch.Tensor, i: int) -> torch.Tensor:
        projected = F.linear(x, m.in_proj_weight.chunk(3)[i], m.in_proj_bias.chunk(3)[i])
        return projected.unflatten(-1, (m.num_heads, -1)).permute(1, 2, 0, 3)

    q, k, v = heads(q, 0), heads(k, 1), heads(v, 2)
    weights = F.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1) * keep / (1 - m.dropout)
    return m.out_proj((weights @ v).permute(2, 0, 1, 3).flatten(-2)), weights


@pytest.mark.parametrize(("average", "dtypes"), [(True, DTYPES), (False, FLOAT64)])
def test_dropout(parity: Parity, average: bool, dtypes: tuple[str, ...]) -> None:
    seed, rate = jax.random.key(0), 0.4
    modules = attention(M, H, rate)
    modules["module"].train()
    drawn = jax.jit(dropout_keep, static_argnums=(1, 2))(seed, rate, (B, H, T, S))
    keep = torch.tensor(np.asarray(drawn))
    assert 0.4 < keep.float().mean() < 0.8

    def theirs(m: Any, query: Any, key: Any, value: Any) -> Any:
        output, weights = attend_in_torch(m, keep, query, key, value)
        return output, weights.mean(dim=1) if average else weights

    def ours(m: Any, **x: Any) -> Any:
        return m(**x, average_attn_weights=average, rng=seed)

    parity("nn.torch.MultiheadAttention, dropout", ours, theirs, inputs(), **modules, dtypes=dtypes)


@pytest.mark.parametrize("average", [True, False])
def test_the_dropout_written_out_is_pytorch_s(average: bool) -> None:
    """In training PyTorch's own bits can be read off its weights; with them the function above gives its output."""
    torch.manual_seed(0)
    m = randomised(torch.nn.MultiheadAttention(M, H, 0.4)).train()
    arrays = [torch.tensor(x) for x in (query, key, value)]
    output, weights = m(*arrays, average_attn_weights=False)
    own_output, own_weights = attend_in_torch(m, weights != 0, *arrays)
    torch.testing.assert_close((own_output, own_weights), (output, weights))


# ----------------------------------------------------------------------------------------------------------------------
# State dicts.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"kdim": KDIM, "vdim": VDIM}, {"kdim": KDIM, "bias": False}, {"add_bias_kv": True}],
    ids=str,
)
def test_state_dict_there_and_back(options: dict[str, Any], dtype: torch.dtype) -> None:
    tensors = randomised(torch.nn.MultiheadAttention(M, H, **options)).to(dtype).state_dict()
    module = blank(lambda: nn.torch.MultiheadAttention(M, H, **options, rngs=nnx.Rngs(0)))
    again = state_dict(load_state_dict(module, tensors))
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == dtype
        assert torch.equal(again[name], tensor), name
