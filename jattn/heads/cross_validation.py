"""Whether a metric that was chosen on some data is right on other data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from jattn._engine import checks
from jattn.heads.pruning import number_of_heads
from jattn.heads.records import RANDOM, Fold
from jattn.heads.refinement import refine
from jattn.heads.task import Task, check_task
from jattn.heads.trials import best_metric, scorer, try_out
from jattn.training import arguments
from jattn.training.steps import select

__all__ = ["cross_validate"]


def cross_validate(
    data: PyTree,
    *,
    task: Task,
    fresh: Callable[[Any], nnx.Module],
    share: float,
    folds: int = 4,
    fine_tune: Callable[[Any, Any], Any] | None = None,
    rounds: int = 1,
) -> list[Fold]:
    """Does a metric that was chosen on some data beat random pruning on other data?

    For each fold: a model from the other folds, its heads measured there, and the metric chosen that does best there.
    The held-out fold then judges it, the other metrics and random sets, all by gates, without fine-tuning; and, with
    ``fine_tune``, what `refine` makes of the model by the chosen metric.

    Args:
        data: arrays in any nest, whose first axis counts the examples.
        task: its loss and score, the metrics to choose from, how many random sets there are, and the seed.
        fresh: ``fresh(train)`` makes a model from the training folds; one that is given may return it as it is.
        share: of the heads to remove.
        folds: how many, of examples in random order.
        fine_tune, rounds: as in `refine`; None for no refinement.

    Returns:
        The folds, each with the scores on what it held out.

    Raises:
        NonFiniteError: if a measure or score is NaN or infinite.
    """
    check_task(task)
    data, n = arguments.examples("data", data)
    folds = checks.number("folds", folds, "[2, inf)", integer=True)
    if folds > n:
        raise ValueError(f"folds must be at most the {n} examples. Got {folds}.")
    checks.number("random_draws", task.random_draws, "[1, inf)", integer=True)
    checks.number("share", share, "[0, 1)")
    arguments.function("fresh", fresh, "train")
    order = np.random.default_rng(task.seed).permutation(n)
    done = []
    for i, held_out in enumerate(np.array_split(order, folds)):
        train = select(data, jnp.asarray(np.setdiff1d(order, held_out)))
        test = select(data, jnp.asarray(np.sort(held_out)))
        model = fresh(train)
        number_of_heads("share", share, model)
        measured = task.importance(model, train)
        alone = dataclasses.replace(task, random_draws=0)
        beside_random = dataclasses.replace(task, seed=(task.seed + i) % 2**32)
        there = try_out(model, train, measured, task=alone, shares=(share,))
        here = try_out(model, test, measured, task=beside_random, shares=(share,))
        best, refined = best_metric(there), None
        if fine_tune is not None:
            tuned = refine(model, train, test, task=task, fine_tune=fine_tune, share=share, metric=best, rounds=rounds)
            refined = tuned[-1].after
        done.append(
            Fold(
                whole=scorer(model, test, task.score)({}),
                best=best,
                scores={c.by: c.score for c in here if c.by != RANDOM},
                random=tuple(c.score for c in here if c.by == RANDOM),
                refined=refined,
            )
        )
    return done
