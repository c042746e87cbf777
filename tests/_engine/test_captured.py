"""A function of the caller's is compiled once as long as what it sees is the same, and anew where that has changed."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import attention, attention_weights, biases, masks, scores
from jattn._engine.captured import as_seen
from tests.errors import raises

x = jax.random.normal(jax.random.key(0), (1, 6, 2, 4))
slope = 1.0
settings = {"slope": 1.0}


class Slope(nnx.Module):
    def __init__(self) -> None:
        self.slope = nnx.Param(jnp.array(1.0))

    def rule(self, q: Any, k: Any) -> Any:
        return -self.slope[...] * abs(q - k)

    def __call__(self, q: Any, k: Any) -> Any:
        return self.rule(q, k)


@dataclasses.dataclass
class Shift:
    n: int

    def __call__(self, q: Any, k: Any) -> Any:
        return k <= q + self.n


def of_global(q: Any, k: Any) -> Any:
    return -slope * abs(q - k)


def of_dictionary(q: Any, k: Any) -> Any:
    return (lambda: -settings["slope"] * abs(q - k))()  # a function within


def of_helper(q: Any, k: Any) -> Any:
    return of_global(q, k)


def of_array(array: np.ndarray) -> Callable[..., Any]:
    return lambda q, k: -array[0] * abs(q - k)


def of_set(allowed: set[float]) -> Callable[..., Any]:
    return lambda q, k: -max(allowed) * abs(q - k)


def of_partial(values: list[float]) -> Callable[..., Any]:
    return functools.partial(lambda values, q, k: -values[0] * abs(q - k), values)


def change_global() -> None:
    global slope
    slope = 3.0


module, array, values, allowed = Slope(), np.ones(1), [1.0], {1.0}
CHANGES: dict[str, tuple[Any, Callable[[], Any]]] = {
    "a method": (module.rule, lambda: module.slope.set_value(jnp.array(3.0))),
    "a module": (module, lambda: module.slope.set_value(jnp.array(3.0))),
    "a global": (of_global, change_global),
    "a dictionary": (of_dictionary, lambda: settings.update(slope=3.0)),
    "through a helper": (of_helper, change_global),
    "an array of NumPy's": (of_array(array), lambda: array.fill(3.0)),
    "a set": (of_set(allowed), lambda: allowed.add(3.0)),
    "a partial": (of_partial(values), lambda: values.__setitem__(0, 3.0)),
}


@pytest.fixture
def as_at_first() -> None:
    global slope
    slope = settings["slope"] = values[0] = 1.0
    array.fill(1.0)
    allowed.discard(3.0)
    module.slope.set_value(jnp.array(1.0))


@pytest.mark.every_case
@pytest.mark.parametrize("implementation", ["dense", "streaming"])
@pytest.mark.parametrize(("f", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_what_has_changed_is_seen(f: Any, change: Callable[[], Any], implementation: Any, as_at_first: None) -> None:
    def attend(bias: biases.Bias) -> Any:
        return attention(x, x, x, bias=bias, implementation=implementation)

    rule = biases.where(f)
    outputs = [attend(rule)]
    change()
    outputs.append(attend(rule))
    for of_slope, output in zip((1.0, 3.0), outputs, strict=True):
        expected = attend(biases.where(lambda q, k, slope: -slope * abs(q - k), slope=jnp.array(of_slope)))
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["dense", "streaming"])
def test_training_sees_its_steps(implementation: Any, as_at_first: None) -> None:
    def loss(model: Slope) -> Any:
        return (attention(x, x, x, bias=biases.where(model.rule), implementation=implementation) ** 2).mean()

    gradient = nnx.grad(loss)(module)["slope"][...]
    step = 1e-2
    at = []
    for value in (1.0 + step, 1.0 - step):
        module.slope.set_value(jnp.array(value))
        at.append(loss(module))
    np.testing.assert_allclose(gradient, (at[0] - at[1]) / (2 * step), rtol=1e-2)


def test_what_is_alike_is_compiled_once() -> None:
    traced = []

    def rule(number: float) -> masks.Mask:
        return masks.where(lambda q, k: traced.append(number) or k <= q + number)  # type: ignore[func-returns-value]

    def attend(number: float) -> None:
        traced.clear()  # which the function sees, too: as it is at each call
        attention(x, x, x, mask=rule(number))

    attend(1)
    first = len(traced)
    attend(1)
    again = len(traced)
    attend(2)
    assert again < first
    assert len(traced) == first


def test_equal_and_not() -> None:
    def of(n: Any, step: int = 1) -> Any:
        return lambda q, k: k <= q + n * step

    assert as_seen(of(1)) == as_seen(of(1))
    assert hash(as_seen(of(1))) == hash(as_seen(of(1)))
    assert as_seen(of(1)) != as_seen(of(2))
    assert as_seen(of(1)) != as_seen(of(1.0))
    assert as_seen(of(1)) != as_seen(of(1, step=2))
    assert as_seen(jnp.tanh) is jnp.tanh
    assert as_seen(as_seen(of(1))) == as_seen(of(1))
    assert masks.where(of(3)) == masks.where(of(3))
    assert as_seen(Shift(1)) == as_seen(Shift(1))
    assert as_seen(Shift(1)) != as_seen(Shift(2))
    assert as_seen(Shift(1).__call__) == as_seen(Shift(1).__call__)


def test_what_refers_to_itself() -> None:
    def f(q: Any, k: Any, deep: bool = True) -> Any:
        return f(q, k, deep=False) if deep else k <= q

    ring: list[Any] = [f]
    ring.append(ring)
    assert as_seen(f) == as_seen(f)
    assert as_seen(functools.partial(f, deep=ring)) == as_seen(functools.partial(f, deep=ring))


class ByHead(biases.Bias):
    slopes: jax.Array

    def formula(self, grid: masks.Grid) -> Any:
        return -self.slopes[:, None, None] * abs(grid.query - grid.key)


slopes = jnp.array([0.5, 0.25])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.every_case
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: {"bias": biases.where(lambda q, k: -slopes[:, None, None] * abs(q - k))}, 'as in name=("h", array)'),
        (lambda: {"bias": biases.where(lambda q, k, s: -s * abs(q - k), s=slopes)}, 'as in name=("h", array)'),
        (lambda: {"bias": ByHead(slopes)}, 'as in name: Array = over("h")'),
        (
            lambda: {"mask": masks.where(lambda q, k: abs(q - k) > slopes[:, None, None])},
            "f must return booleans that broadcast to (1, 1, 1, 1), the axes *b h t s. Got bool, shape (1, 2, 1, 1).",
        ),
        (
            lambda: {"score": scores.modified(lambda x, q, k: x - slopes[:, None, None] * abs(q - k))},
            "f must return floating-point logits of the shape (1, 1, 1, 1) that it is given. Got shape (1, 2, 1, 1)",
        ),
        (lambda: {"score": scores.modified(lambda x, q, k: x * jnp.ones(5))}, 'as in name=("h", array)'),
        (lambda: {"mask": masks.where(lambda q, k: (q - k) % 3)}, "f must return booleans. Got int32. Compare it"),
        (lambda: {"bias": biases.where(lambda q, k: -abs(q - k))}, "Got int32. Convert it with .astype(jnp.float32)."),
    ],
)
def test_what_has_axes_that_nobody_knows_of(given: Callable[[], dict[str, Any]], message: str) -> None:
    """A block of one head would get the first of them, and the whole matrix each its own."""
    for f in (attention, lambda q, k, v, **given: attention_weights(q, k, **given)):
        with raises(message):
            f(x, x, x, **given())
