"""Causes in who may attend to whom: masks, lengths, causality, windows."""

import itertools
from typing import Any

import numpy as np

from jattn.parity.attention_recipe import AttentionRecipe, allowed_by
from jattn.parity.attention_search import alters, attention_at
from jattn.parity.cause import Cause
from jattn.parity.locate import Site

__all__ = ["MASK_CAUSES"]


def _without(recipe: AttentionRecipe, t: int, s: int) -> dict[str, list[dict[str, Any]]]:
    """What the recipe is without each part of its mask."""
    parts: dict[str, list[dict[str, Any]]] = {}
    if recipe.causal is not None:
        parts["causal"] = [{"causal": None}]
        if recipe.window is not None:  # the past still ends, but not the future
            away = np.arange(s) - np.arange(t)[:, None] - recipe.causal
            parts["causal"].append({"causal": None, "window": None, "mask": (away > -recipe.window)[None, None]})
    if recipe.window is not None:
        parts["window"] = [{"window": None}]
    if recipe.padding is not None or recipe.mask is not None:
        parts["mask"] = [{"padding": None, "mask": None}]
    return parts


def _missing(site: Site) -> tuple[str, ...]:
    """The fewest parts of the mask without which PyTorch's recipe gives Flax's numbers."""
    if "_missing" not in vars(site):
        vars(site)["_missing"] = _fewest(site)
    return vars(site)["_missing"]


def _fewest(site: Site) -> tuple[str, ...]:
    found = attention_at(site)
    if found is None:
        return ()
    parts = _without(found.recipe, *found.sizes[2:4])
    for n in range(1, len(parts) + 1):
        for names in itertools.combinations(parts, n):
            for changes in itertools.product(*(parts[name] for name in names)):
                if alters(site, {name: x for change in changes for name, x in change.items()}) is not None:
                    return names
    return ()


def missing_mask(site: Site) -> str | None:
    missing = _missing(site)
    if "mask" in missing or len(missing) > 1:
        other = [name for name in missing if name != "mask"]
        also = f" It has no {' and no '.join({'causal': 'causality', 'window': 'window'}[x] for x in other)} either."
        return "The port attends where PyTorch's mask forbids it." + (also if other else "")
    return None


def missing_causality(site: Site) -> str | None:
    found = attention_at(site)
    if found is None:
        return None
    if _missing(site) == ("causal",):
        return "The port's queries see the future, PyTorch's don't."
    if found.recipe.causal is None:
        t, s = found.sizes[2:4]
        both = [{"causal": 0}, {"causal": s - t}]
        return None if alters(site, *both) is None else "The port hides the future, PyTorch doesn't."
    return None


def shifted_causality(site: Site) -> str | None:
    found = attention_at(site)
    if found is None or found.recipe.causal is None:
        return None
    causal, (t, s) = found.recipe.causal, found.sizes[2:4]
    for shift in (-1, 1):
        if alters(site, {"causal": causal + shift}, _shifted(found.recipe, t, s, shift)) is not None:
            return f"The port's queries see one key {'fewer' if shift < 0 else 'more'} than PyTorch's."
    for other in {0, s - t} - {causal}:
        if alters(site, {"causal": other}) is not None:
            return f"The first query sees keys up to {other} in the port, up to {causal} in PyTorch."
    return None


def _shifted(recipe: AttentionRecipe, t: int, s: int, shift: int) -> dict[str, Any]:
    """Causality alone; the window stays where it is."""
    assert recipe.causal is not None
    away = np.arange(s) - np.arange(t)[:, None] - recipe.causal
    allowed = away <= shift
    if recipe.window is not None:
        allowed = allowed & (away > -recipe.window)
    mask = allowed[None, None] if recipe.mask is None else allowed & recipe.mask
    return {"causal": None, "window": None, "mask": mask}


def upper_causality(site: Site) -> str | None:
    found = attention_at(site)
    if found is None or found.recipe.causal is None or alters(site, {"upper": True}) is None:
        return None
    return "The port's queries see themselves and the future, PyTorch's themselves and the past."


def inverted_mask(site: Site) -> str | None:
    found = attention_at(site)
    if found is None:
        return None
    recipe, (t, s) = found.recipe, found.sizes[2:4]
    alterations: list[dict[str, Any]] = []
    if recipe.padding is not None:
        alterations.append({"padding": ~recipe.padding})
    if recipe.mask is not None:
        alterations.append({"mask": ~recipe.mask})
    if not allowed_by(recipe, t, s).all():
        alterations.append({"turned": True})
    if alters(site, *alterations) is None:
        return None
    return "Where PyTorch's queries may attend, the port's may not, and the other way round."


