"""Pruning in rounds, with fine-tuning between them."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import PyTree

from jattn._engine import checks
from jattn.heads.gates import counts
from jattn.heads.metrics import METRICS
from jattn.heads.pruning import check_can_be_pruned, number_of_heads, prune
from jattn.heads.records import Round
from jattn.heads.task import Task, check_task
from jattn.heads.trials import scorer
from jattn.training import arguments

__all__ = ["refine"]


def refine(
    model: nnx.Module,
    train: PyTree,
    validation: PyTree,
    *,
    task: Task,
    fine_tune: Callable[[Any, Any], Any],
    share: float,
    metric: str,
    rounds: int = 2,
) -> list[Round]:
    """Prune in rounds: measure, remove some heads, fine-tune, and measure again what is left.

    Args:
        model: any with heads; it is left as it is.
        train: on which importance is measured and the model tuned.
        validation: on which it is scored.
        task: its loss and score, and how heads are measured.
        fine_tune: ``fine_tune(model, train)`` trains the model it is given, in place; `jattn.training.fit` does.
        share: of the original heads to remove in all.
        metric: by which, a name in `METRICS`, in place of the task's.
        rounds: in how many steps, as equal as whole heads allow.

    Returns:
        The rounds, each with its model; the last one has the share asked for, rounded to whole heads.

    Raises:
        NonFiniteError: if a measure or score is NaN or infinite.
    """
    check_task(task)
    check_can_be_pruned(model)
    rounds = checks.number("rounds", rounds, "[1, inf)", integer=True)
    arguments.function("fine_tune", fine_tune, "model", "train")
    checks.one_of("metric", metric, tuple(METRICS))
    total, in_all = sum(counts(model).values()), number_of_heads("share", share, model)
    task = dataclasses.replace(task, metrics=(metric,))
    current, gone, done = nnx.clone(model), 0, []
    for i in range(rounds):
        goal = round(in_all * (i + 1) / rounds)
        current = prune(current, task.importance(current, train).lowest(goal - gone, metric))
        gone = goal
        before = scorer(current, validation, task.score)({})
        fine_tune(current, train)
        current.eval()
        done.append(Round(gone / total, before, scorer(current, validation, task.score)({}), nnx.clone(current)))
    return done
