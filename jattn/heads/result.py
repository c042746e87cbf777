"""What was measured of the heads, as one tidy table."""

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
    from matplotlib.figure import Figure

Head = tuple[str, int]  # the layer's path, and the head's number


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
        """A metric of each of `heads`.

        Raises:
            ValueError: if it was not measured.
        """
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
        """What `to_json` wrote.

        Raises:
            ValueError: if it is something else.
        """
        try:
            content: Any = json.loads(text)
            rows = tuple(Row(**row) for row in content["rows"])
            if any(row.metric not in METRICS for row in rows):
                raise ValueError("a metric has an unknown name")
            return cls(rows, examples=int(content["examples"]), batches=int(content["batches"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"text must be what Importance.to_json wrote. Got {text!r:.40}: {error}.") from error

    def plot(self) -> "Figure":
        """Each metric as a map of layers and heads. Needs matplotlib."""
        from jattn.heads.pictures import importance_maps

        return importance_maps(self)

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
        console = Console(width=140, color_system=None)
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
