"""The loop of decoding: one token of each example after the other, until all have ended.

It is compiled for each number of examples and room, and for nothing else: lengths, limits, ends, randomness and the
numbers of processors are data.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, Shaped

from jattn._engine.dtypes import at_least_float32
from jattn.decoding.decodable import Decodable, grown, repeated
from jattn.decoding.randomness import with_number
from jattn.decoding.transcript import Transcript, put

__all__ = [
    "Beginning",
    "Choice",
    "Parts",
    "Progress",
    "Setup",
    "Structure",
    "advance",
    "begin",
    "merged",
    "read",
    "started",
    "wider",
    "with_room",
]


class Structure:
    """What a model is beside its arrays. Its hash is computed once: each call of a compiled function asks for it."""

    def __init__(self, graphdef: Any, tree: Any) -> None:
        self.graphdef, self.tree = graphdef, tree  # no graphdef for a model that is a pytree itself
        self._hash = hash((graphdef, tree))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Structure):
            return self is other
        return self._hash == other._hash and (self.tree, self.graphdef) == (other.tree, other.graphdef)


class Parts(NamedTuple):
    """A model as arguments of a compiled function."""

    structure: Structure
    arrays: list[Any]

    @classmethod
    def of(cls, model: Decodable) -> "Parts":
        """Of a Flax module, or of a pytree."""
        graphdef, arrays = nnx.split(model) if isinstance(model, nnx.Module) else (None, model)
        leaves, tree = jax.tree.flatten(arrays)
        return cls(Structure(graphdef, tree), leaves)


def merged(structure: Structure, arrays: Sequence[Any]) -> Any:
    """The model again."""
    state = jax.tree.unflatten(structure.tree, arrays)
    return state if structure.graphdef is None else nnx.merge(structure.graphdef, state)


class Choice(NamedTuple):
    """How a token is chosen, and what ends an example."""

    processors: tuple[Any, ...]  # of logits, in their order
    ends: Int[Array, "_"]
    rngs: Key[Array, "b"] | None  # to draw a token; without one it is the most probable

    def __call__(
        self, logits: Float[Array, "b v"], transcript: Transcript
    ) -> tuple[Int[Array, "b"], Float[Array, "b"]]:
        """The next token of each example, and its log-probability for the model, before the processors."""
        logits = logits.astype(at_least_float32(logits))
        token = self.picked(self.processed(logits, transcript), transcript.new)
        return token, jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], -1)[:, 0]

    def processed(self, logits: Float[Array, "b v"], transcript: Transcript) -> Float[Array, "b v"]:
        """What the processors make of the logits."""
        return functools.reduce(lambda x, f: f(x, transcript), self.processors, logits)

    def picked(self, weighed: Float[Array, "b v"], numbers: Int[Array, "b"]) -> Int[Array, "b"]:
        """The most probable tokens, or those drawn with these numbers of new tokens before them."""
        if self.rngs is None:
            return weighed.argmax(-1).astype(jnp.int32)
        rngs = with_number(self.rngs, numbers)  # so that nothing else in the batch matters
        return jax.vmap(jax.random.categorical)(rngs, weighed).astype(jnp.int32)


class Progress(NamedTuple):
    """Where decoding is: all has been read but the last token."""

    state: Any  # the model's
    last: Int[Array, "b"]
    transcript: Transcript
    log_probabilities: Float[Array, "b n"]  # of the tokens of the transcript
    going: Bool[Array, "b"]


class Beginning(NamedTuple):
    """What there is before the first new token, as arguments of a compiled function."""

    prompt: Int[Array, "b t"]
    valid_lens: Int[Array, "b"] | None  # how many tokens of each prompt are real; None for all
    limits: Int[Array, "b"]  # how many new ones there may be
    state: Any  # of the model, to go on from; None to start
    given: dict[str, Any]  # what it starts with


class Setup(NamedTuple):
    """What a program is compiled for, beside the shapes of its arguments."""

    settings: tuple[tuple[str, Any], ...]  # what the model starts with beside arrays
    room: int  # n, how many tokens there may be
    past: int  # how many more the state has room for, those before the prompt
    k: int  # how many continuations each prompt has


def started(model: Decodable, state: Any, b: int, room: int, **given: Any) -> Any:
    """The state before the prompts, with so much room: the one to go on from, or else a new one."""
    return model.start(b, room, **given) if state is None else grown(state, room)


@functools.partial(jax.jit, static_argnames=("structure", "setup"))
def begin(structure: Structure, arrays: list[Any], beginning: Beginning, choice: Choice, setup: Setup) -> Progress:
    """Read the prompts, and choose the first token of each continuation."""
    state, logits, transcript = read(merged(structure, arrays), beginning, setup)
    blank = jnp.zeros(transcript.tokens.shape, at_least_float32(logits))
    unread = Progress(state, transcript.tokens[:, 0], transcript, blank, transcript.limits > 0)
    return _said(unread, logits, choice)


def read(model: Decodable, beginning: Beginning, setup: Setup) -> tuple[Any, Float[Array, "_ v"], Transcript]:
    """Read the prompts: the state after them, the logits of what follows, and they themselves, each k times."""
    prompt, valid_lens, limits, state, given = beginning
    (b, t), room = prompt.shape, setup.past + setup.room
    begun = started(model, state, b, room, **given, **dict(setup.settings))
    logits, state = model.step(prompt, begun, valid_lens=valid_lens)
    lens = jnp.full(b, t, jnp.int32) if valid_lens is None else valid_lens.astype(jnp.int32)
    tokens = wider(prompt, setup.room)
    if setup.k > 1:
        state, logits, lens, tokens, limits = repeated((state, logits, lens, tokens, limits), setup.k)
    return state, logits, Transcript(tokens, lens, lens, limits)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(
    structure: Structure,
    arrays: list[Any],
    progress: Progress,
    choice: Choice,
    steps: Int[ArrayLike, ""],
    first: Bool[ArrayLike, ""],
) -> Progress:
    """Go on by at most so many steps; until all examples have ended, or until the first of those going has."""
    model = merged(structure, arrays)
    going = progress.going

    def another(carry: tuple[Array, Progress]) -> Array:
        i, now = carry
        return (i < steps) & jnp.any(now.going) & ~(first & jnp.any(going & ~now.going))

    def step(carry: tuple[Array, Progress]) -> tuple[Array, Progress]:
        i, now = carry
        logits, state = model.step(now.last[:, None], now.state, valid_lens=now.going.astype(jnp.int32))
        return i + 1, _said(now._replace(state=state), logits, choice)

    return jax.lax.while_loop(another, step, (jnp.int32(0), progress))[1]


def _said(progress: Progress, logits: Float[Array, "b v"], choice: Choice) -> Progress:
    """With the token that is chosen by these logits."""
    before, going = progress.transcript, progress.going
    token, log_probability = choice(logits, before)
    transcript = before.appended(token, going)
    return Progress(
        progress.state,
        token,
        transcript,
        put(progress.log_probabilities, before.lengths, log_probability[:, None], going),
        going & ~jnp.isin(token, choice.ends) & (transcript.new < transcript.limits),
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def with_room(progress: Progress, room: int, past: int) -> Progress:
    """With room for so many tokens, and in the state for those that it had read before."""
    return progress._replace(
        state=grown(progress.state, past + room),
        transcript=progress.transcript._replace(tokens=wider(progress.transcript.tokens, room)),
        log_probabilities=wider(progress.log_probabilities, room),
    )


def wider(x: Shaped[Array, "b n"], room: int) -> Shaped[Array, "b m"]:
    """With places for so many tokens."""
    return jnp.pad(x, ((0, 0), (0, room - x.shape[1])))
