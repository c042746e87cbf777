"""Causes in a norm: which kind it is, its epsilon, what it divides by and what it multiplies by."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jattn.parity.cause import Cause, agreed_within, outermost
from jattn.parity.locate import Site

__all__ = ["NORM_CAUSES"]


class NormSettings(NamedTuple):
    """How numbers are normalised."""

    centered: bool = True  # a layer norm, not an RMS norm
    less: int = 0  # the variance divides by the width less so many
    plus_one: bool = False  # whether the scale is 1 + weight
    scaled: bool = True  # whether there is a scale
    shifted: bool = True  # whether the bias is added
    outside: bool = False  # whether epsilon is added to the root
    parts: int = 1  # the last axis is normalised in so many parts; 0: together with the axis before
    epsilon: float = 0.0


def normalise(x: np.ndarray, how: NormSettings, weight: np.ndarray | None, bias: np.ndarray | None) -> np.ndarray:
    """A norm, plainly."""
    shape = x.shape
    rows = x.reshape(*shape[:-2], -1) if how.parts == 0 else x.reshape(*shape[:-1], how.parts, -1)
    deviation, square = _deviation(rows, how)
    root = np.sqrt(square) + how.epsilon if how.outside else np.sqrt(square + how.epsilon)
    y = (deviation / root).reshape(shape)
    if how.scaled and weight is not None:
        y = y * (_tiled(weight, shape[-1]) + how.plus_one)
    return y + _tiled(bias, shape[-1]) if how.shifted and bias is not None else y


def _tiled(x: np.ndarray, width: int) -> np.ndarray:
    """As wide as the last axis; parameters of one head are those of each."""
    return np.tile(x, width // len(x)) if len(x) < width else x


def _deviation(rows: np.ndarray, how: NormSettings) -> tuple[np.ndarray, np.ndarray]:
    deviation = rows - rows.mean(-1, keepdims=True) if how.centered else rows
    return deviation, (deviation**2).sum(-1, keepdims=True) / (rows.shape[-1] - how.less)


# ----------------------------------------------------------------------------------------------------------------------
# What both sides do.


class FoundNorm(NamedTuple):
    """The settings of both sides."""

    name: str
    torch: NormSettings
    flax: NormSettings

    def differ_in(self, *names: str) -> bool:
        """Whether they differ in one of these, among others."""
        return any(getattr(self.torch, name) != getattr(self.flax, name) for name in names)


def _norm_at(site: Site) -> FoundNorm | None:
    if "_norm" not in vars(site):
        vars(site)["_norm"] = next(_norms(site), None)
    return vars(site)["_norm"]


def _norms(site: Site) -> Iterator[FoundNorm]:
    """The kinds of norm that give both sides' numbers from numbers that agree."""
    agreed = agreed_within(site)
    for x in (x.array for x in outermost(site) if x.array.shape == site.torch.shape):
        for layer in [*(layer for layer in site.layers if layer.name not in agreed), None]:
            weight = None if layer is None else layer.parameters.get("weight", layer.parameters.get("scale"))
            bias = None if layer is None else layer.parameters.get("bias")
            if layer is not None and (weight is None or weight.ndim != 1 or x.shape[-1] % len(weight)):
                continue
            if layer is None and site.layers:  # a norm without parameters is a module of its own, or none
                continue
            ways = _ways(x, weight, bias, site.heads)
            theirs = next(_fitting(site, x, site.torch, weight, bias, ways), None)
            if theirs is None:
                continue
            # As like PyTorch's as can be: what says less about the difference is tried first.
            ways.sort(key=lambda how: sum(a != b for a, b in zip(how[:-1], theirs[:-1], strict=True)))
            ours = next(_fitting(site, x, site.flax, weight, bias, ways, theirs.epsilon), None)
            if ours is not None:
                yield FoundNorm((layer.name if layer is not None else "") or "It", theirs, ours)


