"""PyTorch's recipe for the attention at a site: what it may be made of is tried until it gives PyTorch's numbers.

What can be read off (tables of angles, masks, attributes) is tried first. A trial looks at a few queries of one
example; what gives those must give all.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jattn.parity.arrays import error, largest
from jattn.parity.attention_logits import Hidden, biases_at, hidden_at
from jattn.parity.attention_projections import projections_at
from jattn.parity.attention_recipe import (
    AttentionRecipe,
    Projections,
    allowed_by,
    attend,
    logits_of,
    recompute_attention,
    split_heads,
)
from jattn.parity.fitted import fitting_numbers
from jattn.parity.locate import Site
from jattn.parity.rotary_recipe import RotaryRecipe, angle_tables, rotary_from_bases

__all__ = [
    "EMPTY_ROWS",
    "FoundAttention",
    "alters",
    "attention_at",
    "caps_at",
    "fitting_number",
    "scales_at",
    "sinks_at",
]

ROWS = 8  # queries that a trial looks at
EMPTY_ROWS = ("nan", "zeros", "mean", "unmasked")


class FoundAttention(NamedTuple):
    """Attention as PyTorch has it."""

    projections: Projections
    recipe: AttentionRecipe

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """b, h, t, s and d."""
        query, key, _ = self.projections.sources[self.recipe.source]
        return len(query), self.recipe.heads, query.shape[1], key.shape[1], query.shape[2] // self.recipe.heads

    def gives(self, recipe: AttentionRecipe, site: Site, wanted: np.ndarray) -> bool:
        """Whether a recipe gives these numbers."""
        made = recompute_attention(self.projections, recipe)
        return made.size == wanted.size and site.same(made, wanted if made.ndim == 4 else wanted.reshape(made.shape))


def attention_at(site: Site) -> FoundAttention | None:
    """The recipe that gives PyTorch's numbers; remembered at the site, as every cause here asks for it."""
    if "_attention" not in vars(site):
        vars(site)["_attention"] = next(_fitting_recipes(site), None)
    return vars(site)["_attention"]


def alters(site: Site, *alterations: dict[str, Any]) -> dict[str, Any] | None:
    """The first of these changes to PyTorch's recipe that gives Flax's numbers."""
    found = attention_at(site)
    if found is None:
        return None
    if "_empty" not in vars(site):
        vars(site)["_empty"] = any(
            found.gives(recipe, site, site.flax) for recipe in _with_empty_rows(found, found.recipe)
        )
    if vars(site)["_empty"]:  # then all else is as it is in PyTorch
        return next((changes for changes in alterations if list(changes) == ["empty"]), None)
    for changes in alterations:
        recipe = dataclasses.replace(found.recipe, **changes)
        try:
            for each in _with_empty_rows(found, recipe):
                # Rows that see all they were not to see are those of a mask that is missing.
                known = each.empty != "unmasked" or found.recipe.empty == "unmasked"
                if known and found.gives(each, site, site.flax):
                    return changes
        except (ValueError, IndexError):  # shapes that this change does not fit
            continue
    return None


def fitting_number(
    site: Site, change: Callable[[float], dict[str, Any]], lowest: float, highest: float
) -> float | None:
    """The number for which such a change to PyTorch's recipe gives Flax's numbers, all of them."""
    found = attention_at(site)
    if found is None or not site.has_many_digits or site.flax.size != site.torch.size:
        return None
    few, padding = found.projections.of_examples(1), found.recipe.padding
    first = 0 if padding is None or padding.shape[-1] != found.sizes[2] else int(np.argmax(padding[0]))
    rows = slice(first, first + 2 * ROWS)

    def made(x: float) -> np.ndarray:
        recipe = _of_first(dataclasses.replace(found.recipe, **{**change(x), "empty": "nan"}))
        heads = split_heads(few, recipe)
        return attend(logits_of(heads, recipe, rows), heads.value, few, recipe, rows)

    wanted = _observed(site.flax.reshape(site.torch.shape), found.projections, found.recipe, rows)
    # A few logits may be those of another cause as well.
    if made(highest).shape != wanted.shape or found.sizes[1] * min(found.sizes[2], 2 * ROWS) < ROWS:
        return None
    numbers = fitting_numbers(made, wanted, lowest, highest)
    return next((x for x in numbers if alters(site, change(x)) is not None), None)


def _with_empty_rows(found: FoundAttention, recipe: AttentionRecipe) -> Iterator[AttentionRecipe]:
    """By what queries may get that may attend to nothing; as it is, if there are none."""
    _, _, t, s, _ = found.sizes
    full = found.sizes[:2] if recipe.axis == "heads" else (1, 1)
    allowed = np.broadcast_to(
        allowed_by(recipe, t, s), np.broadcast_shapes(allowed_by(recipe, t, s).shape, (*full, t, s))
    )
    if bool(np.all(np.any(allowed, axis={"keys": -1, "queries": -2, "heads": 1}[recipe.axis]))):
        yield recipe
    else:
        yield from (dataclasses.replace(recipe, empty=empty) for empty in EMPTY_ROWS)


