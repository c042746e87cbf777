"""Greedy continuation of a text by a decoder, or by that of an `EncoderDecoder`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jattn._engine import checks
from jattn._engine.axes import Shape
from jattn.masks import lengths
from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.encoder_decoder import EncoderDecoder

__all__ = ["Continuation", "greedy_continuation"]


class Continuation(NamedTuple):
    """The new tokens of each example."""

    tokens: Int[Array, "b n"]  # without the prompt; eos among them, if it came; pad after it
    lengths: Int[Array, "b"]  # how many tokens before pad, eos included


def greedy_continuation(
    model: TextDecoder | EncoderDecoder,
    prompt: Int[Array, "b t"],
    prompt_valid_lens: Int[Array, "b"] | None = None,
    *,
    max_new_tokens: int,
    eos: int | Sequence[int] = (),
    pad: int | None = None,
    source: Int[Array, "_ s"] | Float[Array, "_ mel frames"] | None = None,
    source_attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None = None,
) -> Continuation:
    """The tokens that follow the prompt, each the most probable one after those before it.

    ``y_i = argmax over v of p(v | prompt, y_1 ... y_(i-1))``, until it is ``eos``

    Each token takes a run of the model over the prompt and all tokens so far; a source is encoded once. It is compiled
    once for each shape of the prompt, whatever its valid lengths, and works under ``jax.jit``; it ends when all
    examples have ended.

    Args:
        model: a `TextDecoder` or an `EncoderDecoder`, so any of their families, in eval mode.
        prompt: ``b t``, token numbers; of an `EncoderDecoder` the tokens that start the target.
        prompt_valid_lens: ``b``, how many tokens of each prompt are real, at least 1; what follows them is padding.
        max_new_tokens: n, the number of new tokens after which a continuation is cut off.
        eos: the token that ends a continuation, or several; none by default.
        pad: what stands after eos; the (first) eos itself by default.
        source: what an `EncoderDecoder` encodes, ``b s``, or ``b mel frames`` of sound.
        source_attention_mask: ``b s``, 1 where it is real, 0 where it is padding.

    Returns:
        `Continuation`: ``tokens`` ``b n`` and ``lengths`` ``b``.

    Example:

        >>> from jattn.models import GPT2
        >>> model = GPT2(50, max_length=16, features=12, num_heads=3, num_layers=2, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> found = greedy_continuation(model, jnp.ones((2, 5), int), jnp.array([5, 3]), max_new_tokens=4)
        >>> found.tokens.shape, found.lengths
        ((2, 4), Array([4, 4], dtype=int32))
    """
    encodes = isinstance(model, EncoderDecoder)
    if not (encodes or isinstance(model, TextDecoder)):
        raise ValueError(f"model must be a jattn.models.TextDecoder or an EncoderDecoder. Got {type(model).__name__}.")
    if encodes != (source is not None) or (source_attention_mask is not None and not encodes):
        raise ValueError(
            "source must be given to an EncoderDecoder, and to no other model. Got "
            f"{'none' if source is None else 'one'}, for a {type(model).__name__}."
        )
    if any(isinstance(m, nnx.Dropout) and m.rate > 0 and not m.deterministic for _, m in nnx.iter_modules(model)):
        raise ValueError("model must be in eval mode. Got one in training mode, with dropout on. Call model.eval().")
    v = model.embedding.num_embeddings
    prompt = checks.tokens("prompt", prompt, v, "b t", 2).astype(jnp.int32)
    if prompt.ndim != 2:
        raise ValueError(f"prompt must have the axes b t. Got shape {prompt.shape}.")
    b, t = prompt.shape
    lens = jnp.asarray(checks.integers("prompt_valid_lens", t if prompt_valid_lens is None else prompt_valid_lens))
    if prompt_valid_lens is not None and lens.shape != (b,):
        raise ValueError(
            f"prompt_valid_lens must have one entry for each prompt, shape {(b,)}. Got shape {lens.shape}."
        )
    lengths(lens, per_query=False).check(Shape((b,), None, 1, t))
    if source is not None and source.shape[0] != b:
        raise ValueError(f"source must be one for each of {b} prompts. Got {source.shape[0]}.")
    if checks.is_concrete(lens) and np.any(np.asarray(lens) < 1):
        raise ValueError("prompt_valid_lens must be at least 1: there is nothing to continue otherwise. Got 0.")
    if not checks.is_count(max_new_tokens) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, an integer known while tracing. Got {max_new_tokens!r}.")
    if model.max_length is not None and t + max_new_tokens > model.max_length:
        raise ValueError(
            f"prompt and max_new_tokens must be at most max_length = {model.max_length} together. "
            f"Got {t} + {max_new_tokens}."
        )
    ends: list[Any] = np.atleast_1d(np.asarray(eos, object)).tolist()
    for token in ends:
        checks.number("eos", token, f"[0, {v})", integer=True)
    if pad is not None:
        checks.number("pad", pad, "(-inf, inf)", integer=True)
    graphdef, state = nnx.split(model)
    first = ends[0] if ends else 0  # where nothing ends, nothing is padded
    special = jnp.array([first if pad is None else pad, *ends], jnp.int32)
    known = None if prompt_valid_lens is None else jnp.broadcast_to(lens, (b,))
    return _compiled_continuation(
        graphdef, state, prompt, known, special, max_new_tokens, source, source_attention_mask
    )


class _Loop(NamedTuple):
    """What one step hands to the next."""

    i: Int[Array, ""]
    last: Int[Array, "b"]  # the token that is next to be read
    cache: Any
    tokens: Int[Array, "b n"]  # the continuation
    lengths: Int[Array, "b"]
    ended: Bool[Array, "b"]


@functools.partial(jax.jit, static_argnums=(0, 5))
def _compiled_continuation(
    graphdef: Any,
    state: Any,
    prompt: Int[Array, "b t"],
    prompt_lens: Int[Array, "b"] | None,
    special: Int[Array, "_"],
    n: int,
    source: Any,
    source_attention_mask: Any,
) -> Continuation:
    """The search itself: the prompt is read once, and then each new token."""
    model, pad, ends = nnx.merge(graphdef, state), special[0], special[1:]
    b, t = prompt.shape
    read: Callable[..., Any] = model
    if isinstance(model, EncoderDecoder):
        memory = model.project(model.encode(source, attention_mask=source_attention_mask))
        read = functools.partial(model.decode, memory=memory, memory_attention_mask=source_attention_mask)

    def best(logits: Array) -> Array:
        return logits.argmax(-1).astype(prompt.dtype)

    def added(loop: _Loop, token: Array, cache: Any) -> _Loop:
        return _Loop(
            loop.i + 1,
            token,
            cache,
            loop.tokens.at[:, loop.i].set(jnp.where(loop.ended, pad, token)),
            loop.lengths + ~loop.ended,
            loop.ended | jnp.isin(token, ends),
        )

    def another(loop: _Loop) -> Array:
        return (loop.i < n) & ~jnp.all(loop.ended)

    def step(loop: _Loop) -> _Loop:
        out = read(loop.last[:, None], cache=loop.cache)
        return added(loop, best(out.output[:, 0]), out.cache)

    out = read(prompt, valid_lens=prompt_lens, cache=model.new_cache(b, t + n), return_hidden=True)
    # Of a prompt only the last token's logits are computed, as nothing is made of those of all.
    states = out.hidden[-1]
    token = best(model._logits(states[:, -1] if prompt_lens is None else states[jnp.arange(b), prompt_lens - 1]))
    begin = _Loop(jnp.int32(0), token, out.cache, jnp.full((b, n), pad), jnp.zeros(b, jnp.int32), jnp.zeros(b, bool))
    end = jax.lax.while_loop(another, step, added(begin, token, out.cache))
    return Continuation(end.tokens, end.lengths)
