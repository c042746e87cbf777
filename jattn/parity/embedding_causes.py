"""Causes in embeddings: their scale, positions that begin at another number, what the last layer shares with them."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jattn.parity.arrays import FLOAT64, error, is_floating, largest
from jattn.parity.cause import Cause, outermost
from jattn.parity.fitted import fitting_numbers
from jattn.parity.locate import NamedArray, Site, TorchLayer

__all__ = ["EMBEDDING_CAUSES", "is_table"]


def is_table(name: str) -> bool:
    """Whether a layer's name is that of embeddings."""
    last = name.lower()
    return any(word in last for word in ("emb", "wte", "wpe", "tok", "shared", "position"))


# ----------------------------------------------------------------------------------------------------------------------
# Numbers: c E[tokens] + P[positions] + ...


class _Sum(NamedTuple):
    """What PyTorch adds up, each by its name and with its factor."""

    parts: dict[str, np.ndarray]
    factors: dict[str, float]

    def value(self) -> np.ndarray:
        return sum((self.factors[name] * x for name, x in self.parts.items()), np.zeros(()))


def _sum_at(site: Site) -> _Sum | None:
    if "_sum" not in vars(site):
        vars(site)["_sum"] = next(_sums(site), None)
    return vars(site)["_sum"]


def _sums(site: Site) -> Iterator[_Sum]:
    """Of embeddings, and of rows of tables that are used without being called."""
    if site.torch.ndim < 2 or not is_floating(site.torch):
        return
    t, m = site.torch.shape[-2:]
    looked_up = {
        call.path: call.outputs[0]
        for call in site.torch_calls
        if call.outputs and "embed" in call.kind.lower() and call.outputs[0].shape[-2:] == (t, m)
    }
    # What the port does not call can't agree.
    called = {call.path for call in site.flax_calls}
    looked_up = {
        name: x
        for name, x in looked_up.items()
        if site.pairs.get(name) not in called or any(site.same(x, y.array) for y in site.before)
    }
    if not looked_up:
        return
    roots = [
        1.0,
        math.sqrt(m),
        *(x for name, xs in site.attributes.items() if "mult" in name or "scale" in name for x in xs),
    ]
    tables = dict(_tables_of_positions(site, t, m))
    for n in (len(looked_up), len(looked_up) - 1):
        for names in itertools.combinations(looked_up, n) if n > 0 else ():
            for table, scaled, root in itertools.product([None, *tables], names, dict.fromkeys(roots)):
                parts = {name: looked_up[name] for name in names}
                if table is not None:
                    parts[table] = tables[table]
                made = _Sum(parts, {name: root if name == scaled else 1.0 for name in parts})
                if made.value().size == site.torch.size and site.is_torch(made.value()):
                    yield made


def _tables_of_positions(site: Site, t: int, m: int) -> Iterator[tuple[str, np.ndarray]]:
    """Rows 0 to t - 1 of whatever is as wide, or the sinusoids of Vaswani et al."""
    for layer in site.layers:
        for name, x in layer.parameters.items():
            full = f"{layer.name}.{name}" if layer.name else name
            if x.ndim in (2, 3) and x.shape[-1] == m and x.shape[-2] >= t and "weight" not in name:
                yield full, x.reshape(-1, m)[:t]
    for name, x in site.buffers.items():
        if x.ndim in (2, 3) and x.shape[-1] == m and x.shape[-2] >= t and is_floating(x) and x.size == x.shape[-2] * m:
            yield name, x.reshape(-1, m)[:t]
    if m % 2 == 0:
        yield from ((f"sinusoids, {how}", sinusoids(t, m, how)) for how in ("interleaved", "side by side"))


def sinusoids(t: int, m: int, how: str, first: int = 0) -> np.ndarray:
    """Sines and cosines of positions."""
    angles = np.arange(first, first + t)[:, None] * 10000.0 ** -(np.arange(0, m, 2) / m)
    both = np.stack([np.sin(angles), np.cos(angles)], -1 if how == "interleaved" else -2)
    return both.reshape(t, m)


