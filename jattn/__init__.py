"""jattn: attention for JAX that can be read, trusted and shipped.

    weights = softmax over keys of ( score(query, key) + bias, where mask allows ), beside the sinks
    output  = weights @ value

Axes, the same letters everywhere (annotations, einsums, comments):

    b batch · t query position · s key position · h query head · k key/value head
    d feature of query and key · e feature of value · m model width

Arrays are laid out ``*b t h d``. A mask is ``True`` where a query **may** attend to a key.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jattn import biases as biases
from jattn import masks as masks
from jattn import scores as scores
from jattn.attention import attention as attention
from jattn.attention import attention_statistics as attention_statistics
from jattn.attention import attention_weights as attention_weights
from jattn.attention import bind as bind
from jattn.attention import explain as explain
from jattn.drop_in import dot_product_attention as dot_product_attention
from jattn.kernel_regression import nadaraya_watson as nadaraya_watson
from jattn.single_head import additive_attention as additive_attention
from jattn.softmax import masked_softmax as masked_softmax

if TYPE_CHECKING:
    from jattn import heads as heads
    from jattn import models as models
    from jattn import nn as nn
    from jattn import parity as parity
    from jattn import plots as plots
    from jattn import training as training
    from jattn import weights as weights

__version__ = "0.2.0.dev0"

# Those that need Flax, optax and others are loaded at their first use; the functions need JAX alone.
_AT_FIRST_USE = ("heads", "models", "nn", "parity", "plots", "training", "weights")


def __getattr__(name: str) -> Any:
    if name in _AT_FIRST_USE:
        return importlib.import_module(f"jattn.{name}")
    raise AttributeError(f"module 'jattn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_AT_FIRST_USE])
