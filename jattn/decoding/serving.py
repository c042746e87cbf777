"""Many prompts of different lengths through a few slots: a slot that comes free is filled at once."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.decoding.decodable import Decodable, placed, repeated
from jattn.decoding.loop import Choice, Progress, advance, begin, with_room
from jattn.decoding.request import Request, checked
from jattn.decoding.room import first_room, stretch

__all__ = ["Job", "Served", "serve"]


class Job(NamedTuple):
    """A prompt, and what differs between it and the others."""

    prompt: Sequence[int] | Int[Array | np.ndarray, "t"]
    max_new_tokens: int | None = None  # as of all, if None
    given: Mapping[str, Any] | None = None  # what the model knows beside the prompt, for a batch of one


class Served(NamedTuple):
    """What a job became."""

    number: int  # of the job, from 0
    tokens: Int[np.ndarray, "n"]  # the new ones; eos last, if it came
    log_probabilities: Float[np.ndarray, "n"]  # of each for the model, before processors


def serve(
    model: Decodable,
    jobs: Iterable[Job | Sequence[int] | Int[Array | np.ndarray, "t"]],
    *,
    slots: int = 8,
    max_new_tokens: int | None = None,
    eos: int | Sequence[int] = (),
    processors: Sequence[Any] = (),
    rng: PRNGKeyArray | None = None,
) -> Iterator[Served]:
    """What `jattn.decoding.generate` gives for each prompt, as soon as it has ended: the shortest first, not the first.

    All slots take a step together. A job that has ended makes place for the next one, which is read while the others
    wait; so no slot computes what nobody asked for, as it would where all are padded to the longest.

    Args:
        model: as of `generate`.
        jobs: prompts without padding, or `Job`; taken one by one when there is a free slot, so that it may be a queue.
        slots: how many prompts are under way at a time.
        max_new_tokens: of jobs that don't say so.
        eos, processors: as of `generate`.
        rng: a ``jax.random.key`` to draw tokens; job number i draws with ``fold_in(rng, i)``.

    Returns:
        An iterator of `Served`.

    Example:

        >>> from flax import nnx
        >>> from jattn.models import GPT2
        >>> model = GPT2(50, max_length=32, features=12, num_heads=3, num_layers=2, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> jobs = [[1, 2, 3], [4], Job([5, 6], max_new_tokens=2)]
        >>> sorted((served.number, len(served.tokens)) for served in serve(model, jobs, slots=2, max_new_tokens=4))
        [(0, 4), (1, 4), (2, 2)]
    """
    checks.positive_integers(slots=slots)
    if rng is not None:
        checks.check_rng("rng", rng)

    parts = checked(model)

    def request_of(number: int, job: Any) -> Request:
        job = job if isinstance(job, Job) else Job(job)
        n = max_new_tokens if job.max_new_tokens is None else job.max_new_tokens
        if n is None:
            raise ValueError(f"max_new_tokens must be given, for all jobs or for each. Got none for job {number}.")
        prompt = np.asarray(job.prompt)
        if prompt.ndim != 1 or not prompt.size:
            raise ValueError(f"jobs must be prompts with one axis, not empty. Got shape {prompt.shape}, job {number}.")
        return Request.of(
            model,
            jnp.asarray(prompt)[None],
            max_new_tokens=n,
            eos=eos,
            processors=processors,
            parts=parts,
            **(job.given or {}),
        )

    waiting = (request_of(number, job) for number, job in enumerate(jobs))
    return _UnderWay(slots, rng).serve(waiting)


class _UnderWay:
    """Jobs under way, one in each slot that is not free."""

    def __init__(self, slots: int, rng: PRNGKeyArray | None) -> None:
        self.numbers: list[int | None] = [None] * slots  # of the jobs
        self.rng, self.rngs = rng, None if rng is None else jnp.stack([rng] * slots)  # those of the slots
        self.room = 0
        self.last: Request | None = None
        self.progress: Progress | None = None  # from the first job on

    def serve(self, waiting: Iterator[Request]) -> Iterator[Served]:
        """Fill what is free, and go on until a job has ended."""
        numbers = itertools.count()
        while True:
            while None in self.numbers and (request := next(waiting, None)) is not None:
                self._fill(self.numbers.index(None), next(numbers), request)
                yield from self._ended()
            if all(number is None for number in self.numbers):
                return
            self._advance()
            yield from self._ended()

    def _fill(self, slot: int, number: int, request: Request) -> None:
        """Read the prompt of a job, and let it go on in a slot."""
        self._grow(first_room(request.prompt.shape[1], request.max_new_tokens, whole=False))
        rngs = None if self.rng is None else jax.random.fold_in(self.rng, number)[None]
        one = request.begun(begin, Choice(request.processors, jnp.asarray(request.ends), rngs), room=self.room)
        if self.progress is None:
            self.progress = repeated(one._replace(going=jnp.zeros(1, bool)), len(self.numbers))
        shapes = [jax.tree.map(lambda x: x.shape[1:], progress.state) for progress in (self.progress, one)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"jobs must give the model arrays of the same shapes. Got others for job {number}.")
        self.progress = _placed(self.progress, np.int32(slot), one)
        if self.rngs is not None and rngs is not None:
            self.rngs = self.rngs.at[slot].set(rngs[0])
        self.numbers[slot], self.last = number, request

    def _advance(self) -> None:
        assert self.progress is not None
        assert self.last is not None
        transcript, taken = self.progress.transcript, np.array([number is not None for number in self.numbers])
        full, left = (int(np.asarray(x)[taken].max()) for x in (transcript.lengths, transcript.limits - transcript.new))
        room, free = stretch(self.room, full, left)
        self._grow(room)
        choice = Choice(self.last.processors, jnp.asarray(self.last.ends), self.rngs)
        self.progress = advance(*self.last.parts, self.progress, choice, np.int32(free), np.True_)

    def _ended(self) -> Iterator[Served]:
        """What the jobs that have ended became; their slots are free."""
        assert self.progress is not None
        going, transcript = np.asarray(self.progress.going), self.progress.transcript
        for slot, number in enumerate(self.numbers):
            if number is not None and not going[slot]:
                new = slice(int(transcript.prompt_lens[slot]), int(transcript.lengths[slot]))
                rows = (np.asarray(x)[slot, new] for x in (transcript.tokens, self.progress.log_probabilities))
                yield Served(number, *rows)
                self.numbers[slot] = None

    def _grow(self, room: int) -> None:
        if room > self.room:
            self.room = room
            self.progress = None if self.progress is None else with_room(self.progress, room, 0)


@functools.partial(jax.jit, donate_argnums=0)
def _placed(progress: Progress, slot: Any, one: Progress) -> Progress:
    return placed(progress, slot, one)
