"""The image classifier against torch_ref."""

import numpy as np

from jattn import models
from parity_tests.conftest import Parity
from parity_tests.nn import both, call_for_weights

rng = np.random.default_rng(0)
images, small_images = rng.standard_normal((3, 8, 8)), rng.standard_normal((3, 6, 6))


def test_digits_classifier(parity: Parity) -> None:
    modules = both(models.DigitsClassifier, features=12, num_heads=3, num_layers=1, num_classes=7)
    parity("DigitsClassifier", call_for_weights, call_for_weights, {"images": images}, **modules)


def test_other_sizes(parity: Parity) -> None:
    modules = both(
        models.DigitsClassifier, image_size=6, patch_size=3, features=12, num_heads=3, feedforward_features=10
    )
    inputs = {"images": small_images}
    parity("DigitsClassifier", call_for_weights, call_for_weights, inputs, **modules, dtypes=("float64",))
