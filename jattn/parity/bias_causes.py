"""Causes in what is added to the logits: ALiBi, T5's buckets, a bias of one's own."""

import itertools

import numpy as np

from jattn.parity.attention_logits import biases_at, buckets, standard_slopes, tables_at
from jattn.parity.attention_search import alters, attention_at
from jattn.parity.cause import Cause
from jattn.parity.locate import Site

__all__ = ["BIAS_CAUSES"]


def missing_bias_of_logits(site: Site) -> str | None:
    found = attention_at(site)
    if found is None:
        return None
    if found.recipe.bias is not None:
        return None if alters(site, {"bias": None}) is None else "PyTorch adds a bias to the logits, the port doesn't."
    if any(alters(site, {"bias": bias}) is not None for bias in biases_at(site, *found.sizes[:4])):
        return "The port adds a bias to the logits, PyTorch doesn't."
    return None


def sign_of_bias(site: Site) -> str | None:
    found = attention_at(site)
    if found is None or found.recipe.bias is None or alters(site, {"bias": -found.recipe.bias}) is None:
        return None
    return "The port subtracts the bias that PyTorch adds."


def transposed_bias(site: Site) -> str | None:
    found = attention_at(site)
    if found is None or found.recipe.bias is None:
        return None
    bias = found.recipe.bias
    # What is the same for all queries would, transposed, have no effect.
    if bias.shape[-1] != bias.shape[-2] or np.ptp(bias, axis=-2).max() == 0:
        return None
    if alters(site, {"bias": bias.swapaxes(-1, -2)}) is None:
        return None
    return "The port's bias is that of the key for the query."


def scaled_bias(site: Site) -> str | None:
    found = attention_at(site)
    if found is None or found.recipe.bias is None or found.recipe.scale == 1:
        return None
    if alters(site, {"bias_scaled": True}) is None:
        return None
    return "The port adds the bias before it scales, PyTorch after."


def slopes_of_heads(site: Site) -> str | None:
    found = attention_at(site)
    if found is None or found.recipe.bias is None:
        return None
    h, t, s = found.sizes[1:4]
    bias = found.recipe.bias
    if bias.shape[1] != h or t < 2:
        return None
    # Of a bias that falls by so much with each key that the query has passed.
    theirs = (bias[..., -1, 1:] - bias[..., -1, :-1])[:1, :, :1].reshape(-1)
    distance = np.arange(s) - np.arange(t)[:, None]
    forms = [distance, -abs(distance)] if found.recipe.causal is None else [distance]
    if not any(_same_up_to_rows(theirs[:, None, None] * form, bias[0], found.recipe.causal) for form in forms):
        return None
    i = np.arange(h)
    others = {
        "the usual ones": standard_slopes(h),
        "the usual ones in the other order": standard_slopes(h)[::-1],
        "2^(-8 (i + 1) / h)": 2.0 ** (-8 * (i + 1) / h),
        "2^(-8 i / h)": 2.0 ** (-8 * i / h),
        "2^-(i + 1)": 2.0 ** -(i + 1.0),
        "2^-i": 2.0**-i,
        "those of twice the heads": standard_slopes(2 * h)[:h],
        "PyTorch's in the other order": theirs[::-1],
        "PyTorch's from the steepest on": np.sort(theirs)[::-1],
        "1": np.ones(h),
    }
    for (name, slopes), form in itertools.product(others.items(), forms):
        if not np.allclose(slopes, theirs) and alters(site, {"bias": slopes[:, None, None][None] * form}) is not None:
            return f"The port's slopes are {name}, PyTorch's begin with {', '.join(f'{x:.4g}' for x in theirs[:3])}."
    return None


def _same_up_to_rows(x: np.ndarray, y: np.ndarray, causal: int | None) -> bool:
    """As a softmax sees it, which does not know what a row's logits have in common."""
    difference = x - y
    if causal is not None:
        seen = np.tri(difference.shape[-2], difference.shape[-1], causal, bool)
        difference = np.where(seen, difference, difference[..., :1])
    return bool(np.allclose(difference, difference[..., :1]))


