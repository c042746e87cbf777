"""What the trials of pruning have in common: what the model is for, and how that is measured."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx
from jaxtyping import PyTree

from jattn._engine import checks
from jattn.heads.measure import checked_settings, importance
from jattn.heads.metrics import METRICS
from jattn.heads.records import Importance
from jattn.training import Loss, arguments

__all__ = ["ModelScore", "Task", "check_task"]

ModelScore = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a model is for, and how its heads are measured and judged: the same in each step of a `study`.

    Attributes:
        loss: ``loss(model, batch, rng)``, one number, the mean over the batch, as in `jattn.training.fit`.
        score: ``score(model, data)``, one number of all the data, larger is better; compiled.
        score_name: what that is, for the report.
        batch_size: examples a batch of a measurement.
        metrics: by which heads are measured, some of the names in `METRICS`; all by default.
        random_draws: how many random sets of heads a choice by a metric is compared with.
        seed: of random sets, folds and the rng that loss is given.
        progress: whether to show progress bars.

    Example:

        >>> task = Task(loss=lambda model, batch, rng: 0.0, score=lambda model, data: 1.0, batch_size=64)
        >>> dataclasses.replace(task, metrics=("gradient", "taylor")).metrics
        ('gradient', 'taylor')
    """

    loss: Loss
    score: ModelScore
    batch_size: int
    score_name: str = "score"
    metrics: Sequence[str] = tuple(METRICS)
    random_draws: int = 5
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        batch_size, metrics, seed = checked_settings(self.loss, self.batch_size, self.metrics, self.seed, self.progress)
        arguments.function("score", self.score, "model", "data")
        random_draws = checks.number("random_draws", self.random_draws, "[0, inf)", integer=True)
        known = dict(batch_size=batch_size, metrics=metrics, seed=seed, random_draws=random_draws)
        for name, value in known.items():
            object.__setattr__(self, name, value)

    def importance(self, model: nnx.Module, data: PyTree) -> Importance:
        """`jattn.heads.importance` of the model's heads, by this loss, batch size, metrics and seed."""
        return importance(
            model,
            data,
            loss=self.loss,
            batch_size=self.batch_size,
            metrics=self.metrics,
            seed=self.seed,
            progress=self.progress,
        )


def check_task(task: Any) -> None:
    """The argument of that name."""
    if not isinstance(task, Task):
        raise ValueError(
            f"task must be a jattn.heads.Task. Got {task!r:.80}. Write Task(loss=..., score=..., batch_size=...)."
        )
