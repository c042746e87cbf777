"""What was measured and found out, as plain data: importance as one tidy table, trials of pruning, a whole study."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from jattn._engine import checks
from jattn.heads.metrics import METRICS

if TYPE_CHECKING:
    import pandas

__all__ = [
    "RANDOM",
    "TUNED_WHOLE",
    "Candidate",
    "Fold",
    "Head",
    "Importance",
    "Option",
    "Round",
    "Row",
    "Study",
    "lowest",
    "percent",
]

Head = tuple[str, int]  # the layer's path, and the head's number
RANDOM = "random"  # of a candidate, by which metric: by none
TUNED_WHOLE = "whole, tuned as long"


# ----------------------------------------------------------------------------------------------------------------------
# Importance.


class Row(NamedTuple):
    """One measure of one head: the mean over batches, and the standard deviation of the batches."""

    layer: str
    head: int
    metric: str
    value: float
    spread: float


@dataclasses.dataclass(frozen=True)
class Importance:
    """How much each head matters, as `jattn.heads.importance` found it; printed, a table.

    Attributes:
        rows: one for each layer, head and metric.
        examples: how many examples were looked at.
        batches: in how many batches.

    Example:

        >>> rows = [Row("a", i, "entropy", value, 0.0) for i, value in enumerate([0.5, 1.5, 1.0])]
        >>> found = Importance(tuple(rows), examples=8, batches=1)
        >>> found.ranking("entropy")  # spread-out weights first: they count as the least important
        [('a', 1), ('a', 2), ('a', 0)]
        >>> found.lowest(0.34, "entropy")
        {'a': [1]}
    """

    rows: tuple[Row, ...]
    examples: int
    batches: int

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those that were measured."""
        return tuple(dict.fromkeys(row.metric for row in self.rows))

    @functools.cached_property
    def heads(self) -> tuple[Head, ...]:
        """All heads, layer by layer."""
        return tuple(dict.fromkeys((row.layer, row.head) for row in self.rows))

    def values(self, metric: str) -> np.ndarray:
        """A metric of each of `heads`."""
        checks.one_of("metric", metric, self.metrics)
        return np.array([row.value for row in self.rows if row.metric == metric])

    def scores(self, metric: str) -> np.ndarray:
        """A metric of each of `heads`, its sign such that the larger is the more important.

        Values that differ by rounding alone, as those of l1 do, are all the same.
        """
        values = self.values(metric) * (1 if METRICS[metric].important_if == "high" else -1)
        # Sums of float32 weights that ought to be 1 miss it by some 1e-6.
        same = np.ptp(values) <= 1e-5 * np.abs(values).max()
        return np.full_like(values, values.mean()) if same else values

    def ranking(self, metric: str) -> list[Head]:
        """All heads, the least important first; of equals, the first."""
        return [self.heads[i] for i in np.argsort(self.scores(metric), kind="stable")]

    def lowest(self, amount: int | float, metric: str) -> dict[str, list[int]]:
        """The least important heads, but never all of a layer: what `jattn.heads.prune` takes.

        Args:
            amount: a share of all heads, such as 0.5, rounded to a whole number; or, if an integer, their number.
            metric: by which.

        Raises:
            ValueError: if the metric was not measured, or so many can't go.
        """
        return lowest(self.ranking(metric), amount)

    def agreement(self) -> dict[str, float]:
        """Spearman's rank correlation of each metric's `scores` with those of leave_one_out: is the cheap one right?

        1 if both rank the heads alike, 0 if one says nothing of the other, NaN if one of them ranks nothing, as l1.

        Raises:
            ValueError: if leave_one_out was not measured.
        """
        from scipy.stats import spearmanr

        exact = self.scores("leave_one_out")
        result = {}
        for metric in self.metrics:
            if metric != "leave_one_out":
                scores = self.scores(metric)
                flat = np.ptp(scores) == 0 or np.ptp(exact) == 0
                result[metric] = float("nan") if flat else float(spearmanr(scores, exact).statistic)
        return result

    def to_pandas(self) -> "pandas.DataFrame":
        """The rows as a data frame.

        Raises:
            ImportError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas. Without it, there are rows.") from error
        return pandas.DataFrame(self.rows)

    def to_json(self) -> str:
        """All of it, for `from_json`."""
        return json.dumps(dataclasses.asdict(self) | {"rows": [row._asdict() for row in self.rows]}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Importance":
        """What `to_json` wrote."""
        try:
            content: Any = json.loads(text)
            rows = tuple(Row(**row) for row in content["rows"])
            if any(row.metric not in METRICS for row in rows):
                raise ValueError("a metric has an unknown name")
            return cls(rows, examples=int(content["examples"]), batches=int(content["batches"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"text must be what Importance.to_json wrote. Got {text!r:.40}: {error}.") from error

    def __str__(self) -> str:
        agreement = self.agreement() if "leave_one_out" in self.metrics else {}
        result = Table(
            "layer",
            "head",
            *self.metrics,
            title=f"importance of {len(self.heads)} heads, by {self.examples} examples in {self.batches} batches",
        )
        by_metric = [self.values(metric) for metric in self.metrics]
        for i, (layer, head) in enumerate(self.heads):
            result.add_row(layer, str(head), *[f"{values[i]:.3g}" for values in by_metric])
        if agreement:
            result.add_section()
            shown = [f"{agreement[m]:.2f}" if np.isfinite(agreement.get(m, np.nan)) else "-" for m in self.metrics]
            result.add_row("rank correlation with leave_one_out", "", *shown)
        console = Console(width=140, color_system=None, force_jupyter=False)
        with console.capture() as capture:
            console.print(result)
        return capture.get()


def lowest(ranking: Sequence[Head], amount: int | float) -> dict[str, list[int]]:
    """The first heads of a ranking, but the last of a layer stays; see `Importance.lowest`."""
    total = len(ranking)
    remaining = {layer: sum(path == layer for path, _ in ranking) for layer, _ in ranking}
    number = int(amount) if checks.is_count(amount) else round(checks.number("amount", amount, "[0, 1)") * total)
    if number > total - len(remaining):
        raise ValueError(
            f"amount must leave each of {len(remaining)} layers a head: at most {total - len(remaining)} of {total} "
            f"heads. Got {amount}, which is {number}."
        )
    chosen: dict[str, list[int]] = {}
    for layer, head in ranking:
        if number and remaining[layer] > 1:
            chosen.setdefault(layer, []).append(head)
            remaining[layer] -= 1
            number -= 1
    return {layer: sorted(chosen[layer]) for layer in remaining if layer in chosen}


# ----------------------------------------------------------------------------------------------------------------------
# Trials.


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


# ----------------------------------------------------------------------------------------------------------------------
# The whole experiment.


class Option(NamedTuple):
    """A smaller model that was really built: what it is worth, and how long it takes."""

    name: str
    share: float  # of the heads that are gone
    tuned: bool
    heads: dict[str, int]  # how many each layer has left
    parameters: int
    score: float  # on the validation data
    seconds: tuple[float, ...]  # of a prediction, in each round
    model: Any

    def speed_up(self, over: "Option") -> float:
        """How many times as fast as another one that was timed in turn with it: the median over the rounds."""
        return float(np.median(np.array(over.seconds) / np.array(self.seconds)))


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """What `jattn.heads.study` found out.

    Attributes:
        score_name: what the score is.
        importance: of the heads, on the training data.
        candidates: what the model is worth without some heads, on the validation data.
        metric: the one that did best there.
        whole: the model as it was.
        options: the smaller ones.
        chosen: the fastest of them that loses no more than was allowed; the whole model if none does.
        rounds: of pruning and fine-tuning, if there were any.
        control: the score of the whole model tuned as often, without which tuning and pruning would be mixed up.
        folds: of the cross-validation, if there was one.
        share: of the heads, that rounds and folds are about.
        allowed_drop: of the score.
        test_scores: of the whole and the chosen model and, after refinement, of the refined one and the whole one tuned
            as long; on data that nothing was chosen by, if given.
    """

    score_name: str
    importance: Importance
    candidates: tuple[Candidate, ...]
    metric: str
    whole: Option
    options: tuple[Option, ...]
    chosen: Option
    rounds: tuple[Round, ...]
    control: float | None
    folds: tuple[Fold, ...]
    share: float
    allowed_drop: float
    test_scores: dict[str, float]

    @property
    def model(self) -> Any:
        """The chosen model."""
        return self.chosen.model

    def speed_up(self, option: Option) -> float:
        """How many times as fast as the whole model."""
        return option.speed_up(self.whole)


def percent(share: float) -> str:
    """A share in per cent, three digits.

    >>> percent(0.125)
    '12.5 %'
    """
    return f"{100 * share:.3g} %"
