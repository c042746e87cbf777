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

from jattn import biases, masks, scores, sequence
from jattn.bound import bind
from jattn.cache import Cache
from jattn.drop_in import dot_product_attention
from jattn.kernel_regression import nadaraya_watson
from jattn.multi_head import attention, attention_statistics, attention_weights, explain
from jattn.single_head import additive_attention
from jattn.softmax import masked_softmax

if TYPE_CHECKING:
    from jattn import decoding, heads, models, nn, parity, plots, portable, sharding, training, weights

__all__ = [
    "Cache",
    "additive_attention",
    "attention",
    "attention_statistics",
    "attention_weights",
    "biases",
    "bind",
    "decoding",
    "dot_product_attention",
    "explain",
    "heads",
    "masked_softmax",
    "masks",
    "models",
    "nadaraya_watson",
    "nn",
    "parity",
    "plots",
    "portable",
    "scores",
    "sequence",
    "sharding",
    "training",
    "weights",
]

__version__ = "0.2.0"

# Those that need Flax, optax and others are loaded at their first use; the functions need JAX alone.
_AT_FIRST_USE = ("decoding", "heads", "models", "nn", "parity", "plots", "portable", "sharding", "training", "weights")


def __getattr__(name: str) -> Any:
    if name in _AT_FIRST_USE:
        return importlib.import_module(f"jattn.{name}")
    raise AttributeError(f"module 'jattn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_AT_FIRST_USE])
