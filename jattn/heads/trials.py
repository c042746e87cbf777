"""Trials of pruning: heads switched off, removed in rounds of fine-tuning, timed, and cross-validated."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from jattn._engine import checks
from jattn.heads.gates import counts, gated
from jattn.heads.importance import importance
from jattn.heads.metrics import METRICS, asked_for
from jattn.heads.pruning import number_of_heads, numbers_of_heads, prune
from jattn.heads.result import Importance, lowest
from jattn.training import NonFiniteError, arguments
from jattn.training.loop import progress_bar
from jattn.training.steps import Loss, select

Score = Callable[[Any, Any], Any]  # score(model, data): one number of all data, larger is better
RANDOM = "random"
TUNED_WHOLE = "whole, tuned as long"


class Candidate(NamedTuple):
    """A set of heads that was switched off, and what the model was worth without them."""

    by: str  # the metric, or "random"
    draw: int  # which of several random sets
    share: float  # of all heads, that was really removed
    removed: dict[str, list[int]]
    score: float


class Round(NamedTuple):
    """One round of `refine`: some heads removed, and the model tuned."""

    share: float  # of the original heads that are gone
    before: float  # the score after the heads were removed
    after: float  # the score after fine-tuning
    model: Any


class Fold(NamedTuple):
    """One fold of `cross_validate`."""

    whole: float  # the score of the whole model on the held-out data
    best: str  # the metric that did best on the data of training
    scores: dict[str, float]  # by metric, on the held-out data
    random: tuple[float, ...]  # of each random set, on the held-out data
    refined: float | None  # likewise, pruned by the chosen metric and tuned

    @property
    def beats_random(self) -> bool:
        """Whether the metric that was chosen without the held-out data beats the mean of the random sets on it."""
        return self.scores[self.best] > float(np.mean(self.random))


def try_out(
    model: nnx.Module,
    data: PyTree,
    measured: Importance,
    *,
    score: Score,
    shares: Sequence[float],
    metrics: Sequence[str] | None = None,
    random_draws: int = 5,
    seed: int = 0,
    progress: bool = True,
) -> list[Candidate]:
    """Switch off the least important heads, by each metric and at random, and score what is left.

    The heads' gates are traced, so all candidates share one compiled function.

    Args:
        model: with the heads that were measured; it runs in eval mode, on a copy.
        data: arrays in any nest, whose first axis counts the examples.
        measured: what `importance` found, best on other data.
        score: ``score(model, data)``, one number of all the data, larger is better; compiled.
        shares: of all heads, such as ``(0.1, 0.3, 0.5)``, each rounded to whole heads; see `Importance.lowest`.
        metrics: by which; all that were measured by default.
        random_draws: how many random sets for each share.
        seed: of these.
        progress: whether to show a progress bar.

    Returns:
        The candidates: for each share those of each metric, then the random ones.

    Raises:
        ValueError: naming the argument that doesn't fit.
        NonFiniteError: if a score is NaN or infinite.
    """
    data, _ = arguments.examples("data", data)
    arguments.function("score", score, "model and data")
    random_draws = checks.number("random_draws", random_draws, "[0, inf)", integer=True)
    heads = [(path, i) for path, h in counts(model).items() for i in range(h)]
    if set(heads) != set(measured.heads):
        raise ValueError("measured must be the importance of this model's heads. Got that of others.")
    ranked_by = asked_for(measured.metrics if metrics is None else metrics, measured.metrics)
    rng = np.random.default_rng(seed)
    sets: list[tuple[str, int, float, dict[str, list[int]]]] = []
    for h in numbers_of_heads(shares, model):
        share = h / len(heads)
        sets += [(by, 0, share, measured.lowest(h, by)) for by in ranked_by]
        shuffled = [[heads[i] for i in rng.permutation(len(heads))] for _ in range(random_draws)]
        sets += [(RANDOM, i, share, lowest(ranking, h)) for i, ranking in enumerate(shuffled)]
    evaluate = scorer(model, data, score)
    with progress_bar(progress) as bar:
        task = bar.add_task("candidates", total=len(sets), figures="")
        found = []
        for by, draw, share, removed in sets:
            found.append(Candidate(by, draw, share, removed, evaluate(removed)))
            bar.update(task, advance=1, figures=f"{by} {share:.0%} {found[-1].score:.4g}")
    return found


def scorer(model: nnx.Module, data: PyTree, score: Score) -> Callable[[Mapping[str, Sequence[int]]], float]:
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
def _gated_score(state: Any, gates: Any, data: Any, graph: Any, score: Score) -> Any:
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


def refine(
    model: nnx.Module,
    train: PyTree,
    validation: PyTree,
    *,
    loss: Loss,
    score: Score,
    fine_tune: Callable[[Any, Any], Any],
    share: float,
    metric: str,
    batch_size: int,
    rounds: int = 2,
    progress: bool = True,
) -> list[Round]:
    """Prune in rounds: measure, remove some heads, fine-tune, and measure again what is left.

    Args:
        model: any with heads; it is left as it is.
        train: on which importance is measured and the model tuned.
        validation: on which it is scored.
        loss, batch_size: as in `importance`.
        score: as in `try_out`.
        fine_tune: ``fine_tune(model, train)`` trains the model it is given, in place; `jattn.training.fit` does.
        share: of the original heads to remove in all.
        metric: by which, a name in `METRICS`.
        rounds: in how many steps, as equal as whole heads allow.
        progress: whether to show progress bars.

    Returns:
        The rounds, each with its model; the last one has the share asked for, rounded to whole heads.

    Raises:
        ValueError: naming the argument that doesn't fit.
        NonFiniteError: if a measure or score is NaN or infinite.
    """
    rounds = checks.number("rounds", rounds, "[1, inf)", integer=True)
    arguments.function("score", score, "model and data")
    arguments.function("fine_tune", fine_tune, "model and train")
    checks.one_of("metric", metric, tuple(METRICS))
    total, in_all = sum(counts(model).values()), number_of_heads("share", share, model)
    current, gone, done = nnx.clone(model), 0, []
    for i in range(rounds):
        goal = round(in_all * (i + 1) / rounds)
        measured = importance(current, train, loss=loss, batch_size=batch_size, metrics=(metric,), progress=progress)
        current = prune(current, measured.lowest(goal - gone, metric))
        gone = goal
        before = scorer(current, validation, score)({})
        fine_tune(current, train)
        current.eval()
        done.append(Round(gone / total, before, scorer(current, validation, score)({}), nnx.clone(current)))
    return done


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


def cross_validate(
    data: PyTree,
    *,
    fresh: Callable[[Any], nnx.Module],
    loss: Loss,
    score: Score,
    share: float,
    batch_size: int,
    folds: int = 4,
    metrics: Sequence[str] = tuple(METRICS),
    random_draws: int = 5,
    fine_tune: Callable[[Any, Any], Any] | None = None,
    rounds: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> list[Fold]:
    """Does a metric that was chosen on some data beat random pruning on other data?

    For each fold: a model from the other folds, its heads measured there, and the metric chosen that does best there.
    The held-out fold then judges it, the other metrics and random sets, all by gates, without fine-tuning; and, with
    ``fine_tune``, what `refine` makes of the model by the chosen metric.

    Args:
        data: arrays in any nest, whose first axis counts the examples.
        fresh: ``fresh(train)`` makes a model from the training folds; one that is given may return it as it is.
        loss, batch_size: as in `importance`.
        score: as in `try_out`.
        share: of the heads to remove.
        folds: how many, of examples in random order.
        metrics: to choose from.
        random_draws: how many random sets.
        fine_tune, rounds: as in `refine`; None for no refinement.
        seed: of the folds and the random sets.
        progress: whether to show progress bars.

    Returns:
        The folds, each with the scores on what it held out.

    Raises:
        ValueError: naming the argument that doesn't fit.
        NonFiniteError: if a measure or score is NaN or infinite.
    """
    data, n = arguments.examples("data", data)
    folds = checks.number("folds", folds, "[2, inf)", integer=True)
    if folds > n:
        raise ValueError(f"folds must be at most the {n} examples. Got {folds}.")
    random_draws = checks.number("random_draws", random_draws, "[1, inf)", integer=True)
    checks.number("share", share, "[0, 1)")
    metrics = asked_for(metrics)
    arguments.function("fresh", fresh, "train")
    order = np.random.default_rng(seed).permutation(n)
    done = []
    for i, held_out in enumerate(np.array_split(order, folds)):
        train = select(data, jnp.asarray(np.setdiff1d(order, held_out)))
        test = select(data, jnp.asarray(np.sort(held_out)))
        model = fresh(train)
        number_of_heads("share", share, model)
        measured = importance(
            model, train, loss=loss, batch_size=batch_size, metrics=metrics, seed=seed, progress=progress
        )
        options: dict[str, Any] = dict(score=score, shares=(share,), seed=seed + i, progress=progress)
        there = try_out(model, train, measured, random_draws=0, **options)
        here = try_out(model, test, measured, random_draws=random_draws, **options)
        best, refined = best_metric(there), None
        if fine_tune is not None:
            common: dict[str, Any] = dict(loss=loss, score=score, batch_size=batch_size, progress=progress)
            tuned = refine(model, train, test, fine_tune=fine_tune, share=share, metric=best, rounds=rounds, **common)
            refined = tuned[-1].after
        done.append(
            Fold(
                whole=scorer(model, test, score)({}),
                best=best,
                scores={c.by: c.score for c in here if c.by != RANDOM},
                random=tuple(c.score for c in here if c.by == RANDOM),
                refined=refined,
            )
        )
    return done
