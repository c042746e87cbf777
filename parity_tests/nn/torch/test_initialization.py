"""PyTorch's initial parameters and jattn's, drawn many times: the same distribution, parameter by parameter."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx
from scipy import stats

import torch_ref.models
from jattn import models, nn
from jattn.weights import state_dict

DRAWS = 30
rngs = nnx.Rngs(0)
TRANSFORMER: dict[str, Any] = dict(num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=24)

Pair = tuple[Callable[[], nnx.Module], Callable[[], torch.nn.Module]]
PAIRS: dict[str, Pair] = {
    "Linear": (lambda: nn.Linear(8, 20, rngs=rngs), lambda: torch.nn.Linear(8, 20)),
    "Linear, no bias": (
        lambda: nn.Linear(8, 20, use_bias=False, rngs=rngs),
        lambda: torch.nn.Linear(8, 20, bias=False),
    ),
    "Conv, 1-D, groups": (
        lambda: nn.Conv(4, 6, 3, feature_group_count=2, rngs=rngs),
        lambda: torch.nn.Conv1d(4, 6, 3, groups=2),
    ),
    "Conv, 2-D": (lambda: nn.Conv(3, 5, (2, 3), rngs=rngs), lambda: torch.nn.Conv2d(3, 5, (2, 3))),
    "GRU": (lambda: nn.GRU(5, 8, 2, rngs=rngs), lambda: torch.nn.GRU(5, 8, 2)),
    "Embedding": (lambda: nn.Embed(9, 8, rngs=rngs), lambda: torch.nn.Embedding(9, 8)),
    "Embedding, padding": (
        lambda: nn.Embed(9, 8, padding_idx=-2, rngs=rngs),
        lambda: torch.nn.Embedding(9, 8, -2),
    ),
    "LayerNorm": (lambda: nn.LayerNorm(8, rngs=rngs), lambda: torch.nn.LayerNorm(8)),
    "RMSNorm": (lambda: nn.RMSNorm(8, rngs=rngs), lambda: torch.nn.RMSNorm(8)),
    "MultiheadAttention": (
        lambda: nn.torch.MultiheadAttention(12, 3, add_bias_kv=True, rngs=rngs),
        lambda: torch.nn.MultiheadAttention(12, 3, add_bias_kv=True),
    ),
    "MultiheadAttention, kdim": (
        lambda: nn.torch.MultiheadAttention(12, 3, kdim=40, bias=False, rngs=rngs),
        lambda: torch.nn.MultiheadAttention(12, 3, kdim=40, bias=False),
    ),
    "TransformerEncoderLayer": (
        lambda: nn.torch.TransformerEncoderLayer(12, 3, 24, rngs=rngs),
        lambda: torch.nn.TransformerEncoderLayer(12, 3, 24),
    ),
    "TransformerDecoderLayer": (
        lambda: nn.torch.TransformerDecoderLayer(12, 3, 24, rngs=rngs),
        lambda: torch.nn.TransformerDecoderLayer(12, 3, 24),
    ),
    "Transformer": (
        lambda: nn.torch.Transformer(12, 3, **TRANSFORMER, rngs=rngs),
        lambda: torch.nn.Transformer(12, 3, **TRANSFORMER),
    ),
    "RecallClassifier": (  # a whole model, of layers that torch.nn has
        lambda: models.RecallClassifier(5, rngs=rngs),
        lambda: torch_ref.models.RecallClassifier(5),
    ),
}


def samples(pair: Pair) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Name to the numbers of all draws, ours and PyTorch's."""
    torch.manual_seed(0)
    ours, theirs, stream = pair[0](), [], nnx.Rngs(1)
    with warnings.catch_warnings(action="ignore"):  # of nested tensors
        theirs = [pair[1]().state_dict() for _ in range(DRAWS)]
    mine = [state_dict(nn.torch.initialize(ours, rngs=stream)) for _ in range(DRAWS)]
    first, second = (
        {name: np.stack([draw[name].numpy() for draw in draws]) for name in draws[0]} for draws in (mine, theirs)
    )
    return first, second


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.every_case
def test_distribution(pair: Pair) -> None:
    """Constants equal; otherwise bounds, mean, spread and the whole distribution."""
    ours, theirs = samples(pair)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        actual = ours[name]
        constant = (expected == expected[:1]).all(axis=0)
        np.testing.assert_array_equal(actual[0][constant], expected[0][constant], err_msg=name)
        x, y = actual[:, ~constant].ravel(), expected[:, ~constant].ravel()
        if x.size == 0:
            continue
        error = y.std() / np.sqrt(x.size)  # of a mean
        assert abs(x.mean()) < 4.5 * error, name
        assert abs(x.std() - y.std()) < 6 * error, name  # two estimates, each with an error below that of a mean
        if np.abs(y).max() < 2 * y.std():  # uniform: the bound is where the spread says
            bound = y.std() * np.sqrt(3)
            assert np.abs(x).max() == pytest.approx(np.abs(y).max(), rel=0.05), name
            assert np.abs(x).max() == pytest.approx(bound, rel=0.12), name
        assert stats.ks_2samp(x, y).pvalue > 1e-4, name


