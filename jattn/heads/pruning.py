"""Heads removed for good: the same model with smaller layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from jattn._engine import checks
from jattn.heads.gates import Model, check_paths, counts, layers
from jattn.nn.norms import scale_and_bias
from jattn.nn.torch import MultiheadAttention as TorchMultiheadAttention

__all__ = ["check_can_be_pruned", "number_of_heads", "numbers_of_heads", "prune"]


def prune(model: Model, heads: Mapping[str, Sequence[int]]) -> Model:
    """A smaller copy of the model, without these heads: their query, key, value and output parameters are gone.

    Its outputs are those with the heads' gates at 0 (`gated`), to rounding; with dropout, in eval mode, as a weight's
    dropout depends on its head's number. What remains is an ordinary model: it trains, compiles, is pruned again and
    goes to PyTorch by `jattn.weights.state_dict`. To load saved weights of a pruned model, prune a fresh model of
    the original size in the same way first.

    Where query heads share key and value heads, a key and value head goes with the last query head that uses it. If
    groups of equal size remain, they are grouped as before, otherwise the layer's ``kv_heads`` says which is whose.

    Args:
        model: any with heads; it is left as it is.
        heads: by the layer's path (see `layers`), the numbers of the heads to remove, counted from 0.

    Returns:
        The smaller model, in the mode (training or eval) of the one given.

    Raises:
        ValueError: if a layer would lose all of its heads, or is a `jattn.nn.torch.MultiheadAttention`, which cannot
            hold fewer heads of the same width.

    Example:

        >>> from jattn.models import DigitsClassifier
        >>> model = DigitsClassifier(rngs=nnx.Rngs(0))
        >>> smaller = prune(model, {"blocks.0.attention": [1, 3], "blocks.1.attention": [0]})
        >>> [block.attention.out.kernel.shape for block in smaller.blocks]
        [(2, 16, 64), (3, 16, 64)]

    Source: Michel, Levy and Neubig, Are Sixteen Heads Really Better than One?, 2019.
    """
    copy = nnx.clone(model)
    found = layers(copy)
    check_paths("heads", heads, found)
    for path, removed in heads.items():
        layer = found[path]
        h = layer.query.kernel.shape[1]
        kept = _kept(path, removed, h)
        if len(kept) == h:
            continue
        if reason := _cannot_lose_heads(layer):
            raise ValueError(f"heads must name layers that can lose heads. Got {path!r}, {reason}")
        _shrink(layer, kept)
    return copy


def check_can_be_pruned(model: nnx.Module) -> None:
    """Raise ValueError unless all layers can lose heads, before anything is measured for it."""
    for path, layer in layers(model).items():
        if reason := _cannot_lose_heads(layer):
            raise ValueError(f"model must have layers that can lose heads. Got {path!r}, {reason}")


def _cannot_lose_heads(layer: Any) -> str | None:
    """Why not, and what to do; None if it can."""
    if isinstance(layer, TorchMultiheadAttention):
        return (
            "a jattn.nn.torch.MultiheadAttention: in PyTorch's module the heads together are as wide as the input, so "
            "it cannot hold fewer of them. Switch them off with jattn.heads.gated, or build the layer from "
            "jattn.nn.MultiHeadAttention."
        )
    if layer.query_ln is not None and layer.qk_norm_over == "width":
        return (
            'which norms the queries of all heads together (qk_norm_over="width"), so that each head depends on the '
            "others. Switch them off with jattn.heads.gated."
        )
    return None


def number_of_heads(name: str, share: Any, model: nnx.Module) -> int:
    """How many of the model's heads a share of them is, found to leave each layer one."""
    by_layer = counts(model).values()
    total, most = sum(by_layer), sum(by_layer) - len(by_layer)
    number = round(checks.number(name, share, "[0, 1)") * total)
    if number > most:
        raise ValueError(
            f"{name} must leave each of {len(by_layer)} layers a head: at most {most} of {total} heads. "
            f"Got {share}, which is {number}."
        )
    return number


def numbers_of_heads(shares: Any, model: nnx.Module) -> list[int]:
    """As `number_of_heads`, of each share."""
    if isinstance(shares, str) or not np.iterable(shares):
        raise ValueError(f"shares must be several numbers in [0, 1). Got {shares!r:.80}. Of one, pass (0.5,).")
    return [number_of_heads("shares", share, model) for share in shares]


def _kept(path: str, removed: Any, h: int) -> np.ndarray:
    """The numbers of the heads that stay, found to be some."""
    name = f"heads[{path!r}]"
    if isinstance(removed, str | bytes) or not np.iterable(removed) or not all(map(checks.is_count, removed)):
        raise ValueError(f"{name} must be a list of the numbers of heads, from 0. Got {removed!r:.80}.")
    numbers = [int(i) for i in removed]
    if beyond := [i for i in numbers if i >= h]:
        raise ValueError(f"{name} must lie between 0 and {h - 1}, the layer's heads. Got {beyond[0]}.")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{name} must name each head once. Got {numbers}.")
    if len(numbers) == h:
        raise ValueError(f"{name} must leave the layer at least one of its {h} heads. Got all of them.")
    return np.delete(np.arange(h), numbers)


def _shrink(layer: Any, kept: np.ndarray) -> None:
    """Leave a layer only these query heads, and the key and value heads that they use."""
    h, k = layer.query.kernel.shape[1], layer.key.kernel.shape[1]
    groups = np.repeat(np.arange(k), h // k) if layer.kv_heads is None else np.array(layer.kv_heads)
    used, kv_heads = np.unique(groups[kept], return_inverse=True)
    plain = len(kept) % len(used) == 0 and np.array_equal(
        kv_heads, np.repeat(np.arange(len(used)), len(kept) // len(used))
    )
    layer.kv_heads = None if plain else tuple(kv_heads.tolist())
    numbers = np.arange(h) if layer.head_numbers is None else np.array(layer.head_numbers)
    layer.head_numbers = tuple(numbers[kept].tolist())
    for projection, of in ((layer.query, kept), (layer.key, used), (layer.value, used)):
        projection.kernel.set_value(projection.kernel[...][:, of])
        if projection.bias is not None:
            projection.bias.set_value(projection.bias[...][of])
        projection.out_features = (len(of), projection.out_features[1])
    for norm, of in ((layer.query_ln, kept), (layer.key_ln, used)):
        for parameter in scale_and_bias(norm):
            if parameter.ndim == 2:  # of each head its own
                parameter.set_value(parameter[...][of])
    if layer.sinks is not None:
        layer.sinks.set_value(layer.sinks[...][kept])
    layer.out.kernel.set_value(layer.out.kernel[...][kept])
    layer.out.in_features = (len(kept), layer.out.in_features[1])
