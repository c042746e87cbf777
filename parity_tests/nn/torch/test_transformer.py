"""torch.nn.Transformer and its parts: outputs, every gradient, and dropout where PyTorch has it."""

import warnings
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
from jattn.nn.dropout import split
from jattn.weights import load_state_dict, state_dict
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import blank, call, randomised
from parity_tests.nn.torch.test_attention import attend_in_torch

B, T, S, H, M, WIDE = 2, 5, 7, 3, 12, 10
FLOAT64 = ("float64",)
rng = np.random.default_rng(0)
tgt, memory = rng.standard_normal((T, B, M)), rng.standard_normal((S, B, M))
padding = np.array([[0, 0, 0, 0, 1], [0, 1, 0, 1, 0]], bool)
memory_padding = np.array([[0, 0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1]], bool)  # the second: nothing to attend to
future = np.triu(np.ones((T, T), bool), 1)
barred = rng.random((B * H, T, S)) < 0.4
additive = rng.standard_normal((T, T))

# The cases: options of the layers, arguments of the encoder's layer, and of the decoder's.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "post, relu": ({}, {"src_key_padding_mask": padding}, {"tgt_mask": future, "tgt_is_causal": True}),
    "post, gelu, no bias": (
        {"activation": "gelu", "bias": False, "layer_norm_eps": 0.1},
        {"src_mask": future, "is_causal": True},
        {"memory_key_padding_mask": memory_padding, "memory_mask": barred},
    ),
    "pre, relu, batch first": (
        {"norm_first": True, "batch_first": True},
        {"src_mask": future, "src_key_padding_mask": padding},
        {"tgt_mask": future, "tgt_key_padding_mask": padding, "memory_key_padding_mask": memory_padding},
    ),
    "pre, gelu, no bias, batch first": (
        {"norm_first": True, "activation": "gelu", "bias": False, "batch_first": True},
        {},
        {"memory_mask": barred},
    ),
    "pre, gelu": ({"norm_first": True, "activation": "gelu"}, {"src_mask": additive}, {"tgt_mask": additive}),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def layer(kind: str, **options: Any) -> dict[str, Any]:
    """A layer of jattn.nn.torch and of torch.nn, made alike."""
    options = {"dropout": 0.0, "dim_feedforward": WIDE, **options}
    return {
        "module": blank(lambda: getattr(nn.torch, kind)(M, H, **options, rngs=nnx.Rngs(0))),
        "torch_module": randomised(getattr(torch.nn, kind)(M, H, **options)),
    }


def stack(kind: str, norm: bool, **options: Any) -> dict[str, Any]:
    """Two layers in torch.nn.TransformerEncoder or Decoder, perhaps with a norm, and ours."""
    modules = layer(f"{kind}Layer", **options)
    ours = getattr(nn.torch, kind)(modules["module"], 2, nn.LayerNorm(M, rngs=nnx.Rngs(0)) if norm else None)
    torch_norm = torch.nn.LayerNorm(M) if norm else None
    with warnings.catch_warnings(action="ignore"):  # of nested tensors, which it will not use
        theirs = getattr(torch.nn, kind)(modules["torch_module"], 2, torch_norm)
    return {"module": ours, "torch_module": randomised(theirs)}


def transposed(inputs: dict[str, np.ndarray], options: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.swapaxes(x, 0, 1) if options.get("batch_first") else x for name, x in inputs.items()}


# PyTorch leaves out the weights of its layers where nothing asks for them: a row with nothing to attend to is zeros.


@cases
def test_encoder_layer(parity: Parity, case: Any) -> None:
    options, arguments, _ = case
    dtypes = DTYPES if "layer_norm_eps" in options else FLOAT64
    inputs = transposed({"src": tgt}, options)
    pair = "nn.torch.TransformerEncoderLayer"
    parity(pair, call, call, inputs, arguments, **layer("TransformerEncoderLayer", **options), dtypes=dtypes)


@cases
def test_decoder_layer(parity: Parity, case: Any) -> None:
    options, _, arguments = case
    dtypes = DTYPES if "tgt_key_padding_mask" in arguments else FLOAT64
    inputs = transposed({"tgt": tgt, "memory": memory}, options)
    pair = "nn.torch.TransformerDecoderLayer"
    parity(pair, call, call, inputs, arguments, **layer("TransformerDecoderLayer", **options), dtypes=dtypes)


