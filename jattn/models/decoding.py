"""Search for the target that a `Seq2Seq` finds most probable: greedily, or with a beam.

More axes here: v vocabulary · n hidden width · l recurrent layer. A beam is a hypothesis, a target so far; the beams of
all examples stand side by side in the decoder's batch. Each step keeps only which beam was continued by which token,
and the hypotheses are read from that, last step first, once the search is over.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from jattn._engine import checks
from jattn._engine.axes import Shape
from jattn._engine.dtypes import at_least_float32
from jattn.masks import lengths
from jattn.models.tasks.translation import DecoderState, Seq2Seq

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

        >>> model = Seq2Seq(10, 12, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> decoded = greedy(model, jnp.ones((2, 7), int), jnp.array([4, 7]), bos=0, eos=1, max_length=5)
        >>> decoded.tokens.shape, decoded.weights.shape
        ((2, 5), (2, 5, 7))
    """
    beams = _search(model, source, source_valid_lens, bos, eos, pad, max_length, 1, 0.0)
    return _first(beams)


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

    A hypothesis that has ended keeps its place and its score, and leaves when enough better ones have come. With a
    beam of one this is `greedy`; with a beam as wide as there are targets it is the search of all of them.

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
    beams = _search(model, source, source_valid_lens, bos, eos, pad, max_length, beam_size, length_penalty)
    return Beams(*_first(beams), beams)


def _first(beams: Decoded) -> Decoded:
    """The best beam of each example."""
    return Decoded(*[x[:, 0] for x in beams])


def _search(
    model: Seq2Seq,
    source: Any,
    source_valid_lens: Any,
    bos: int,
    eos: int,
    pad: int | None,
    max_length: int,
    beam_size: int,
    length_penalty: float,
) -> Decoded:
    """Check, then search compiled: for every Seq2Seq and every shape once."""
    if not isinstance(model, Seq2Seq):
        raise ValueError(f"model must be a jattn.models.Seq2Seq. Got {type(model).__name__}.")
    if any(isinstance(m, nnx.Dropout) and m.rate > 0 and not m.deterministic for _, m in nnx.iter_modules(model)):
        raise ValueError("model must be in eval mode. Got one in training mode, with dropout on. Call model.eval().")
    source = checks.tokens("source", source, model.encoder.embedding.num_embeddings, "b s", 2)
    if source_valid_lens is not None:
        source_valid_lens = jnp.asarray(checks.integers("source_valid_lens", source_valid_lens))
        if source_valid_lens.shape != source.shape[:1]:
            raise ValueError(
                f"source_valid_lens must have one entry for each source, shape {source.shape[:1]}. "
                f"Got shape {source_valid_lens.shape}."
            )
        lengths(source_valid_lens, per_query=False).check(Shape(source.shape[:1], None, 1, source.shape[1]))
    vocab_size = model.decoder.embedding.num_embeddings
    _check_token("bos", bos, vocab_size)
    _check_token("eos", eos, vocab_size)
    if pad is not None and (not isinstance(pad, int | np.integer) or isinstance(pad, bool)):
        raise ValueError(f"pad must be an integer, or None for eos. Got {pad!r}.")
    _check_at_least_one("max_length", max_length)
    graphdef, state = nnx.split(model)
    tokens = jnp.array([bos, eos, eos if pad is None else pad], jnp.int32)
    return _compiled_search(graphdef, state, source, source_valid_lens, tokens, length_penalty, max_length, beam_size)


def _check_token(name: str, token: Any, vocab_size: int) -> None:
    if not checks.is_count(token) or token >= vocab_size:
        raise ValueError(
            f"{name} must be a token's number, an integer from 0 to {vocab_size - 1}, the target vocabulary. "
            f"Got {token!r}."
        )


def _check_at_least_one(name: str, n: Any) -> None:
    if not checks.is_count(n) or n < 1:
        raise ValueError(f"{name} must be at least 1, an integer known while tracing. Got {n!r}.")


class _Hypotheses(NamedTuple):
    """The beams between two steps."""

    tokens: Int[Array, "b k"]  # each one's last
    hidden: Float[Array, "l b*k n"]  # the decoder's
    log_probability: Float[Array, "b k"]  # minus infinity: no hypothesis
    lengths: Int[Array, "b k"]
    ended: Bool[Array, "b k"]