def mask_over_queries(site: Site) -> str | None:
    found = attention_at(site)
    if found is None or found.sizes[2] != found.sizes[3]:
        return None
    recipe = found.recipe
    alterations: list[dict[str, Any]] = []
    if recipe.padding is not None:
        alterations.append({"padding_of": "queries"})
    if recipe.mask is not None and recipe.mask.shape[-2:] == found.sizes[2:4]:
        alterations.append({"mask": recipe.mask.swapaxes(-1, -2)})
    if alters(site, *alterations) is None:
        return None
    return "PyTorch's mask hides keys, the port's hides queries."


def side_of_padding(site: Site) -> str | None:
    found = attention_at(site)
    if found is None or found.recipe.padding is None:
        return None
    padding = found.recipe.padding
    counts = np.sort(padding, -1)
    for flipped in (padding[:, ::-1], counts, counts[:, ::-1]):
        if not np.array_equal(flipped, padding) and alters(site, {"padding": flipped}) is not None:
            side = "end" if padding[:, 0].all() else "beginning"
            return f"PyTorch's padding is at the {side}, the port's at the other."
    return None


# ----------------------------------------------------------------------------------------------------------------------
# Windows.


def missing_window(site: Site) -> str | None:
    return "PyTorch's queries see a window, the port's don't." if _missing(site) == ("window",) else None


def window_off_by_one(site: Site) -> str | None:
    found = attention_at(site)
    if found is None or found.recipe.window is None:
        return None
    window = found.recipe.window
    for shift in (-1, 1):
        if window + shift > 0 and alters(site, {"window": window + shift}) is not None:
            return f"The port's queries see {window + shift} keys at most, PyTorch's {window}, themselves among them."
    return None


def another_window(site: Site) -> str | None:
    found = attention_at(site)
    if found is None:
        return None
    window, s = found.recipe.window, found.sizes[3]
    near = {window - 1, window, window + 1} if window is not None else set()
    named = [int(x) for name, xs in site.attributes.items() if "window" in name for x in xs]
    for w in (w for w in dict.fromkeys([*range(1, min(s, 64)), *named]) if w not in near and w > 0):
        if alters(site, {"window": w}) is not None:
            theirs = "all" if window is None else window
            return f"The port's queries see {w} keys at most, PyTorch's {theirs}, themselves among them."
    return None


MASK_CAUSES = [
    Cause(
        "inverted mask",
        "True means may attend in JAX and in PyTorch's function, may not attend in PyTorch's modules.",
        "Invert it with ~ where it crosses over.",
        inverted_mask,
    ),
    Cause(
        "missing mask",
        "The mask is given to attention on PyTorch's side and has no effect in the port.",
        "Hand it through.",
        missing_mask,
    ),
    Cause(
        "mask over the wrong axis",
        "A mask of tokens hides them as keys; a mask of pairs is b h t s.",
        "Give a mask b s the axes b 1 1 s, or hand it over as valid_lens.",
        mask_over_queries,
    ),
    Cause(
        "padding on the other side",
        "Padding comes after the tokens (right), or before them (left), as for generation.",
        "Make the mask from the same tokens, or say which side is padded.",
        side_of_padding,
    ),
    Cause(
        "missing causal mask",
        "Queries see the future on one side only.",
        "Use jattn.masks.causal() on both sides or on neither.",
        missing_causality,
    ),
    Cause(
        "causal mask off by one",
        "A query sees itself, and keys up to itself; where there are more keys than queries, the last query is the "
        "last key.",
        "Use jattn.masks.causal(), or causal_lower_right() where the queries are the last tokens.",
        shifted_causality,
    ),
    Cause(
        "causal mask over the wrong axis",
        "Its matrix is transposed.",
        "Use jattn.masks.causal(), a lower triangle with a row for each query.",
        upper_causality,
    ),
    Cause(
        "missing window",
        "The layer attends to the nearest keys only.",
        "Use jattn.masks.sliding_window, in those layers that have it.",
        missing_window,
    ),
    Cause(
        "window off by one",
        "A window counts the query itself in some models (Mistral, Gemma), in others not.",
        "Compare query - key < window with query - key <= window.",
        window_off_by_one,
    ),
    Cause(
        "another window",
        "The window is of another size, or on one side only.",
        "Give the layer PyTorch's window, if it has one.",
        another_window,
    ),
]
