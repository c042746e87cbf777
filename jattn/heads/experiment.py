"""The whole experiment: which heads matter, how many can go, what it costs, what it saves."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from jattn._engine import checks
from jattn.heads.cross_validation import cross_validate
from jattn.heads.gates import counts
from jattn.heads.pruning import check_can_be_pruned, number_of_heads, numbers_of_heads, prune
from jattn.heads.records import TUNED_WHOLE, Fold, Option, Round, Study, percent
from jattn.heads.refinement import refine
from jattn.heads.task import Task, check_task
from jattn.heads.timing import speed
from jattn.heads.trials import best_metric, scorer, try_out

__all__ = ["choose", "study"]


def study(
    model: nnx.Module,
    train: PyTree,
    validation: PyTree,
    test: PyTree | None = None,
    *,
    task: Task,
    predict: Callable[[Any, Any], Any],
    allowed_drop: float,
    share: float = 0.5,
    shares: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    fine_tune: Callable[[Any, Any], Any] | None = None,
    rounds: int = 2,
    fresh: Callable[[Any], nnx.Module] | None = None,
    folds: int = 4,
    fold_metrics: Sequence[str] | None = None,
    fold_rounds: int = 0,
    timing_rounds: int = 7,
) -> Study:
    """Measure the heads, try what can go, choose, prune, tune, time and cross-validate.

    1. `importance` of each head on the training data, by each metric.
    2. Candidates: the least important heads by each metric, and random ones, at each share, switched off (`try_out`).
    3. Each scored on the validation data; the metric with the best mean score is taken from here on.
    4. For each share, the model really pruned by it (`prune`), and `rounds` of pruning and tuning up to ``share``
       (`refine`).
    5. All of these timed, in turn, beside the whole model (`speed`).
    6. Chosen: the fastest whose score is at most ``allowed_drop`` below the whole model's.
    7. Cross-validation: does a metric chosen on some folds beat random pruning on the one left out (`cross_validate`)?
    8. On the test data, which nothing was chosen by, the scores of the whole and the chosen model and, after
       refinement, of the refined one and the whole one tuned as long.

    Args:
        model: trained, with heads; it is left as it is.
        train, validation, test: arrays in any nest, whose first axis counts the examples.
        task: its loss and score, and how heads are measured.
        predict: ``predict(model, data)``, what is timed, on the validation data.
        allowed_drop: how far the score may fall.
        share: the share of the heads that refinement removes and cross-validation is about.
        shares: those that are tried, rounded to whole heads; the same number of heads is tried once, and none is not.
        fine_tune: ``fine_tune(model, train)`` trains the model in place; None for no refinement.
        rounds: of refinement.
        fresh: ``fresh(train)`` trains a new model on the training folds; None for no cross-validation. Its data are
            train and validation together.
        folds: how many.
        fold_metrics: the metrics in the folds; the task's by default.
        fold_rounds: of refinement in the folds; 0 for none.
        timing_rounds: of the timing.

    Returns:
        The `Study`. `decision` says it in words, `report` writes all of it down, and ``model`` is the chosen one.

    Raises:
        NonFiniteError: if a measure or score is NaN or infinite.
    """
    check_task(task)
    check_can_be_pruned(model)
    allowed_drop = float(checks.number("allowed_drop", allowed_drop, "[0, inf)"))
    total = sum(counts(model).values())
    in_all, tried = number_of_heads("share", share, model), sorted(set(numbers_of_heads(shares, model)) - {0})
    for name, given, remove_some in (("share", share, in_all > 0), ("shares", shares, bool(tried))):
        if not remove_some:
            raise ValueError(f"{name} must remove at least one of the model's {total} heads. Got {given!r:.80}.")
    share = in_all / total
    fold_task = task if fold_metrics is None else dataclasses.replace(task, metrics=fold_metrics)

    def score(model: Any, data: PyTree) -> float:
        return scorer(model, data, task.score)({})

    measured = task.importance(model, train)
    candidates = try_out(model, validation, measured, task=task, shares=[number / total for number in tried])
    metric = best_metric(candidates)
    built = [
        _untimed(f"{percent(c.share)} pruned", c.share, False, c.score, prune(model, c.removed))
        for c in candidates
        if c.by == metric
    ]
    refined: list[Round] = []
    control = None
    if fine_tune is not None:
        refined = refine(
            model, train, validation, task=task, fine_tune=fine_tune, share=share, metric=metric, rounds=rounds
        )
        built += [
            _untimed(f"round {i}: {percent(r.share)}, tuned", r.share, True, r.after, r.model)
            for i, r in enumerate(refined, 1)
            if r.share > 0
        ]
        control = nnx.clone(model)
        for _ in refined:
            fine_tune(control, train)
        control.eval()
    built.insert(0, _untimed("whole", 0.0, False, score(model, validation), nnx.clone(model)))
    whole, *options = _timed(built, validation, predict, timing_rounds)
    folded: list[Fold] = []
    if fresh is not None:
        folded = cross_validate(
            jax.tree.map(lambda *x: jnp.concatenate(x), train, validation),
            task=fold_task,
            fresh=fresh,
            share=share,
            folds=folds,
            fine_tune=fine_tune if fold_rounds else None,
            rounds=max(fold_rounds, 1),
        )
    chosen = choose(whole, options, allowed_drop)
    judged = {whole.name: whole.model, chosen.name: chosen.model}
    if control is not None:
        judged |= {TUNED_WHOLE: control, options[-1].name: options[-1].model}
    return Study(
        score_name=task.score_name,
        importance=measured,
        candidates=tuple(candidates),
        metric=metric,
        whole=whole,
        options=tuple(options),
        chosen=chosen,
        rounds=tuple(refined),
        control=None if control is None else score(control, validation),
        folds=tuple(folded),
        share=share,
        allowed_drop=allowed_drop,
        test_scores={} if test is None else {name: score(m, test) for name, m in judged.items()},
    )


def _untimed(name: str, share: float, tuned: bool, score: float, model: Any) -> Option:
    parameters = sum(int(np.size(x)) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return Option(name, share, tuned, counts(model), parameters, score, (), model)


def _timed(options: Sequence[Option], data: PyTree, predict: Callable[[Any, Any], Any], rounds: int) -> list[Option]:
    # By number, as two shares of very many heads may have one name.
    times = speed({str(i): option.model for i, option in enumerate(options)}, data, predict=predict, rounds=rounds)
    return [option._replace(seconds=tuple(s)) for option, s in zip(options, times.values(), strict=True)]


def choose(whole: Option, options: Sequence[Option], allowed_drop: float) -> Option:
    """The fastest option whose score is at most allowed_drop below the whole model's, which is itself one."""
    allowed = [o for o in options if o.score >= whole.score - allowed_drop]
    return max([whole, *allowed], key=lambda option: option.speed_up(whole))
