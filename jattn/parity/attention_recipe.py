"""Attention recomputed plainly from its projections, and PyTorch's found by trying what it may be made of."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jattn.parity.arrays import is_floating
from jattn.parity.locate import Site

__all__ = ["AttentionRecipe", "Found", "Inputs", "found_at", "gives"]


@dataclasses.dataclass(frozen=True)
class AttentionRecipe:
    """How attention is made from query, key and value ``b t m``."""

    heads: int
    scale: float
    causal: int | None = None  # the last key that the first query sees, from causal(0)
    mask: str | None = None  # the name of one of the masks
    inverted: bool = False  # the mask
    turned: bool = False  # mask and causality together
    axis: str = "keys"  # what the softmax is over
    swapped: bool = False  # query and key
    split: str = "features"  # what is split into heads: features, their other order, or (wrongly) time
    merged: str = "features"
    empty: str = "nan"  # what a query with nothing to attend to gets
    group: str = "repeat"  # which query heads share a key and value head: neighbours, or those so many apart
    weights: str = "no"  # whether the weights are what is observed: "each" or "mean" over heads
    biases: bool = True  # of a packed projection


class Inputs(NamedTuple):
    """Projections, before they are split into heads, and what follows the heads."""

    query: np.ndarray  # b t m
    key: np.ndarray
    value: np.ndarray
    without_bias: "tuple[np.ndarray, np.ndarray, np.ndarray] | None"
    out: "tuple[np.ndarray, np.ndarray] | None"  # weight and bias of a projection of the heads
    time_first: bool = False  # whether the output is t b m


def recompute_attention(x: Inputs, recipe: AttentionRecipe, masks: dict[str, np.ndarray]) -> np.ndarray:
    """Attention, plainly."""
    query, key, value = x[:3] if recipe.biases or x.without_bias is None else x.without_bias
    d = query.shape[-1] // recipe.heads
    groups = key.shape[-1] // d
    q, k, v = (_split(y, h, recipe.split) for y, h in ((query, recipe.heads), (key, groups), (value, groups)))
    if k.shape[1] != recipe.heads:
        k, v = (_share(y, recipe.heads, recipe.group) for y in (k, v))
    if recipe.swapped:
        q, k = k, q
    logits = recipe.scale * q @ k.swapaxes(-1, -2)
    t, s = logits.shape[-2:]
    allowed = np.ones((t, s), bool) if recipe.causal is None else np.tri(t, s, recipe.causal, bool)
    if recipe.mask is not None:
        mask = masks[recipe.mask]
        if is_floating(mask):
            logits = logits + mask
        else:
            allowed = allowed & (mask ^ recipe.inverted)
    logits = np.where(allowed ^ recipe.turned, logits, -np.inf)
    weights = _softmax_along(logits, {"keys": -1, "queries": -2, "heads": 1}[recipe.axis], recipe.empty)
    if recipe.weights != "no":
        return weights if recipe.weights == "each" else weights.mean(1)
    merged = _merge(weights @ v, recipe.merged)
    if x.out is not None:
        merged = merged @ x.out[0].T + x.out[1]
    return merged.swapaxes(0, 1) if x.time_first else merged


def _split(x: np.ndarray, heads: int, how: str) -> np.ndarray:
    b, t, _ = x.shape
    if how == "time":
        return x.reshape(b, heads, t, -1)
    return (
        x.reshape(b, t, heads, -1).swapaxes(1, 2)
        if how == "features"
        else np.moveaxis(x.reshape(b, t, -1, heads), -1, 1)
    )


def _merge(x: np.ndarray, how: str) -> np.ndarray:
    b, h, t, d = x.shape
    if how == "features":
        x = x.swapaxes(1, 2)
    elif how == "interleaved":
        x = np.moveaxis(x, 1, -1)
    return x.reshape(b, t, h * d)


def _share(x: np.ndarray, heads: int, how: str) -> np.ndarray:
    times = heads // x.shape[1]
    return np.repeat(x, times, 1) if how == "repeat" else np.tile(x, (1, times, 1, 1))


def _softmax_along(logits: np.ndarray, axis: int, empty: str) -> np.ndarray:
    top = logits.max(axis, keepdims=True)
    e = np.exp(logits - np.where(np.isfinite(top), top, 0))
    weights = e / e.sum(axis, keepdims=True)
    if empty == "nan":
        return weights
    return np.where(np.isfinite(top), weights, 0 if empty == "zeros" else 1 / logits.shape[axis])


# ----------------------------------------------------------------------------------------------------------------------
# What PyTorch does, found by trying.


EXAMPLES = 2  # of a batch; what holds for them holds for all


class Found(NamedTuple):
    """Attention as PyTorch has it."""

    inputs: Inputs
    recipe: AttentionRecipe
    masks: dict[str, np.ndarray]


def found_at(site: Site) -> Found | None:
    """The recipe that gives PyTorch's numbers; remembered at the site, as every cause here asks for it."""
    if "_attention" not in vars(site):
        vars(site)["_attention"] = next(_fitting_recipes(site), None)
    return vars(site)["_attention"]


