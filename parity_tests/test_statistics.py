"""Statistics of the weights: streamed in jattn, taken of the matrix in PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jattn
import torch_ref
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.test_masks import rules
from parity_tests.test_multi_head import B, normal

T, S, H, K, D = 5, 7, 3, 1, 4


@pytest.mark.parametrize("name", [None, "causal, negative offset", "segments", "dense, per head"])
def test_attention_statistics(parity: Parity, name: str | None) -> None:
    mask = None if name is None else rules(T, S)[name]
    parity(
        "attention_statistics",
        lambda **x: tuple(jattn.attention_statistics(**x, mask=mask and mask.ours)),
        lambda **x: tuple(torch_ref.attention_statistics(**x, mask=mask and mask.theirs)),
        {"query": normal(B, T, H, D), "key": normal(B, S, K, D, seed=1), "bias": normal(B, H, T, S, seed=3)},
        {"scale": 0.7, "logits_soft_cap": 2.0},
        dtypes=DTYPES if name is None else ("float64",),
    )


@pytest.mark.parametrize("name", [None, "causal, negative offset", "lengths, per query"])
def test_attention_statistics_beside_sinks(parity: Parity, name: str | None) -> None:
    """Whose share no key gets: a query's weights sum to less than 1, and to 0 where a mask leaves it with nothing."""
    mask = None if name is None else rules(T, S)[name]
    inputs = {"query": normal(B, T, 4, D), "key": normal(B, S, 2, D, seed=1), "sinks": normal(B, 4, seed=3)}
    parity(
        "attention_statistics, sinks",
        lambda **x: tuple(jattn.attention_statistics(**x, mask=mask and mask.ours)),
        lambda **x: tuple(torch_ref.attention_statistics(**x, mask=mask and mask.theirs)),
        inputs,
        dtypes=DTYPES if name == "lengths, per query" else ("float64",),
    )


@pytest.mark.whole
def test_attention_statistics_of_many_queries_beside_sinks(parity: Parity) -> None:
    """More than a block, with a bias and positions of their own."""
    t, s = 150, 128
    at = np.arange(t) % 60
    rule = rules(t, s)["lengths, per query"]
    parity(
        "attention_statistics, sinks",
        lambda slopes, **x: tuple(
            jattn.attention_statistics(
                **x, bias=jattn.biases.alibi(slopes), query_positions=jnp.asarray(at), mask=rule.ours
            )
        ),
        lambda slopes, **x: tuple(
            torch_ref.attention_statistics(**x, bias=torch_ref.alibi(slopes, t, s, torch.tensor(at)), mask=rule.theirs)
        ),
        {
            "query": normal(B, t, 4, D),
            "key": normal(B, s, 1, D, seed=1),
            "sinks": normal(4, seed=3),
            "slopes": torch_ref.alibi_slopes(4).numpy(),
        },
        dtypes=("float64",),
    )
