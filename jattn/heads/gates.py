"""Which heads a model has, and gates on them: one factor on each head's part of its layer's output."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jattn._engine import checks
from jattn.nn import MultiHeadAttention
from jattn.nn.torch import MultiheadAttention as TorchMultiheadAttention

__all__ = ["AttentionLayer", "Model", "check_paths", "counts", "gated", "layers", "output_projection"]

AttentionLayer = MultiHeadAttention | TorchMultiheadAttention
Model = TypeVar("Model", bound=nnx.Module)


def layers(model: nnx.Module) -> dict[str, Any]:
    """The layers with heads, by the path of attributes that leads to each.

    They are the `MultiHeadAttention`, `WideMultiHeadSelfAttention` and `jattn.nn.torch.MultiheadAttention` within the
    model, at any depth; one that is in several places counts once. A model that is itself such a layer has the path
    ``""``.

    Raises:
        ValueError: if there are none.

    Example:

        >>> from jattn.models import DigitsClassifier
        >>> list(layers(DigitsClassifier(rngs=nnx.Rngs(0))))
        ['blocks.0.attention', 'blocks.1.attention']
    """
    if not isinstance(model, nnx.Module):
        raise ValueError(f"model must be a flax.nnx.Module. Got {type(model).__name__}.")
    found = {".".join(map(str, path)): m for path, m in nnx.iter_modules(model) if isinstance(m, AttentionLayer)}
    if not found:
        raise ValueError(
            "model must have heads: jattn.nn's MultiHeadAttention, WideMultiHeadSelfAttention or "
            f"torch.MultiheadAttention somewhere in it. Got a {type(model).__name__} without any."
        )
    for path, layer in found.items():
        if layer.query.kernel.ndim != 3:
            raise ValueError(
                f"model must be one model. Got {path or 'a layer'} with a query kernel of shape "
                f"{layer.query.kernel.shape}, not m h d, as of several stacked ones."
            )
    return found


def counts(model: nnx.Module) -> dict[str, int]:
    """How many heads each layer has.

    Example:

        >>> from jattn.models import DigitsClassifier
        >>> counts(DigitsClassifier(num_heads=4, rngs=nnx.Rngs(0)))
        {'blocks.0.attention': 4, 'blocks.1.attention': 4}
    """
    return {path: layer.query.kernel.shape[1] for path, layer in layers(model).items()}


def gated(model: Model, gates: Mapping[str, Float[Array, "h"]]) -> Model:
    """A copy of the model in which each head's output has a factor: 1 leaves it, 0 switches it off.

    The factor is put into the head's slice of the output projection, ``out.kernel[h]``, so that no layer need know of
    gates. It may be traced: under ``jax.jit`` other gates compile nothing, and ``jax.grad`` for them works.

    Args:
        model: any with heads; it is left as it is.
        gates: by the layer's path (see `layers`), one number for each head. Other layers have gates of 1.

    Example:

        >>> attend = MultiHeadAttention(num_heads=2, in_features=4, rngs=nnx.Rngs(0))
        >>> first_only = gated(attend, {"": jnp.array([1.0, 0.0])})
        >>> print(jnp.abs(first_only.out.kernel[1]).max())
        0.0
    """
    copy = nnx.clone(model)
    found = layers(copy)
    check_paths("gates", gates, found)
    for path, values in gates.items():
        kernel = output_projection(found[path]).kernel
        h = found[path].query.kernel.shape[1]
        values = checks.array(f"gates[{path!r}]", values)
        if values.shape != (h,) or not jnp.issubdtype(values.dtype, jnp.floating):
            raise ValueError(
                f"gates[{path!r}] must be one floating-point number for each of {h} heads. "
                f"Got shape {values.shape} of {values.dtype}."
            )
        by_head = kernel[...].reshape(h, -1) * values[:, None]
        kernel.set_value(by_head.reshape(kernel.shape).astype(kernel.dtype))
    return copy


def output_projection(layer: AttentionLayer) -> Any:
    """The linear layer whose kernel's first axes are the heads, h e m or (h e) m."""
    return layer.out_proj if isinstance(layer, TorchMultiheadAttention) else layer.out


def check_paths(name: str, given: Any, found: Mapping[str, Any]) -> None:
    """A mapping from paths of layers."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} must be a mapping from the paths of layers. Got {type(given).__name__}.")
    if unknown := [path for path in given if path not in found]:
        raise ValueError(
            f"{name} must name layers of the model: {', '.join(map(repr, found))}. Got {', '.join(map(repr, unknown))}."
        )
