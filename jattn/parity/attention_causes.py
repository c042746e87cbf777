"""Causes inside attention: it is recomputed from its projections with one ingredient altered."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from jattn.parity.attention_recipe import found_at, gives
from jattn.parity.locate import Site

__all__ = [
    "causality",
    "empty_rows",
    "head_count",
    "heads_for_time",
    "heads_of_weights",
    "inverted_mask",
    "missing_biases",
    "missing_mask",
    "order_of_groups",
    "order_of_heads",
    "query_for_key",
    "scale",
    "softmax_axis",
]


def _altered(site: Site, *alterations: dict[str, Any]) -> bool:
    """Whether one of these changes to PyTorch's recipe gives Flax's numbers."""
    found = found_at(site)
    if found is None:
        return False
    for changes, empty in itertools.product(alterations, ("nan", "zeros", "mean")):
        recipe = dataclasses.replace(found.recipe, **{"empty": empty, **changes})
        if recipe != found.recipe and gives(found, recipe, site, site.flax):
            return True
    return False


def _alters(text: str, *alterations: dict[str, Any]) -> Callable[[Site], str | None]:
    """A cause that is one of these changes."""
    return lambda site: text if _altered(site, *alterations) else None


def scale(site: Site) -> str | None:
    found = found_at(site)
    if found is None:
        return None
    width = found.inputs.query.shape[-1]
    d = width // found.recipe.heads
    scales = {"1 / sqrt(d)": d**-0.5, "1": 1.0, "1 / sqrt(m)": width**-0.5, "1 / d": 1 / d, "sqrt(d)": d**0.5}
    ours = next((name for name, x in scales.items() if _altered(site, {"scale": x, "empty": found.recipe.empty})), None)
    theirs = next((name for name, x in scales.items() if x == found.recipe.scale), "")
    return None if ours is None else f"The products are multiplied by {ours} in the port, by {theirs} in PyTorch."


def head_count(site: Site) -> str | None:
    found = found_at(site)
    if found is None or found.inputs.key.shape != found.inputs.query.shape:
        return None
    width = found.inputs.query.shape[-1]
    for h in (h for h in range(1, width + 1) if width % h == 0):
        if _altered(site, {"heads": h}, {"heads": h, "scale": (width // h) ** -0.5}) and h != found.recipe.heads:
            return f"The port has {h} heads, PyTorch {found.recipe.heads}."
    return None


def inverted_mask(site: Site) -> str | None:
    found = found_at(site)
    if found is None:
        return None
    alterations: list[dict[str, Any]] = []
    if found.recipe.mask is not None:
        alterations.append({"inverted": not found.recipe.inverted})
    if found.recipe.causal is not None:
        alterations.append({"turned": True})
    if not _altered(site, *alterations):
        return None
    return "Where PyTorch's queries may attend, the port's may not, and the other way round."


def causality(site: Site) -> str | None:
    found = found_at(site)
    if found is None:
        return None
    causal = found.recipe.causal
    if causal is None:
        return "The port hides the future, PyTorch doesn't." if _altered(site, {"causal": 0}) else None
    if _altered(site, {"causal": None}):
        return "The port's queries see the future, PyTorch's don't."
    for shift in (-1, 1):
        if _altered(site, {"causal": causal + shift}):
            return f"The port's queries see one key {'fewer' if shift < 0 else 'more'} than PyTorch's."
    return None


def heads_of_weights(site: Site) -> str | None:
    found = found_at(site)
    if found is None or found.recipe.weights == "no":
        return None
    other = "mean" if found.recipe.weights == "each" else "each"
    if not _altered(site, {"weights": other}):
        return None
    return f"The weights are {'averaged over heads' if other == 'mean' else 'of each head'} in the port only."


empty_rows = _alters(
    "The port differs in the queries that may attend to nothing.",
    {"empty": "nan"},
    {"empty": "zeros"},
    {"empty": "mean"},
)
missing_mask = _alters("The port attends where PyTorch's mask forbids it.", {"mask": None})
softmax_axis = _alters("The port's softmax is over queries or heads.", {"axis": "queries"}, {"axis": "heads"})
query_for_key = _alters("The port's queries are PyTorch's keys.", {"swapped": True})
heads_for_time = _alters(
    "The port reshapes without the transpose.",
    {"split": "time"},
    {"merged": "time"},
    {"split": "time", "merged": "time"},
)
order_of_heads = _alters(
    "The port takes features that are h apart for one head.",
    {"split": "interleaved"},
    {"merged": "interleaved"},
    {"split": "interleaved", "merged": "interleaved"},
)
order_of_groups = _alters("The port tiles the key and value heads.", {"group": "tile"})
missing_biases = _alters("in_proj_bias has no effect in the port.", {"biases": False})
