"""The loop of speculative decoding: in each round one model drafts some tokens, and the other reads all of them.

It is compiled for each number of examples and of drafted tokens, and each room. Examples keep different numbers of
tokens; none waits for another.

b example · a drafted token · v vocabulary
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jattn._engine.dtypes import at_least_float32
from jattn.decoding.decodable import Decodable, grown, rewound
from jattn.decoding.loop import Choice, Progress, merged, with_room
from jattn.decoding.randomness import with_number
from jattn.decoding.transcript import Transcript, put

__all__ = ["Speculation", "Verdict", "gone_on", "judged", "with_more_room"]

JUDGE = np.uint32(2**32 - 1)  # the number of a key that is no token's


class Speculation(NamedTuple):
    """Where decoding is."""

    progress: Progress  # the model's
    draft: Any  # the state of the draft
    unread: Int[Array, "b"]  # how many tokens the draft has not read: the last one, and perhaps that before it
    accepted: Int[Array, "b"]  # how many of its tokens were kept
    drafted: Int[Array, "b"]  # how many there were


class Verdict(NamedTuple):
    """What becomes of drafted tokens."""

    accepted: Int[Array, "b"]  # how many are kept, from the first
    rest: Float[Array, "b v"]  # how probable the next one is, but for a factor


class _Draft(NamedTuple):
    tokens: Int[Array, "b a"]
    probabilities: Float[Array, "b a v"] | None  # that they were drawn with
    state: Any  # which has read all of them but the last


def judged(
    p: Float[Array, "b places v"],
    q: Float[Array, "b a v"],
    tokens: Int[Array, "b a"],
    uniforms: Float[Array, "b a"],
    counts: Int[Array, "b"],
) -> Verdict:
    """How many drafted tokens are kept, and what the next one is drawn from.

    Token y is kept if all before it are and ``u < p(y) / q(y)``. The next one is drawn from ``max(p - q, 0)`` where one
    was not kept, else from p.

    Args:
        p: ``b a+1 v``, the model's probabilities at each place, and after all of them.
        q: ``b a v``, those with which the tokens were drawn.
        tokens: ``b a``.
        uniforms: ``b a``, numbers drawn from [0, 1).
        counts: ``b``, how many of the tokens may be kept.
    """

    def of_tokens(x: Array) -> Array:
        return jnp.take_along_axis(x, tokens[..., None], -1)[..., 0]

    accepted = _leading(uniforms * of_tokens(q) < of_tokens(p[:, :-1]), counts)
    p, q = (_at(x, jnp.minimum(accepted, x.shape[1] - 1)) for x in (p, q))
    left = jnp.maximum(p - q, 0)
    rejected = (accepted < counts) & (left > 0).any(-1)  # p and q may be the same but for rounding
    return Verdict(accepted, jnp.where(rejected[:, None], left, p))


@functools.partial(jax.jit, static_argnums=(0, 2), static_argnames="ahead", donate_argnums=4)
def gone_on(
    structure: Any,
    arrays: Any,
    draft_structure: Any,
    draft_arrays: Any,
    now: Speculation,
    choice: Choice,
    *,
    ahead: int,
) -> Speculation:
    """Round after round, until all examples have ended, or there is no room for another round of one of them."""
    model, draft = merged(structure, arrays), merged(draft_structure, draft_arrays)

    def another(now: Speculation) -> Array:
        transcript, going = now.progress.transcript, now.progress.going
        fits = transcript.lengths + _allowed(now.progress, ahead) < transcript.tokens.shape[1]
        return jnp.any(going) & jnp.all(fits | ~going)

    return jax.lax.while_loop(another, lambda now: _round(model, draft, now, choice, ahead), now)


@functools.partial(jax.jit, static_argnums=(1, 2))
def with_more_room(now: Speculation, room: int, pasts: tuple[int, int]) -> Speculation:
    """With room for so many tokens, and in both states for those that they had read before."""
    return now._replace(progress=with_room(now.progress, room, pasts[0]), draft=grown(now.draft, pasts[1] + room))


def _allowed(progress: Progress, ahead: int) -> Int[Array, "b"]:
    """How many drafted tokens of each example may be kept: one more follows them, up to its limit."""
    transcript = progress.transcript
    return jnp.where(progress.going, jnp.minimum(ahead, transcript.limits - transcript.new - 1), 0)


def _round(model: Decodable, draft: Decodable, now: Speculation, choice: Choice, ahead: int) -> Speculation:
    """Draft, read, and keep what the model would have said, up to an end."""
    progress = now.progress
    before, going, counts = progress.transcript, progress.going, _allowed(progress, ahead)
    proposed = _proposed(draft, now, choice, counts, ahead)
    read = jnp.concatenate([progress.last[:, None], proposed.tokens], axis=1)
    logits, state = model.step(read, progress.state, valid_lens=jnp.where(going, counts + 1, 0), each=True)
    logits = logits.astype(at_least_float32(logits))
    with_draft = before._replace(tokens=put(before.tokens, before.lengths, proposed.tokens, counts))
    said, accepted = _decided(logits, proposed, with_draft, choice, counts)

    places = jnp.arange(ahead + 1, dtype=jnp.int32)[None]
    ends = jnp.isin(said, choice.ends) & (places <= accepted[:, None])
    new = jnp.where(going, jnp.where(ends.any(-1), ends.argmax(-1), accepted) + 1, 0).astype(jnp.int32)
    transcript = before._replace(tokens=put(before.tokens, before.lengths, said, new), lengths=before.lengths + new)
    log_probabilities = jnp.take_along_axis(jax.nn.log_softmax(logits), said[..., None], -1)[..., 0]
    of_draft = jnp.where(counts > 0, now.unread - 1 + jnp.minimum(counts, new), 0)  # what it read and need not forget
    return Speculation(
        Progress(
            rewound(state, progress.state, new, ahead + 1),
            jnp.where(going, _at(said, jnp.maximum(new - 1, 0)), progress.last),
            transcript,
            put(progress.log_probabilities, before.lengths, log_probabilities, new),
            going & ~ends.any(-1) & (transcript.new < transcript.limits),
        ),
        rewound(proposed.state, now.draft, of_draft, ahead + 1),
        now.unread + new - of_draft,
        now.accepted + jnp.minimum(accepted, new),
        now.drafted + counts,
    )


def _proposed(draft: Decodable, now: Speculation, choice: Choice, counts: Int[Array, "b"], ahead: int) -> _Draft:
    """Tokens that follow for the draft, one after the other."""
    transcript = now.progress.transcript

    def propose(logits: Array, transcript: Transcript, i: Any) -> tuple[Array, Any, Transcript]:
        weighed = choice.processed(logits.astype(at_least_float32(logits)), transcript)
        token = choice.picked(weighed, transcript.new)
        return token, None if choice.rngs is None else jax.nn.softmax(weighed), transcript.appended(token, i < counts)

    def step(carry: Any, i: Array) -> tuple[Any, Any]:
        state, last, transcript = carry
        logits, state = draft.step(last[:, None], state, valid_lens=(i < counts).astype(jnp.int32))
        token, q, transcript = propose(logits, transcript, i)
        return (state, token, transcript), (token, q)

    at = (transcript.lengths - now.unread)[:, None] + jnp.arange(2, dtype=jnp.int32)[None]
    unread = jnp.take_along_axis(transcript.tokens, at, 1, mode="clip")
    logits, state = draft.step(unread, now.draft, valid_lens=jnp.where(counts > 0, now.unread, 0))
    token, q, transcript = propose(logits, transcript, 0)
    begun: Any = (state, token, transcript)
    (state, *_), others = jax.lax.scan(step, begun, jnp.arange(1, ahead, dtype=jnp.int32))
    tokens, q = jax.tree.map(
        lambda x, more: jnp.concatenate([x[:, None], jnp.moveaxis(more, 0, 1)], 1), (token, q), others
    )
    return _Draft(tokens, q, state)


def _decided(
    logits: Float[Array, "b places v"], draft: _Draft, transcript: Transcript, choice: Choice, counts: Int[Array, "b"]
) -> tuple[Int[Array, "b places"], Int[Array, "b"]]:
    """What the model says at each place, up to the one after those that are kept, and how many those are."""
    places = jnp.arange(logits.shape[1], dtype=jnp.int32)

    def processed(logits: Array, place: Array) -> Array:
        return choice.processed(logits, transcript._replace(lengths=transcript.lengths + place))

    if choice.processors:
        logits = jax.vmap(processed, in_axes=(1, 0), out_axes=1)(logits, places)
    if choice.rngs is None:
        said = logits.argmax(-1).astype(jnp.int32)
        return said, _leading(said[:, :-1] == draft.tokens, counts)
    assert draft.probabilities is not None
    p = jax.nn.softmax(logits)
    judges = jax.vmap(jax.random.fold_in, (0, None))(choice.rngs, JUDGE)  # apart from those that draw tokens
    uniforms = jax.vmap(
        lambda number: jax.vmap(lambda rng: jax.random.uniform(rng, dtype=p.dtype))(with_number(judges, 2 * number)),
        in_axes=1,
        out_axes=1,
    )(transcript.new[:, None] + places[None, :-1])
    accepted, rest = judged(p, draft.probabilities, draft.tokens, uniforms, counts)
    number = transcript.new + accepted
    rngs = jnp.where(accepted < counts, with_number(judges, 2 * number + 1), with_number(choice.rngs, number))
    last = jax.vmap(jax.random.categorical)(rngs, jnp.log(rest)).astype(jnp.int32)
    drafted = jnp.pad(draft.tokens, ((0, 0), (0, 1)))
    return jnp.where(places[None] == accepted[:, None], last[:, None], drafted), accepted


def _leading(right: Bool[Array, "b a"], counts: Int[Array, "b"]) -> Int[Array, "b"]:
    """How many are right before the first that is not, of so many."""
    right &= jnp.arange(right.shape[1], dtype=jnp.int32)[None] < counts[:, None]
    return jnp.cumprod(right, axis=1, dtype=jnp.int32).sum(1, dtype=jnp.int32)


def _at(x: Shaped[Array, "b n ..."], place: Int[Array, "b"]) -> Shaped[Array, "b ..."]:
    """Of each example the entry of this place."""
    return jax.vmap(lambda row, i: row[i])(x, place)