def bucketed_bias(site: Site) -> str | None:
    found = attention_at(site)
    if found is None or found.recipe.bias is None:
        return None
    h, t, s = found.sizes[1:4]
    distance = np.arange(s) - np.arange(t)[:, None]
    ways = list(itertools.product(_farthest(site), (True, False)))
    tables = tables_at(site, h)
    for table, (farthest, both) in itertools.product(tables, ways):
        if not _is_bias(found.recipe.bias, table.values, buckets(distance, len(table.values), farthest, both)):
            continue
        for other, (far, two) in itertools.product(tables, ways):
            if (other.name, far, two) == (table.name, farthest, both):
                continue
            bias = np.moveaxis(other.values[buckets(distance, len(other.values), far, two)], -1, 0)[None]
            if alters(site, {"bias": bias}) is not None:
                if other.name != table.name:
                    return f"The port looks its bias up in {other.name}, PyTorch in {table.name}."
                return f"The port's buckets {_told_buckets(far, two)}, PyTorch's {_told_buckets(farthest, both)}."
    return None


def _told_buckets(farthest: int, both: bool) -> str:
    return f"{'know both directions' if both else 'know the past alone'} and end at {farthest}"


def _farthest(site: Site) -> list[int]:
    named = [int(x) for name, xs in site.attributes.items() if "max_distance" in name for x in xs]
    return list(dict.fromkeys([*named, 128, 64, 256, 20]))


def _is_bias(bias: np.ndarray, table: np.ndarray, index: np.ndarray) -> bool:
    """Where it is not masked, that is, not zero."""
    made = np.moveaxis(table[index], -1, 0)[None]
    return bias.shape[1:] == made.shape[1:] and bool(np.allclose(np.where(bias == 0, 0, made), bias))


def relative_buckets(site: Site) -> str | None:
    """Where what is observed are the buckets themselves."""
    if site.torch.ndim < 2 or not np.issubdtype(site.torch.dtype, np.integer):
        return None
    t, s = site.torch.shape[-2:]
    distance = np.arange(s) - np.arange(t)[:, None] - (s - t)
    sizes = {len(x.values) for h in site.heads for x in tables_at(site, h)}
    ways = list(itertools.product(sizes, _farthest(site), (True, False)))
    for n, farthest, both in ways:
        if np.array_equal(buckets(distance, n, farthest, both), site.torch.reshape(t, s)):
            for size, far, two in itertools.product({*sizes, 32, 64, 16}, _farthest(site), (True, False)):
                if np.array_equal(buckets(distance, size, far, two), site.flax.reshape(t, s)):
                    return f"The port's buckets {_told_buckets(far, two)}, PyTorch's {_told_buckets(farthest, both)}."
            if np.array_equal(buckets(-distance, n, farthest, both), site.flax.reshape(t, s)):
                return "The port counts from the key to the query, PyTorch from the query to the key."
    return None


BIAS_CAUSES = [
    Cause(
        "missing bias of the logits",
        "A bias by position is added to the logits on one side only; T5 makes it in the first layer for all of them.",
        "Hand it to attention in every layer that has it.",
        missing_bias_of_logits,
    ),
    Cause(
        "sign of the bias",
        "ALiBi takes off more the farther the key is away.",
        "Add jattn.biases.alibi, whose numbers are not positive.",
        sign_of_bias,
    ),
    Cause(
        "transposed bias",
        "A bias is b h t s: the query's axis comes before the key's.",
        "Swap the last two axes.",
        transposed_bias,
    ),
    Cause(
        "bias before the scale",
        "The bias is added to the scaled products.",
        "Scale first, as jattn.attention does.",
        scaled_bias,
    ),
    Cause(
        "slopes of ALiBi",
        "Each head has a slope of its own; where the heads are no power of two, those of the next power are filled up.",
        "Use jattn.biases.alibi_slopes.",
        slopes_of_heads,
    ),
    Cause(
        "buckets of relative positions",
        "T5's encoder has buckets for both directions, its decoder for the past alone.",
        "Give jattn.biases.relative PyTorch's table and settings.",
        lambda site: bucketed_bias(site) or relative_buckets(site),
    ),
]
