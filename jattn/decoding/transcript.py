"""What has been said so far, as processors of logits see it."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

__all__ = ["Transcript", "put"]


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

    def of_new(self, x: Shaped[Array, "b n"], count: int, fill: Any) -> Shaped[Array, "b m"]:
        """What ``x`` has of so many new tokens, and ``fill`` after the last there is."""
        at = jnp.arange(count, dtype=self.lengths.dtype)[None]
        found = jnp.take_along_axis(x, self.prompt_lens[:, None] + at, 1, mode="clip")
        return jnp.where(at < self.new[:, None], found, fill)

    def appended(self, token: Int[Array, "b"], going: Bool[Array, "b"]) -> "Transcript":
        """With one more token of each example that is still going."""
        tokens = put(self.tokens, self.lengths, token[:, None], going)
        return self._replace(tokens=tokens, lengths=self.lengths + going.astype(self.lengths.dtype))


def put(
    x: Shaped[Array, "b n"], start: Int[Array, "b"], new: Shaped[Array, "b m"], counts: Shaped[Array, "b"]
) -> Shaped[Array, "b n"]:
    """With so many new entries of each example, from a place of its own."""
    number = jnp.arange(new.shape[1], dtype=start.dtype)[None]
    at = jnp.where(number < counts.astype(start.dtype)[:, None], start[:, None] + number, x.shape[1])  # that is nowhere
    return x.at[jnp.arange(len(x))[:, None], at].set(new, mode="drop")
