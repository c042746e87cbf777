"""What may be added to the logits of a site's attention, and what may hide its keys: masks, lengths, biases."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jattn.parity.arrays import is_floating
from jattn.parity.locate import Site

__all__ = [
    "BiasTable",
    "Hidden",
    "alibi_slopes_at",
    "biases_at",
    "buckets",
    "hidden_at",
    "standard_slopes",
    "tables_at",
]

MASKED = -9999.0  # what is added to hide a key is less


class Hidden(NamedTuple):
    """Which keys an argument hides, and what else it adds."""

    name: str
    allowed: np.ndarray | None  # b|1 h|1 t|1 s
    bias: np.ndarray | None


def hidden_at(site: Site, b: int, h: int, t: int, s: int) -> Iterator[Hidden]:
    """What could be a mask among the arguments here and further out: booleans, additive floats, lengths, tokens."""
    for x in _distinct(site.arguments):
        if is_floating(x) and not set(np.unique(x)) <= {0.0, 1.0}:
            full = _over_pairs(x, b, h, t, s)
            if full is not None and (full <= MASKED).any():
                allowed = full > MASKED
                rest = np.where(allowed, full, 0.0)
                yield Hidden("additive", allowed, rest if rest.any() else None)
            continue
        if x.dtype != bool and x.shape == (b,) and not is_floating(x):
            yield Hidden("lengths", (np.arange(s) < x[:, None])[:, None, None], None)
        elif set(np.unique(x)) <= {0, 1}:
            full = _over_pairs(x.astype(bool), b, h, t, s)
            if full is not None:
                yield from (Hidden("boolean", full, None), Hidden("boolean", ~full, None))
        elif x.shape == (b, s):
            yield from (Hidden("tokens", (x != n)[:, None, None], None) for n in (0, 1))
    for x in site.buffers.values():
        if x.ndim >= 2 and set(np.unique(x)) <= {0, 1} and min(x.shape[-2:]) >= max(t, s):
            full = _over_pairs(x[..., :t, :s].astype(bool), b, h, t, s)
            if full is not None:
                yield from (Hidden("buffer", full, None), Hidden("buffer", ~full, None))


def _distinct(arrays: list[np.ndarray]) -> Iterator[np.ndarray]:
    seen: set[tuple[tuple[int, ...], bytes]] = set()
    for x in arrays:
        if (key := (x.shape, x.tobytes())) not in seen:
            seen.add(key)
            yield x


def _over_pairs(x: np.ndarray, b: int, h: int, t: int, s: int) -> np.ndarray | None:
    """As b|1 h|1 t|1 s."""
    shapes = {
        (b, s): (b, 1, 1, s),
        (1, s): (1, 1, 1, s),
        (b, t, s): (b, 1, t, s),
        (1, t, s): (1, 1, t, s),
        (h, t, s): (1, h, t, s),
        (b * h, t, s): (b, h, t, s),
        (b * h, 1, s): (b, h, 1, s),
        (t, s): (1, 1, t, s),
    }
    if x.ndim == 4 and x.shape[-1] == s and all(n in (1, full) for n, full in zip(x.shape, (b, h, t, s), strict=True)):
        return x
    return x.reshape(shapes[x.shape]) if x.shape in shapes else None


# ----------------------------------------------------------------------------------------------------------------------
# Biases.


class BiasTable(NamedTuple):
    """A parameter that is looked up by how far apart two tokens are."""

    name: str
    values: np.ndarray  # n h
    here: bool  # or of another module


def biases_at(site: Site, b: int, h: int, t: int, s: int, *, by_distance: bool = True) -> Iterator[np.ndarray]:
    """What may be added to the logits, b|1 h|1 t s; also by how far apart two tokens are, if no argument says so."""
    arrays = [*site.arguments, *(y for call in site.torch_calls for y in call.outputs)]
    given = [
        full
        for x in _distinct([x for x in arrays if is_floating(x) and x.ndim in (3, 4)])
        for y in (x, np.moveaxis(x, -1, -3))
        if (full := _over_pairs(y, b, h, t, s)) is not None
        and np.ptp(full) > 0
        and not (full <= MASKED).any()
        and full.shape[-1] == s
    ]
    distance = np.arange(s) - np.arange(t)[:, None]
    alibi = [
        -slopes[:, None, None][None] * form
        for slopes in (alibi_slopes_at(site, h) if by_distance else [])
        for form in (abs(distance - max(s - t, 0)), max(s - t, 0) - distance)
    ]
    # By key, positions count real tokens. ALiBi by distance is tried before, so that a change of the mask leaves it.
    by_key = any(full.shape[-2] == 1 for full in given)
    for full in (*(alibi[::-1] if by_key else ()), *given, *(() if by_key else alibi)):
        yield np.broadcast_to(full, (*full.shape[:2], t, s))
    if not by_distance:
        return
    farthest = [int(x) for name, xs in site.attributes.items() if "max_distance" in name for x in xs] or [128]
    for table in tables_at(site, h):
        for both in (True, False):
            yield np.moveaxis(table.values[buckets(distance, len(table.values), farthest[0], both)], -1, 0)[None]


def alibi_slopes_at(site: Site, h: int) -> list[np.ndarray]:
    """Slopes that modules hold, or the usual ones where something is called so."""
    held = [x.reshape(-1) for name, x in site.buffers.items() if x.size == h and "slope" in name]
    held += [x.reshape(-1) for p in site.layers for name, x in p.parameters.items() if x.size == h and "slope" in name]
    # The slopes are most often a local variable.
    return [*map(abs, held), standard_slopes(h)]


def standard_slopes(h: int) -> np.ndarray:
    """Of Press et al., for any number of heads: those of the next lower power of two, and every second one of twice."""
    n = 2 ** int(np.log2(h))
    slopes = 2.0 ** (-8 / n * np.arange(1, n + 1))
    more = 2.0 ** (-8 / (2 * n) * np.arange(1, 2 * n + 1, 2))
    return np.concatenate([slopes, more])[:h]


def tables_at(site: Site, h: int) -> list[BiasTable]:
    """Parameters with a number for each bucket and head."""
    found = []
    for here, layers in ((True, site.layers), (False, site.others)):
        for layer in layers:
            for name, x in layer.parameters.items():
                if x.ndim == 2 and x.shape[1] == h and "relative" in f"{layer.name}.{name}".lower():
                    found.append(BiasTable(layer.name, x, here))
    return found


def buckets(distance: np.ndarray, n: int, farthest: int, both: bool) -> np.ndarray:
    """T5's: of key minus query; exact up to half of the buckets, then logarithmic."""
    offset = np.zeros_like(distance)
    if both:
        n //= 2
        offset = n * (distance > 0)
        distance = abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = n // 2
    far = exact + (np.log(np.maximum(distance, 1) / exact) / np.log(farthest / exact) * (n - exact)).astype(int)
    return offset + np.where(distance < exact, distance, np.minimum(far, n - 1))
