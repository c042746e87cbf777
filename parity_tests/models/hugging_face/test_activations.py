"""The activations beside `transformers`' own of the same names: values and derivatives."""

import jax
import numpy as np
import pytest
import torch

from jattn.models.hugging_face.activations import ACTIVATIONS
from jattn.nn.feed_forward import activation_function

activations = pytest.importorskip("transformers.activations", reason="no transformers: activations were not compared")

X = np.random.default_rng(0).normal(scale=5, size=200)


@pytest.mark.every_case
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_equal(name: str) -> None:
    x = torch.tensor(X, requires_grad=True)
    y = activations.get_activation(name)(x)
    y.sum().backward()
    with jax.enable_x64(True):
        ours, pull = jax.vjp(activation_function(ACTIVATIONS[name]), jax.numpy.asarray(X))
        (gradient,) = pull(jax.numpy.ones_like(ours))
    np.testing.assert_allclose(ours, y.detach().numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_none_is_forgotten() -> None:
    """Two have parameters of their own, and one scores routes to experts."""
    assert activations.ACT2CLS.keys() - ACTIVATIONS.keys() <= {"prelu", "xielu", "sqrtsoftplus"}
