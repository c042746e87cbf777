"""Heads pruned and measured on both sides: the same models, gradients and figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import torch_ref.heads
from jattn import heads, models, nn
from jattn.weights import load_state_dict, state_dict
from parity_tests.conftest import Parity
from parity_tests.nn import both, call, call_for_weights

rng = np.random.default_rng(0)
queries, keys = rng.standard_normal((2, 5, 12)), rng.standard_normal((2, 7, 12))
images = rng.standard_normal((6, 8, 8))  # of patches that are alike, the gradients of queries would cancel
valid_lens = np.array([3, 5])
Removed = Mapping[str, Sequence[int]]


def pruned(removed: Removed, module: Any, torch_module: Any) -> dict[str, Any]:
    return {"module": heads.prune(module, removed), "torch_module": torch_ref.heads.prune(torch_module, removed)}


# ----------------------------------------------------------------------------------------------------------------------
# Pruning.


@pytest.mark.parametrize("removed", [[0], [0, 2]], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"use_bias": True},
        {"use_bias": True, "value_head_features": 5, "out_features": 8},
        {"normalize_qk": True, "rotary_base": 50.0},
    ],
    ids=["biases", "widths", "norm and rotary"],
)
def test_pruned_attention(parity: Parity, options: dict[str, Any], removed: list[int]) -> None:
    pair = pruned({"": removed}, **both(nn.MultiHeadAttention, 3, 12, **options))
    inputs, fixed = {"query": queries, "key": keys}, {"positions": np.arange(2, 7)}
    parity("pruned MultiHeadAttention", call_for_weights, call_for_weights, inputs, fixed, **pair, dtypes=("float64",))


@pytest.mark.parametrize("removed", [[0, 1, 2], [1, 3], [4], [0, 1, 2, 3, 5]], ids=str)
def test_pruned_grouped_heads(parity: Parity, removed: list[int]) -> None:
    pair = pruned({"": removed}, **both(nn.MultiHeadAttention, 6, 12, num_kv_heads=2, use_bias=True, rotary_base=50.0))
    fixed = {"valid_lens": valid_lens}
    inputs = {"query": queries}
    parity("pruned MultiHeadAttention", call_for_weights, call_for_weights, inputs, fixed, **pair, dtypes=("float64",))


def test_pruned_wide_attention(parity: Parity) -> None:
    pair = pruned({"": [1]}, **both(nn.WideMultiHeadSelfAttention, 12, 3))
    parity("pruned WideMultiHeadSelfAttention", call, call, {"x": queries}, **pair, dtypes=("float64",))


def test_pruned_classifier(parity: Parity) -> None:
    """A whole model, with the parameters that the pruned one exports."""
    removed = {"blocks.0.attention": [0, 3], "blocks.1.attention": [1]}
    pair = pruned(removed, **both(models.DigitsClassifier, features=16))
    parity("pruned DigitsClassifier", call, call, {"images": images}, **pair)


def test_pruned_is_gated_in_pytorch() -> None:
    removed = {"blocks.0.attention": [0, 3], "blocks.1.attention": [1]}
    model: Any = both(models.DigitsClassifier, features=16)["torch_module"]
    gates = {
        name: torch.tensor([float(i not in removed[name]) for i in range(h)], dtype=torch.float64)
        for name, h in torch_ref.heads.counts(model).items()
    }
    x = torch.as_tensor(images)
    with torch_ref.heads.gated(model, gates):
        expected = model(x)
    torch.testing.assert_close(torch_ref.heads.prune(model, removed)(x), expected, rtol=1e-12, atol=1e-12)


def test_the_parameters_of_a_pruned_model_are_those_of_pytorchs() -> None:
    """Name for name and bit for bit."""
    pair: Any = both(models.DigitsClassifier, features=16)
    removed = {"blocks.0.attention": [2], "blocks.1.attention": [0, 3]}
    with jax.enable_x64(True):
        load_state_dict(pair["module"], pair["torch_module"].state_dict())
        exported = state_dict(heads.prune(pair["module"], removed))
    theirs = torch_ref.heads.prune(pair["torch_module"], removed).state_dict()
    assert exported.keys() == theirs.keys()
    for name, tensor in exported.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)


# ----------------------------------------------------------------------------------------------------------------------
# Importance.

tokens = rng.integers(0, 20, (6, 6))
lens = np.array([6, 3, 1, 5, 2, 4])
points, memory = rng.standard_normal((7, 5, 12)), rng.standard_normal((6, 6, 12))
targets = rng.standard_normal((7, 5, 12))
CASES: dict[str, tuple[Any, dict[str, Any], tuple[np.ndarray, ...], Any]] = {
    "DigitsClassifier": (
        models.DigitsClassifier,
        {"features": 16, "num_heads": 4},
        (rng.random((6, 8, 8)), np.arange(6)),
        lambda m, batch: -(m(batch[0])[:, :6] * (batch[1][:, None] == np.arange(6))).sum() / len(batch[1]),
    ),
    "Bert": (
        models.Bert,
        dict(vocab_size=20, features=12, num_heads=3, num_layers=2, feedforward_features=20),
        (tokens, lens, rng.standard_normal((6, 6, 12))),
        lambda m, batch: ((m(batch[0], batch[1]) - batch[2]) ** 2).mean(),
    ),
    "TransformerBlock": (
        nn.TransformerBlock,
        dict(num_heads=4, features=12, feedforward_features=20, cross_attention=True, causal=True, num_kv_heads=2),
        (points[:6], memory, lens, targets[:6]),
        lambda m, batch: ((m(batch[0], batch[1], memory_valid_lens=batch[2]) - batch[3]) ** 2).mean(),
    ),
    "pruned MultiHeadAttention": (
        nn.MultiHeadAttention,
        dict(num_heads=6, in_features=12, num_kv_heads=2, value_head_features=3, use_bias=True),
        (points, targets),  # a last batch that is smaller, and compiled once more
        lambda m, batch: ((m(batch[0]) - batch[1]) ** 2).mean(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_importance(name: str) -> None:
    """Each measure of each head and its spread over batches, in float64."""
    kind, options, data, loss = CASES[name]
    pair: Any = both(kind, **options)
    if name.startswith("pruned"):
        pair = pruned({"": [4]}, **pair)
    tensors = [torch.as_tensor(x) for x in data]
    batches = [[x[i : i + 3] for x in tensors] for i in range(0, len(data[0]), 3)]
    expected = torch_ref.heads.importance(pair["torch_module"], batches, loss)
    with jax.enable_x64(True):
        model = load_state_dict(pair["module"], pair["torch_module"].state_dict())
        arrays = tuple(map(jnp.asarray, data))
        found = heads.importance(model, arrays, loss=lambda m, batch, _: loss(m, batch), batch_size=3, progress=False)
    assert {(row.layer, row.metric) for row in found.rows} == {(layer, m) for layer in expected for m in heads.METRICS}
    for layer, head, metric, value, spread in found.rows:
        mean, deviation = (x[head].item() for x in expected[layer][metric])
        scale = expected[layer][metric][0].abs().max().item()
        assert abs(value - mean) <= 1e-10 * scale, (layer, head, metric)
        assert abs(spread - deviation) <= 1e-10 * scale, (layer, head, metric)
