"""What the axes of parameters are called, for all modules in one place; `jattn.sharding` goes by these names.

By the name of a module's class, and of its bases; then by the parameter's path from there. The names are those of the
last axes; what vmap or scan put in front of them is "layers". The outermost module that knows a parameter names its
axes, so that a `Linear` is told by whoever uses it. None is an axis that stays whole.

    embed  the model's width            heads, kv_heads, head_dim  of attention
    mlp    a network's inner width      vocab     tokens, or another table's rows
    norm   the width, of a norm         experts   of a mixture
    position  of learned positions      classes   what a head tells apart
"""

from typing import Any

from flax import nnx

__all__ = ["KNOWN", "Names", "names_of"]

Names = tuple[str | None, ...]

_ATTENTION: dict[str, Names] = {
    "query.kernel": ("embed", "heads", "head_dim"),
    "query.bias": ("heads", "head_dim"),
    **{f"{name}.kernel": ("embed", "kv_heads", "head_dim") for name in ("key", "value")},
    **{f"{name}.bias": ("kv_heads", "head_dim") for name in ("key", "value")},
    **{f"query_ln.{name}": ("heads", "head_dim") for name in ("scale", "bias")},
    **{f"key_ln.{name}": ("kv_heads", "head_dim") for name in ("scale", "bias")},
    "out.kernel": ("heads", "head_dim", "embed"),
    "out.bias": ("embed",),
    "sinks": ("heads",),
}
_NETWORK: dict[str, Names] = {
    **{f"{name}.kernel": ("embed", "mlp") for name in ("linear1", "gate")},
    **{f"{name}.bias": ("mlp",) for name in ("linear1", "gate")},
    "linear2.kernel": ("mlp", "embed"),
    "linear2.bias": ("embed",),
}
_TO_WIDTH: dict[str, Names] = {"kernel": (None, "embed"), "bias": ("embed",)}
_TO_CLASSES: dict[str, Names] = {"kernel": ("embed", "classes"), "bias": ("classes",)}
_TO_VOCAB: dict[str, Names] = {"kernel": ("embed", "vocab"), "bias": ("vocab",)}
_OF_NORM: dict[str, Names] = {"scale": ("norm",), "bias": ("norm",)}


def _below(layer: str, names: dict[str, Names]) -> dict[str, Names]:
    return {f"{layer}.{name}": axes for name, axes in names.items()}


_TABLE: dict[str, dict[str, Names]] = {
    # jattn.nn, and the layers of Flax's that it stands on
    "MultiHeadAttention": _ATTENTION,
    "FeedForward": _NETWORK,
    "MixtureOfExperts": {
        "router.kernel": ("embed", "experts"),
        "router.bias": ("experts",),
        **{name: ("experts", *axes) for name, axes in _NETWORK.items()},
    },
    "Embed": {"embedding": ("vocab", "embed")},
    "LearnedPositions": {"embedding.embedding": ("position", "embed")},
    "LayerNorm": _OF_NORM,
    "RMSNorm": _OF_NORM,
    "BatchNorm": {**_OF_NORM, "mean": ("norm",), "var": ("norm",)},
    "Conv": {"kernel": (None, None, None, "embed"), "bias": ("embed",)},
    "GRUCell": {  # the gates of a unit lie apart, so that no device could have all of some units
        **{f"{name}.kernel": ("embed", None) for name in ("input", "hidden")},
        **{f"{name}.bias": (None,) for name in ("input", "hidden")},
    },
    "AdditiveAttention": {
        **{f"{name}.kernel": ("embed", None) for name in ("query", "key")},
        "score.kernel": (None, None),
    },
    "NadarayaWatson": {"factor": (), "keys": (), "values": ()},
    # jattn.nn.torch
    "MultiheadAttention": {
        **_ATTENTION,
        "out_proj.kernel": ("heads", "embed"),
        "out_proj.bias": ("embed",),
        **{name: ("kv_heads", "head_dim") for name in ("bias_k", "bias_v")},
    },
    "TransformerEncoderLayer": _NETWORK,
    "TransformerDecoderLayer": _NETWORK,
    # jattn.models
    "TextDecoder": {
        **_below("output", _TO_VOCAB),
        "logits_bias": ("vocab",),
        "project_in.kernel": (None, "embed"),
        "project_out.kernel": ("embed", None),
    },
    "TextEncoder": {**_below("projection", _TO_WIDTH), "relative": (None, "heads")},
    "CLIPText": {"projection.kernel": ("embed", None)},
    "EncoderDecoder": {**_below("output", _TO_VOCAB), "logits_bias": ("vocab",)},
    "BlockStack": {"relative_bias": (None, "heads")},
    "EncoderHead": {**_below("dense", _TO_WIDTH), **_below("output", _TO_CLASSES), "bias": ("classes",)},
    "VisionEncoder": {
        "class_token": ("embed",),
        "distillation_token": ("embed",),
        **_below("pooler", _TO_WIDTH),
        **{f"outputs.{i}.{name}": axes for i in (0, 1) for name, axes in _TO_CLASSES.items()},
    },
    "CLIP": {"logit_scale": ()},
    "Projection": _below("linear", _TO_CLASSES),
    "AttentionRegressor": {
        **{f"{name}.kernel": (None, None) for name in ("query", "key", "value", "out")},
        **{f"{name}.bias": (None,) for name in ("query", "key", "value", "out")},
    },
    "DigitsClassifier": {**_below("patches", _TO_WIDTH), **_below("output", _TO_CLASSES)},
    "RecallClassifier": _below("output", _TO_VOCAB),
    "TransformerRegressor": {**_below("input", _TO_WIDTH), **_below("output", _TO_CLASSES)},
    "Decoder": _below("output", _TO_VOCAB),
}

KNOWN = frozenset({name for of in _TABLE.values() for axes in of.values() for name in axes if name} | {"layers"})


def names_of(model: nnx.Module) -> dict[tuple[Any, ...], Names | None]:
    """The names of each variable's axes, by its path in the model; None where nobody knows them.

    A variable that has names of its own, as Flax's metadata ``out_sharding``, keeps these, which are those of its first
    axes, as in a ``PartitionSpec``: where `nnx.vmap` stacks it, "layers" must be one of them.
    """
    modules: dict[tuple[Any, ...], Any] = {}
    names: dict[tuple[Any, ...], Names | None] = {}
    for path, node in nnx.iter_graph(model):
        (names if isinstance(node, nnx.Variable) else modules)[tuple(path)] = node
    return {path: _names_at(path, variable, modules) for path, variable in names.items()}


def _names_at(path: tuple[Any, ...], variable: Any, modules: dict[tuple[Any, ...], Any]) -> Names | None:
    ndim = len(variable.shape)
    if own := variable.get_metadata().get("out_sharding"):
        return (*own, *[None] * (ndim - len(own)))[:ndim]
    for i in range(len(path)):
        for kind in type(modules.get(path[:i])).__mro__:
            found = _TABLE.get(kind.__name__, {}).get(".".join(map(str, path[i:])))
            if found is not None:
                return _of_last_axes(found, ndim)
    return None


def _of_last_axes(names: Names, ndim: int) -> Names:
    """Of the last axes."""
    more = ndim - len(names)
    if more <= 0:
        return names[len(names) - ndim :]
    return (*["layers"] * more, *names) if names else (None,) * ndim
