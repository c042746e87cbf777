"""Causes in the optimiser: its steps are recomputed from PyTorch's gradients with one ingredient altered."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jattn.parity.arrays import error
from jattn.parity.catalogue import Diagnosis

__all__ = ["Replay", "diagnose_update"]

Parameters = Mapping[str, np.ndarray]
TOLERANCE = 1e-8  # of a recomputation, relative to the largest step


class Replay(NamedTuple):
    """The first steps, up to the one at which the parameters part."""

    start: Parameters
    gradients: Sequence[Parameters]
    torch: Sequence[Parameters]  # the parameters after each
    flax: Sequence[Parameters]
    names: Sequence[str]  # of the parameters to look at


@dataclasses.dataclass(frozen=True)
class UpdateRule:
    """How a step is made of a gradient: Adam's, or with b2 None that of gradient descent with momentum b1."""

    rate: float
    b1: float
    b2: float | None
    epsilon: float = 1e-8
    decay: float = 0.0
    decoupled: bool = False
    corrected: bool = True
    inside: bool = False  # whether epsilon is under the root


def diagnose_update(replay: Replay, settings: Mapping[str, Any]) -> Diagnosis | None:
    """The alteration that gives the port's steps, where the unaltered recipe gives PyTorch's."""
    recipe = _recipe(settings)
    if recipe is None or not _gives(recipe, replay, replay.torch):
        return None
    for diagnosis, changes in ALTERATIONS:
        altered = dataclasses.replace(recipe, **{n: f(recipe) for n, f in changes.items()})
        if altered != recipe and _gives(altered, replay, replay.flax):
            return diagnosis
    return None


def _recipe(settings: Mapping[str, Any]) -> UpdateRule | None:
    """Of PyTorch's optimiser; None for one that isn't known here."""
    kind, unusual = settings["optimizer"], ("amsgrad", "maximize", "nesterov", "dampening")
    if any(settings.get(name) for name in unusual):
        return None
    rate, decay = float(settings["lr"]), float(settings.get("weight_decay", 0))
    if kind in ("Adam", "AdamW"):
        b1, b2 = settings["betas"]
        decoupled = kind == "AdamW" or bool(settings.get("decoupled_weight_decay"))
        return UpdateRule(rate, float(b1), float(b2), float(settings["eps"]), decay, decoupled)
    return UpdateRule(rate, float(settings["momentum"]), None, decay=decay) if kind == "SGD" else None


def _gives(recipe: UpdateRule, replay: Replay, wanted: Sequence[Parameters]) -> bool:
    return all(_parameter_gives(recipe, replay, wanted, name) for name in replay.names)


def _parameter_gives(recipe: UpdateRule, replay: Replay, wanted: Sequence[Parameters], name: str) -> bool:
    x = replay.start[name]
    first, second = np.zeros_like(x), np.zeros_like(x)
    for i, (gradients, after) in enumerate(zip(replay.gradients, wanted, strict=True), 1):
        g = gradients[name] + (0 if recipe.decoupled else recipe.decay * x)
        if recipe.b2 is None:
            first = recipe.b1 * first + g
            change = first
        else:
            first = recipe.b1 * first + (1 - recipe.b1) * g
            second = recipe.b2 * second + (1 - recipe.b2) * g**2
            m, v = ((y / (1 - b**i) if recipe.corrected else y) for y, b in ((first, recipe.b1), (second, recipe.b2)))
            change = m / (np.sqrt(v + recipe.epsilon) if recipe.inside else np.sqrt(v) + recipe.epsilon)
        x = x - recipe.rate * (change + (recipe.decay * x if recipe.decoupled else 0))
        if error(x, after[name]) > TOLERANCE:
            return False
    return True


ALTERATIONS: list[tuple[Diagnosis, dict[str, Any]]] = [
    (
        Diagnosis(
            "weight decay: decoupled for L2",
            "One side adds the decay to the gradient, the other to the step.",
            "torch.optim.Adam's weight_decay is an L2 penalty in the gradient; AdamW's and optax.adamw's is decoupled.",
            "Use jattn.training.adam or adamw, which mean what PyTorch's of the same name mean.",
        ),
        {"decoupled": lambda r: not r.decoupled},
    ),
    (
        Diagnosis(
            "no weight decay",
            "The port's parameters don't decay.",
            "optax.adam and optax.sgd have no weight decay.",
            "Use the optimiser of the same name in jattn.training.",
        ),
        {"decay": lambda r: 0.0},
    ),
    (
        Diagnosis(
            "another weight decay",
            "The port's parameters decay by 1e-4 of themselves times the rate.",
            "That is optax.adamw's default; torch.optim.AdamW's is 1e-2.",
            "Give both the same, or use jattn.training.adamw, which has PyTorch's default.",
        ),
        {"decay": lambda r: 1e-4},
    ),
    (
        Diagnosis(
            "no bias correction",
            "The port's moments are not divided by 1 - b**step.",
            "Without it the first steps of Adam are of another size.",
            "Use jattn.training.adam.",
        ),
        {"corrected": lambda r: False},
    ),
    (
        Diagnosis(
            "Adam's epsilon under the root",
            "The port adds epsilon before the root is taken.",
            "Adam divides by sqrt(v) + eps; optax has eps_root for the other place.",
            "Give it as eps, not as eps_root.",
        ),
        {"inside": lambda r: True},
    ),
    (
        Diagnosis(
            "another epsilon",
            "The port's Adam has epsilon 1e-7, as TensorFlow's.",
            "PyTorch's default is 1e-8.",
            "Give both the same.",
        ),
        {"epsilon": lambda r: 1e-7},
    ),
]
