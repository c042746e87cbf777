"""`dot_product_attention`: every argument, alone and with the others."""

from typing import Any

import numpy as np
import pytest

import jattn
import torch_ref
from parity_tests.conftest import Parity
from parity_tests.test_multi_head import FLOAT64, B, H, S, T, arrays, normal

MASK = np.random.default_rng(0).random((B, H, T, S)) < 0.7
DROP_IN = ("dot_product_attention", jattn.dot_product_attention, torch_ref.dot_product_attention)


@pytest.mark.parametrize(
    "fixed",
    [
        {},
        {"is_causal": True},
        {"local_window_size": 2},
        {"local_window_size": (1, 3)},
        {"query_seq_lengths": np.array([3, 5])},
        {"key_value_seq_lengths": np.array([0, 6])},
        {"mask": MASK},
        {"mask": MASK[0, 0], "scale": 0.3},
    ],
    ids=lambda fixed: ", ".join(fixed) or "plain",
)
def test_dot_product_attention(parity: Parity, fixed: dict[str, Any]) -> None:
    parity(*DROP_IN, arrays(), fixed | {"return_residual": True}, dtypes=FLOAT64)


def test_dot_product_attention_with_everything(parity: Parity) -> None:
    fixed = {
        "mask": MASK[:, :1],
        "is_causal": True,
        "local_window_size": (3, 0),
        "query_seq_lengths": np.array([3, 5]),
        "key_value_seq_lengths": np.array([2, 7]),
        "scale": 0.7,
    }
    inputs = arrays(h=4, k=2) | {"bias": normal(4, T, S, seed=3)}
    parity(*DROP_IN, inputs, fixed)
    parity(*DROP_IN, inputs, fixed | {"return_residual": True})


def test_dot_product_attention_without_a_batch(parity: Parity) -> None:
    parity(*DROP_IN, arrays(()), {"is_causal": True, "return_residual": True}, dtypes=FLOAT64)
