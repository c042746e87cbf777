"""Causes in linear layers and in numbers as such: what was found, or None if it isn't the one."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np

from jattn.parity.arrays import error
from jattn.parity.block_causes import stand_ins
from jattn.parity.cause import Cause
from jattn.parity.embedding_causes import is_table
from jattn.parity.locate import NamedArray, Site, TorchLayer

__all__ = ["LAYER_CAUSES", "NUMBER_CAUSES"]

# ----------------------------------------------------------------------------------------------------------------------
# Linear layers.


def missing_bias(site: Site) -> str | None:
    for layer in site.layers:
        if layer.parameters.get("weight", np.ones((1, 1))).ndim == 1:  # a norm
            continue
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
            if is_table(other.name) and not is_table(layer.name):  # a tied head
                continue
            if weight is not None and weight.shape == layer.parameters["weight"].shape:
                if site.is_flax(_linear_output(x.array, weight, other)):
                    return f"{layer.name} has the weights of {other.name} in the port."
                if site.is_flax(_linear_output(x.array, weight, layer)):
                    return f"{layer.name} has the weight of {other.name}, with its own bias, in the port."
    return None


def paired_across(site: Site) -> str | None:
    """The names lead a layer to one that is called elsewhere, with another layer's weights in its place."""
    layers = {layer.name: layer for layer in (*site.layers, *site.others)}
    for theirs, ours, twin in stand_ins(site):
        parent, _, name = theirs.path.rpartition(".")
        # Only layers of one name, in modules that belong together.
        if site.pairs.get(parent) != ours.path.rpartition(".")[0] or twin.rpartition(".")[2] != name:
            continue
        if twin in layers and layers[twin].parameters.get("weight", np.ones(1)).ndim == 2:
            made = _linear_output(site.torch, layers[twin].parameters["weight"], layers[twin])
            if any(y.size == made.size and site.same(y.reshape(made.shape), made) for y in ours.outputs):
                return f"{ours.path} takes what {theirs.path} takes in PyTorch, and has the weights of {twin}."
    return None


def _is_linear(site: Site, layer: TorchLayer, x: NamedArray) -> bool:
    weight = layer.parameters.get("weight")
    fits = weight is not None and weight.ndim == 2 and x.array.shape[-1:] == weight.shape[1:]
    return fits and site.is_torch(_linear_output(x.array, layer.parameters["weight"], layer))


def _linear_output(x: np.ndarray, weight: np.ndarray, layer: TorchLayer) -> np.ndarray:
    return x @ weight.T + layer.parameters.get("bias", 0.0)


# ----------------------------------------------------------------------------------------------------------------------
# Numbers as such.


def low_precision(site: Site) -> str | None:
    for dtype in ("bfloat16", "float16", "float32"):
        kept = functools.partial(_cast_and_back, dtype=dtype)
        few, many = (np.array_equal(kept(x), x) for x in (site.flax, site.torch))
        if few and not many and error(site.flax, site.torch) < 64 * float(jnp.finfo(dtype).eps):
            return f"In the port, {site.where} has the digits of {dtype}."
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
        return f"In the port, {site.where} is {factor:.6g} times PyTorch's."
    return None


LAYER_CAUSES = [
    Cause(
        "missing bias",
        "The bias of a layer is not added.",
        "Add it.",
        missing_bias,
    ),
    Cause(
        "transposed kernel",
        "PyTorch's weight is (out, in), Flax's kernel (in, out); a square one fits either way, but is another map.",
        "Transpose it when it is loaded, as jattn.weights does for Flax's layers.",
        transposed_kernel,
    ),
    Cause(
        "swapped weights",
        "The layer computes with the weights of another one.",
        "Load each under its own name.",
        lambda site: swapped_weights(site) or paired_across(site),
    ),
]

NUMBER_CAUSES = [
    Cause(
        "low precision",
        "The port computes in fewer digits than its inputs have.",
        "Give the layer no dtype of its own, and look for casts such as astype(jnp.float32).",
        low_precision,
        rank=2,
    ),
    Cause(
        "dropped out",
        "Some numbers are zero and the others larger by one factor: they come from after dropout, or it is still on.",
        "Return the weights from before dropout, and turn dropout off in eval mode.",
        dropped,
        rank=2,
    ),
    Cause(
        "constant factor",
        "The numbers differ by one factor.",
        "Look for a scale that one side lacks, has elsewhere, or has as another number.",
        constant_factor,
        rank=2,
    ),
]
