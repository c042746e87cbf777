"""Greedy continuation of a text by a decoder, or by that of an `EncoderDecoder`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Int

from jattn.decoding import Decodable, generate

__all__ = ["Continuation", "greedy_continuation"]


class Continuation(NamedTuple):
    """The new tokens of each example."""

    tokens: Int[Array, "b n"]  # without the prompt; eos among them, if it came; pad after it
    lengths: Int[Array, "b"]  # how many tokens before pad, eos included


def greedy_continuation(
    model: Decodable,
    prompt: Int[Array, "b t"],
    prompt_valid_lens: Int[Array, "b"] | None = None,
    *,
    max_new_tokens: int,
    eos: int | Sequence[int] = (),
    pad: int | None = None,
    **given: Any,
) -> Continuation:
    """The tokens that follow the prompt, each the most probable one after those before it.

    It is `jattn.decoding.generate` with these arguments.

    Example:

        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jattn.models import GPT2
        >>> model = GPT2(50, max_length=16, features=12, num_heads=3, num_layers=2, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> found = greedy_continuation(model, jnp.ones((2, 5), int), jnp.array([5, 3]), max_new_tokens=4)
        >>> found.tokens.shape, found.lengths
        ((2, 4), Array([4, 4], dtype=int32))
    """
    found = generate(model, prompt, prompt_valid_lens, max_new_tokens=max_new_tokens, eos=eos, pad=pad, **given)
    return Continuation(found.tokens, found.lengths)
