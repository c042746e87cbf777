"""What there is to measure of a head."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from rich.markup import escape
from rich.table import Table

__all__ = ["METRICS", "HeadMetric", "asked_for", "table"]


class HeadMetric(NamedTuple):
    """A measure of a head, as `METRICS` describes it."""

    meaning: str
    range: str
    misleads: str  # where it does
    source: str
    important_if: str  # "high" or "low"
    cost: str


_WEIGHTS, _GRADIENT = "a forward pass", "a forward and a backward pass for each example"
_NOTES = "a usual answer to exercise 2 of Dive into Deep Learning, section 11.5"

METRICS = MappingProxyType(
    {
        "l1": HeadMetric(
            "mean over queries of the sum of the absolute weights",
            "1, always",
            "everywhere: the weights of a softmax add up to 1, so it ranks nothing",
            _NOTES,
            "high",
            _WEIGHTS,
        ),
        "l2": HeadMetric(
            "mean over queries of the root of the sum of the squared weights",
            "[1 / sqrt(s), 1] for s keys",
            "a sharp head need not matter: many look at a separator or the first token, and add next to nothing there",
            _NOTES,
            "high",
            _WEIGHTS,
        ),
        "entropy": HeadMetric(
            "mean over queries of -sum w log w, in nats",
            "[0, log s]",
            "as l2, of which it is nearly the mirror image; a head that averages can be what the model needs; it grows "
            "with the number of keys, so compare it within one set of data only",
            _NOTES,
            "low",
            _WEIGHTS,
        ),
        "variance": HeadMetric(
            "E |w - E w|^2 over all queries and inputs of a batch, w being a query's row of weights: how much the "
            "weights that a key position receives change from query to query and from input to input",
            "[0, 1)",
            "0 for a head that always looks to the same place, which may be the place that counts",
            _NOTES,
            "high",
            _WEIGHTS,
        ),
        "output_variance": HeadMetric(
            "E |y - E y|^2 over all queries and inputs of a batch, y being what the head adds to the layer's output "
            "(after the output projection)",
            "[0, inf)",
            "large where the residual stream is large; what a later layer ignores, or another head cancels, counts too",
            _NOTES,
            "high",
            _WEIGHTS,
        ),
        "confidence": HeadMetric(
            "mean over queries of the largest weight",
            "[1 / s, 1] for s keys",
            "as l2",
            "Voita et al., Analyzing Multi-Head Self-Attention, 2019 (who leave out the end-of-sentence token)",
            "high",
            _WEIGHTS,
        ),
        "gradient": HeadMetric(
            "mean over examples of |d loss / d gate| at gate 1, the loss of each example by itself",
            "[0, inf)",
            "a slope at the whole model: no word on what is left when the gate is at 0, nor when several heads go. Of "
            "a model fitted to its data the slopes are small, and noise counts; at a minimum, as of the distance from "
            "the model's own output, they are 0, and what is ranked is rounding",
            "Michel, Levy and Neubig, Are Sixteen Heads Really Better than One?, 2019 (not normalised by layer)",
            "high",
            _GRADIENT,
        ),
        "taylor": HeadMetric(
            "mean over examples of (d loss / d gate)^2",
            "[0, inf)",
            "as gradient; a few examples with a large loss decide",
            "Molchanov et al., Importance Estimation for Neural Network Pruning, 2019",
            "high",
            _GRADIENT,
        ),
        "leave_one_out": HeadMetric(
            "the loss with this head's gate at 0, minus the loss",
            "(-inf, inf); below 0 the model is better without the head",
            "exact for one head: of two heads that do the same, either looks dispensable, and both together are not. A "
            "difference of two losses: in float32, what is below about a millionth of the loss is rounding",
            "Michel, Levy and Neubig, 2019, section 3.2",
            "high",
            "a forward pass for each head, and one more",
        ),
    }
)


def asked_for(metrics: Any, among: Sequence[str] = tuple(METRICS)) -> tuple[str, ...]:
    """The names of metrics, found to be some of these; a single one may stand by itself."""
    asked = (metrics,) if isinstance(metrics, str) or not np.iterable(metrics) else tuple(metrics)
    if not asked or not all(name in among for name in asked):
        raise ValueError(f"metrics must be some of {', '.join(among)}. Got {', '.join(map(str, asked)) or 'none'}.")
    return asked


def table() -> Table:
    """`METRICS` as a table for `rich.print`.

    Example:

        >>> table().row_count
        9
    """
    result = Table("metric", "meaning", "misleads", "source and cost", show_lines=True)
    for name, (meaning, values, misleads, source, important_if, cost) in METRICS.items():
        result.add_row(
            name,
            f"{meaning}; {escape(values)}; important if {important_if}",
            misleads,
            f"{source}; cost of a batch: {cost}",
        )
    return result
