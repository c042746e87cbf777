"""The recall model against torch_ref."""

from typing import Any

import numpy as np
import pytest

from jattn import models
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import both, call_for_weights

tokens = np.random.default_rng(0).integers(0, 8, (2, 5))


@pytest.mark.parametrize(
    ("options", "dtypes"),
    [
        ({"num_layers": 2}, DTYPES),
        ({"positions": False}, ("float64",)),
        ({"feedforward_expansion": 3, "max_length": 5}, ("float64",)),
    ],
    ids=["two layers", "no positions", "expansion"],
)
def test_recall_classifier(parity: Parity, options: dict[str, Any], dtypes: tuple[str, ...]) -> None:
    modules = both(models.RecallClassifier, vocab_size=8, features=12, num_heads=3, **options)
    parity("RecallClassifier", call_for_weights, call_for_weights, {}, {"tokens": tokens}, **modules, dtypes=dtypes)
