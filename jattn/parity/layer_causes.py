"""Causes in layers and in how they are put together: what was found, or None if it isn't the one."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np

from jattn.parity.arrays import error
from jattn.parity.locate import NamedArray, Site, TorchLayer
from jattn.parity.trace import ModuleCall

__all__ = [
    "activation",
    "constant_factor",
    "dropped",
    "embedding_scale",
    "gelu_form",
    "left_out",
    "low_precision",
    "missing_bias",
    "missing_residual",
    "norm_after",
    "norm_before",
    "norm_epsilon",
    "norm_kind",
    "swapped_weights",
    "transposed_kernel",
    "unbiased_variance",
]

# ----------------------------------------------------------------------------------------------------------------------
# Norms.


def normalise(x: np.ndarray, epsilon: float, *, center: bool = True, ddof: int = 0) -> np.ndarray:
    """Layer norm without its parameters, or RMS norm."""
    centered = x - x.mean(-1, keepdims=True) if center else x
    square = (centered**2).sum(-1, keepdims=True) / (x.shape[-1] - ddof)
    return centered / np.sqrt(square + epsilon)


def norm_epsilon(site: Site) -> str | None:
    for name, (theirs, ours) in _norms(site):
        if theirs[1:] == ours[1:] and theirs != ours:
            return f"{name} has epsilon {ours[0]:.2g} in the port, {theirs[0]:.2g} in PyTorch."
    return None


def norm_kind(site: Site) -> str | None:
    for name, (theirs, ours) in _norms(site):
        if theirs[1] != ours[1]:
            kinds = [f"{'a layer' if center else 'an RMS'} norm" for _, center, _ in (ours, theirs)]
            return f"{name} is {kinds[0]} in the port, {kinds[1]} in PyTorch."
    return None


def unbiased_variance(site: Site) -> str | None:
    for name, (theirs, ours) in _norms(site):
        if theirs[1] == ours[1] and theirs[2] != ours[2]:
            return f"{name} divides by m - {ours[2]} in the port, by m - {theirs[2]} in PyTorch."
    return None


# Epsilon, whether the mean is subtracted, what the width is less by in the variance.
NormSettings = tuple[float, bool, int]


def _norms(site: Site) -> Iterator[tuple[str, tuple[NormSettings, NormSettings]]]:
    """The kinds of norm that give both sides' numbers from numbers that agree."""
    for layer, x in itertools.product(site.layers, site.before):
        scale = layer.parameters.get("weight")
        if scale is None or scale.shape != x.array.shape[-1:]:
            continue
        bias = layer.parameters.get("bias", np.zeros_like(scale))
        theirs, ours = (_kind_of_norm(site, x.array, y, scale, bias) for y in (site.torch, site.flax))
        if theirs is not None and ours is not None:
            yield layer.name or "It", (theirs, ours)


