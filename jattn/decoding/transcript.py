"""What has been said so far, as processors of logits see it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

__all__ = ["Transcript"]


class Transcript(NamedTuple):
    """The tokens of each example: its prompt, and what was generated after it."""

    tokens: Int[Array, "b n"]  # what stands after ``lengths`` means nothing
    lengths: Int[Array, "b"]  # how many there are
    prompt_lens: Int[Array, "b"]  # how many of them are the prompt
    limits: Int[Array, "b"]  # how many new ones there may be

    @property
    def new(self) -> Int[Array, "b"]:
        """How many tokens were generated."""
        return self.lengths - self.prompt_lens

    @property
    def real(self) -> Bool[Array, "b n"]:
        """Where ``tokens`` means something."""
        return jnp.arange(self.tokens.shape[1], dtype=self.lengths.dtype)[None] < self.lengths[:, None]

    def appended(self, token: Int[Array, "b"], going: Bool[Array, "b"]) -> "Transcript":
        """With one more token of each example that is still going."""
        at = jnp.where(going, self.lengths, self.tokens.shape[1])  # that is nowhere
        tokens = self.tokens.at[jnp.arange(len(token)), at].set(token, mode="drop")
        return self._replace(tokens=tokens, lengths=self.lengths + going)
