"""Causes inside attention: it is recomputed from its projections with one ingredient altered."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

from jattn.parity.attention_recipe import found_at, gives
from jattn.parity.locate import Site


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


def _alters(text: str, *alterations: dict[str, Any]) -> "functools.partial[str | None]":
    return functools.partial(_tell, text=text, alterations=alterations)


def _tell(site: Site, *, text: str, alterations: tuple[dict[str, Any], ...]) -> str | None:
    return text if _altered(site, *alterations) else None


def _scale(site: Site) -> str | None:
    found = found_at(site)
    if found is None:
        return None
    width, heads = found.inputs.query.shape[-1], found.recipe.heads
    d = width // heads
    scales = {"1 / sqrt(d)": d**-0.5, "1": 1.0, "1 / sqrt(m)": width**-0.5, "1 / d": 1 / d, "sqrt(d)": d**0.5}
    ours = next((name for name, x in scales.items() if _altered(site, {"scale": x, "empty": found.recipe.empty})), None)
    theirs = next((name for name, x in scales.items() if x == found.recipe.scale), "")
    return None if ours is None else f"The products are multiplied by {ours} in the port, by {theirs} in PyTorch."


def _heads(site: Site) -> str | None:
    found = found_at(site)
    if found is None or found.inputs.key.shape != found.inputs.query.shape:
        return None
    width = found.inputs.query.shape[-1]
    for h in (h for h in range(1, width + 1) if width % h == 0):
        if _altered(site, {"heads": h}, {"heads": h, "scale": (width // h) ** -0.5}) and h != found.recipe.heads:
            return f"The port has {h} heads, PyTorch {found.recipe.heads}."
    return None


def _inverted(site: Site) -> str | None:
    found = found_at(site)
    if found is None or found.recipe.mask is None or not _altered(site, {"inverted": not found.recipe.inverted}):
        return None
    return "Where PyTorch's queries may attend, the port's may not, and the other way round."


def _causality(site: Site) -> str | None:
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


def _heads_of_weights(site: Site) -> str | None:
    found = found_at(site)
    if found is None or found.recipe.weights == "no":
        return None
    other = "mean" if found.recipe.weights == "each" else "each"
    if not _altered(site, {"weights": other}):
        return None
    return f"The weights are {'averaged over heads' if other == 'mean' else 'of each head'} in the port only."


HEADS: list[dict[str, Any]] = [{"split": "time"}, {"merged": "time"}, {"split": "time", "merged": "time"}]
ORDERS: list[dict[str, Any]] = [
    {"split": "interleaved"},
    {"merged": "interleaved"},
    {"split": "interleaved", "merged": "interleaved"},
]

CAUSES: list[tuple[tuple[str, str, str], Callable[[Site], str | None]]] = [
    # First, as the other causes leave open what such rows get.
    (
        (
            "rows with nothing to attend to",
            "A query whose keys are all masked gets NaN from a softmax of minus infinities, the mean of all values "
            "from one of large negative numbers, zeros from jattn.",
            "Decide for one, and give such queries no weight in the loss.",
        ),
        _alters(
            "The port differs in the queries that may attend to nothing.",
            {"empty": "nan"},
            {"empty": "zeros"},
            {"empty": "mean"},
        ),
    ),
    (
        (
            "missing scale",
            "The scale of the products of queries and keys is another one.",
            "Scale by 1 / sqrt(d), with d the width of one head; jattn.attention does by default.",
        ),
        _scale,
    ),
    (
        (
            "number of heads",
            "The same projections are split into another number of heads, which fits without an error.",
            "Give the port PyTorch's number of heads; the weights don't tell it.",
        ),
        _heads,
    ),
    (
        (
            "inverted mask",
            "True means may attend in JAX and in PyTorch's function, may not attend in PyTorch's modules.",
            "Invert it with ~ where it crosses over.",
        ),
        _inverted,
    ),
    (
        (
            "missing mask",
            "The mask is given to attention on PyTorch's side and has no effect in the port.",
            "Hand it through.",
        ),
        _alters("The port attends where PyTorch's mask forbids it.", {"mask": None}),
    ),
    (
        (
            "missing causal mask",
            "Who may see which keys of the past and the future differs.",
            "Use jattn.masks.causal() on both sides or on neither.",
        ),
        _causality,
    ),
    (
        (
            "softmax over the wrong axis",
            "The weights of a query must add up to one over the keys.",
            "Use axis=-1 for weights laid out as b h t s.",
        ),
        _alters("The port's softmax is over queries or heads.", {"axis": "queries"}, {"axis": "heads"}),
    ),
    (
        (
            "query and key swapped",
            "The products are the same, transposed: each key asks the queries.",
            "Hand over the query first.",
        ),
        _alters("The port's queries are PyTorch's keys.", {"swapped": True}),
    ),
    (
        (
            "heads and time swapped",
            "A reshape between b t (h d) and b h t d must go with a transpose, or it mixes positions and heads.",
            "Reshape to b t h d and leave it at that, as jattn.attention takes it.",
        ),
        _alters("The port reshapes without the transpose.", *HEADS),
    ),
    (
        (
            "order of heads and features",
            "The features of a head are neighbours in PyTorch's projections: (h d), not (d h).",
            "Reshape the last axis to (h, d).",
        ),
        _alters("The port takes features that are h apart for one head.", *ORDERS),
    ),
    (
        (
            "order of grouped heads",
            "The query heads that share a key and value head are neighbours: 0 to h / k - 1 share head 0.",
            "Repeat (jnp.repeat), don't tile.",
        ),
        _alters("The port tiles the key and value heads.", {"group": "tile"}),
    ),
    (
        (
            "missing projection biases",
            "The biases of the projections to query, key and value are not added.",
            "Split in_proj_bias into three and add them.",
        ),
        _alters("in_proj_bias has no effect in the port.", {"biases": False}),
    ),
    (
        (
            "weights averaged over heads",
            "torch.nn.MultiheadAttention returns the mean over heads by default, jattn the weights of each head.",
            "Ask PyTorch for average_attn_weights=False, or take the mean over the axis h.",
        ),
        _heads_of_weights,
    ),
]
