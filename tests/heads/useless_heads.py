"""One layer of which two heads are of no use, its data, and the task that they are for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jattn import heads
from jattn.nn import MultiHeadAttention
from jattn.training import adam

rng = np.random.default_rng(0)
ATTEND = MultiHeadAttention(4, 12, rngs=nnx.Rngs(0))
X = jnp.asarray(rng.standard_normal((24, 5, 12)), jnp.float32)
# Heads 1 and 2 are of no use for this; the model without them is perfect.
TARGET = heads.gated(ATTEND, {"": jnp.array([1.0, 0.0, 0.0, 1.0])})(X)
TRAIN, VALIDATION, TEST = ((X[part], TARGET[part]) for part in (slice(12), slice(12, 18), slice(18, 24)))
ADAM = adam(1e-3)  # one object, as each compiles anew


def loss(model: Any, batch: Any, rng: Any) -> jax.Array:
    x, target = batch
    return ((model(x) - target) ** 2).mean()


def score(model: Any, data: Any) -> jax.Array:
    return -loss(model, data, None)


def predict(model: Any, data: Any) -> jax.Array:
    return model(data[0])


def task(**others: Any) -> heads.Task:
    settings: dict[str, Any] = dict(loss=loss, score=score, batch_size=6, progress=False) | others
    return heads.Task(**settings)


def measured(*metrics: str) -> heads.Importance:
    return task(metrics=metrics).importance(ATTEND, TRAIN)
