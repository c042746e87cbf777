"""Every score: its logits, and the gradients of query, key and the score's own parameters."""

import numpy as np
import pytest

import torch_ref
from jattn import scores
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity

B, T, S, H, D = 2, 5, 7, 3, 4
FLOAT64 = ("float64",)
KERNELS = {
    "gaussian": (scores.Gaussian, torch_ref.gaussian),
    "boxcar": (scores.Boxcar, torch_ref.boxcar),
    "epanechnikov": (scores.Epanechnikov, torch_ref.epanechnikov),
}

# On the lattice below, u^2 = 4 |query - key|^2 / 7.5625 for these bandwidths: whole numbers over 7.5625, so that no key
# comes within 5% of a kernel's edge and no rounding moves one across it.
BANDWIDTHS = {
    "bandwidth": {"bandwidth": np.array(1.375)},
    "bandwidth per feature": {"bandwidth": np.array([1.375, 0.6875, 1.375, 2.75])},
    "factor": {"factor": np.array(0.7265625)},
    "factor per feature": {"factor": np.array([0.7265625, -0.7265625, 1.453125, 0.0])},
}


# The gradient of a bandwidth sums hundreds of terms of either sign, of which little remains. XLA adds arrays this small
# from first to last, PyTorch adds halves, and float32 would compare the two sums; so there it gets few terms.
SIZES = (("float64", T, S, H), ("bfloat16", T, S, H), ("float32", 2, 3, 1))


def lattice(b: tuple[int, ...] = (B,), t: int = T, s: int = S, h: int = H, seed: int = 8) -> dict[str, np.ndarray]:
    """Queries and keys on a lattice that bfloat16 holds, with steps twice as wide in the last feature."""
    rng = np.random.default_rng(seed)
    step = np.array([0.5, 0.5, 0.5, 1.0])
    return {
        "query": rng.integers(-1, 2, (*b, t, h, D)) * step,
        "key": rng.integers(-1, 2, (*b, s, h, D)) * step,
    }


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("b", [(), (B,), (3, B)])
def test_dot_product(parity: Parity, b: tuple[int, ...]) -> None:
    inputs = {"query": normal(*b, T, H, D), "key": normal(*b, S, H, D, seed=1)}
    parity(
        "score, dot product",
        lambda query, key: scores.DotProduct()(query, key),
        torch_ref.dot_product,
        inputs,
        dtypes=DTYPES if b == (B,) else FLOAT64,
    )


@pytest.mark.parametrize("scale", [0.3, 0.0])
def test_dot_product_with_its_scale(parity: Parity, scale: float) -> None:
    inputs = {"query": normal(B, T, H, D), "key": normal(B, S, H, D, seed=1), "scale": np.array(scale)}
    parity(
        "score, dot product",
        lambda query, key, scale: scores.DotProduct(scale)(query, key),
        torch_ref.dot_product,
        inputs,
        dtypes=DTYPES if scale == 0.3 else FLOAT64,
    )


@pytest.mark.parametrize("size", [1.0, 10.0])
def test_additive(parity: Parity, size: float) -> None:
    inputs = {
        "query": size * normal(B, T, H, 3),
        "key": size * normal(B, S, H, D, seed=1),
        "w_query": normal(3, 6, seed=2),
        "w_key": normal(D, 6, seed=3),
        "w_value": normal(6, seed=4),
    }
    parity(
        "score, additive",
        lambda query, key, **weights: scores.Additive(**weights)(query, key),
        torch_ref.additive,
        inputs,
    )


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("width", BANDWIDTHS)
@pytest.mark.every_case
def test_kernel(parity: Parity, name: str, width: str) -> None:
    ours, theirs = KERNELS[name]
    for dtype, t, s, h in SIZES if width in ("bandwidth", "factor per feature") else SIZES[:1]:
        b = (B,) if h == H else ()
        parity(
            "score, kernels",
            lambda query, key, **width: ours(**width)(query, key),
            theirs,
            lattice(b, t, s, h) | BANDWIDTHS[width],
            dtypes=(dtype,),
        )


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_of_bandwidth_one_at_its_very_edge(parity: Parity, name: str) -> None:
    """Without a bandwidth the lattice is computed with exactly, and holds keys on the edge: u is 1."""
    ours, theirs = KERNELS[name]
    dtypes = ("float64", "float32")
    parity("score, kernels", lambda query, key: ours()(query, key), theirs, lattice((3, B), seed=1), dtypes=dtypes)


@pytest.mark.parametrize("name", KERNELS)
def test_fixed_bandwidth(parity: Parity, name: str) -> None:
    ours, theirs = KERNELS[name]
    for width in ({"bandwidth": 1.375}, {"factor": 0.7265625}):
        parity(
            "score, kernels",
            lambda query, key, **w: ours(**w)(query, key),
            theirs,
            lattice(),
            width,
            dtypes=("float32",),
        )


def test_kernel_of_features_far_from_zero(parity: Parity) -> None:
    inputs = {"query": 1000 + normal(B, T, H, D), "key": 1000 + normal(B, S, H, D, seed=1), "bandwidth": np.array(0.5)}
    parity(
        "score, kernels",
        lambda query, key, bandwidth: scores.Gaussian(bandwidth)(query, key),
        torch_ref.gaussian,
        inputs,
    )


def test_constant(parity: Parity) -> None:
    inputs = {"query": normal(B, T, H, D), "key": normal(B, S, H, D, seed=1)}
    parity("score, constant", lambda query, key: scores.Constant()(query, key), torch_ref.constant, inputs)


def test_the_lattice_has_keys_inside_outside_and_on_the_edge() -> None:
    for width in BANDWIDTHS.values():
        for points in (lattice(), lattice((), *SIZES[-1][1:])):
            u = _u_squared(points, width)
            assert (u < 0.95).mean() > 0.2
            assert (u > 1.05).mean() > 0.2
            assert not ((u >= 0.95) & (u <= 1.05)).any()
    assert (_u_squared(lattice((3, B), seed=1), {}) == 1).any()


def _u_squared(points: dict[str, np.ndarray], width: dict[str, np.ndarray]) -> np.ndarray:
    difference = points["query"][..., :, None, :, :] - points["key"][..., None, :, :, :]
    return ((difference / width.get("bandwidth", 1) * width.get("factor", 1)) ** 2).sum(-1)
