"""Rotary positions: numbers by hand, what queries and keys see of them, traced positions, values, every error."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import nn
from tests.settings import SETTINGS

T, H, D = 5, 3, 8
WIDE = jnp.asarray(np.random.default_rng(0).normal(size=(2, T, H, D + 4)).astype(np.float32))
X = WIDE[..., :D]
FACTORS = ((1.0, 1.0, 2.0, 2.0), (2.0, 3.0, 4.0, 5.0))
SCALINGS: dict[str, nn.RotaryScaling | None] = {
    "none": None,
    "linear": nn.LinearScaling(3.0),
    "dynamic": nn.DynamicNTKScaling(2.0, 4),
    "YaRN": nn.YaRNScaling(4.0, 64, attention_factor=1.0),
    "Llama 3": nn.Llama3Scaling(8.0, 1.0, 4.0, 64),
    "LongRoPE": nn.LongRoPEScaling(*FACTORS, 4, 4.0, attention_factor=1.0),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "halves": {},
    "interleaved": {"interleaved": True},
    "some": {"features": D},
    "some, interleaved": {"features": D, "interleaved": True},
}


def turned(x: list[float], position: int, **options: Any) -> np.ndarray:
    """One head at one position, turned in base 100, where a second pair turns a tenth as fast as the first."""
    heads = jnp.array(x, float).reshape(1, 1, -1)
    return np.asarray(nn.Rotary(100.0, **options)(heads, jnp.array([position])))[0, 0]


def test_halves_by_hand() -> None:
    """1 and 5 turn by 2, 3 and 7 by 0.2."""
    (c, s), (c2, s2) = (math.cos(2), math.sin(2)), (math.cos(0.2), math.sin(0.2))
    expected = [c - 5 * s, 3 * c2 - 7 * s2, 5 * c + s, 7 * c2 + 3 * s2]
    np.testing.assert_allclose(turned([1, 3, 5, 7], 2), expected, rtol=1e-6)


def test_interleaved_by_hand() -> None:
    """1 and 3 turn by 2, 5 and 7 by 0.2."""
    (c, s), (c2, s2) = (math.cos(2), math.sin(2)), (math.cos(0.2), math.sin(0.2))
    expected = [c - 3 * s, 3 * c + s, 5 * c2 - 7 * s2, 7 * c2 + 5 * s2]
    np.testing.assert_allclose(turned([1, 3, 5, 7], 2, interleaved=True), expected, rtol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_some_features_by_hand(interleaved: bool) -> None:
    """1 and 3 turn by 2, and 5 and 7 stay, bit for bit."""
    c, s = math.cos(2), math.sin(2)
    found = turned([1, 3, 5, 7], 2, features=2, interleaved=interleaved)
    np.testing.assert_allclose(found[:2], [c - 3 * s, 3 * c + s], rtol=1e-6)
    assert found[2:].tolist() == [5, 7]


def test_attention_factor_by_hand() -> None:
    """It multiplies what turns alone."""
    scaling = nn.YaRNScaling(1.0, 64, attention_factor=0.5)
    assert turned([1, 3, 5, 7], 0, features=2, scaling=scaling).tolist() == [0.5, 1.5, 5, 7]


RATIOS: dict[str, tuple[nn.RotaryScaling, int, list[float], float]] = {
    # scaling, length, the four frequencies in base 10,000 over 1, 0.1, 0.01 and 0.001, attention factor
    "linear": (nn.LinearScaling(4.0), 9, [1 / 4, 1 / 4, 1 / 4, 1 / 4], 1.0),
    "dynamic, short": (nn.DynamicNTKScaling(2.0, 10), 10, [1, 1, 1, 1], 1.0),
    # twice the length: growth is 1 + 2 * (2 - 1) = 3, and the slowest pair is scaled by all of it
    "dynamic, long": (nn.DynamicNTKScaling(2.0, 10), 20, [1, 3 ** (-1 / 3), 3 ** (-2 / 3), 1 / 3], 1.0),
    # ln(200 pi / 2 pi) / ln(10) = 2, so that pair 2 turns once, and pair 0 a hundred times
    "YaRN": (nn.YaRNScaling(3.0, 628, 100.0, 1.0), 9, [1, 2 / 3, 1 / 3, 1 / 3], 1 + 0.1 * math.log(3)),
    "YaRN, DeepSeek": (
        nn.YaRNScaling(math.e, 628, 100.0, 1.0, mscale=2.0, mscale_all_dim=4.0),
        9,
        [1, (1 + 1 / math.e) / 2, 1 / math.e, 1 / math.e],
        1.2 / 1.4,
    ),
    # turns are 100, 10, 1 and 0.1: from 4 to 16, 10 is halfway
    "Llama 3": (nn.Llama3Scaling(2.0, 4.0, 16.0, 628), 9, [1, 3 / 4, 1 / 2, 1 / 2], 1.0),
    "LongRoPE, short": (nn.LongRoPEScaling(*FACTORS, 10, 100.0), 10, [1, 1, 1 / 2, 1 / 2], math.sqrt(3)),
    "LongRoPE, long": (nn.LongRoPEScaling(*FACTORS, 10, 100.0), 11, [1 / 2, 1 / 3, 1 / 4, 1 / 5], math.sqrt(3)),
}


@pytest.mark.every_case
@pytest.mark.parametrize("case", RATIOS)
def test_scalings_by_hand(case: str) -> None:
    scaling, length, ratios, factor = RATIOS[case]
    frequencies, found = scaling.frequencies(10000.0, 8, jnp.arange(length, dtype=jnp.float32))
    # 628 is 200 pi but for 0.05 %
    np.testing.assert_allclose(np.asarray(frequencies) / [1, 0.1, 0.01, 0.001], ratios, rtol=1e-3)
    assert found == pytest.approx(factor)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_products_see_the_distance_alone(scaling: str, layout: str) -> None:
    """As long as the length, which some scalings look at, is the same."""
    rotary = nn.Rotary(50.0, **LAYOUTS[layout], scaling=SCALINGS[scaling])
    x = WIDE if "some" in layout else X
    query, key = (jnp.broadcast_to(one[:1], one.shape) for one in x)
    products = np.einsum("thd,shd->hts", rotary(query), rotary(key))
    for distance in range(1 - T, T):
        diagonal = np.diagonal(products, distance, 1, 2)
        np.testing.assert_allclose(diagonal, np.broadcast_to(diagonal[:, :1], diagonal.shape), atol=1e-5)
    assert abs(products[:, 0, 0] - products[:, 0, -1]).min() > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_position_0_stays(scaling: str, layout: str) -> None:
    x = WIDE if "some" in layout else X
    found = nn.Rotary(**LAYOUTS[layout], scaling=SCALINGS[scaling])(x)
    np.testing.assert_array_equal(found[:, 0], x[:, 0])
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-6)


@pytest.mark.parametrize("shape", [(T,), (1, T), (2, T)])
def test_positions_of_each_example(shape: tuple[int, ...]) -> None:
    positions = jnp.arange(np.prod(shape)).reshape(shape)
    whole = jnp.broadcast_to(positions, (2, T))
    rotary = nn.Rotary(50.0)
    for found, x, own in zip(rotary(X, positions), X, whole, strict=True):
        np.testing.assert_array_equal(found, rotary(x, own))


def test_defaults() -> None:
    np.testing.assert_array_equal(nn.Rotary()(X), nn.Rotary(10000.0)(X, jnp.arange(T)))
    np.testing.assert_array_equal(nn.rotary(X, base=50.0), nn.Rotary(50.0, features=D, scaling=None)(X))
    np.testing.assert_array_equal(nn.Rotary()(X, jnp.arange(T)), nn.Rotary()(X, jnp.arange(T) * 1.0))


def test_fractions_are_between() -> None:
    """Linear scaling is nothing but positions closer together."""
    scaled = nn.Rotary(scaling=nn.LinearScaling(4.0))(X)
    np.testing.assert_allclose(scaled, nn.Rotary()(X, jnp.arange(T) / 4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_traced_positions(scaling: str) -> None:
    """Those below and above the length at which some scalings change, in one program."""
    rotary = nn.Rotary(50.0, scaling=SCALINGS[scaling])
    compiled = jax.jit(lambda x, positions: rotary(x, positions))
    for last in (1, 3, 4, 400):
        positions = jnp.array([0, 1, 0, 1, last])
        np.testing.assert_allclose(compiled(X, positions), rotary(X, positions), rtol=2e-5, atol=2e-5)
    assert compiled._cache_size() == 1


@pytest.mark.parametrize("scaling", ["dynamic", "LongRoPE"])
def test_the_longest_example_decides(scaling: str) -> None:
    rotary = nn.Rotary(50.0, scaling=SCALINGS[scaling])
    below, above = jnp.arange(T) - 1, jnp.arange(T)  # the lengths are 4, up to where nothing changes, and 5
    unchanged, changed = rotary(X, below), rotary(X, jnp.stack([below, above]))
    assert abs(unchanged[0] - changed[0]).max() > 1e-2
    np.testing.assert_array_equal(rotary(X, above)[1], changed[1])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_angles_are_wide(dtype: Any) -> None:
    """Position 4001 is no bfloat16, nor is its angle."""
    x, positions = X.astype(dtype), jnp.arange(T) + 4001
    found = nn.Rotary(50.0, features=4)(x, positions)
    assert found.dtype == dtype
    expected = nn.Rotary(50.0, features=4)(x.astype(jnp.float32), positions)
    np.testing.assert_array_equal(found, expected.astype(dtype))


def test_float64(x64: None) -> None:
    positions = 1e6 + np.arange(T)
    found = nn.Rotary(50.0)(jnp.asarray(X, float), jnp.asarray(positions))
    angles = positions[:, None] * 50.0 ** (-np.arange(4) / 4)
    first, second = np.asarray(X, float)[..., :4], np.asarray(X, float)[..., 4:]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    expected = np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert found.dtype == np.float64


def test_no_positions_at_all() -> None:
    for scaling in SCALINGS.values():
        assert nn.Rotary(scaling=scaling)(X[:, :0]).shape == (2, 0, H, D)


def test_vmap() -> None:
    """Each example by itself, and by its own length."""
    rotary = nn.Rotary(50.0, scaling=SCALINGS["dynamic"])
    positions = jnp.stack([jnp.arange(T) - 1, jnp.arange(T)])
    found = jax.vmap(rotary)(X, positions)
    np.testing.assert_allclose(found[0], rotary(X[0], positions[0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_strict_settings(setting: str, scaling: str) -> None:
    rotary = nn.Rotary(50.0, features=D, interleaved=True, scaling=SCALINGS[scaling])
    with SETTINGS[setting]():
        jax.jit(lambda x, positions: rotary(x, positions))(X, jnp.arange(T))
        rotary(X.astype(jnp.bfloat16))


# values


EQUAL: dict[str, Callable[[], Any]] = {
    "plain": lambda: nn.Rotary(500, features=np.int64(4), interleaved=np.True_),
    "linear": lambda: nn.Rotary(scaling=nn.LinearScaling(np.float64(4))),
    "dynamic": lambda: nn.Rotary(scaling=nn.DynamicNTKScaling(2, np.int64(4))),
    "YaRN": lambda: nn.Rotary(scaling=nn.YaRNScaling(4, 64, mscale=1, mscale_all_dim=jnp.float32(2))),
    "Llama 3": lambda: nn.Rotary(scaling=nn.Llama3Scaling(8, 1, 4, 64)),
    "LongRoPE": lambda: nn.Rotary(scaling=nn.LongRoPEScaling([1, 2], np.array([3, 4]), 4, 4)),
}


@pytest.mark.every_case
@pytest.mark.usefixtures("unchecked")  # of which numbers Python's own are made
@pytest.mark.parametrize("name", EQUAL)
def test_equal_where_alike(name: str) -> None:
    one, other = EQUAL[name](), EQUAL[name]()
    assert one == other
    assert hash(one) == hash(other)
    assert eval(repr(one), vars(nn).copy()) == one
    assert len({one, *(make() for make in EQUAL.values())}) == len(EQUAL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.base = 3.0


def test_other_numbers_are_other_values() -> None:
    scalings = [
        nn.YaRNScaling(4.0, 64, truncate=truncate, beta_fast=fast)
        for truncate in (True, False)
        for fast in (32.0, 16.0)
    ]
    assert len({nn.Rotary(scaling=scaling) for scaling in scalings}) == 4
    assert nn.Rotary(features=4) != nn.Rotary()
    assert nn.LongRoPEScaling((1.0, 2.0), (3.0, 4.0), 4, 2.0) != nn.LongRoPEScaling((1.0, 2.0), (3.0, 5.0), 4, 2.0)


class Holder(nnx.Module):
    """A module with rotary positions of its own."""

    def __init__(self) -> None:
        self.rotary = nn.Rotary(50.0, scaling=nn.LongRoPEScaling(*FACTORS, 4, 4.0))
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.scale * self.rotary(x)


def test_structure_of_a_module() -> None:
    graph, state = nnx.split(Holder())
    assert graph == nnx.split(Holder())[0]
    assert hash(graph) == hash(nnx.split(Holder())[0])
    assert len(jax.tree.leaves(state)) == 1
    compiled = jax.jit(lambda graph, state, x: nnx.merge(graph, state)(x), static_argnums=0)
    np.testing.assert_allclose(compiled(graph, state, X), Holder()(X), rtol=2e-5, atol=2e-5)


def test_structure_of_a_program() -> None:
    traces = []

    @jax.jit
    def turn(rotary: nn.Rotary, x: jax.Array) -> jax.Array:
        traces.append(rotary)
        return rotary(x)

    turn(nn.Rotary(50.0), X), turn(nn.Rotary(50.0), X), turn(nn.Rotary(50.0, features=4), X)
    assert traces == [nn.Rotary(50.0), nn.Rotary(50.0, features=4)]


def test_a_base_that_is_traced() -> None:
    """As an argument of the function it need not be known, and has a gradient."""
    found = jax.jit(lambda base: nn.rotary(X, base=base))(50.0)
    np.testing.assert_allclose(found, nn.rotary(X, base=50.0), rtol=2e-5, atol=2e-5)
    assert jax.grad(lambda base: nn.rotary(X, base=base).sum())(50.0) != 0


def test_a_scaling_of_ones_own() -> None:
    @dataclasses.dataclass(frozen=True)
    class Constant(nn.RotaryScaling):
        frequency: float

        def frequencies(self, base: float, features: int, positions: Any) -> Any:
            return np.full(features // 2, self.frequency), 1.0

    assert nn.Rotary(scaling=Constant(0.5)) == nn.Rotary(scaling=Constant(0.5))
    np.testing.assert_allclose(nn.Rotary(scaling=Constant(0.5))(X), nn.Rotary(1.0)(X, jnp.arange(T) / 2), rtol=1e-5)


# errors


def of_tracer(f: Callable[[Any], Any]) -> Callable[[], Any]:
    return lambda: jax.jit(lambda x: f(x) and None)(2.0)


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "base": (lambda: nn.Rotary(0.0), "base must be a number in (0, inf). Got 0.0."),
    "base, infinite": (lambda: nn.Rotary(math.inf), "base must be a number in (0, inf). Got inf."),
    "base, traced": (
        of_tracer(lambda x: nn.Rotary(x, scaling=nn.LinearScaling(2.0))),
        "base must be known while tracing. Got a traced array; pass a Python number, or one that jit is told is "
        "static.",
    ),
    "features, odd": (lambda: nn.Rotary(features=3), "features must be even, as they turn in pairs. Got 3."),
    "features, none": (lambda: nn.Rotary(features=0), "features must be an integer in [2, inf). Got 0."),
    "features, a share": (lambda: nn.Rotary(features=0.5), "features must be an integer in [2, inf). Got 0.5."),
    "features, traced": (of_tracer(lambda x: nn.Rotary(features=x)), "features must be known while tracing."),
    "interleaved": (lambda: nn.Rotary(interleaved=1), "interleaved must be True or False. Got 1."),
    "scaling": (
        lambda: nn.Rotary(scaling=2.0),
        "scaling must be a RotaryScaling, such as jattn.nn.LinearScaling(2.0), or None. Got 2.0.",
    ),
    "x, integers": (lambda: nn.Rotary()(jnp.ones((T, H, D), int)), "x must be floating point. Got int32."),
    "x, axes": (lambda: nn.Rotary()(X[0, 0]), "x must have the axes *b t h d. Got shape (3, 8)."),
    "x, odd": (lambda: nn.Rotary()(X[..., 1:]), "x must have an even number of features for rotary positions. Got 7."),
    "x, narrow": (
        lambda: nn.Rotary(features=10)(X),
        "x must have at least features = 10 features on its last axis. Got 8.",
    ),
    "positions, one": (
        lambda: nn.Rotary()(X, jnp.arange(1)),
        "positions must have shape (5,) or (2, 5). Got (1,).",
    ),
    "positions, a number": (lambda: nn.Rotary()(X, 3), "positions must have shape (5,) or (2, 5). Got ()."),
    "positions, batch": (
        lambda: nn.Rotary()(X, jnp.ones((3, T))),
        "positions must have shape (5,) or (2, 5). Got (3, 5).",
    ),
    "positions, booleans": (lambda: nn.Rotary()(X, jnp.ones(T, bool)), "positions must be a real number. Got Array("),
    "linear": (lambda: nn.LinearScaling(0), "factor must be a number in (0, inf). Got 0."),
    "linear, traced": (of_tracer(nn.LinearScaling), "factor must be known while tracing. Got a traced array;"),
    "dynamic": (lambda: nn.DynamicNTKScaling("2", 4), "factor must be a number in (0, inf). Got '2'."),
    "dynamic, length": (
        lambda: nn.DynamicNTKScaling(2.0, 4.5),
        "max_length must be an integer in [1, inf). Got 4.5.",
    ),
    "dynamic, one pair": (
        lambda: nn.Rotary(features=2, scaling=nn.DynamicNTKScaling(2.0, 4))(X),
        "features must be at least 4 for DynamicNTKScaling, as it divides by n - 2. Got 2.",
    ),
    "YaRN": (lambda: nn.YaRNScaling(-1.0, 64), "factor must be a number in (0, inf). Got -1.0."),
    "YaRN, length": (lambda: nn.YaRNScaling(4.0, 0), "original_max_length must be an integer in [1, inf). Got 0."),
    "YaRN, betas": (lambda: nn.YaRNScaling(4.0, 64, 1, 32), "beta_fast must be at least beta_slow, 32.0. Got 1.0."),
    "YaRN, beta_slow": (lambda: nn.YaRNScaling(4.0, 64, 32, 0), "beta_slow must be a number in (0, inf). Got 0."),
    "YaRN, attention factor": (
        lambda: nn.YaRNScaling(4.0, 64, attention_factor=0.0),
        "attention_factor must be a number in (0, inf). Got 0.0.",
    ),
    "YaRN, one mscale": (
        lambda: nn.YaRNScaling(4.0, 64, mscale=1.0),
        "mscale and mscale_all_dim must be given together, as their quotient is what counts. Got mscale 1.0 and "
        "mscale_all_dim None; attention_factor says the quotient.",
    ),
    "YaRN, mscale": (
        lambda: nn.YaRNScaling(4.0, 64, mscale=-1.0, mscale_all_dim=1.0),
        "mscale must be a number in [0, inf). Got -1.0.",
    ),
    "YaRN, truncate": (lambda: nn.YaRNScaling(4.0, 64, truncate=None), "truncate must be True or False. Got None."),
    "YaRN, base": (
        lambda: nn.Rotary(1.0, scaling=nn.YaRNScaling(4.0, 64))(X),
        "base must be above 1 for YaRNScaling, as it divides by its logarithm. Got 1.0.",
    ),
    "Llama 3": (
        lambda: nn.Llama3Scaling(8.0, 4.0, 4.0, 64),
        "high_frequency_factor must be above low_frequency_factor, 4.0. Got 4.0.",
    ),
    "Llama 3, low": (
        lambda: nn.Llama3Scaling(8.0, 0.0, 4.0, 64),
        "low_frequency_factor must be a number in (0, inf). Got 0.0.",
    ),
    "LongRoPE, a number": (
        lambda: nn.LongRoPEScaling(2.0, FACTORS[1], 4, 4.0),
        "short_factors must be a tuple of numbers, one for each pair. Got 2.0.",
    ),
    "LongRoPE, one of them": (
        lambda: nn.LongRoPEScaling(FACTORS[0], (1.0, 0.0), 4, 4.0),
        "long_factors[1] must be a number in (0, inf). Got 0.0.",
    ),
    "LongRoPE, number of them": (
        lambda: nn.Rotary(scaling=nn.LongRoPEScaling(FACTORS[0], (1.0, 2.0), 4, 4.0))(X),
        "long_factors must have one number for each of the 4 pairs of features that turn. Got 2.",
    ),
    "LongRoPE, length": (
        lambda: nn.LongRoPEScaling(*FACTORS, 1, 4.0),
        "original_max_length must be an integer in [2, inf). Got 1.",
    ),
    "LongRoPE, attention factor": (
        lambda: nn.LongRoPEScaling(*FACTORS, 4, 4.0, math.nan),
        "attention_factor must be a number in (0, inf). Got nan.",
    ),
}


@pytest.mark.every_case
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
