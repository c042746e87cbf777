"""Kernel regression with a learnable bandwidth against torch_ref, written from the estimator."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import torch_ref.nn
from jattn import nn
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import call_for_weights

rng = np.random.default_rng(0)
points = rng.standard_normal((2, 5, 4))  # b t d
observed = rng.standard_normal((2, 7, 4))  # b s d
values = rng.standard_normal((2, 7, 6))  # b s e
scalars = {
    "query": np.array([-0.3, 0.6, 1.1, 2.4, 40.0]),  # the last is beyond the reach of every kernel but the Gaussian
    "key": np.array([-1.0, -0.2, 0.3, 0.9, 1.6, 2.2, 3.0]),
    "value": rng.standard_normal(7),
}
per_feature = np.array([0.3, -0.8, 0.5, 0.2])
KERNELS = ("gaussian", "epanechnikov", "boxcar")


def regression(
    parity: Parity,
    inputs: dict[str, np.ndarray],
    fixed: dict[str, Any] | None = None,
    *,
    factor: float | np.ndarray = 0.8,
    kernel: str = "gaussian",
    dtypes: tuple[str, ...] = ("float64",),
) -> None:
    torch_module = torch_ref.nn.NadarayaWatson(kernel=kernel).double()
    torch_module.factor = torch.nn.Parameter(torch.tensor(factor, dtype=torch.float64))
    module = nn.NadarayaWatson(factor=jnp.asarray(factor, jnp.float32), kernel=kernel)
    modules = {"module": module, "torch_module": torch_module}
    parity("NadarayaWatson", call_for_weights, call_for_weights, inputs, fixed, **modules, dtypes=dtypes)


@pytest.mark.parametrize("kernel", KERNELS)
def test_scalars_in_each_dtype(parity: Parity, kernel: str) -> None:
    regression(parity, scalars, kernel=kernel, dtypes=DTYPES)


def test_features_and_a_factor_for_each_in_each_dtype(parity: Parity) -> None:
    regression(parity, {"query": points, "key": observed, "value": values}, factor=per_feature, dtypes=DTYPES)


@pytest.mark.parametrize("kernel", KERNELS)
def test_features_and_one_factor(parity: Parity, kernel: str) -> None:
    regression(parity, {"query": points, "key": observed, "value": values[..., 0]}, factor=0.3, kernel=kernel)


def test_a_factor_of_zero_weighs_all_keys_alike(parity: Parity) -> None:
    regression(parity, {"query": points, "key": observed, "value": values}, factor=0.0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_leave_one_out(parity: Parity, kernel: str) -> None:
    """With boxcar and Epanechnikov the last point then has no neighbour at all."""
    x = np.array([-1.0, -0.2, 0.3, 0.9, 1.6, 2.2, 40.0])
    regression(parity, {"query": x, "key": x, "value": scalars["value"]}, {"leave_one_out": True}, kernel=kernel)


def test_leave_one_out_of_features(parity: Parity) -> None:
    inputs = {"query": observed, "key": observed, "value": values}
    regression(parity, inputs, {"leave_one_out": True}, factor=per_feature)


@pytest.mark.parametrize("dtype", DTYPES)
def test_observations_of_the_construction(parity: Parity, dtype: str) -> None:
    """They are data: their dtype is theirs, so there is a module for each."""
    with jax.enable_x64(dtype == "float64"):
        key, value = (jnp.asarray(scalars[name], dtype) for name in ("key", "value"))
        module = nn.NadarayaWatson(key, value, factor=0.8)
    torch_module = torch_ref.nn.NadarayaWatson(
        *(torch.as_tensor(scalars[name]) for name in ("key", "value")), factor=0.8
    ).double()
    parity(
        "NadarayaWatson, fixed observations",
        call_for_weights,
        call_for_weights,
        {"query": scalars["query"]},
        module=module,
        torch_module=torch_module,
        dtypes=(dtype,),
    )