def embedding_scale(site: Site) -> str | None:
    found = _sum_at(site)
    if found is None:
        return None
    for name, x in found.parts.items():
        others = {1.0, math.sqrt(x.shape[-1]), 1 / math.sqrt(x.shape[-1])} - {found.factors[name]}
        for factor in others:
            if site.is_flax(found._replace(factors={**found.factors, name: factor}).value()):
                return f"The port multiplies {name} by {factor:.4g}, PyTorch by {found.factors[name]:.4g}."
    together = dict.fromkeys(found.parts, math.sqrt(site.torch.shape[-1]))
    if len(together) > 1 and site.is_flax(found._replace(factors=together).value()):
        return "The port multiplies the sum of the embeddings, PyTorch not."
    return None


def missing_embedding(site: Site) -> str | None:
    found = _sum_at(site)
    if found is None or len(found.parts) < 2:
        return None
    for name in found.parts:
        parts = {other: x for other, x in found.parts.items() if other != name}
        made = _Sum(parts, found.factors).value()
        if made.shape == site.torch.shape and site.is_flax(made):
            return f"{name} is not added in the port."
    return None


def offset_of_table(site: Site) -> str | None:
    found = _sum_at(site)
    if found is None:
        return None
    t, m = site.torch.shape[-2:]
    rows = {f"{x.name}.{name}" if x.name else name: y for x in site.layers for name, y in x.parameters.items()}
    tables = {**rows, **{name.removesuffix(".weight"): x for name, x in rows.items()}, **site.buffers}
    for name in (name for name in found.parts if name in tables and tables[name].shape[-1] == m):
        table = tables[name].reshape(-1, m)
        begins = {
            i: np.broadcast_to(table[i : i + t], found.parts[name].shape) for i in range(min(len(table) - t, 8) + 1)
        }
        theirs = next((i for i, x in begins.items() if np.array_equal(x, found.parts[name])), None)
        for ours, x in begins.items() if theirs is not None else ():
            if ours != theirs and site.is_flax(found._replace(parts={**found.parts, name: x}).value()):
                return f"The port begins with row {ours} of {name}, PyTorch with row {theirs}."
    for name in (name for name in found.parts if name.startswith("sinusoids")):
        for first in (1, 2):
            parts = {**found.parts, name: sinusoids(t, m, name.rpartition(", ")[2], first)}
            if site.is_flax(found._replace(parts=parts).value()):
                return f"The port's sinusoids begin at position {first}, PyTorch's at 0."
    return None


def order_of_sinusoids(site: Site) -> str | None:
    found = _sum_at(site)
    if found is None:
        return None
    t, m = site.torch.shape[-2:]
    for how in ("interleaved", "side by side"):
        for name in (name for name in found.parts if m % 2 == 0 and not name.endswith(how)):
            for other in ("interleaved", "side by side"):
                is_one = np.allclose(found.parts[name], sinusoids(t, m, other), atol=1e-6)
                parts = {**found.parts, name: sinusoids(t, m, how)}
                if is_one and other != how and site.is_flax(found._replace(parts=parts).value()):
                    return f"Sines and cosines are {how} in the port, {other} in PyTorch."
    return None


# ----------------------------------------------------------------------------------------------------------------------
# Integers: the positions that are looked up.


