"""The loop of a beam search: the best continuations of each example's hypotheses, until none can be the best any more.

It is compiled for each number of examples, beams and ends and each room, and for nothing else. The hypotheses of all
examples stand side by side, those of an example together.

k hypotheses of an example · r = b k, those of all examples
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Shaped

from jattn._engine.dtypes import at_least_float32
from jattn.decoding.decodable import grown, reordered
from jattn.decoding.loop import Beginning, Choice, Setup, Structure, merged, read, wider
from jattn.decoding.transcript import Transcript

__all__ = ["Search", "Standard", "begin_search", "resumed", "search_on", "search_with_room"]


class Standard(NamedTuple):
    """What hypotheses are judged by, and how long a better one is waited for."""

    length_penalty: Float[Array, ""]
    first: Bool[Array, ""]  # not at all: the first k that end are the result
    patient: Bool[Array, ""]  # as long as any better one is possible

    def score(self, log_probability: Float[Array, "*b"], new: Int[Array, "*#b"]) -> Float[Array, "*b"]:
        """Of so many new tokens with this log-probability."""
        penalty = self.length_penalty.astype(log_probability.dtype)
        return log_probability / new.astype(log_probability.dtype) ** penalty

    def still_to_come(
        self, best: Float[Array, "b"], new: Int[Array, "b"], limits: Int[Array, "b"]
    ) -> Float[Array, "b"]:
        """The best score of what goes on from the best hypothesis, as a token more has log-probability 0 at best."""
        return self.score(best, jnp.where(self.patient & (self.length_penalty > 0), limits, new))


class Search(NamedTuple):
    """Where a beam search is. Hypotheses that don't exist have log-probability minus infinity (`resumed`)."""

    state: Any  # the model's, which has read all but the last token
    last: Int[Array, "r"]
    transcript: Transcript  # of the hypotheses that go on, best first
    log_probabilities: Float[Array, "b k"]  # theirs, after the processors
    ended: Transcript  # the best that have ended, best first
    scores: Float[Array, "b k"]  # theirs; minus infinity where there are fewer
    going: Bool[Array, "b"]  # whether a better one may come


@functools.partial(jax.jit, static_argnames=("structure", "setup"))
def begin_search(
    structure: Structure, arrays: list[Any], beginning: Beginning, choice: Choice, standard: Standard, setup: Setup
) -> Search:
    """Read the prompts, and find the first token of each hypothesis."""
    state, logits, transcript = read(merged(structure, arrays), beginning, setup)
    b, k = len(beginning.prompt), setup.k
    # Before the first token all hypotheses are alike, so that only one of them counts.
    only = jnp.where(jnp.arange(k) == 0, 0.0, -jnp.inf).astype(at_least_float32(logits))
    log_probabilities = jnp.broadcast_to(only, (b, k))
    none = jnp.full_like(log_probabilities, -jnp.inf)
    unread = Search(state, transcript.tokens[:, 0], transcript, log_probabilities, transcript, none, jnp.ones(b, bool))
    return _suspended(_continued(unread, logits, choice, standard))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def search_on(
    structure: Structure,
    arrays: list[Any],
    search: Search,
    choice: Choice,
    standard: Standard,
    steps: Int[ArrayLike, ""],
) -> Search:
    """Go on by at most so many steps, until no example can get a better hypothesis."""
    model = merged(structure, arrays)

    def another(carry: tuple[Array, Search]) -> Array:
        return (carry[0] < steps) & jnp.any(carry[1].going)

    def step(carry: tuple[Array, Search]) -> tuple[Array, Search]:
        i, now = carry
        going = _each(now.going, now).astype(jnp.int32)
        logits, state = model.step(now.last[:, None], now.state, valid_lens=going)
        return i + 1, _continued(now._replace(state=state), logits, choice, standard)

    return _suspended(jax.lax.while_loop(another, step, (jnp.int32(0), resumed(search)))[1])


def _suspended(search: Search) -> Search:
    """As it leaves a program: minus infinity is the least finite number, since ``jax_debug_infs`` would reject it."""
    return _with_least(search, lambda x: jnp.maximum(x, jnp.finfo(x.dtype).min))


