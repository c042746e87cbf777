"""nn.torch.initialize without PyTorch: what it refuses, and what PyTorch has no layer for."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import nn

rngs = nnx.Rngs(0)


@pytest.mark.usefixtures("unchecked")
def test_a_parameter_without_a_rule() -> None:
    message = r"^module must be made of layers that PyTorch has a rule for\. Got factor without one\."
    with pytest.raises(ValueError, match=message):
        nn.torch.initialize(nn.NadarayaWatson(), rngs=rngs)


def test_a_refused_init_leaves_the_module_as_it_was() -> None:
    class Half(nnx.Module):
        def __init__(self) -> None:
            self.linear = nn.Linear(2, 3, rngs=rngs)
            self.own = nnx.Param(jnp.ones(3))

    module = Half()
    before = module.linear.kernel[...]
    with pytest.raises(ValueError, match="Got own without one"):
        nn.torch.initialize(module, rngs=rngs)
    np.testing.assert_array_equal(module.linear.kernel[...], before)


def test_a_scale_beside_an_offset() -> None:
    norm = nn.torch.initialize(nn.RMSNorm(4, scale_offset=1.0, rngs=rngs), rngs=rngs)
    np.testing.assert_array_equal(norm.scale[...], 0)