def test_an_activation_of_one_s_own(parity: Parity) -> None:
    modules = {
        "module": blank(
            lambda: nn.torch.TransformerEncoderLayer(M, H, WIDE, 0.0, activation=jax.nn.silu, rngs=nnx.Rngs(0))
        ),
        "torch_module": randomised(torch.nn.TransformerEncoderLayer(M, H, WIDE, 0.0, activation=F.silu)),
    }
    parity("nn.torch.TransformerEncoderLayer", call, call, {"src": tgt}, **modules, dtypes=FLOAT64)


def test_without_a_batch(parity: Parity) -> None:
    inputs = {"tgt": tgt[:, 0], "memory": memory[:, 0]}
    arguments = {"memory_key_padding_mask": memory_padding[0], "memory_mask": barred[:H]}
    modules = layer("TransformerDecoderLayer", norm_first=True)
    parity("nn.torch.TransformerDecoderLayer", call, call, inputs, arguments, **modules, dtypes=FLOAT64)


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])
def test_encoder(parity: Parity, norm: bool) -> None:
    options: dict[str, Any] = {"norm_first": norm, "batch_first": not norm}
    arguments = {"mask": future, "is_causal": True} if norm else {"src_key_padding_mask": padding}
    inputs = transposed({"src": tgt}, options)
    modules = stack("TransformerEncoder", norm, **options)
    parity("nn.torch.TransformerEncoder", call, call, inputs, arguments, **modules, dtypes=DTYPES if norm else FLOAT64)


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])
def test_decoder(parity: Parity, norm: bool) -> None:
    options: dict[str, Any] = {"norm_first": norm, "batch_first": not norm}
    arguments = {"tgt_mask": future, "memory_key_padding_mask": memory_padding}
    inputs = transposed({"tgt": tgt, "memory": memory}, options)
    modules = stack("TransformerDecoder", norm, **options)
    parity("nn.torch.TransformerDecoder", call, call, inputs, arguments, **modules, dtypes=FLOAT64)


@pytest.mark.parametrize(
    "options",
    [{"norm_first": True, "activation": "gelu"}, {"batch_first": True, "bias": False}, {"batch_first": True}],
    ids=["pre", "no bias", "post"],
)
def test_transformer(parity: Parity, options: dict[str, Any]) -> None:
    sizes: dict[str, Any] = dict(num_encoder_layers=2, num_decoder_layers=1, dim_feedforward=WIDE, dropout=0.0)
    arguments = {
        "tgt_mask": future,
        "tgt_is_causal": True,
        "src_key_padding_mask": np.arange(S) >= np.array([[S], [4]]),
        "memory_key_padding_mask": np.arange(S) >= np.array([[S], [4]]),
    }
    with warnings.catch_warnings(action="ignore"):
        theirs = randomised(torch.nn.Transformer(M, H, **sizes, **options))
    parity(
        "nn.torch.Transformer",
        call,
        call,
        transposed({"src": memory, "tgt": tgt}, options),
        arguments,
        module=blank(lambda: nn.torch.Transformer(M, H, **sizes, **options, rngs=nnx.Rngs(0))),
        torch_module=theirs,
        dtypes=FLOAT64,
    )


def test_causal_mask() -> None:
    ours, theirs = (kind.generate_square_subsequent_mask(T) for kind in (nn.torch.Transformer, torch.nn.Transformer))
    np.testing.assert_array_equal(ours, theirs)


# ----------------------------------------------------------------------------------------------------------------------
# What PyTorch does not return: the weights of each layer. Here its attention modules are made to tell theirs.


