"""How long models take to predict."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from jattn._engine import checks

__all__ = ["speed"]


def speed(
    models: Mapping[str, nnx.Module],
    data: PyTree,
    *,
    predict: Callable[[Any, Any], Any],
    rounds: int = 7,
    at_least: float = 0.1,
) -> dict[str, list[float]]:
    """Seconds that each model takes to predict, taking turns, so that whatever else the machine does meets all alike.

    Args:
        models: by name; each is compiled, and run, before its first turn.
        data: what they predict from, as they take it.
        predict: ``predict(model, data)``, any arrays.
        rounds: how many turns each has; the order is reversed in every other one.
        at_least: seconds of a turn: a fast model predicts several times in it.

    Returns:
        By name, the seconds of one prediction in each round. Compare minima, or medians.

    Example:

        >>> from jattn.heads.pruning import prune
        >>> from jattn.nn import MultiHeadAttention
        >>> attend = MultiHeadAttention(num_heads=4, in_features=32, rngs=nnx.Rngs(0))
        >>> models = {"whole": attend, "half": prune(attend, {"": [0, 1]})}
        >>> times = speed(models, jnp.ones((2, 8, 32)), predict=lambda model, x: model(x), rounds=3)
        >>> {name: len(seconds) for name, seconds in times.items()}
        {'whole': 3, 'half': 3}
    """
    rounds = checks.number("rounds", rounds, "[1, inf)", integer=True)
    runs: dict[str, Callable[[], Any]] = {}
    repeats: dict[str, int] = {}
    data = jax.tree.map(jnp.asarray, data)
    for name, model in models.items():
        copy = nnx.clone(model)
        copy.eval()
        graph, state = nnx.split(copy)
        compiled = jax.jit(functools.partial(_predict, graph, predict)).lower(state, data).compile()
        runs[name] = functools.partial(compiled, state, data)
        _seconds(runs[name], 1)
        repeats[name] = max(1, round(at_least / max(_seconds(runs[name], 1), 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs)[:: -1 if i % 2 else 1]:
            times[name].append(_seconds(runs[name], repeats[name]) / repeats[name])
    return times


def _predict(graph: Any, predict: Callable[[Any, Any], Any], state: Any, data: Any) -> Any:
    return predict(nnx.merge(graph, state), data)


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        result = run()
    jax.block_until_ready(result)
    return time.perf_counter() - start
