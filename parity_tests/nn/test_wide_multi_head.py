"""Self-attention with heads of full width against torch_ref."""

from typing import Any

import numpy as np
import pytest

from jattn import nn
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import both, call_for_weights

x = np.random.default_rng(0).standard_normal((2, 5, 6))  # b t m
valid_lens = np.array([3, 0])


@pytest.mark.parametrize("fixed", [{}, {"valid_lens": valid_lens}], ids=["no rule", "lengths"])
def test_wide_multi_head_self_attention(parity: Parity, fixed: dict[str, Any]) -> None:
    modules = both(nn.WideMultiHeadSelfAttention, 6, num_heads=3)
    dtypes = ("float64",) if fixed else DTYPES
    parity("WideMultiHeadSelfAttention", call_for_weights, call_for_weights, {"x": x}, fixed, **modules, dtypes=dtypes)