def resumed(search: Search) -> Search:
    """As it was in that program."""
    return _with_least(search, lambda x: jnp.where(x == jnp.finfo(x.dtype).min, -jnp.inf, x))


def _with_least(search: Search, f: Callable[[Array], Array]) -> Search:
    return search._replace(log_probabilities=f(search.log_probabilities), scores=f(search.scores))


def _continued(search: Search, logits: Float[Array, "r v"], choice: Choice, standard: Standard) -> Search:
    """With the best continuations of all hypotheses: k that go on, and those of the first k that end here."""
    before, (b, k), v = search.transcript, search.scores.shape, logits.shape[-1]
    logits = logits.astype(search.scores.dtype)
    each = choice.processed(jax.nn.log_softmax(logits), before).astype(search.scores.dtype)
    totals = (search.log_probabilities[..., None] + each.reshape(b, k, v)).reshape(b, k * v)
    # Of so many k go on, even if all those end that can.
    best, at = jax.lax.top_k(totals, min(k * max(2, 1 + len(choice.ends)), k * v))
    parents, tokens = at // v, (at % v).astype(before.tokens.dtype)
    new, limits = (x.reshape(b, k)[:, 0] for x in (before.new + 1, before.limits))  # the same for all of an example
    ends = jnp.isin(tokens, choice.ends) | (new >= limits)[:, None]

    ending = ends[:, :k] & search.going[:, None]
    scores = jnp.where(ending, standard.score(best[:, :k], new[:, None]), -jnp.inf)
    scores, kept = jax.lax.top_k(jnp.concatenate([search.scores, scores], axis=1), k)
    both = (search.ended, _longer(search, parents[:, :k], tokens[:, :k]))
    ended = jax.tree.map(lambda *x: _chosen(kept, *x), *both)

    log_probabilities, going_on = jax.lax.top_k(jnp.where(ends, -jnp.inf, best), k)
    parents, tokens = (jnp.take_along_axis(x, going_on, axis=1) for x in (parents, tokens))
    worst = scores[:, -1]
    better = standard.still_to_come(log_probabilities[:, 0], new, limits) > worst
    settled = standard.first & (worst > -jnp.inf)
    return Search(
        reordered(search.state, _rows_of(parents)),
        tokens.reshape(-1),
        _longer(search, parents, tokens),
        log_probabilities,
        ended,
        scores,
        search.going & better & ~settled & (new < limits),
    )


def _longer(search: Search, parents: Int[Array, "b k"], tokens: Int[Array, "b k"]) -> Transcript:
    """These hypotheses of each example, each with a token more."""
    rows = _rows_of(parents)
    return jax.tree.map(lambda x: x[rows], search.transcript).appended(tokens.reshape(-1), _each(search.going, search))


def _rows_of(parents: Int[Array, "b k"]) -> Int[Array, "r"]:
    """Where hypotheses stand that are numbered within their example."""
    b, k = parents.shape
    return (parents + k * jnp.arange(b, dtype=parents.dtype)[:, None]).reshape(-1)


def _each(x: Shaped[Array, "b"], search: Search) -> Shaped[Array, "r"]:
    """What is of an example, for each of its hypotheses."""
    return jnp.repeat(x, search.scores.shape[1])


def _chosen(kept: Int[Array, "b k"], *parts: Shaped[Array, "r ..."]) -> Shaped[Array, "r ..."]:
    """Of the hypotheses of all parts these, numbered within their example as they stand one after the other."""
    b, k = kept.shape
    beside = jnp.concatenate([x.reshape(b, k, *x.shape[1:]) for x in parts], axis=1)
    return jax.vmap(lambda of_one, i: of_one[i])(beside, kept).reshape(b * k, *beside.shape[2:])


@functools.partial(jax.jit, static_argnums=(1, 2))
def search_with_room(search: Search, room: int, past: int) -> Search:
    """With room for so many tokens, and in the state for those that it had read before."""
    transcript, ended = (x._replace(tokens=wider(x.tokens, room)) for x in (search.transcript, search.ended))
    return search._replace(state=grown(search.state, past + room), transcript=transcript, ended=ended)