def _kind_of_norm(site: Site, x: np.ndarray, y: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> NormSettings | None:
    if y.shape != x.shape:
        return None
    for center, ddof in ((True, 0), (False, 0), (True, 1)):
        epsilon = _epsilon((y - bias) / scale, normalise(x, 0.0, center=center, ddof=ddof), x, center, ddof)
        if site.same(normalise(x, epsilon, center=center, ddof=ddof) * scale + bias, y):
            return epsilon, center, ddof
    return None


def _epsilon(y: np.ndarray, without: np.ndarray, x: np.ndarray, center: bool, ddof: int) -> float:
    """Of ``y = c / sqrt(v + epsilon)``, from its ratio to ``without``, ``c / sqrt(v)``; to two digits."""
    square = x.var(-1, keepdims=True, ddof=ddof) if center else (x**2).mean(-1, keepdims=True)
    each = (((without / y) ** 2 - 1) * square)[np.isfinite(y) & (np.abs(without) > 0.3)]
    return max(0.0, float(f"{np.median(each):.1e}")) if each.size and np.isfinite(np.median(each)) else 0.0


# ----------------------------------------------------------------------------------------------------------------------
# Linear layers.


def missing_bias(site: Site) -> str | None:
    for layer in site.layers:
        for name, bias in layer.parameters.items():
            if "bias" in name and bias.ndim == 1 and bias.shape == site.flax.shape[-1:]:
                full = f"{layer.name}.{name}" if layer.name else name
                if site.is_torch(site.flax + bias):
                    return f"{full} is not added in the port."
                if site.is_torch(site.flax - bias):
                    return f"{full} is added twice in the port."
    return None


def transposed_kernel(site: Site) -> str | None:
    for layer, x in itertools.product(site.layers, site.before):
        weight = layer.parameters.get("weight")
        if weight is None or weight.ndim != 2 or weight.shape[0] != weight.shape[1]:
            continue
        if _is_linear(site, layer, x) and site.is_flax(_linear_output(x.array, weight.T, layer)):
            return f"{layer.name or 'It'} computes with the transpose of its weight in the port."
    return None


def swapped_weights(site: Site) -> str | None:
    for layer, x in itertools.product(site.layers, site.before):
        if not _is_linear(site, layer, x):
            continue
        for other in (*site.layers, *site.others):
            weight = other.parameters.get("weight")
            if weight is not None and weight.shape == layer.parameters["weight"].shape:
                if site.is_flax(_linear_output(x.array, weight, other)):
                    return f"{layer.name} has the weights of {other.name} in the port."
                if site.is_flax(_linear_output(x.array, weight, layer)):
                    return f"{layer.name} has the weight of {other.name}, with its own bias, in the port."
    return None


def _is_linear(site: Site, layer: TorchLayer, x: NamedArray) -> bool:
    weight = layer.parameters.get("weight")
    fits = weight is not None and weight.ndim == 2 and x.array.shape[-1:] == weight.shape[1:]
    return fits and site.is_torch(_linear_output(x.array, layer.parameters["weight"], layer))


def _linear_output(x: np.ndarray, weight: np.ndarray, layer: TorchLayer) -> np.ndarray:
    return x @ weight.T + layer.parameters.get("bias", 0.0)


# ----------------------------------------------------------------------------------------------------------------------
# Activations.

_erf = np.vectorize(math.erf, otypes=[float])

ACTIVATION_FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the exact GELU": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "the tanh GELU": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "ReLU": lambda x: np.maximum(x, 0),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
    "the sigmoid GELU": lambda x: x / (1 + np.exp(-1.702 * x)),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "leaky ReLU": lambda x: np.where(x > 0, x, 0.01 * x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "no activation": lambda x: x,
}


def gelu_form(site: Site) -> str | None:
    found = _activations(site)
    return _told(*found) if found is not None and all("GELU" in name for name in found) else None


def activation(site: Site) -> str | None:
    found = _activations(site)
    return None if found is None else _told(*found)


def _told(theirs: str, ours: str) -> str:
    return f"The port has {ours}, PyTorch has {theirs}."


def _activations(site: Site) -> tuple[str, str] | None:
    for x in site.before:
        if x.array.shape != site.torch.shape:
            continue
        theirs, ours = (
            next((name for name, f in ACTIVATION_FORMULAS.items() if site.same(f(x.array), y)), None)
            for y in (site.torch, site.flax)
        )
        # That PyTorch has none would say only that it goes on with known numbers; more is known then of residuals.
        if theirs is not None and ours is not None and theirs != ours and theirs != "no activation":
            return theirs, ours
    return None


# ----------------------------------------------------------------------------------------------------------------------
# How layers are put together.


def embedding_scale(site: Site) -> str | None:
    tables = [x for x in (*site.layers, *site.others) if x.parameters.get("weight", np.ones(1)).ndim == 2]
    outputs = [
        NamedArray(call.path, call.outputs[0])
        for call in site.torch_calls
        if call.outputs and "embed" in call.kind.lower() and any(layer.name == call.path for layer in tables)
    ]
    for x in outputs:
        if x.array.shape != site.torch.shape:
            continue
        root = math.sqrt(x.array.shape[-1])
        if site.is_torch(site.flax + (root - 1) * x.array):
            return f"PyTorch multiplies {x.name} by {root:.4g}, the root of its width; the port doesn't."
        if site.is_torch(site.flax - (root - 1) * x.array):
            return f"The port multiplies {x.name} by {root:.4g}, the root of its width; PyTorch doesn't."
    return None


def norm_before(site: Site) -> str | None:
    for u in _normed_later(site):
        for call in site.flax_calls:
            normed = _is_norm(call) and any(site.same(x, u.array) for x in call.inputs)
            if normed and any(site.is_flax(x) for x in call.outputs):
                return f"{site.where} is {u.name} in PyTorch, and that through {call.path} in the port."
    return None


def norm_after(site: Site) -> str | None:
    for u in _normed_later(site):
        for call in site.flax_calls:
            if not _is_norm(call) and any(site.is_flax(u.array + x) for x in call.outputs if x.shape == u.array.shape):
                return f"{site.where} is {u.name} in PyTorch, and that plus {call.path} in the port."
    return None


def _normed_later(site: Site) -> list[NamedArray]:
    """What PyTorch goes on with unchanged, in a module that has norms."""
    return [x for x in site.before if site.is_torch(x.array)] if any(map(_is_norm, site.torch_calls)) else []


def missing_residual(site: Site) -> str | None:
    for v in (x for x in site.before if site.is_flax(x.array)):
        for u in site.before:
            if u.array.shape == site.torch.shape and site.is_torch(u.array + v.array):
                return f"{site.where} is {u.name} plus {v.name} in PyTorch, {v.name} alone in the port."
    return None


def left_out(site: Site) -> str | None:
    for call in (c for c in site.torch_calls if c.outputs and c.path != site.torch_name):
        if site.is_torch(call.outputs[0]) and any(site.is_flax(x) for x in call.inputs):
            return f"{call.path} is not called in the port."
    return None


def _is_norm(call: ModuleCall) -> bool:
    return "norm" in f"{call.kind} {call.path.rpartition('.')[2]}".lower()


# ----------------------------------------------------------------------------------------------------------------------
# Numbers as such.


def low_precision(site: Site) -> str | None:
    for dtype in ("bfloat16", "float16", "float32"):
        kept = functools.partial(_cast_and_back, dtype=dtype)
        few, many = (np.array_equal(kept(x), x) for x in (site.flax, site.torch))
        if few and not many and error(site.flax, site.torch) < 64 * float(jnp.finfo(dtype).eps):
            return f"{site.where} has the digits of {dtype} in the port."
        for layer, x in itertools.product(site.layers, site.inputs):
            if _is_linear(site, layer, x) and site.is_flax(
                _linear_output(kept(x.array), layer.parameters["weight"], layer)
            ):
                return f"{layer.name or 'It'} computes from {x.name} rounded to {dtype} in the port."
    return None


def _cast_and_back(x: np.ndarray, dtype: str) -> np.ndarray:
    return x.astype(jnp.dtype(dtype)).astype(np.float64)


def dropped(site: Site) -> str | None:
    if site.flax.shape != site.torch.shape:
        return None
    zero = (site.flax == 0) & (site.torch != 0)
    kept = site.flax[~zero].sum() / site.torch[~zero].sum()
    if zero.any() and not zero.all() and kept >= 1 and site.is_flax(np.where(zero, 0, kept * site.torch)):
        return f"{zero.mean():.0%} of {site.where} is zero in the port, the rest {kept:.4g} times PyTorch's."
    return None


def constant_factor(site: Site) -> str | None:
    if site.flax.shape != site.torch.shape:
        return None
    factor = float((site.flax * site.torch).sum() / (site.torch**2).sum())
    if factor != 0 and np.isfinite(factor) and site.is_flax(factor * site.torch):
        return f"{site.where} in the port is {factor:.6g} times PyTorch's."
    return None
