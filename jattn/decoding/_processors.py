"""The processors themselves, which the functions of `jattn.decoding.processors` make.

b example · v vocabulary · n tokens so far · m tokens, or bad words, that are listed
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jattn._engine.dtypes import at_least_float32
from jattn._engine.pytree import Pytree
from jattn.decoding.transcript import Transcript

__all__ = [
    "ANY",
    "BadWords",
    "Filter",
    "Forced",
    "MinLength",
    "MinNewTokens",
    "MinP",
    "NoRepeatNgrams",
    "Processor",
    "RepetitionPenalty",
    "Suppressed",
    "Temperature",
    "TopK",
    "TopP",
    "Typical",
]

ANY = -2  # in a bad word that is shorter than the longest, in front of it: whatever token, or none
_NONE = -1  # in front of the first token


class Processor(Pytree):
    """From logits and what has been said, other logits. Made by the functions of `jattn.decoding.processors`."""

    def __call__(self, logits: Float[Array, "b v"], transcript: Transcript) -> Float[Array, "b v"]:
        """The logits that the next token is chosen by."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__, from logits and transcript to logits.")


class Filter(Processor):
    """Minus infinity where a token is forbidden."""

    def __call__(self, logits: Float[Array, "b v"], transcript: Transcript) -> Float[Array, "b v"]:
        return jnp.where(self.forbidden(_wide(logits), transcript), -jnp.inf, logits)

    def forbidden(self, logits: Float[Array, "b v"], transcript: Transcript) -> Bool[Array, "#b v"]:
        """Which tokens must not come next, by logits in float32 or wider."""
        raise NotImplementedError(f"{type(self).__name__} must define forbidden, which gives booleans.")


class Temperature(Processor):
    t: float | Array

    def __call__(self, logits: Float[Array, "b v"], transcript: Transcript) -> Float[Array, "b v"]:
        wide = _wide(logits)
        return (wide / _column("t", self.t, wide)).astype(logits.dtype)


class RepetitionPenalty(Processor):
    penalty: float | Array

    def __call__(self, logits: Float[Array, "b v"], transcript: Transcript) -> Float[Array, "b v"]:
        wide = _wide(logits)
        penalty = _column("penalty", self.penalty, wide)
        less = jnp.where(wide < 0, wide * penalty, wide / penalty)
        said = _marked(transcript.tokens, transcript.real, wide.shape[1])
        return jnp.where(said, less, wide).astype(logits.dtype)


class Forced(Processor):
    at: Int[Array, "m"]  # which new token, from 0; those below 0 are counted from the last
    tokens: Int[Array, "m"]

    def __call__(self, logits: Float[Array, "b v"], transcript: Transcript) -> Float[Array, "b v"]:
        at = self.at[None].astype(transcript.limits.dtype)
        due = transcript.new[:, None] == jnp.where(at < 0, transcript.limits[:, None] + at, at)
        which = jnp.where(due, jnp.arange(due.shape[1])[None], -1).max(1, keepdims=True)
        vocabulary = jnp.arange(logits.shape[1], dtype=jnp.int32)[None]
        alone = jnp.where(vocabulary == self.tokens[which], 0, -jnp.inf).astype(logits.dtype)
        return jnp.where(which >= 0, alone, logits)


class TopK(Filter):
    k: Int[Array, ""] | Int[Array, "b"]

    def forbidden(self, logits: Float[Array, "b v"], transcript: Transcript) -> Bool[Array, "#b v"]:
        v, dtype = logits.shape[1], logits.dtype  # counted in it, which is exact up to 2**24 and faster
        fewer = v - jnp.minimum(_column("k", self.k, logits), v)
        return logits < _smallest(logits, lambda up_to: up_to.sum(1, keepdims=True, dtype=dtype) > fewer)


class TopP(Filter):
    p: float | Array

    def forbidden(self, logits: Float[Array, "b v"], transcript: Transcript) -> Bool[Array, "#b v"]:
        rest, probabilities = 1 - _column("p", self.p, logits), jax.nn.softmax(logits)
        return logits < _smallest(logits, lambda up_to: _mass(probabilities, up_to) > rest)


class MinP(Filter):
    p: float | Array

    def forbidden(self, logits: Float[Array, "b v"], transcript: Transcript) -> Bool[Array, "#b v"]:
        return logits < logits.max(1, keepdims=True) + jnp.log(_column("p", self.p, logits))


class Typical(Filter):
    p: float | Array

    def forbidden(self, logits: Float[Array, "b v"], transcript: Transcript) -> Bool[Array, "#b v"]:
        log_probabilities = jax.nn.log_softmax(logits)
        probabilities, p = jnp.exp(log_probabilities), _column("p", self.p, logits)
        entropy = -jnp.where(probabilities > 0, probabilities * log_probabilities, 0).sum(1, keepdims=True)
        away = abs(log_probabilities + entropy)
        return away > _smallest(away, lambda up_to: _mass(probabilities, up_to) >= p)


class NoRepeatNgrams(Filter):
    n: int

    def forbidden(self, logits: Float[Array, "b v"], transcript: Transcript) -> Bool[Array, "#b v"]:
        tokens, ending = transcript.tokens, _ending(transcript, self.n - 1)
        starts = max(tokens.shape[1] - self.n + 1, 0)
        again = jnp.arange(self.n, self.n + starts, dtype=transcript.lengths.dtype)[None] <= transcript.lengths[:, None]
        for i in range(self.n - 1):
            again &= tokens[:, i : i + starts] == ending[:, i : i + 1]
        return _marked(tokens[:, self.n - 1 :], again, logits.shape[1])


