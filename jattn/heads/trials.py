"""Heads switched off, by metric and at random, and what the model is worth without them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from jattn.heads.gates import counts, gated
from jattn.heads.metrics import asked_for
from jattn.heads.pruning import numbers_of_heads
from jattn.heads.records import RANDOM, Candidate, Importance, lowest
from jattn.heads.task import ModelScore, Task, check_task
from jattn.training import NonFiniteError, arguments
from jattn.training.loop import progress_bar

__all__ = ["best_metric", "scorer", "try_out"]


def try_out(
    model: nnx.Module,
    data: PyTree,
    measured: Importance,
    *,
    task: Task,
    shares: Sequence[float],
    metrics: Sequence[str] | None = None,
) -> list[Candidate]:
    """Switch off the least important heads, by each metric and at random, and score what is left.

    The heads' gates are traced, so all candidates share one compiled function.

    Args:
        model: with the heads that were measured; it runs in eval mode, on a copy.
        data: arrays in any nest, whose first axis counts the examples.
        measured: what `importance` found, best on other data.
        task: its score, how many random sets there are for each share, and their seed.
        shares: of all heads, such as ``(0.1, 0.3, 0.5)``, each rounded to whole heads; see `Importance.lowest`.
        metrics: by which; all that were measured by default.

    Returns:
        The candidates: for each share those of each metric, then the random ones.

    Raises:
        NonFiniteError: if a score is NaN or infinite.
    """
    check_task(task)
    data, _ = arguments.examples("data", data)
    heads = [(path, i) for path, h in counts(model).items() for i in range(h)]
    if set(heads) != set(measured.heads):
        raise ValueError("measured must be the importance of this model's heads. Got that of others.")
    ranked_by = asked_for(measured.metrics if metrics is None else metrics, measured.metrics)
    rng = np.random.default_rng(task.seed)
    sets: list[tuple[str, int, float, dict[str, list[int]]]] = []
    for h in numbers_of_heads(shares, model):
        share = h / len(heads)
        sets += [(by, 0, share, measured.lowest(h, by)) for by in ranked_by]
        shuffled = [[heads[i] for i in rng.permutation(len(heads))] for _ in range(task.random_draws)]
        sets += [(RANDOM, i, share, lowest(ranking, h)) for i, ranking in enumerate(shuffled)]
    evaluate = scorer(model, data, task.score)
    with progress_bar(task.progress) as bar:
        shown = bar.add_task("candidates", total=len(sets), figures="")
        found = []
        for by, draw, share, removed in sets:
            found.append(Candidate(by, draw, share, removed, evaluate(removed)))
            bar.update(shown, advance=1, figures=f"{by} {share:.0%} {found[-1].score:.4g}")
    return found


def scorer(model: nnx.Module, data: PyTree, score: ModelScore) -> Callable[[Mapping[str, Sequence[int]]], float]:
    """A function from heads to the score without them, by gates; compiled once."""
    copy = nnx.clone(model)
    copy.eval()
    graph, state = nnx.split(copy)
    heads = counts(model)

    def evaluate(removed: Mapping[str, Sequence[int]]) -> float:
        gates = {path: np.ones(h, np.float32) for path, h in heads.items()}
        for path, those in removed.items():
            gates[path][list(those)] = 0
        value = float(_gated_score(state, gates, data, graph, score))
        if not np.isfinite(value):
            raise NonFiniteError(f"score must be finite. Got {value} without the heads {dict(removed)}.")
        return value

    return evaluate


@functools.partial(jax.jit, static_argnames=("graph", "score"))
def _gated_score(state: Any, gates: Any, data: Any, graph: Any, score: ModelScore) -> Any:
    value = score(gated(nnx.merge(graph, state), gates), data)
    if not isinstance(value, jax.Array | np.ndarray | np.number | float | int) or jnp.shape(value) != ():
        fact = f"an array of shape {jnp.shape(value)}" if isinstance(value, jax.Array) else type(value).__name__
        raise ValueError(f"score must return one number of all the data. Got {fact}.")
    return jnp.asarray(value)


def best_metric(candidates: Sequence[Candidate]) -> str:
    """The metric whose candidates have the highest mean score; of equals, the first."""
    by_metric: dict[str, list[float]] = {}
    for candidate in candidates:
        if candidate.by not in (RANDOM, "l1"):  # l1 ranks nothing
            by_metric.setdefault(candidate.by, []).append(candidate.score)
    if not by_metric:
        raise ValueError("candidates must include some of a metric that ranks heads. Got none.")
    return max(by_metric, key=lambda metric: float(np.mean(by_metric[metric])))
