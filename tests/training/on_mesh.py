"""Training on eight devices: python -m tests.training.on_mesh. Says what is not as on one."""

import re
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jattn import models, sharding, training
from jattn.training.steps import run_steps

VOCABULARY, EXAMPLES, BATCH = 16, 37, 16
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (EXAMPLES, 7))
MESHES: dict[str, dict[str, int]] = {
    "data, 1": {"data": 1},
    "data, 2": {"data": 2},
    "data, 8": {"data": 8},
    "fsdp, 4": {"fsdp": 4},
    "fsdp, 8": {"data": 2, "fsdp": 4},
    "tensor, 2": {"tensor": 2},
    "tensor, 8": {"data": 4, "tensor": 2},
    "fsdp+tensor, 4": {"fsdp": 2, "tensor": 2},
    "fsdp+tensor, 8": {"fsdp": 4, "tensor": 2},
}


def mesh_of(axes: dict[str, int]) -> Any:
    return jax.make_mesh(tuple(axes.values()), tuple(axes))


def made(dropout_rate: float = 0.1) -> models.GPT2:
    sizes: dict[str, Any] = dict(features=8, num_heads=2, num_layers=1, max_length=8, param_dtype=jnp.float64)
    return models.GPT2(VOCABULARY, **sizes, dropout_rate=dropout_rate, rngs=nnx.Rngs(0))


def loss(model: Any, batch: Any, rng: Any) -> Any:
    """Of the next token, a mean over those that are not 0, so that examples weigh differently."""
    logits, following = jax.nn.log_softmax(model(batch[:, :-1], rng=rng)), batch[:, 1:]
    each = jnp.take_along_axis(logits, following[..., None], -1)[..., 0]
    return -(each * (following != 0)).sum() / (following != 0).sum()


ADAM = training.adam(1e-2)


def fit(model: Any, **options: Any) -> training.History:
    given: dict[str, Any] = dict(loss=loss, optimizer=ADAM, epochs=17, batch_size=BATCH, progress=False)
    return training.fit(model, TOKENS, **{**given, **options})
