"""Convolutions with channels last against PyTorch's, with channels first."""

from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx

from jattn import nn
from jattn.weights import load_state_dict, state_dict
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import blank, both, randomised

FLOAT64 = ("float64",)
random = np.random.default_rng(1)
sequence, image = random.standard_normal((2, 9, 6)), random.standard_normal((2, 8, 12, 6))

CASES: dict[str, tuple[np.ndarray, Any, dict[str, Any]]] = {
    "a stem": (sequence, 3, {"strides": 2, "padding": 1}),
    "patches": (image, (4, 3), {"strides": (4, 3)}),
    "a sequence": (sequence, 4, {}),
    "no bias": (sequence, 3, {"use_bias": False, "padding": 2}),
    "an image": (image, (3, 2), {"strides": (2, 1), "padding": (0, 1)}),
    "dilation": (image, (3, 3), {"kernel_dilation": 2, "padding": 2}),
    "groups": (sequence, 3, {"feature_group_count": 2, "padding": 1}),
}


def apply(module: Any, x: Any) -> Any:
    return module(x)


def channels_last(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A layer of torch.nn, whose channels come first."""
    return module(x.movedim(-1, 1)).movedim(1, -1)


@pytest.mark.parametrize("name", CASES)
def test_convolution(parity: Parity, name: str) -> None:
    x, kernel_size, options = CASES[name]
    dtypes = DTYPES if name in ("a stem", "patches") else FLOAT64
    parity("Conv", apply, apply, {"x": x}, **both(nn.Conv, 6, 4, kernel_size, **options), dtypes=dtypes)


LAYERS: dict[str, tuple[np.ndarray, Any, Any]] = {
    "Conv1d": (
        sequence,
        lambda: nn.Conv(6, 4, 3, strides=2, padding=1, rngs=nnx.Rngs(0)),
        lambda: torch.nn.Conv1d(6, 4, 3, 2, 1),
    ),
    "Conv2d": (
        image,
        lambda: nn.Conv(6, 4, (4, 3), strides=(4, 3), rngs=nnx.Rngs(0)),
        lambda: torch.nn.Conv2d(6, 4, (4, 3), (4, 3)),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_torch_nn_s(parity: Parity, name: str) -> None:
    x, make, make_torch = LAYERS[name]
    modules = {"module": blank(make), "torch_module": randomised(make_torch())}
    parity(f"Conv / nn.{name}", apply, channels_last, {"x": x}, **modules)


@pytest.mark.parametrize("name", LAYERS)
def test_state_dicts_both_ways(name: str) -> None:
    """Flax's own layer has the same map."""
    _, make, make_torch = LAYERS[name]
    theirs, other = make_torch(), randomised(make_torch()).float()
    ours = load_state_dict(make(), theirs.state_dict())
    kernel = theirs.weight.detach().movedim((0, 1), (-1, -2))  # the axes of the kernel, in, out
    np.testing.assert_array_equal(ours.kernel[...], kernel)
    other.load_state_dict(state_dict(ours))
    assert all(torch.equal(*pair) for pair in zip(theirs.parameters(), other.parameters(), strict=True))
    flax = nnx.Conv(6, 4, ours.kernel_size, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(load_state_dict(flax, theirs.state_dict()).kernel[...], kernel)
