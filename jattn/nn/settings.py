"""What a layer can be told when it is made, for models whose layers are described by data."""

import inspect
from typing import Any

from flax import nnx

__all__ = ["settings_of"]

_OF_PARAMETERS = ("kernel_init", "bias_init", "embedding_init", "dtype", "param_dtype", "rngs")


def settings_of(layer: type[nnx.Module]) -> dict[str, Any]:
    """The arguments that make a layer what it is, each with what it is by default.

    Without those of types and initial parameters, and what a layer takes by ``**options`` for the one below it. What
    has no default is ``inspect.Parameter.empty``. A value may be a small one of its own, as a `Norm` or a `Rotary` is.

    Args:
        layer: a class of `jattn.nn`.

    Example:

        >>> from jattn import nn
        >>> settings = settings_of(nn.TransformerBlock)
        >>> settings["norm"], settings["activation"], settings["gated"], settings["rotary"]
        ('post', 'relu', False, None)
        >>> list(settings_of(nn.FeedForward))
        ['features', 'hidden_features', 'activation', 'gated', 'use_bias', 'dropout_rate', 'hidden_dropout_rate']
    """
    if not (isinstance(layer, type) and issubclass(layer, nnx.Module)):
        raise ValueError(f"layer must be a class of layers, as jattn.nn.TransformerBlock is. Got {layer!r:.80}.")
    _, *parameters = inspect.signature(layer.__init__).parameters.values()
    named = [x for x in parameters if x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)]
    return {x.name: x.default for x in named if x.name not in _OF_PARAMETERS}
