"""Causes in the sublayer of two or three projections: its activation, and what that is multiplied by."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from jattn.parity.arrays import error, largest
from jattn.parity.cause import Cause, maps_within, outermost
from jattn.parity.locate import Site

__all__ = ["MLP_CAUSES"]

_erf = np.vectorize(math.erf, otypes=[float])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


ACTIVATION_FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the exact GELU": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "the tanh GELU": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "ReLU": lambda x: np.maximum(x, 0),
    "SiLU": lambda x: x * _sigmoid(x),
    "the sigmoid GELU": lambda x: x * _sigmoid(1.702 * x),
    "the square of ReLU": lambda x: np.maximum(x, 0) ** 2,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "leaky ReLU": lambda x: np.where(x > 0, x, 0.01 * x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "no activation": lambda x: x,
}


@dataclasses.dataclass(frozen=True, eq=False)
class _Unit:
    """``activation(gate) * (up + offset)``, or the activation alone, and a projection of it."""

    gate: np.ndarray
    up: np.ndarray | None
    activation: str
    names: tuple[str, str]
    offset: float = 0.0
    limit: float | None = None  # gate <= limit, -limit <= up <= limit
    out: tuple[np.ndarray, np.ndarray] | None = None

    def value(self) -> np.ndarray:
        gate, up = self.gate, self.up
        if self.limit is not None:
            gate = np.minimum(gate, self.limit)
            up = None if up is None else np.clip(up, -self.limit, self.limit)
        y = ACTIVATION_FORMULAS[self.activation](gate)
        y = y if up is None else y * (up + self.offset)
        return y if self.out is None else y @ self.out[0].T + self.out[1]

    def altered(self, **changes: object) -> "_Unit":
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def _unit_at(site: Site) -> _Unit | None:
    """PyTorch's."""
    if "_unit" not in vars(site):
        vars(site)["_unit"] = next((unit for unit in _units(site) if _gives_torch(site, unit)), None)
    return vars(site)["_unit"]


def _gives_torch(site: Site, unit: _Unit) -> bool:
    """Whether the value is PyTorch's; of what is not, a few numbers say so."""
    few, whole = (x[(slice(0, 1),) * (x.ndim - 1)] for x in (unit.gate, site.torch))
    part = unit.altered(gate=few, up=None if unit.up is None else unit.up[(slice(0, 1),) * (unit.up.ndim - 1)])
    return error(part.value(), whole, largest(site.torch) or 1.0) <= site.tolerance and site.is_torch(unit.value())


def _units(site: Site) -> Iterator[_Unit]:
    outs: list[tuple[np.ndarray, np.ndarray] | None] = [None]
    if not site.where.startswith("the input"):
        outs += maps_within(site)
    for out in outs:
        shape = site.torch.shape if out is None else (*site.torch.shape[:-1], out[0].shape[1])
        if out is not None and len(out[0]) != site.torch.shape[-1]:
            continue
        inner = [x for x in outermost(site) if x.array.shape == shape]
        double = [x for x in outermost(site) if x.array.shape == (*shape[:-1], 2 * shape[-1])]
        # That PyTorch has no activation would say only that it goes on with known numbers.
        for x, name in itertools.product(inner, list(ACTIVATION_FORMULAS)[:-1]):
            yield _Unit(x.array, None, name, (x.name, ""), out=out)
        pairs = [(x.array, y.array, (x.name, y.name)) for x, y in itertools.permutations(inner, 2)]
        for x in double:
            for first, second, how in _halves(x.array):
                halves = (f"the {how[0]} of {x.name}", f"the {how[1]} of {x.name}")
                pairs += [(first, second, halves), (second, first, halves[::-1])]
        limits = [None, *(x for name, xs in site.attributes.items() if "limit" in name for x in xs if x > 0)]
        for (gate, up, names), limit, offset in itertools.product(pairs, limits, (0.0, 1.0)):
            for name in list(ACTIVATION_FORMULAS) if offset == 0 else ["the sigmoid GELU", "SiLU"]:
                yield _Unit(gate, up, name, names, offset, limit, out)


def _halves(x: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[str, str]]]:
    first, second = np.split(x, 2, -1)
    yield first, second, ("first half", "second half")
    yield x[..., ::2], x[..., 1::2], ("even features", "odd features")