class BadWords(Filter):
    words: Int[Array, "m n"]  # each at the end of its row, `ANY` in front of it

    def forbidden(self, logits: Float[Array, "b v"], transcript: Transcript) -> Bool[Array, "#b v"]:
        before, last = self.words[None, :, :-1], self.words[:, -1]
        ending = _ending(transcript, before.shape[-1])[:, None]
        complete = ((before == ANY) | (before == ending)).all(-1)
        return _marked(jnp.broadcast_to(last[None], complete.shape), complete, logits.shape[1])


class Suppressed(Filter):
    tokens: Int[Array, "m"]
    at_begin: bool

    def forbidden(self, logits: Float[Array, "b v"], transcript: Transcript) -> Bool[Array, "#b v"]:
        listed = _listed(self.tokens, logits.shape[1])
        return listed & (transcript.new == 0)[:, None] if self.at_begin else listed


class MinLength(Filter):
    n: Int[Array, ""] | Int[Array, "b"]
    eos: Int[Array, "m"]

    def forbidden(self, logits: Float[Array, "b v"], transcript: Transcript) -> Bool[Array, "#b v"]:
        return _shorter(transcript.lengths, self.n, logits) & _listed(self.eos, logits.shape[1])


class MinNewTokens(Filter):
    n: Int[Array, ""] | Int[Array, "b"]
    eos: Int[Array, "m"]

    def forbidden(self, logits: Float[Array, "b v"], transcript: Transcript) -> Bool[Array, "#b v"]:
        return _shorter(transcript.new, self.n, logits) & _listed(self.eos, logits.shape[1])


def _wide(logits: Float[Array, "b v"]) -> Float[Array, "b v"]:
    return logits.astype(at_least_float32(logits))


def _column(name: str, x: Any, logits: Float[Array, "b v"], dtype: Any = None) -> Num[Array, "#b 1"]:
    """A number of all examples, or one of each, beside the logits."""
    column = jnp.reshape(jnp.asarray(x, logits.dtype if dtype is None else dtype), (-1, 1))
    if len(column) not in (1, len(logits)):
        raise ValueError(
            f"{name} must be one number, or one for each of {len(logits)} examples. Got {len(column)} numbers."
        )
    return column


def _shorter(lengths: Int[Array, "b"], n: Array, logits: Float[Array, "b v"]) -> Bool[Array, "b 1"]:
    return lengths[:, None] < _column("n", n, logits, lengths.dtype)


def _marked(tokens: Int[Array, "b m"], where: Bool[Array, "b m"], v: int) -> Bool[Array, "b v"]:
    """Of each example those of the vocabulary that are among its tokens, as far as ``where`` says."""
    rows, nowhere = jnp.arange(len(tokens))[:, None], v
    return jnp.zeros((len(tokens), v), bool).at[rows, jnp.where(where, tokens, nowhere)].set(True, mode="drop")


def _listed(tokens: Int[Array, "m"], v: int) -> Bool[Array, "1 v"]:
    return jnp.zeros((1, v), bool).at[0, tokens].set(True, mode="drop")


def _ending(transcript: Transcript, n: int) -> Int[Array, "b {n}"]:
    """The last tokens of each example."""
    at = transcript.lengths[:, None] + jnp.arange(-n, 0, dtype=transcript.lengths.dtype)[None]
    return jnp.where(at >= 0, jnp.take_along_axis(transcript.tokens, jnp.maximum(at, 0), axis=1), _NONE)


def _mass(probabilities: Float[Array, "b v"], of: Bool[Array, "b v"]) -> Float[Array, "b 1"]:
    return jnp.where(of, probabilities, 0).sum(1, keepdims=True)


def _smallest(
    x: Float[Array, "b v"], enough: Callable[[Bool[Array, "b v"]], Bool[Array, "b 1"]]
) -> Float[Array, "b 1"]:
    """Of each row the smallest number that has enough numbers up to it, itself included; else the largest.

    It is found by bisection over all floating-point numbers, which takes as many looks at the row as they have bits. To
    sort 8 rows of 50257 takes two cores 80 ms, and this 2 to 3.
    """
    integer: Any = jnp.int64 if x.dtype.itemsize == 8 else jnp.int32

    def turned(bits: Array) -> Array:
        """Integers in the order of the numbers whose bits these are, or the bits again."""
        return jnp.where(bits < 0, bits ^ jnp.iinfo(integer).max, bits)

    def order(number: Array) -> Array:
        return turned(jax.lax.bitcast_convert_type(number, integer))

    def number(order: Array) -> Array:
        return jax.lax.bitcast_convert_type(turned(order), x.dtype)

    def halved(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # of numbers whose sum would overflow
        reached = enough(x <= number(middle))
        return jnp.where(reached, low, middle), jnp.where(reached, middle, high)

    bounds = order(x.min(1, keepdims=True)) - 1, order(x.max(1, keepdims=True))
    return number(jax.lax.fori_loop(0, x.dtype.itemsize * 8, halved, bounds)[1])