def _ways(x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, heads: list[int]) -> list[NormSettings]:
    width = x.shape[-1]
    parts = [width // len(weight)] if weight is not None and len(weight) < width else [1]
    parts += [1, *(h for h in heads if width % h == 0 and h < width), *([0] if x.ndim > 3 else [])]
    has_weight, has_bias = weight is not None, bias is not None
    return [
        NormSettings(*how)
        for how in itertools.product(
            (True, False),
            (0, 1),
            (False, True) if has_weight else (False,),
            (True, False) if has_weight else (False,),
            (True, False) if has_bias else (False,),
            (False, True),
            tuple(dict.fromkeys(parts)),
        )
        if not (how[2] and not how[3]) and not (how[1] and not how[0])
    ]


def _fitting(
    site: Site,
    x: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    ways: list[NormSettings],
    likely: float = 1e-5,
) -> Iterator[NormSettings]:
    for how in ways if y.shape == x.shape else ():
        for epsilon in (likely, _epsilon(x, y, how, weight, bias)):
            full = how._replace(epsilon=epsilon)
            if site.same(normalise(x, full, weight, bias), y):
                yield full


def _epsilon(
    x: np.ndarray, y: np.ndarray, how: NormSettings, weight: np.ndarray | None, bias: np.ndarray | None
) -> float:
    """Of ``y = c / sqrt(v + epsilon)``, from its ratio to what it would be without; to two digits."""
    without = normalise(x, how._replace(epsilon=0.0), weight, bias)
    if how.shifted and bias is not None:
        y, without = y - _tiled(bias, x.shape[-1]), without - _tiled(bias, x.shape[-1])
    rows = x.reshape(*x.shape[:-2], -1) if how.parts == 0 else x.reshape(*x.shape[:-1], how.parts, -1)
    square = _deviation(rows, how)[1]
    ratio = (without / y).reshape(rows.shape)
    each = (ratio - 1) * np.sqrt(square) if how.outside else (ratio**2 - 1) * square
    large = np.abs(without.reshape(rows.shape)) > 0.3 * np.abs(without).mean()
    # Where the variance is small, epsilon shows most.
    each = np.where(np.isfinite(each) & large, each, np.nan)
    each = np.take_along_axis(each, square.argmin(-2, keepdims=True), -2) if each.size else each
    value = float(np.nanmedian(each)) if np.isfinite(each).any() else 0.0
    return max(0.0, float(f"{value:.1e}")) if np.isfinite(value) else 0.0


# ----------------------------------------------------------------------------------------------------------------------
# Causes.


def _differs(*names: str) -> Callable[[Site], FoundNorm | None]:
    def test(site: Site) -> FoundNorm | None:
        found = _norm_at(site)
        return found if found is not None and found.differ_in(*names) else None

    return test


def norm_epsilon(site: Site) -> str | None:
    found = _differs("epsilon")(site)
    if found is None:
        return None
    return f"{found.name} has epsilon {found.flax.epsilon:.2g} in the port, {found.torch.epsilon:.2g} in PyTorch."


def place_of_epsilon(site: Site) -> str | None:
    found = _differs("outside")(site)
    if found is None:
        return None
    kinds = [f"{'to' if how.outside else 'under'} the root" for how in (found.flax, found.torch)]
    return f"{found.name} adds epsilon {kinds[0]} in the port, {kinds[1]} in PyTorch."


def norm_kind(site: Site) -> str | None:
    found = _differs("centered")(site)
    if found is None:
        return None
    kinds = [f"{'a layer' if how.centered else 'an RMS'} norm" for how in (found.flax, found.torch)]
    return f"{found.name} is {kinds[0]} in the port, {kinds[1]} in PyTorch."


def unbiased_variance(site: Site) -> str | None:
    found = _differs("less")(site)
    if found is None or found.differ_in("centered"):
        return None
    return f"{found.name} divides by m - {found.flax.less} in the port, by m - {found.torch.less} in PyTorch."


def one_plus_weight(site: Site) -> str | None:
    found = _differs("plus_one")(site)
    if found is None or found.differ_in("scaled"):
        return None
    ours, theirs = ("1 + its weight" if how.plus_one else "its weight" for how in (found.flax, found.torch))
    return f"{found.name} multiplies by {ours} in the port, by {theirs} in PyTorch."


def parameters_of_norm(site: Site) -> str | None:
    found = _differs("scaled", "shifted")(site)
    if found is None:
        return None
    name = "weight" if found.differ_in("scaled") else "bias"
    has = found.torch.scaled if name == "weight" else found.torch.shifted
    return f"The {name} of {found.name} has no effect {'in the port' if has else 'in PyTorch, but in the port'}."


def width_of_norm(site: Site) -> str | None:
    found = _differs("parts")(site)
    if found is None:
        return None
    told = [
        "over the last two axes" if n == 0 else "over the last axis" if n == 1 else f"in {n} parts of the last axis"
        for n in (found.flax.parts, found.torch.parts)
    ]
    return f"{found.name} normalises {told[0]} in the port, {told[1]} in PyTorch."


NORM_CAUSES = [
    Cause(
        "layer-norm epsilon",
        "The epsilon of a norm is another one. PyTorch's LayerNorm has 1e-5 by default, Flax's 1e-6, BERT 1e-12.",
        "Give the port's norm the epsilon of PyTorch's; jattn.nn.LayerNorm has PyTorch's default.",
        norm_epsilon,
    ),
    Cause(
        "place of epsilon",
        "Epsilon is added to the variance under the root, or to the root.",
        "Add it where PyTorch's module does.",
        place_of_epsilon,
    ),
    Cause(
        "RMS norm or layer norm",
        "One side subtracts the mean before it normalises, the other doesn't.",
        "Use the same kind of norm: nnx.RMSNorm or jattn.nn.LayerNorm.",
        norm_kind,
    ),
    Cause(
        "unbiased variance",
        "The variance is divided by m - 1 (as torch.var and torch.std do by default), not by m.",
        "Use the mean of the squared differences.",
        unbiased_variance,
    ),
    Cause(
        "norm times 1 + weight",
        "Gemma's norms multiply by 1 + weight, most others by the weight.",
        "Add 1 to the weight, when it is loaded or in the norm.",
        one_plus_weight,
    ),
    Cause(
        "parameters of a norm",
        "A norm has its scale or its bias on one side only.",
        "Give the port's norm the parameters of PyTorch's.",
        parameters_of_norm,
    ),
    Cause(
        "width of a norm",
        "A norm of queries and keys is over each head (Qwen 3, Gemma 3) or over all heads of a token (OLMo 2).",
        "Normalise before or after the heads are split, as PyTorch's module does.",
        width_of_norm,
    ),
]
