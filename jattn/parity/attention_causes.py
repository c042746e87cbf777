"""Causes inside attention: it is recomputed from its projections with one setting altered."""

from collections.abc import Callable
from typing import Any

from jattn.parity.attention_projections import AS_THEY_ARE
from jattn.parity.attention_search import FoundAttention, alters, attention_at, caps_at, fitting_number, scales_at
from jattn.parity.cause import Cause
from jattn.parity.locate import Site
from jattn.parity.rotary_recipe import frequencies_of

__all__ = ["ATTENTION_CAUSES"]


def _alters(text: str, *alterations: dict[str, Any]) -> Callable[[Site], str | None]:
    """A cause that is one of these changes."""
    return lambda site: None if alters(site, *alterations) is None else text


# ----------------------------------------------------------------------------------------------------------------------
# The products.


def missing_scale(site: Site) -> str | None:
    found = attention_at(site)
    if found is None or found.recipe.scale == 1 or alters(site, {"scale": 1.0}) is None:
        return None
    return f"The products are multiplied by {_scale_name(found, found.recipe.scale)} in PyTorch only."


def another_scale(site: Site) -> str | None:
    found = attention_at(site)
    if found is None:
        return None
    d, width = found.sizes[4], found.sizes[1] * found.sizes[4]
    widths = [x for name, xs in site.attributes.items() if "dim" in name or "size" in name for x in xs if x > 0]
    more = [d**-0.25, d**0.5, d**-1.0, 1 / width, *(float(x) ** -0.5 for x in widths)]
    known = (x for x in dict.fromkeys([*scales_at(site, width, d), *more]) if alters(site, {"scale": x}) is not None)
    x = next(known, None)
    return None if x is None or x == 1 else _told_scales(found, x)


def unusual_scale(site: Site) -> str | None:
    found, x = attention_at(site), fitting_number(site, lambda x: {"scale": x}, 1e-3, 1e2)
    return None if found is None or x is None else _told_scales(found, x)


def _told_scales(found: FoundAttention, x: float) -> str:
    ours, theirs = _scale_name(found, x), _scale_name(found, found.recipe.scale)
    return f"The products are multiplied by {ours} in the port, by {theirs} in PyTorch."


def _scale_name(found: FoundAttention, x: float) -> str:
    d, width = found.sizes[4], found.sizes[1] * found.sizes[4]
    names = {d**-0.5: "1 / sqrt(d)", 1.0: "1", width**-0.5: "1 / sqrt(m)", 1 / d: "1 / d", d**0.5: "sqrt(d)"}
    return names.get(x, f"{x:.10g}")


def soft_cap(site: Site) -> str | None:
    found = attention_at(site)
    if found is None:
        return None
    theirs = found.recipe.cap
    if theirs is not None and alters(site, {"cap": None}) is not None:
        return f"The logits are capped at {theirs:.4g} in PyTorch only."
    for cap in dict.fromkeys([*caps_at(site), 50.0, 30.0, 20.0, 10.0]):
        if cap is not None and alters(site, {"cap": cap}) is not None:
            return _told_caps(found, cap)
    return None


def unusual_cap(site: Site) -> str | None:
    found, cap = attention_at(site), fitting_number(site, lambda x: {"cap": x}, 0.1, 1e3)
    return None if found is None or cap is None else _told_caps(found, cap)


def _told_caps(found: FoundAttention, cap: float) -> str:
    theirs = found.recipe.cap
    return f"The logits are capped at {cap:.10g} in the port, {f'at {theirs:.4g}' if theirs else 'not'} in PyTorch."


def sinks(site: Site) -> str | None:
    found = attention_at(site)
    if found is None or found.recipe.sinks is None:
        return None
    if alters(site, {"sinks": None}) is not None:
        return "The softmax has a further logit for each head in PyTorch only."
    if alters(site, {"sinks": -found.recipe.sinks}, {"sinks": 0 * found.recipe.sinks}) is not None:
        return "The further logit of each head is another one in the port."
    return None


# ----------------------------------------------------------------------------------------------------------------------
# Heads.


def head_count(site: Site) -> str | None:
    found = attention_at(site)
    if found is None:
        return None
    query, key, _ = found.projections.sources[found.recipe.source]
    if key.shape[-1] != query.shape[-1]:
        return None
    width, rotary = query.shape[-1], found.recipe.rotary
    for h in (h for h in range(1, width + 1) if width % h == 0 and h != found.recipe.heads):
        d, change = width // h, {"heads": h}
        if rotary is not None:
            n = 2 * rotary.angles.shape[-1]
            if rotary.frequencies is None or rotary.positions is None or n != found.sizes[4] or d % 2:
                continue
            base = float(rotary.frequencies[1] ** (-n / 2)) if n > 2 else 1e4
            change["rotary"] = rotary.with_frequencies(frequencies_of(base, d))  # type: ignore[assignment]
        if alters(site, change, {**change, "scale": d**-0.5}) is not None:
            return f"The port has {h} heads, PyTorch {found.recipe.heads}."
    return None


def heads_of_weights(site: Site) -> str | None:
    found = attention_at(site)
    if found is None or found.recipe.seen == "output":
        return None
    other = "mean" if found.recipe.seen == "each" else "each"
    if alters(site, {"seen": other}) is None:
        return None
    return f"The weights are {'averaged over heads' if other == 'mean' else 'of each head'} in the port only."