# ----------------------------------------------------------------------------------------------------------------------
# Causes.


def _activation_of_port(site: Site) -> str | None:
    unit = _unit_at(site)
    if unit is None:
        return None
    names = (name for name in ACTIVATION_FORMULAS if name != unit.activation)
    return next((name for name in names if site.is_flax(unit.altered(activation=name).value())), None)


def _told_activations(site: Site, ours: str) -> str:
    unit = _unit_at(site)
    return f"The port has {ours}, PyTorch has {'' if unit is None else unit.activation}."


def gelu_form(site: Site) -> str | None:
    ours, unit = _activation_of_port(site), _unit_at(site)
    if ours is None or unit is None or "GELU" not in ours or "GELU" not in unit.activation:
        return None
    return _told_activations(site, ours)


def activation(site: Site) -> str | None:
    ours = _activation_of_port(site)
    return None if ours is None or gelu_form(site) is not None else _told_activations(site, ours)


def gate_for_up(site: Site) -> str | None:
    unit = _unit_at(site)
    if unit is None or unit.up is None or not site.is_flax(unit.altered(gate=unit.up, up=unit.gate).value()):
        return None
    return f"The port activates {unit.names[1]}, PyTorch {unit.names[0]}."


def missing_gate(site: Site) -> str | None:
    unit = _unit_at(site)
    if unit is None or unit.up is None:
        return None
    if site.is_flax(unit.altered(up=None).value()):
        return f"{unit.names[1]} has no effect in the port."
    if site.is_flax(unit.altered(gate=unit.up, up=None, activation="no activation").value()):
        return f"{unit.names[0]} has no effect in the port."
    return None


def order_of_halves(site: Site) -> str | None:
    unit = _unit_at(site)
    if unit is None or unit.up is None:
        return None
    for x in (x.array for x in outermost(site) if x.array.shape[:-1] == unit.gate.shape[:-1]):
        if x.shape[-1] != 2 * unit.gate.shape[-1]:
            continue
        for first, second, how in _halves(x):
            if how[0] in unit.names[0] or how[0] in unit.names[1]:
                continue
            for gate, up in ((first, second), (second, first)):
                if site.is_flax(unit.altered(gate=gate, up=up).value()):
                    return f"The port takes the {how[0]} and the {how[1]} for gate and up projection."
    return None


def clamped_gate(site: Site) -> str | None:
    unit = _unit_at(site)
    if unit is None or unit.up is None:
        return None
    for offset, limit in itertools.product(dict.fromkeys([unit.offset, 0.0]), dict.fromkeys([unit.limit, None])):
        changed = (offset, limit) != (unit.offset, unit.limit)
        if changed and site.is_flax(unit.altered(offset=offset, limit=limit).value()):
            lost = [f"adds no {unit.offset:.4g} to it"] if offset != unit.offset else []
            lost += [f"doesn't clamp at {unit.limit:.4g}"] if limit != unit.limit else []
            return f"The port {' and '.join(lost)} before it multiplies."
    return None


MLP_CAUSES = [
    Cause(
        "exact or tanh GELU",
        "jax.nn.gelu is the tanh approximation by default, torch.nn.functional.gelu the exact one; CLIP and GPT-OSS "
        "have x * sigmoid(1.702 x).",
        "Use jax.nn.gelu(x, approximate=False), or True where PyTorch has approximate='tanh'.",
        gelu_form,
    ),
    Cause(
        "another activation",
        "The activation functions differ.",
        "Use the one of PyTorch's module.",
        activation,
    ),
    Cause(
        "gate and up projection swapped",
        "A gated sublayer is activation(gate) * up: only one of the two goes through the activation.",
        "Activate the gate.",
        gate_for_up,
    ),
    Cause(
        "missing gate",
        "A gated sublayer is a product of two projections, of which the port has one.",
        "Multiply both.",
        missing_gate,
    ),
    Cause(
        "halves of a packed gate",
        "A projection to gate and up at once may have them one after the other, or every second feature.",
        "Split it as PyTorch's module does.",
        order_of_halves,
    ),
    Cause(
        "clamped gate",
        "GPT-OSS clamps gate and up projection and adds one to the latter.",
        "Do so in the port.",
        clamped_gate,
    ),
]
