"""Rounds in which every column takes its turn, so that whatever else the machine does meets them all alike."""

import math
import time
from collections.abc import Callable, Mapping

Run = Callable[
    [], int
]  # does its work, to the end unless there is a ``wait`` for it, and says how many times it did it
Wait = Callable[[], object]


def measure(
    runs: Mapping[str, Run], rounds: int, at_least: float = 0.0, wait: Wait = lambda: None
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Seconds by which each one's first run was longer than its fastest; and seconds for its work once, in each round.

    ``wait`` is for what runs have only asked for. A turn is one run that isn't timed, as the column before left other
    things in the caches, and gigabytes to give back, and then as many as take ``at_least`` so many seconds.
    """
    first = {name: _seconds(run, 1, wait)[0] for name, run in runs.items()}
    repeats = {name: _repeats(run, at_least, wait) for name, run in runs.items()}
    totals: dict[str, list[float]] = {name: [] for name in runs}
    times: dict[str, int] = {}
    for _ in range(rounds):
        for name, run in runs.items():
            _seconds(run, 1, wait)
            seconds, times[name] = _seconds(run, repeats[name], wait)
            totals[name].append(seconds)
    beyond = {name: first[name] - min(totals[name]) / repeats[name] for name in runs}
    return beyond, {name: [total / times[name] for total in totals[name]] for name in runs}


def _repeats(run: Run, at_least: float, wait: Wait) -> int:
    repeats = 1
    while at_least and (seconds := _seconds(run, repeats, wait)[0]) < at_least:
        repeats = max(2 * repeats, math.ceil(repeats * at_least / seconds))
    return repeats


def _seconds(run: Run, repeats: int, wait: Wait) -> tuple[float, int]:
    start = time.perf_counter()
    times = sum(run() for _ in range(repeats))
    wait()
    return time.perf_counter() - start, times