def test_weights_of_every_layer(parity: Parity) -> None:
    """In float64, as ours are never narrower than float32, like all weights of jattn."""
    modules = stack("TransformerDecoder", True)

    def theirs(m: Any, **arguments: Any) -> Any:
        told: list[Any] = []

        def ask(module: Any, args: Any, kwargs: Any) -> Any:
            return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

        def listen(module: Any, args: Any, output: Any) -> None:
            told.append(output[1])

        for name, module in m.named_modules():
            if name.endswith("attn"):
                module.register_forward_pre_hook(ask, with_kwargs=True)
                module.register_forward_hook(listen)
        return m(**arguments), told

    def ours(m: Any, **arguments: Any) -> Any:
        return m(**arguments, return_weights=True)

    inputs = {"tgt": tgt, "memory": memory}
    pair = "nn.torch.TransformerDecoder, weights"
    parity(pair, ours, theirs, inputs, {"tgt_mask": future}, **modules, dtypes=FLOAT64)


# ----------------------------------------------------------------------------------------------------------------------
# Dropout, with the bits that jattn draws handed to PyTorch's layers.


class Told(torch.nn.Module):
    """Drops what it is told to."""

    def __init__(self, keep: torch.Tensor, rate: float) -> None:
        super().__init__()
        self.keep, self.rate = keep, rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.keep / (1 - self.rate)


@pytest.mark.parametrize("norm_first", [False, True], ids=["post", "pre"])
@pytest.mark.whole
def test_dropout(parity: Parity, norm_first: bool) -> None:
    """In the decoder's layer, which has all the places: both attentions' weights and what each of the three adds."""
    seed, rate = jax.random.key(0), 0.3
    modules = layer("TransformerDecoderLayer", dropout=rate, norm_first=norm_first)
    modules["module"].train()
    shapes = [(B, H, T, T), (T, B, M), (B, H, T, S), (T, B, M), (T, B, WIDE), (T, B, M)]
    drawn = [dropout_keep(key, rate, shape) for key, shape in zip(split(seed, 6), shapes, strict=True)]
    keeps = [torch.tensor(np.asarray(keep)) for keep in drawn]

    def theirs(m: Any, **inputs: Any) -> torch.Tensor:
        m.dropout1, m.dropout2, m.dropout, m.dropout3 = (Told(keeps[i], rate) for i in (1, 3, 4, 5))
        for attention, keep in ((m.self_attn, keeps[0]), (m.multihead_attn, keeps[2])):
            attention.forward = lambda q, k, v, m=attention, keep=keep, **_: attend_in_torch(m, keep, q, k, v)
        return m(**inputs)

    def ours(m: Any, **inputs: Any) -> Any:
        return m(**inputs, rng=seed)

    inputs = {"tgt": tgt, "memory": memory}
    parity("nn.torch.TransformerDecoderLayer, dropout", ours, theirs, inputs, **modules, dtypes=FLOAT64)


def test_every_layer_drops_its_own() -> None:
    """And the same rng the same, with other numbers than in eval mode."""
    encoder = nn.torch.TransformerEncoder(nn.torch.TransformerEncoderLayer(M, H, WIDE, 0.5, rngs=nnx.Rngs(0)), 2)
    x = jnp.asarray(tgt, jnp.float32)
    dropped = encoder(x, rng=jax.random.key(0))
    np.testing.assert_array_equal(dropped, encoder(x, rng=jax.random.key(0)))
    assert not np.allclose(dropped, encoder(x, rng=jax.random.key(1)))
    rngs = split(jax.random.key(0), 2)
    by_hand = encoder.layers[1](encoder.layers[0](x, rng=rngs[0]), rng=rngs[1])
    np.testing.assert_allclose(dropped, by_hand, rtol=1e-6)
    assert not np.allclose(dropped, (encoder.eval(), encoder(x))[1])


# ----------------------------------------------------------------------------------------------------------------------
# State dicts, there and back.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_there_and_back(dtype: torch.dtype, bias: bool) -> None:
    sizes: dict[str, Any] = dict(num_encoder_layers=2, num_decoder_layers=2, dim_feedforward=WIDE, bias=bias)
    with warnings.catch_warnings(action="ignore"):
        theirs = randomised(torch.nn.Transformer(M, H, **sizes)).to(dtype)
    module = blank(lambda: nn.torch.Transformer(M, H, **sizes, rngs=nnx.Rngs(0)))
    tensors = state_dict(load_state_dict(module, theirs.state_dict()))
    assert tensors.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert tensors[name].dtype == dtype
        assert torch.equal(tensors[name], tensor), name
