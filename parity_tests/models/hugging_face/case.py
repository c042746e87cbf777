"""What a row of the table of families is made of: a model of `transformers`, and what it is called with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["IMAGES", "SOUND", "TARGET", "TEXT", "Arrays", "Case"]

Arrays = dict[str, np.ndarray]


class Case(NamedTuple):
    """A model of `transformers`, and what it is called with."""

    made: Callable[[], Any]
    given: Arrays
    generates: bool = False


_RNG = np.random.default_rng(0)
_TOKENS, _TARGET = _RNG.integers(4, 13, (2, 7)), _RNG.integers(4, 13, (2, 4))
_TOKENS[:, -1] = 13  # where CLIP's texts end
_TARGET[:, 0] = 0  # where a decoder begins
TEXT: Arrays = {"input_ids": _TOKENS}
TARGET: Arrays = {"decoder_input_ids": _TARGET}
IMAGES = _RNG.normal(size=(2, 12, 12, 2))
SOUND: Arrays = {"input_features": _RNG.normal(size=(2, 5, 18))}
