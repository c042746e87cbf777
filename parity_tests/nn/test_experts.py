"""A mixture of experts against torch_ref, which sends each expert the tokens that chose it."""

from typing import Any

import numpy as np
import pytest

from jattn import nn
from parity_tests.conftest import Parity
from parity_tests.nn import both, call

x = np.random.default_rng(0).standard_normal((2, 9, 6))  # b t m

# In lower dtypes another expert may be the nearest.
DTYPES = ("float64", "float32")
CASES: dict[str, dict[str, Any]] = {
    "two of four, gated": {"experts_per_token": 2, "activation": "silu", "gated": True, "use_bias": False},
    "one of four, of all": {"experts_per_token": 1, "shares": "of_all", "router_bias": True},
    "all of four": {"experts_per_token": 4, "activation": "gelu"},
}


@pytest.mark.parametrize("implementation", ["dense", "ragged"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_mixture_of_experts(parity: Parity, case: dict[str, Any], implementation: str) -> None:
    modules = both(nn.MixtureOfExperts, 6, 10, num_experts=4, **case)
    modules["module"].implementation = implementation
    parity("MixtureOfExperts", call, call, {"x": x}, **modules, dtypes=DTYPES)