# ----------------------------------------------------------------------------------------------------------------------
# The search.


def _fitting_recipes(site: Site) -> Iterator[FoundAttention]:
    for h in _head_counts(site):
        for x, sources in projections_at(site, h):
            for source in sources:
                trial = _Trial.of(site, x, source, h)
                if trial is None:
                    continue
                for recipe in trial.recipes():
                    found = FoundAttention(x, recipe)
                    for each in _with_empty_rows(found, recipe):
                        if found.gives(each, site, site.torch):
                            yield found._replace(recipe=plain_masks(found._replace(recipe=each)))


def _head_counts(site: Site) -> list[int]:
    return site.heads or list(range(1, 33))


@dataclasses.dataclass
class _Trial:
    """One choice of queries, keys and values."""

    site: Site
    x: Projections
    source: str
    h: int
    seen: list[tuple[str, str]]  # what may be observed, and how the heads are merged then

    @classmethod
    def of(cls, site: Site, x: Projections, source: str, h: int) -> "_Trial | None":
        query, key, value = x.sources[source]
        (b, t, width), s = query.shape, key.shape[1]
        if width % h or key.shape[-1] % (width // h) or len(key) != b or value.shape[:2] != key.shape[:2]:
            return None
        d = width // h
        groups = key.shape[-1] // d
        if not groups or h % groups or value.shape[-1] % groups:
            return None
        e, shape, seen = value.shape[-1] // groups, site.torch.shape, []
        if x.out is not None:
            if x.out[0].shape[1] == h * e and site.torch.size == b * t * len(x.out[0]):
                seen.append(("output", "features"))
        else:
            if site.torch.size == b * t * h * e:
                seen.append(("output", "features"))
            if shape == (b, h, t, e):
                seen.append(("output", "heads apart"))
            if shape == (b, h, t, s):
                seen.append(("each", "features"))
            if site.torch.size == b * t * s and shape[-1] == s:
                seen.append(("mean", "features"))
        return cls(site, x, source, h, seen) if seen else None

    def recipes(self) -> Iterator[AttentionRecipe]:
        """Those that give the trial's part of PyTorch's numbers."""
        query, key, _ = self.x.sources[self.source]
        (b, t, width), s = query.shape, key.shape[1]
        few = self.x.of_examples(1)
        rows = slice(max(t - ROWS, 0), t)
        # What turns by its position needs no bias by distance.
        hidden = {
            by_distance: list(_hidden_combinations(self.site, b, self.h, t, s, by_distance))
            for by_distance in (True, False)
        }
        for rotary in _rotaries(self.site, t, s, width // self.h):
            recipe = AttentionRecipe(self.h, 1.0, self.source, rotary=rotary)
            heads = split_heads(few, _of_first(recipe))
            products = logits_of(heads, recipe, rows)
            for scale, cap, sinks in itertools.product(
                scales_at(self.site, width, width // self.h), caps_at(self.site), sinks_at(self.site, self.h)
            ):
                logits = scale * products
                logits = logits if cap is None else cap * np.tanh(logits / cap)
                for (seen, merged), changes in itertools.product(self.seen, hidden[rotary is None]):
                    full = {"scale": scale, "cap": cap, "sinks": sinks, "seen": seen, "merged": merged, **changes}
                    tried = dataclasses.replace(recipe, **full)
                    bias = changes.get("bias")
                    part = dataclasses.replace(
                        tried, bias=None, padding=None, mask=None if tried.mask is None else tried.mask[:1]
                    )
                    every = bias is not None and bias.shape[-2] == 1
                    added = logits if bias is None else logits + bias[:1, :, slice(None) if every else rows]
                    for each in _with_empty_rows(FoundAttention(few, part), part):
                        made = attend(added, heads.value, few, each, rows)
                        if self._fits(made, tried, rows):
                            yield tried
                            break

    def _fits(self, made: np.ndarray, recipe: AttentionRecipe, rows: slice) -> bool:
        """Whether PyTorch's numbers are those, in these rows of the first example."""
        wanted = _observed(self.site.torch, self.x, recipe, rows)
        scale = largest(self.site.torch) or 1.0
        return wanted.shape == made.shape and error(made, wanted, scale) <= self.site.tolerance


def _observed(y: np.ndarray, x: Projections, recipe: AttentionRecipe, rows: slice) -> np.ndarray:
    """What is observed of these queries of the first example."""
    query, key, _ = x.sources[recipe.source]
    (b, t, _), s = query.shape, key.shape[1]
    if recipe.seen == "each" or recipe.merged == "heads apart":
        return y[:1, :, rows]
    if recipe.seen == "mean":
        return y.reshape(b, t, s)[:1, rows]
    return y.reshape(t, b, -1)[rows, :1] if x.time_first else y.reshape(b, t, -1)[:1, rows]


def _of_first(recipe: AttentionRecipe) -> AttentionRecipe:
    """For the first example."""
    rotary = None if recipe.rotary is None else dataclasses.replace(recipe.rotary, angles=recipe.rotary.angles[:1])
    by_example = {"bias": recipe.bias, "padding": recipe.padding, "mask": recipe.mask}
    first: dict[str, Any] = {name: None if x is None else x[:1] for name, x in by_example.items()}
    return dataclasses.replace(recipe, rotary=rotary, **first)


def _rotaries(site: Site, t: int, s: int, d: int) -> list[RotaryRecipe | None]:
    if t != s:
        return [None]
    tables = [x for x in angle_tables(site, t) if 2 * x.angles.shape[-1] <= d]
    return [*tables, None] if tables else [None, *rotary_from_bases(site, t, d)]


def scales_at(site: Site, width: int, d: int) -> list[float]:
    """What products may be multiplied by: as attributes say, or as is usual."""
    named = {name: xs for name, xs in site.attributes.items() if any(isinstance(x, int | float) for x in xs)}
    direct = [x for name, xs in named.items() if name in SCALES for x in xs]
    inverse = [1 / x for name, xs in named.items() if name in ("norm_factor",) for x in xs if x]
    roots = [x**-0.5 for name, xs in named.items() if "query_pre_attn" in name for x in xs if x > 0]
    scales = [*direct, *inverse, *roots, d**-0.5, 1.0, width**-0.5, 1 / d]
    layer = [x + 1 for name, xs in named.items() if name in ("layer_idx", "layer_number") for x in xs[:1]]
    return list(dict.fromkeys([float(x) for x in scales if x > 0] + [d**-0.5 / x for x in layer if x > 1]))


SCALES = (
    "scaling",
    "scale",
    "attn_scale",
    "softmax_scale",
    "scale_factor",
    "attention_multiplier",
    "inv_norm_factor",
    "scaling_factor",
)


def caps_at(site: Site) -> list[float | None]:
    """By what logits may be capped."""
    named = [x for name, xs in site.attributes.items() if "cap" in name and "capacity" not in name for x in xs]
    return [*dict.fromkeys(float(x) for x in named if x > 0), None]


def sinks_at(site: Site, h: int) -> list[np.ndarray | None]:
    """Parameters that may be a further logit of each head."""
    own = [(name, x) for layer in site.layers for name, x in layer.parameters.items()]
    return [*(x.reshape(-1) for name, x in own if "sink" in name and x.size == h), None]


def _hidden_combinations(site: Site, b: int, h: int, t: int, s: int, by_distance: bool) -> Iterator[dict[str, Any]]:
    """Which masks and biases may go together."""
    given = [*hidden_at(site, b, h, t, s), Hidden("none", None, None)]
    biases: list[np.ndarray | None] = [None, *biases_at(site, b, h, t, s, by_distance=by_distance)]
    windows = [int(x) for name, xs in site.attributes.items() if "window" in name for x in xs if x > 0]
    widths: list[int | None] = [None]
    for w in dict.fromkeys(windows):
        widths += [w, w + 1, w // 2 + 1]
    for bias, hidden, causal, window in itertools.product(
        biases, given, dict.fromkeys([None, s - t, 0]), dict.fromkeys(widths)
    ):
        added = hidden.bias if bias is None else bias if hidden.bias is None else bias + hidden.bias
        yield {"bias": added, "mask": hidden.allowed, "causal": causal, "window": window}


# ----------------------------------------------------------------------------------------------------------------------
# The masks said in the terms that go wrong: causality, window, padding.


def plain_masks(found: FoundAttention) -> AttentionRecipe:
    """The same recipe, with its mask taken apart where that can be done, and without what has no effect."""
    _, _, t, s, _ = found.sizes
    recipe = found.recipe
    allowed = allowed_by(recipe, t, s)
    if allowed.all():
        return dataclasses.replace(recipe, causal=None, window=None, padding=None, mask=None)
    whole = np.broadcast_to(allowed, (*allowed.shape[:2], t, s))
    bare = dataclasses.replace(recipe, causal=None, window=None, padding=None, mask=None)
    whole = np.broadcast_to(allowed, (*allowed.shape[:2], t, s))
    padding: np.ndarray | None = np.any(whole[:, 0], axis=1) if len(whole[0]) == 1 else None
    seen = np.asarray(np.any(whole, axis=(0, 1)))
    for causal in dict.fromkeys([recipe.causal, s - t, 0, None]):
        away = np.arange(s) - np.arange(t)[:, None] - (causal or 0)
        window = int(abs(away[seen & (away <= 0) if causal is not None else seen]).max(initial=0)) + 1
        for width, pads in itertools.product((None, window), (None, padding)):
            tried = dataclasses.replace(bare, causal=causal, window=width, padding=pads)
            made = allowed_by(tried, t, s)
            if np.array_equal(np.broadcast_to(made, np.broadcast_shapes(made.shape, whole.shape)), whole):
                return tried
    return dataclasses.replace(bare, mask=whole)
