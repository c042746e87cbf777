"""Statistics of the weights: streamed in jattn, taken of the matrix in PyTorch."""

import pytest

import jattn
import torch_ref
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.test_attention import B, normal
from parity_tests.test_masks import rules

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
