"""Dropout without hidden state: a module is given a ``jax.random.key`` at the call and keeps none itself.

So a merged module runs inside ``jax.grad`` and ``jax.lax.scan`` without any state to thread. ``module.eval()`` turns
dropout off and ``module.train()`` on, as everywhere in Flax; in eval mode no rng is needed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jattn._engine import checks
from jattn._engine.dropout import dropout_keep

__all__ = ["Dropout", "split"]


class Dropout(nnx.Dropout):
    """`flax.nnx.Dropout` that is handed its randomness at the call and says so when it lacks it."""

    def __init__(self, rate: float) -> None:
        checks.dropout(rate)
        super().__init__(rate)

    def __call__(self, x: Float[Array, "..."], rng: PRNGKeyArray | None = None) -> Float[Array, "..."]:  # type: ignore[override]
        if self.deterministic or self.rate == 0:
            return x
        checks.dropout(self.rate, rng, rng_name="rng")
        assert rng is not None
        return jnp.where(dropout_keep(rng, self.rate, x.shape), x / (1 - self.rate), 0)

    def of_weights(self, rng: PRNGKeyArray | None) -> dict[str, Any]:
        """The arguments with which `jattn.attention` drops weights, in the present mode."""
        if self.deterministic:
            return {}
        checks.dropout(self.rate, rng, rng_name="rng")
        return {"dropout_rate": self.rate, "dropout_rng": rng}


def split(rng: PRNGKeyArray | None, n: int) -> list[PRNGKeyArray | None]:
    """One rng for each of ``n`` places that drop something; None for each where there is none."""
    if rng is None:
        return [None] * n
    checks.check_rng("rng", rng)
    return list(jax.random.split(rng, n))
