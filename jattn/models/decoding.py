"""The target that a `Seq2Seq` finds most probable: greedily, or with a beam, and where it looked."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jattn import decoding
from jattn._engine import checks
from jattn._engine.dtypes import at_least_float32
from jattn.decoding.loop import Parts, Structure, merged
from jattn.decoding.request import checked, lens_of
from jattn.models.tasks.translation import Seq2Seq, TranslationState

__all__ = ["Beams", "Decoded", "beam_search", "greedy"]


class Decoded(NamedTuple):
    """What a search found, for each example or for each beam of each example."""

    tokens: Int[Array, "*b t"]  # without bos; eos among them, if it came; pad after it
    lengths: Int[Array, "*b"]  # how many tokens before pad, eos included
    log_probability: Float[Array, "*b"]  # of the tokens before pad, given the source
    weights: Float[Array, "*b t s"]  # of the attention at each token; zeros at pad


class Beams(NamedTuple):
    """What a beam search found: the best hypothesis, as `Decoded` has it, and all ``beams``, best first."""

    tokens: Int[Array, "b t"]
    lengths: Int[Array, "b"]
    log_probability: Float[Array, "b"]
    weights: Float[Array, "b t s"]
    beams: Decoded  # the same with an axis of beams after b


def greedy(
    model: Seq2Seq,
    source: Int[Array, "b s"],
    source_valid_lens: Int[Array, "b"] | None = None,
    *,
    bos: int,
    eos: int,
    max_length: int,
    pad: int | None = None,
) -> Decoded:
    """The target whose every token is the most probable one after those before it.

    ``y_t = argmax over v of p(v | y_1 ... y_(t-1), source)``, until it is ``eos``

    It is compiled, and works under ``jax.jit``; other sources of the same shape, or other valid lengths, compile
    nothing anew. Decoding ends when all examples have ended.

    Args:
        model: in eval mode.
        source: ``b s``, token numbers.
        source_valid_lens: ``b``, how many tokens of each source are real.
        bos: the token that the decoder is fed first.
        eos: the token that ends a target.
        max_length: t, the number of tokens after which a target is cut off.
        pad: what stands after eos; eos itself by default.

    Returns:
        `Decoded`: ``tokens`` ``b t``, ``lengths`` ``b``, ``log_probability`` ``b`` and ``weights`` ``b t s``.

    Example:

        >>> from flax import nnx
        >>> model = Seq2Seq(10, 12, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> decoded = greedy(model, jnp.ones((2, 7), int), jnp.array([4, 7]), bos=0, eos=1, max_length=5)
        >>> decoded.tokens.shape, decoded.weights.shape
        ((2, 5), (2, 5, 7))
    """
    parts, search = _begun(model, source, source_valid_lens, bos, eos, pad, max_length)
    found = decoding.generate(**search)
    weights = _looked_at(*parts, search["state"], search["prompt"], found.tokens, found.lengths)
    return Decoded(found.tokens, found.lengths, found.log_probabilities.sum(-1), weights)


def beam_search(
    model: Seq2Seq,
    source: Int[Array, "b s"],
    source_valid_lens: Int[Array, "b"] | None = None,
    *,
    bos: int,
    eos: int,
    max_length: int,
    beam_size: int,
    length_penalty: float = 0.0,
    pad: int | None = None,
) -> Beams:
    """The best target that is found by keeping the best ``beam_size`` hypotheses after each token.

    ``score = log p(y_1 ... y_t | source) / t ** length_penalty``

    It is `jattn.decoding.beam_search` with ``early_stopping="never"``: what has ended competes with all else that has,
    and no longer with what goes on, until nothing that goes on can become better. Without a penalty a beam of one is
    `greedy`; a beam as wide as there are targets is the search of all of them.

    Args:
        model, source, source_valid_lens, bos, eos, max_length, pad: as in `greedy`.
        beam_size: how many hypotheses are kept.
        length_penalty: 0 to compare log-probabilities, which favours short targets; 1 to compare their means per token.

    Returns:
        `Beams`: the best hypothesis like `greedy`'s, and ``beams``, the same of all hypotheses, ``b beams ...``, best
        score first. Where there are fewer targets than beams, the rest have log-probability minus infinity and no
        tokens.

    Source: Graves, Sequence Transduction with Recurrent Neural Networks, 2012, for the search.

    Example:

        >>> from flax import nnx
        >>> model = Seq2Seq(10, 12, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> found = beam_search(model, jnp.ones((2, 7), int), bos=0, eos=1, max_length=5, beam_size=3)
        >>> found.tokens.shape, found.beams.tokens.shape, found.beams.weights.shape
        ((2, 5), (2, 3, 5), (2, 3, 5, 7))
        >>> bool(jnp.all(found.log_probability == found.beams.log_probability[:, 0]))
        True
    """
    _check_at_least_one("beam_size", beam_size)
    if not isinstance(length_penalty, int | float | np.number) or not 0 <= length_penalty < math.inf:
        raise ValueError(
            f"length_penalty must be a number from 0, a Python one. Got {length_penalty!r}. 0 is for no penalty."
        )
    parts, search = _begun(model, source, source_valid_lens, bos, eos, pad, max_length)
    search |= {"beams": beam_size, "length_penalty": float(length_penalty), "early_stopping": "never"}
    found = decoding.beam_search(**search).beams
    lens = found.lengths.astype(found.scores.dtype)
    log_probability = jnp.where(lens > 0, found.scores * lens ** float(length_penalty), -jnp.inf)
    weights = _looked_at(*parts, search["state"], search["prompt"], found.tokens, found.lengths)
    beams = Decoded(found.tokens, found.lengths, log_probability, weights)
    return Beams(*_first(beams), beams)


def _first(beams: Decoded) -> Decoded:
    """The best beam of each example."""
    return Decoded(*[x[:, 0] for x in beams])


def _begun(
    model: Seq2Seq,
    source: Any,
    source_valid_lens: Any,
    bos: int,
    eos: int,
    pad: int | None,
    max_length: int,
) -> tuple[Parts, dict[str, Any]]:
    """Check, and read the source: the model as arguments, and the arguments of a search that goes on from there."""
    if not isinstance(model, Seq2Seq):
        raise ValueError(f"model must be a jattn.models.Seq2Seq. Got {type(model).__name__}.")
    parts = checked(model)
    source = checks.tokens("source", source, model.encoder.embedding.num_embeddings, "b s", 2)
    source_valid_lens = lens_of("source_valid_lens", "source", source_valid_lens, *source.shape)
    _check_token("bos", bos, model.vocab_size)
    _check_token("eos", eos, model.vocab_size)
    if pad is not None and (not isinstance(pad, int | np.integer) or isinstance(pad, bool)):
        raise ValueError(f"pad must be an integer, or None for eos. Got {pad!r}.")
    _check_at_least_one("max_length", max_length)

    state = _read(*parts, source, source_valid_lens)
    prompt = jnp.full((len(source), 1), bos, jnp.int32)
    return parts, dict(model=model, prompt=prompt, max_new_tokens=max_length, eos=eos, pad=pad, state=state)


@functools.partial(jax.jit, static_argnums=0)
def _read(
    structure: Structure, arrays: list[Any], source: Int[Array, "b s"], valid_lens: Int[Array, "b"] | None
) -> TranslationState:
    """The state of decoding, before the first token."""
    return merged(structure, arrays).start(len(source), 0, source=source, source_valid_lens=valid_lens)


@functools.partial(jax.jit, static_argnums=0)
def _looked_at(
    structure: Structure,
    arrays: list[Any],
    state: TranslationState,
    bos: Int[Array, "b 1"],
    tokens: Int[Array, "b *k t"],
    lengths: Int[Array, "b *k"],
) -> Float[Array, "b *k t s"]:
    """Those of the attention at each token that was found, all of which are fed in; zeros at pad."""
    real = jnp.arange(tokens.shape[-1]) < lengths[..., None]
    known = jnp.where(real, tokens, bos.reshape(-1, *[1] * (tokens.ndim - 1)))  # pad may be no token
    rows = known.reshape(-1, known.shape[-1])
    k = len(rows) // len(bos)
    fed = jnp.concatenate([jnp.repeat(bos, k, axis=0), rows[:, :-1]], axis=1)
    _, _, weights = merged(structure, arrays).decoder(fed, decoding.repeated(state, k).of_decoder)
    weights = weights.reshape(*tokens.shape, -1).astype(at_least_float32(weights))
    return jnp.where(real[..., None], weights, 0)


def _check_token(name: str, token: Any, vocab_size: int) -> None:
    if not checks.is_count(token) or token >= vocab_size:
        raise ValueError(
            f"{name} must be a token's number, an integer from 0 to {vocab_size - 1}, the target vocabulary. "
            f"Got {token!r}."
        )


def _check_at_least_one(name: str, n: Any) -> None:
    if not checks.is_count(n) or n < 1:
        raise ValueError(f"{name} must be at least 1, an integer known while tracing. Got {n!r}.")
