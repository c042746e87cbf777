"""A mixed queue of prompts: through slots that are filled as they come free, beside batches padded to their longest.

    python -m benchmarks serving [--sizes NAME ...] [--jobs N] [--slots B ...] [--longest T] [--columns NAME ...]
        [--rounds 3] [--json FILE]

Random prompts and weights in float32. Prompts and continuations have 1/16 of the longest to the longest, most of them
short; both columns compute the same tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks.comparison import PASSES, Column, at_least_one, parser_of, run
from benchmarks.decoding import SIZES, ours
from jattn import decoding


class Queue(NamedTuple):
    """A model, and what waits for it."""

    size: str
    slots: int
    jobs: int
    longest: int

    def all(self) -> list[decoding.Job]:
        """The jobs, in the order in which they came."""
        rng = np.random.default_rng(0)
        lens, limits = (self.longest * 2.0 ** -rng.uniform(0, 4, (2, self.jobs))).astype(int)
        vocab_size = SIZES[self.size]["vocab_size"]
        return [decoding.Job(rng.integers(0, vocab_size, n), int(limit)) for n, limit in zip(lens, limits, strict=True)]


def served(queue: Queue) -> Column:
    model, jobs = ours(queue.size), queue.all()

    def call() -> tuple[Any, ...]:
        found = sorted(decoding.serve(model, jobs, slots=queue.slots))
        return (np.concatenate([one.tokens for one in found]),)

    return Column(call, 0, None, False)  # a token may be another by rounding


def padded(queue: Queue) -> Column:
    model, jobs = ours(queue.size), queue.all()

    def call() -> tuple[Any, ...]:
        found = []
        for i in range(0, len(jobs), queue.slots):
            some = jobs[i : i + queue.slots]
            prompts = [np.asarray(job.prompt) for job in some]
            lens = np.array([len(prompt) for prompt in prompts])
            together = np.stack([np.pad(prompt, (0, lens.max() - len(prompt))) for prompt in prompts])
            limits = [job.max_new_tokens or 0 for job in some]
            longest = decoding.generate(model, jnp.asarray(together), jnp.asarray(lens), max_new_tokens=max(limits))
            found += [np.asarray(row[:n]) for row, n in zip(longest.tokens, limits, strict=True)]
        return (np.concatenate(found),)

    return Column(call, 0, None, False)


COLUMNS: dict[str, Callable[[Queue], Column]] = {"jattn": served, "padded": padded}


def main(arguments: list[str]) -> None:
    parser = parser_of("serving", __doc__, COLUMNS)
    parser.set_defaults(passes=PASSES[:1], rounds=3)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["384 x 6"], help="of these only")
    parser.add_argument("--slots", nargs="+", type=at_least_one, default=[8], metavar="B", help="jobs at a time")
    parser.add_argument("--jobs", type=at_least_one, default=48, metavar="N", help="how many wait")
    parser.add_argument("--longest", type=at_least_one, default=256, metavar="T", help="prompt and continuation")
    options = parser.parse_args(arguments)
    works = (
        ({"size": size, "slots": slots, "jobs": options.jobs}, Queue(size, slots, options.jobs, options.longest), None)
        for size in options.sizes
        for slots in options.slots
    )
    run("a mixed queue, float32", works, COLUMNS, options)