class _Steps(NamedTuple):
    """What is written down of each step, to read the hypotheses from."""

    tokens: Int[Array, "t b k"]
    parents: Int[Array, "t b k"]  # which beam was continued
    weights: Float[Array, "t b k s"]


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def _compiled_search(
    graphdef: Any,
    state: Any,
    source: Int[Array, "b s"],
    source_valid_lens: Int[Array, "b"] | None,
    special: Int[Array, "3"],
    length_penalty: Any,
    max_length: int,
    beam_size: int,
) -> Decoded:
    """The search itself: at most ``max_length`` steps, as long as there is a hypothesis to continue."""
    model, (bos, eos, pad) = nnx.merge(graphdef, state), special
    memory = _for_each_beam(model.encoder(source, source_valid_lens), beam_size)
    begin = _begin(memory, source.shape[0], beam_size, bos)
    blank = _blank(memory, begin, max_length, pad)

    def another(loop: tuple[Array, _Hypotheses, _Steps]) -> Array:
        i, hypotheses, _ = loop
        return (i < max_length) & ~jnp.all(hypotheses.ended)

    def step(loop: tuple[Array, _Hypotheses, _Steps]) -> tuple[Array, _Hypotheses, _Steps]:
        i, before, steps = loop
        logits, state, weights = model.decoder.step(before.tokens.reshape(-1), memory._replace(hidden=before.hidden))
        logits, weights = (x.reshape(*before.tokens.shape, -1) for x in (logits, weights))
        hypotheses, parents = _continue(before, logits, state.hidden, eos, length_penalty)
        ended = _select_beams(before.ended, parents)
        tokens = jnp.where(ended, pad, hypotheses.tokens)
        weights = jnp.where(ended[..., None], 0, _select_beams(weights, parents))
        written = _Steps(tokens, parents, weights)
        return i + 1, hypotheses, jax.tree.map(lambda all_steps, x: all_steps.at[i].set(x), steps, written)

    _, hypotheses, steps = jax.lax.while_loop(another, step, (jnp.int32(0), begin, blank))
    return _read(hypotheses, steps, pad)


def _for_each_beam(state: DecoderState, beam_size: int) -> DecoderState:
    """The state of every example, as often as there are beams."""
    lens = None if state.valid_lens is None else jnp.repeat(state.valid_lens, beam_size)
    return DecoderState(jnp.repeat(state.outputs, beam_size, 0), jnp.repeat(state.hidden, beam_size, 1), lens)


def _begin(memory: DecoderState, b: int, beam_size: int, bos: Array) -> _Hypotheses:
    """Before the first token all beams are alike, so that only the first of them counts."""
    none = jnp.broadcast_to(jnp.arange(beam_size) > 0, (b, beam_size))
    return _Hypotheses(
        jnp.full(none.shape, bos),
        memory.hidden,
        jnp.where(none, -jnp.inf, 0.0).astype(at_least_float32(memory.hidden)),
        jnp.zeros(none.shape, jnp.int32),
        none,
    )


def _blank(memory: DecoderState, begin: _Hypotheses, max_length: int, pad: Array) -> _Steps:
    """What is read where nothing gets written, as the search is over: pad, and every beam continued by itself."""
    b, k = begin.tokens.shape
    return _Steps(
        jnp.full((max_length, b, k), pad),
        jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32), (max_length, b, k)),
        jnp.zeros((max_length, b, k, memory.outputs.shape[1]), begin.log_probability.dtype),
    )


def _continue(
    before: _Hypotheses, logits: Float[Array, "b k v"], hidden: Float[Array, "l b*k n"], eos: Array, penalty: Array
) -> tuple[_Hypotheses, Int[Array, "b k"]]:
    """The best of all continuations, and the beams that they continue; what has ended has one, itself."""
    b, k, v = logits.shape
    wide = jax.nn.log_softmax(logits.astype(before.log_probability.dtype))
    itself = jnp.where(jnp.arange(v) == eos, 0.0, -jnp.inf).astype(wide.dtype)
    log_probability = before.log_probability[..., None] + jnp.where(before.ended[..., None], itself, wide)
    lengths = before.lengths + ~before.ended
    score = log_probability / lengths[..., None].astype(wide.dtype) ** penalty
    _, best = jax.lax.top_k(score.reshape(b, k * v), k)
    parents, tokens = best // v, (best % v).astype(before.tokens.dtype)
    chosen = _select_beams(log_probability.reshape(b, k * v), best)
    states = hidden.reshape(-1, b, k, hidden.shape[-1])
    return _Hypotheses(
        tokens,
        jnp.take_along_axis(states, parents[None, :, :, None], 2).reshape(hidden.shape),
        chosen,
        _select_beams(lengths, parents),
        _select_beams(before.ended, parents) | (tokens == eos) | (chosen == -jnp.inf),
    ), parents


def _read(hypotheses: _Hypotheses, steps: _Steps, pad: Array) -> Decoded:
    """Follow every hypothesis from its last token back to its first."""

    def back(beam: Array, step: _Steps) -> tuple[Array, tuple[Array, Array]]:
        return _select_beams(step.parents, beam), (_select_beams(step.tokens, beam), _select_beams(step.weights, beam))

    last = jnp.broadcast_to(jnp.arange(hypotheses.tokens.shape[1], dtype=jnp.int32), hypotheses.tokens.shape)
    _, (tokens, weights) = jax.lax.scan(back, last, steps, reverse=True)
    real = hypotheses.log_probability > -jnp.inf
    return Decoded(
        jnp.where(real[..., None], jnp.moveaxis(tokens, 0, -1), pad),
        jnp.where(real, hypotheses.lengths, 0),
        hypotheses.log_probability,
        jnp.where(real[..., None, None], jnp.moveaxis(weights, 0, -2), 0),
    )


def _select_beams(x: Shaped[Array, "b k ..."], beams: Int[Array, "b j"]) -> Shaped[Array, "b j ..."]:
    """Of each example these beams."""
    return jax.vmap(lambda row, chosen: row[chosen])(x, beams)
