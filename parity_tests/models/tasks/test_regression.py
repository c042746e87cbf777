"""The curve-fitting models against torch_ref."""

import numpy as np

from jattn import models
from parity_tests.conftest import Parity
from parity_tests.nn import both, call_for_weights

x = np.random.default_rng(0).standard_normal((3, 7))  # b t


def test_attention_regressor(parity: Parity) -> None:
    modules = both(models.AttentionRegressor, 6)
    parity("AttentionRegressor", call_for_weights, call_for_weights, {"x": x}, **modules)


def test_transformer_regressor(parity: Parity) -> None:
    """On fewer points than there are positions."""
    modules = both(models.TransformerRegressor, input_size=9, features=12, num_heads=3)
    parity("TransformerRegressor", call_for_weights, call_for_weights, {"x": x}, **modules)
