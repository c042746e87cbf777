"""Learned, sinusoidal and rotary positions against torch_ref."""

from typing import Any

import numpy as np
import pytest

import torch_ref.nn
from jattn import nn
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import both, call

rng = np.random.default_rng(0)
heads = rng.standard_normal((2, 5, 3, 4))  # b t h d
tokens = rng.standard_normal((2, 700, 7))  # b t m


def test_learned_positions(parity: Parity) -> None:
    """More vectors than positions: the others have zero gradients."""
    modules = both(nn.LearnedPositions, 9, 6)
    parity("LearnedPositions", call, call, {"x": tokens[:, :5, :6]}, **modules)


@pytest.mark.parametrize(
    ("t", "features", "dtypes"), [(5, 6, DTYPES), (5, 7, ("float64",)), (700, 6, DTYPES)], ids=["even", "odd", "long"]
)
def test_sinusoidal_positions(parity: Parity, t: int, features: int, dtypes: tuple[str, ...]) -> None:
    ours, theirs = nn.SinusoidalPositions(features), torch_ref.nn.SinusoidalPositions(features)
    inputs = {"x": tokens[:, :t, :features]}
    parity("SinusoidalPositions", lambda x: ours(x), lambda x: theirs(x), inputs, dtypes=dtypes)


def test_sinusoidal_positions_alone(parity: Parity) -> None:
    """In another base, and undiluted by what they are added to."""
    parity(
        "sinusoidal_positions",
        lambda x: x * nn.sinusoidal_positions(5, 6, base=100.0, dtype=x.dtype),
        lambda x: x * torch_ref.nn.sinusoidal_positions(5, 6, base=100.0, dtype=x.dtype),
        {"x": tokens[0, :5, :6]},
        dtypes=("float64", "float32"),
    )


@pytest.mark.parametrize(
    ("fixed", "dtypes"),
    [
        ({}, DTYPES),
        ({"base": 50.0}, ("float64",)),
        ({"positions": np.array([3, 900, 0, 7, 31])}, DTYPES),
        ({"positions": rng.integers(0, 1000, (2, 5)), "base": 500.0}, ("float64",)),
    ],
    ids=["default", "another base", "positions", "positions per example"],
)
def test_rotary(parity: Parity, fixed: dict[str, Any], dtypes: tuple[str, ...]) -> None:
    parity("rotary", nn.rotary, torch_ref.nn.rotary, {"x": heads}, fixed, dtypes=dtypes)


def test_rotary_without_a_batch(parity: Parity) -> None:
    parity("rotary", nn.rotary, torch_ref.nn.rotary, {"x": heads[0]}, dtypes=("float64",))