def packed_order(site: Site) -> str | None:
    found = attention_at(site)
    if found is None or found.recipe.source == AS_THEY_ARE:
        return None
    theirs = found.recipe.source
    for source in found.projections.sources:
        if source != theirs and alters(site, {"source": source}) is not None:
            return f"The packed projection is split as {source} in the port, as {theirs} in PyTorch."
    return None


def missing_biases(site: Site) -> str | None:
    found = attention_at(site)
    if found is None or "without biases" not in found.projections.sources:
        return None
    if alters(site, {"source": "without biases"}) is None:
        return None
    return "in_proj_bias has no effect in the port."


def norms_of_heads(site: Site) -> str | None:
    found = attention_at(site)
    if found is None:
        return None
    for source in found.projections.sources:
        if "normed" in source and source != found.recipe.source and alters(site, {"source": source}) is not None:
            return f"In the port, {source}."
    return None


def _rearranged(site: Site, how: str, text: str) -> str | None:
    """Heads split or merged in another way, or both."""
    found = attention_at(site)
    if found is None or found.recipe.merged != "features":
        return None
    both = {"split": how, "merged": how}
    return None if alters(site, {"split": how}, {"merged": how}, both) is None else text


_SCALE = Cause(
    "another scale",
    "The scale of the products of queries and keys is another one, such as that of the width of all heads.",
    "Give the port PyTorch's scale.",
    another_scale,
)
_CAP = Cause(
    "soft cap",
    "Logits are capped by cap * tanh(logits / cap) on one side, or at another number.",
    "Give both sides the same logits_soft_cap, or neither.",
    soft_cap,
)
ATTENTION_CAUSES = [
    # Before the rest of attention, which leaves open what such rows get.
    Cause(
        "rows with nothing to attend to",
        "A query whose keys are all masked gets NaN from a softmax of minus infinities, the mean of all values "
        "from one of large negative numbers, zeros from jattn.",
        "Decide for one, and give such queries no weight in the loss.",
        _alters("The port differs in the queries that may attend to nothing.", {"empty": ""}),
    ),
    Cause(
        "missing scale",
        "The products of queries and keys are not scaled.",
        "Scale by 1 / sqrt(d), with d the width of one head; jattn.attention does by default.",
        missing_scale,
    ),
    _SCALE,
    _SCALE._replace(test=unusual_scale, rank=1),
    _CAP,
    _CAP._replace(test=unusual_cap, rank=1),
    Cause(
        "attention sinks",
        "The softmax of PyTorch's module has a further logit for each head, to which no value belongs.",
        "Hand the sinks to jattn.attention.",
        sinks,
    ),
    Cause(
        "number of heads",
        "The same projections are split into another number of heads, which fits without an error.",
        "Give the port PyTorch's number of heads; the weights don't tell it.",
        head_count,
    ),
    Cause(
        "softmax over the wrong axis",
        "The weights of a query must add up to one over the keys.",
        "Use axis=-1 for weights laid out as b h t s.",
        _alters("The port's softmax is over queries or heads.", {"axis": "queries"}, {"axis": "heads"}),
    ),
    Cause(
        "query and key swapped",
        "The products are the same, transposed: each key asks the queries.",
        "Hand over the query first.",
        _alters("The port's queries are PyTorch's keys.", {"swapped": "query and key"}),
    ),
    Cause(
        "key and value swapped",
        "What is averaged is what should be compared.",
        "Hand over the key before the value.",
        _alters("The port's keys are PyTorch's values.", {"swapped": "key and value"}),
    ),
    Cause(
        "heads and time swapped",
        "A reshape between b t (h d) and b h t d must go with a transpose, or it mixes positions and heads.",
        "Reshape to b t h d and leave it at that, as jattn.attention takes it.",
        lambda site: _rearranged(site, "time", "The port reshapes without the transpose."),
    ),
    Cause(
        "order of heads and features",
        "The features of a head are neighbours in PyTorch's projections: (h d), not (d h).",
        "Reshape the last axis to (h, d).",
        lambda site: _rearranged(site, "interleaved", "The port takes features that are h apart for one head."),
    ),
    Cause(
        "order of grouped heads",
        "The query heads that share a key and value head are neighbours: 0 to h / k - 1 share head 0.",
        "Repeat (jnp.repeat), don't tile.",
        _alters("The port tiles the key and value heads.", {"group": "tile"}),
    ),
    Cause(
        "order in a packed projection",
        "A projection to queries, keys and values at once may have heads inside of the three or around them.",
        "Split it as PyTorch's module does.",
        packed_order,
    ),
    Cause(
        "missing projection biases",
        "The biases of the projections to query, key and value are not added.",
        "Split in_proj_bias into three and add them.",
        missing_biases,
    ),
    Cause(
        "missing norm of queries and keys",
        "PyTorch's module normalises the heads of queries and keys before they meet.",
        "Call the norms; jattn.nn.MultiHeadAttention has them with normalize_qk.",
        norms_of_heads,
    ),
    Cause(
        "weights averaged over heads",
        "torch.nn.MultiheadAttention returns the mean over heads by default, jattn the weights of each head.",
        "Ask PyTorch for average_attn_weights=False, or take the mean over the axis h.",
        heads_of_weights,
    ),
]
