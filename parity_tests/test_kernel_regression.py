"""Nadaraya-Watson regression against the estimator written out, which knows nothing of attention."""

from typing import Any

import numpy as np
import pytest
from torch import Tensor

import jattn
import torch_ref
from jattn.kernel_regression import Kernel
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.test_masks import Rule, rules

B, T, S, D, E = 2, 5, 7, 4, 6
KERNELS = ("gaussian", "boxcar", "epanechnikov", "constant")
LOCAL = KERNELS[:3]
FLOAT64 = ("float64",)


def ours(query, key, value, *, rule: Rule | None = None, **rest: Any):
    return jattn.nadaraya_watson(query, key, value, mask=None if rule is None else rule.ours, **rest)


def theirs(query: Tensor, key: Tensor, value: Tensor, *, rule: Rule | None = None, **rest: Any):
    mask = None if rule is None else rule.theirs
    if mask is not None and mask.ndim == 4:
        mask = mask.squeeze(1)  # of masks with data, the axis of heads
    return torch_ref.nadaraya_watson(query, key, value, mask=mask, **rest)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def lattice(*shape: int, seed: int = 0) -> np.ndarray:
    """Multiples of a half: under a bandwidth of 1.375, no two are within 5% of a kernel's edge."""
    return np.random.default_rng(seed).integers(-1, 2, shape) / 2


def batch(*b: int, values: tuple[int, ...] = (E,)) -> dict[str, np.ndarray]:
    return {
        "query": lattice(*b, T, D),
        "key": lattice(*b, S, D, seed=1),
        "value": normal(*b, S, *values, seed=2),
    }


@pytest.mark.parametrize("kernel", KERNELS)
def test_scalars(parity: Parity, kernel: Kernel) -> None:
    """Spread over many bandwidths: the last query is out of every bounded kernel's reach."""
    inputs = {"query": 4 * lattice(T) + np.arange(T), "key": 4 * lattice(S, seed=1), "value": normal(S, seed=2)}
    inputs["query"][-1] = 30.0
    fixed = {"kernel": kernel, "bandwidth": 1.375, "return_weights": True}
    parity(f"nadaraya_watson, {kernel}", ours, theirs, inputs, fixed, dtypes=FLOAT64)


@pytest.mark.parametrize("kernel", KERNELS)
def test_features(parity: Parity, kernel: Kernel) -> None:
    fixed = {"kernel": kernel, "bandwidth": 1.375, "return_weights": True}
    parity(f"nadaraya_watson, {kernel}", ours, theirs, batch(B), fixed)


@pytest.mark.parametrize("inputs", [batch(), batch(values=()), batch(B, values=()), batch(3, B)])
def test_other_shapes(parity: Parity, inputs: dict[str, np.ndarray]) -> None:
    fixed = {"kernel": "epanechnikov", "bandwidth": 1.375, "return_weights": True}
    parity("nadaraya_watson, epanechnikov", ours, theirs, inputs, fixed, dtypes=FLOAT64)


@pytest.mark.parametrize("kernel", LOCAL)
@pytest.mark.parametrize("bandwidth", [np.array(1.375), np.array([1.375, 0.6875, 1.375, 1.375])], ids=["one", "each"])
def test_gradient_of_the_bandwidth(parity: Parity, kernel: Kernel, bandwidth: np.ndarray) -> None:
    inputs, dtypes = batch(B) | {"bandwidth": bandwidth}, FLOAT64 if bandwidth.ndim or kernel == "boxcar" else DTYPES
    parity(f"nadaraya_watson, {kernel}", ours, theirs, inputs, {"kernel": kernel}, dtypes=dtypes)


@pytest.mark.parametrize("kernel", LOCAL)
def test_bandwidth_of_one_by_default(parity: Parity, kernel: Kernel) -> None:
    """Exactly computed on the lattice, and with observations on the very edge."""
    dtypes = ("float64", "float32")
    parity(f"nadaraya_watson, {kernel}", ours, theirs, batch(B), {"kernel": kernel}, dtypes=dtypes)


@pytest.mark.parametrize("kernel", KERNELS)
def test_valid_lengths(parity: Parity, kernel: Kernel) -> None:
    """Of zero, too."""
    fixed = {"kernel": kernel, "bandwidth": 1.375, "rule": rules(T, S)["lengths, per query"], "return_weights": True}
    parity(f"nadaraya_watson, {kernel}", ours, theirs, batch(B), fixed, dtypes=FLOAT64)


@pytest.mark.parametrize("name", ["causal", "lengths, per example", "dense", "segments"])
def test_mask(parity: Parity, name: str) -> None:
    fixed = {"bandwidth": 1.375, "rule": rules(T, S)[name], "return_weights": True}
    parity("nadaraya_watson, gaussian", ours, theirs, batch(B), fixed, dtypes=FLOAT64)


@pytest.mark.parametrize("kernel", KERNELS)
def test_leave_one_out(parity: Parity, kernel: Kernel) -> None:
    """Each point estimated from all the others, the points being query and key at once."""
    fixed = {"kernel": kernel, "bandwidth": 1.375, "rule": rules(T, T)["combination, not"]}
    inputs = {"x": lattice(T, D, seed=3), "y": normal(T)}
    parity(
        f"nadaraya_watson, {kernel}",
        lambda x, y, **rest: ours(x, x, y, **rest),
        lambda x, y, **rest: theirs(x, x, y, **rest),
        inputs,
        fixed,
        dtypes=FLOAT64,
    )


@pytest.mark.parametrize(("distance", "dtypes"), [(1000.0, FLOAT64), (32.0, ("float64", "float32"))])
def test_gaussian_far_from_every_observation(parity: Parity, distance: float, dtypes: tuple[str, ...]) -> None:
    """Its kernel is 0 in float32, yet the nearest observations count. The distance is across to where they differ."""
    inputs = batch(B)
    inputs["query"][..., -1] += distance
    inputs["key"][..., -1] = 0
    parity("nadaraya_watson, gaussian", ours, theirs, inputs, {"return_weights": True}, dtypes=dtypes)