def _position_ids(site: Site, shape: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """What positions may be, by how they are counted."""
    t = shape[-1]
    for first in range(5):
        yield f"counted from {first}", np.broadcast_to(np.arange(first, first + t), shape)
    for x in (x for x in site.arguments if x.shape[-1:] == (t,) and x.ndim == 2):
        if set(np.unique(x)) <= {0, 1}:
            real = {"": x != 0}
        elif np.issubdtype(x.dtype, np.integer):
            real = {f" other than {pad}": x != pad for pad in (0, 1)}
        else:
            continue
        for which, y in real.items():
            count = np.cumsum(y, -1)
            for first in range(4):
                yield f"counted from {first} over tokens{which}", np.maximum(count - 1, 0) + first
                yield f"counted from {first + 1} over tokens{which}, padding {first}", count * y + first
                yield f"counted from {first} over tokens{which}, padding 1", np.where(y, count - 1 + first, 1)
                yield f"counted from {first} over tokens{which}, padding 0", np.where(y, count - 1 + first, 0)


def _positions_of_both(site: Site) -> tuple[str, str] | None:
    x, y = site.torch, site.flax
    if is_floating(x) or not x.ndim or x.dtype == bool:
        return None
    if y.size != x.size:
        if x.shape[-1] != y.shape[-1]:
            return None
        x, y = np.broadcast_arrays(x, y)
    ways = list(_position_ids(site, x.shape))
    theirs, ours = (next((how for how, ids in ways if _same_ids(ids, z)), None) for z in (x, y.reshape(x.shape)))
    return None if theirs is None or ours is None else (theirs, ours)


def _same_ids(ids: np.ndarray, wanted: np.ndarray) -> bool:
    return ids.size == wanted.size and np.array_equal(ids.reshape(wanted.shape), wanted)


def first_position(site: Site) -> str | None:
    found = _positions_of_both(site)
    if found is None or any("over tokens" in how for how in found):
        return offset_of_table(site)
    return f"Positions are {found[1]} in the port, {found[0]} in PyTorch."


def padded_positions(site: Site) -> str | None:
    found = _positions_of_both(site)
    if found is None or not any("over tokens" in how for how in found):
        return None
    return f"Positions are {found[1]} in the port, {found[0]} in PyTorch."


# ----------------------------------------------------------------------------------------------------------------------
# The last layer.


def tied_head(site: Site) -> str | None:
    tables = [x for x in (*site.layers, *site.others) if is_table(x.name) and "weight" in x.parameters]
    for layer, x in itertools.product(site.layers, site.before):
        weight = layer.parameters.get("weight")
        if weight is None or weight.ndim != 2 or x.array.shape[-1] != weight.shape[1]:
            continue
        bias = layer.parameters.get("bias", 0.0)
        if not site.is_torch(x.array @ weight.T + bias):
            continue
        for table in (table for table in tables if table.name != layer.name):
            other = table.parameters["weight"]
            if other.shape == weight.shape and site.is_flax(x.array @ other.T + bias):
                return f"{layer.name or 'It'} has the weight of {table.name} in the port only."
    return None


def _factor_of_head(site: Site) -> tuple[float, float] | None:
    """By what the input of the last layer, or its output, is multiplied in PyTorch and in the port."""
    for x in outermost(site):
        if x.array.shape == site.torch.shape and _belongs_to_head(site, x):
            factors = [_ratio(y, x) for y in (site.torch, site.flax)]
            if site.is_torch(factors[0] * x.array) and site.is_flax(factors[1] * x.array):
                return factors[0], factors[1]
    return None


def _belongs_to_head(site: Site, x: NamedArray) -> bool:
    """Whether the numbers that part go into the last layer, as wide as the embeddings, or come out of it as x."""
    tables = [layer for layer in (*site.layers, *site.others) if is_table(layer.name)]
    shapes = {layer.parameters["weight"].shape for layer in tables if "weight" in layer.parameters}
    heads = {layer.name for layer in (*site.layers, *site.others) if _has_shape(layer, shapes)}
    heads -= {layer.name for layer in tables}
    for call in (call for call in site.torch_calls if call.path in heads):
        if call.path == x.name or any(y.size == site.torch.size and site.is_torch(y) for y in call.inputs):
            return True
    return site.torch_name == "" and any(site.torch.shape[-1] == shape[0] for shape in shapes)


def _has_shape(layer: TorchLayer, shapes: set[tuple[int, ...]]) -> bool:
    return "weight" in layer.parameters and layer.parameters["weight"].shape in shapes


def _ratio(y: np.ndarray, x: NamedArray) -> float:
    return float((x.array * y).sum() / ((x.array**2).sum() or 1.0))


def scale_of_logits(site: Site) -> str | None:
    known = [
        x for name, xs in site.attributes.items() if "scal" in name or "mult" in name for x in xs if x not in (0, 1)
    ]
    found = _factor_of_head(site)
    if found is None:
        return None
    m = site.torch.shape[-1]
    widths = [float(x) for name, xs in site.attributes.items() if name in ("hidden_size", "d_model") for x in xs]
    usual = [*known, *(1 / x for x in known), *(f for width in (m, *widths) for f in (width**-0.5, width**0.5))]
    if not any(abs(found[0] / found[1] / f - 1) < 1e-6 or abs(found[1] / found[0] / f - 1) < 1e-6 for f in usual):
        return None
    return f"In the port, {site.where} is multiplied by {found[1]:.4g}, in PyTorch by {found[0]:.4g}."


def cap_of_logits(site: Site) -> str | None:
    if not site.has_many_digits or site.flax.shape != site.torch.shape:
        return None
    for x in (x for x in _before_cap(site) if x.array.shape == site.torch.shape and _belongs_to_head(site, x)):
        caps = [_cap(x.array, y) for y in (site.torch, site.flax)]
        if None not in caps and caps[0] != caps[1]:
            theirs, ours = ("not" if cap == math.inf else f"at {cap:.10g}" for cap in caps)
            return f"{x.name} is capped {ours} in the port, {theirs} in PyTorch."
    return None


def _before_cap(site: Site) -> Iterator[NamedArray]:
    """What agrees, and what PyTorch's layers, also those that are tied in the port, make of it."""
    yield from outermost(site)
    for call in (call for call in site.torch_calls[:-1] if call.outputs and call.path not in site.pairs):
        if call.inputs and any(site.same(call.inputs[0], x.array) for x in site.before):
            yield NamedArray(call.path, call.outputs[0])


def _cap(x: np.ndarray, y: np.ndarray) -> float | None:
    """By what x is capped in y; infinite if y is x."""
    if error(x, y) <= FLOAT64:
        return math.inf
    if np.any(abs(y) > abs(x) + FLOAT64 * largest(x)):
        return None
    some, there = x.reshape(-1)[:ENOUGH], y.reshape(-1)[:ENOUGH]
    caps = fitting_numbers(lambda cap: cap * np.tanh(some / cap), there, 0.1, 1e4)
    return next((cap for cap in caps if error(cap * np.tanh(x / cap), y) <= FLOAT64), None)


ENOUGH = 4096  # numbers to find one by

EMBEDDING_CAUSES = [
    Cause(
        "embedding scale",
        "One side multiplies the embeddings by the root of their width, as Vaswani et al. do, the other doesn't.",
        "Multiply on both sides, or on neither.",
        embedding_scale,
    ),
    Cause(
        "missing embedding",
        "The embeddings of tokens, positions and types are added up, and the port lacks one.",
        "Add it.",
        missing_embedding,
    ),
    Cause(
        "first position",
        "Positions begin at another number: RoBERTa's and BART's tables have two rows before that of the first token.",
        "Begin at the same row.",
        first_position,
    ),
    Cause(
        "positions under padding",
        "Where padding comes first, positions are counted over the tokens that are none.",
        "Count with a cumulative sum of the mask, as PyTorch's module does.",
        padded_positions,
    ),
    Cause(
        "order of sinusoids",
        "Sines and cosines take turns, or all sines come first.",
        "Lay them out as PyTorch's module does.",
        order_of_sinusoids,
    ),
    Cause(
        "tied embeddings",
        "The last layer has the embeddings for its weight on one side only.",
        "Tie both, or neither; configs call it tie_word_embeddings.",
        tied_head,
    ),
    Cause(
        "scale of the output's logits",
        "What goes into the last layer, or comes out, is multiplied: by 1 / sqrt(m) in T5, by a logit scale elsewhere.",
        "Multiply in the port, too.",
        scale_of_logits,
    ),
    Cause(
        "soft cap of the output's logits",
        "The logits of the last layer are capped by cap * tanh(logits / cap) on one side, or at another number.",
        "Cap them as PyTorch's model does: Gemma 2 at 30.",
        cap_of_logits,
        rank=1,
    ),
]