def gives(found: Found, recipe: AttentionRecipe, site: Site, wanted: np.ndarray) -> bool:
    """Whether a recipe gives these numbers."""
    made = recompute_attention(found.inputs, recipe, found.masks)
    if found.inputs.time_first:
        return site.same(made, wanted[:, : made.shape[1]])
    return site.same(made, wanted[: len(made)] if wanted.ndim > 2 else wanted)


def _fitting_recipes(site: Site) -> Iterator[Found]:
    for inputs in _inputs(site):
        b, t, m = inputs.query.shape
        s = inputs.key.shape[1]
        inputs = inputs._replace(**{name: getattr(inputs, name)[:EXAMPLES] for name in ("query", "key", "value")})
        observed = ["no"] if site.torch.ndim < 3 or site.torch.shape[-1] != s else ["no", "each", "mean"]
        for h in (h for h in site.heads or range(1, 33) if _divides(h, inputs)):
            masks = {name: x[:EXAMPLES] for name, x in _masks(site, b, h, t, s).items()}
            scales = dict.fromkeys([(m // h) ** -0.5, 1.0, m**-0.5])
            for scale, (mask, inverted), causal, seen in itertools.product(
                scales, _uses(masks), dict.fromkeys([None, 0, s - t]), observed
            ):
                recipe = AttentionRecipe(h, scale, causal, mask, inverted, weights=seen)
                found = Found(inputs, recipe, masks)
                holes = bool(np.isnan(recompute_attention(inputs, recipe, masks)).any())
                for empty in ("nan", "zeros", "mean") if holes else ("nan",):
                    recipe = dataclasses.replace(recipe, empty=empty)
                    if gives(found, recipe, site, site.torch):
                        yield found._replace(recipe=recipe)


def _divides(h: int, x: Inputs) -> bool:
    """Whether there may be so many heads, several of which may share a key and value head."""
    if x.query.shape[-1] % h or x.key.shape[-1] % (x.query.shape[-1] // h):
        return False
    groups = x.key.shape[-1] // (x.query.shape[-1] // h)
    if groups == 0 or h % groups or x.value.shape[-1] % groups:
        return False
    return x.out is None or x.out[0].shape[1] == x.value.shape[-1] // groups * h


def _uses(masks: dict[str, np.ndarray]) -> list[tuple[str | None, bool]]:
    return [(None, False)] + [(n, i) for n, x in masks.items() for i in ([False] if is_floating(x) else [False, True])]


def _masks(site: Site, b: int, h: int, t: int, s: int) -> dict[str, np.ndarray]:
    """What could be a mask among the arguments here and further out: booleans, additive floats, lengths, tokens."""
    masks: dict[str, np.ndarray] = {}
    for i, x in enumerate(site.arguments):
        if np.issubdtype(x.dtype, np.integer):
            if x.shape == (b,):
                masks[f"lengths {i}"] = (np.arange(s) < x[:, None])[:, None, None]
            if x.shape == (b, s):
                masks |= {f"tokens {i} other than {n}": (x != n)[:, None, None] for n in (0, 1)}
            continue
        shapes = {(b, s): (b, 1, 1, s), (b, t, s): (b, 1, t, s), (b * h, t, s): (b, h, t, s), (t, s): (1, 1, t, s)}
        if x.ndim == 4 and all(n in (1, full) for n, full in zip(x.shape, (b, h, t, s), strict=True)):
            masks[f"argument {i}"] = x
        elif x.shape in shapes:
            masks[f"argument {i}"] = x.reshape(shapes[x.shape])
        elif x.ndim == 2 and x.shape == (1, s):
            masks[f"argument {i}"] = x[:, None, None]
    return masks


def _inputs(site: Site) -> Iterator[Inputs]:
    """The projections: by the names of the submodules, packed in one, or inside torch.nn.MultiheadAttention."""
    layers = {layer.name: layer.parameters for layer in site.layers}
    outs = [None] + [
        (p["weight"], p.get("bias", np.zeros(len(p["weight"]))))
        for p in layers.values()
        if p.get("weight", np.ones(1)).ndim == 2
    ]
    roles: dict[str, np.ndarray] = {}
    packed: list[np.ndarray] = []
    for call in site.torch_calls:
        if call.path == site.torch_name or not call.outputs:
            continue
        name, y = call.path.rpartition(".")[2].lower(), call.outputs[0]
        roles |= {role: y for role in "qkv" if _plays(name, role)}
        if call.inputs and y.ndim and y.shape[-1] == 3 * call.inputs[0].shape[-1]:
            packed.append(y)
    if len(roles) == 3:
        query, key, value = (_batched(roles[role]) for role in "qkv")
        yield from (Inputs(query, key, value, None, out) for out in outs)
    for y in packed:
        thirds = [_batched(x) for x in np.split(y, 3, -1)]
        yield from (Inputs(thirds[0], thirds[1], thirds[2], None, out) for out in outs)
    for call in site.torch_calls:
        own = layers.get(call.path, {})
        if "in_proj_weight" in own:
            yield from _of_multihead_attention([x for x in call.inputs if is_floating(x)], own)


def _of_multihead_attention(given: list[np.ndarray], own: dict[str, np.ndarray]) -> Iterator[Inputs]:
    """torch.nn.MultiheadAttention's, which may have time first inside of a module that has the batch first."""
    weight, out = own["in_proj_weight"], own["out_proj.weight"]
    given = [x for x in given if x.shape[-1] == weight.shape[1]]
    if not given:
        return
    given = [given[0]] * 3 if len(given) < 3 else given[:3]
    biases = np.split(own.get("in_proj_bias", np.zeros(len(weight))), 3)
    last = out, own.get("out_proj.bias", np.zeros(len(out)))
    for inside, outside in ((False, False), (True, True), (True, False)):
        turned = [_batched(x).swapaxes(0, 1) if inside else _batched(x) for x in given]
        plain = [x @ w.T for x, w in zip(turned, np.split(weight, 3), strict=True)]
        q, k, v = (x + bias for x, bias in zip(plain, biases, strict=True))
        without = plain[0][:EXAMPLES], plain[1][:EXAMPLES], plain[2][:EXAMPLES]
        yield Inputs(q, k, v, without, last, time_first=outside)


def _plays(name: str, role: str) -> bool:
    """Whether a submodule's name says that it makes queries, keys or values."""
    word = {"q": "query", "k": "key", "v": "value"}[role]
    return word in name or name.removeprefix("w_").removeprefix("w").removeprefix("_")[:2] in (role, f"{role}_")


def _batched(x: np.ndarray) -> np.ndarray:
    return x[None] if x.ndim == 2 else x if x.ndim == 3 else x.reshape(*x.shape[:2], -1)
