"""Dropout without hidden state: a module is given a ``jax.random.key`` at the call and keeps none itself.

So a merged module runs inside ``jax.grad`` and ``jax.lax.scan`` without any state to thread. ``module.eval()`` turns
dropout off and ``module.train()`` on, as everywhere in Flax; in eval mode no rng is needed.
"""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jattn import checks


class Dropout(nnx.Dropout):
    """`flax.nnx.Dropout` that is handed its randomness at the call and says so when it lacks it."""

    def __init__(self, rate: float) -> None:
        checks.dropout(rate)
        super().__init__(rate)

    def __call__(self, x: Float[Array, "..."], rng: PRNGKeyArray | None = None) -> Float[Array, "..."]:  # type: ignore[override]
        if not self.deterministic:
            checks.dropout(self.rate, rng, rng_name="rng")
        return super().__call__(x, rngs=rng)


def active_dropout(module: Any, rng: PRNGKeyArray | None) -> dict[str, Any]:
    """The dropout arguments of `jattn.attention` for a module in its present mode."""
    if module.deterministic:
        return {}
    checks.dropout(module.dropout_rate, rng, rng_name="rng")
    return {"dropout_rate": module.dropout_rate, "dropout_rng": rng}


def split(rng: PRNGKeyArray | None, n: int) -> list[PRNGKeyArray | None]:
    """One rng for each of ``n`` places that drop something; None for each where there is none."""
    return [None] * n if rng is None else list(jax.random.split(rng, n))