@pytest.mark.parametrize(
    ("make", "name", "bound"),
    [
        (lambda: nn.Linear(64, 300, rngs=rngs), "weight", 1 / 8),
        (lambda: nn.Linear(64, 3000, rngs=rngs), "bias", 1 / 8),
        (lambda: nn.GRU(5, 64, rngs=rngs), "weight_ih_l0", 1 / 8),
        (lambda: nn.torch.MultiheadAttention(60, 3, rngs=rngs), "in_proj_weight", (6 / (60 + 180)) ** 0.5),
        (lambda: nn.torch.MultiheadAttention(60, 3, kdim=90, rngs=rngs), "q_proj_weight", (6 / (60 + 60)) ** 0.5),
        (lambda: nn.torch.MultiheadAttention(60, 3, kdim=90, rngs=rngs), "k_proj_weight", (6 / (60 + 90)) ** 0.5),
        (lambda: nn.torch.TransformerEncoderLayer(60, 3, 90, rngs=rngs), "linear1.weight", 60**-0.5),
        (lambda: nn.torch.Transformer(60, 3, 1, 1, 90, rngs=rngs), "encoder.layers.0.linear1.weight", (6 / 150) ** 0.5),
        (
            lambda: nn.torch.Transformer(60, 3, 1, 1, 90, rngs=rngs),
            "decoder.layers.0.self_attn.out_proj.weight",
            0.05**0.5,
        ),
    ],
)
def test_bounds(make: Callable[[], nnx.Module], name: str, bound: float) -> None:
    """Of thousands of uniform numbers the largest is just below the bound, and the spread a third of its square."""
    x = state_dict(nn.torch.initialize(make(), rngs=nnx.Rngs(0)))[name].numpy()
    assert 0.99 * bound < np.abs(x).max() <= bound
    assert x.var() == pytest.approx(bound**2 / 3, rel=0.05)


def test_copies_are_drawn_independently() -> None:
    layer = nn.torch.TransformerEncoderLayer(12, 3, 24, rngs=nnx.Rngs(0))
    encoder = nn.torch.TransformerEncoder(layer, 2)
    tensors = state_dict(encoder)
    assert torch.equal(tensors["layers.0.linear1.weight"], tensors["layers.1.linear1.weight"])
    tensors = state_dict(nn.torch.initialize(encoder, rngs=nnx.Rngs(1)))
    assert not torch.equal(tensors["layers.0.linear1.weight"], tensors["layers.1.linear1.weight"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_keep_their_dtype(dtype: str) -> None:
    module = nn.torch.initialize(nn.torch.MultiheadAttention(12, 3, param_dtype=dtype, rngs=nnx.Rngs(0)), rngs=rngs)
    assert {str(tensor.dtype) for tensor in state_dict(module).values()} == {f"torch.{dtype}"}
