"""Pictures of importance and pruning. Each returns its figure and needs no display."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jattn.heads.metrics import METRICS
from jattn.heads.records import RANDOM, Candidate, Importance, Round, Study, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "importance_scatter",
    "plot_importance",
    "rounds_of_refinement",
    "score_bars",
    "score_curves",
    "trade_off",
]


def plot_importance(measured: Importance) -> "Figure":
    """Each metric as a map of layers and heads, on its own colour scale; a head that a layer lacks is white.

    Needs matplotlib.

    Example:

        >>> from jattn.heads.records import Row
        >>> rows = [Row("a", i, "entropy", value, 0.0) for i, value in enumerate([0.5, 1.5, 1.0])]
        >>> figure = plot_importance(Importance(tuple(rows), examples=8, batches=1))
        >>> figure.axes[0].get_title()
        'entropy'
    """
    layers = list(dict.fromkeys(layer for layer, _ in measured.heads))
    rows = max(head for _, head in measured.heads) + 1
    metrics = measured.metrics
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    figure = _figure(columns * max(2.6, 0.3 * rows + 1.6), lines * max(1.5, 0.3 * len(layers) + 1.0))
    axes: Any = figure.subplots(lines, columns, squeeze=False)
    for axis, metric in zip(axes.flat, metrics, strict=False):
        grid = np.full((len(layers), rows), np.nan)
        for (layer, head), value in zip(measured.heads, measured.values(metric), strict=True):
            grid[layers.index(layer), head] = value
        flat = np.ptp(measured.scores(metric)) == 0  # then the differences are rounding
        limits: dict[str, Any] = {"vmin": 0, "vmax": 2 * np.nanmean(grid)} if flat else {}
        picture = axis.imshow(grid, aspect="auto", cmap="viridis", **limits)
        axis.set(title=metric, xlabel="head", xticks=range(rows), yticks=range(len(layers)))
        axis.set_yticklabels([_short(layer) for layer in layers], fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
        figure.colorbar(picture, ax=axis)
    for axis in axes.flat[len(metrics) :]:
        axis.set_axis_off()
    return figure


def importance_scatter(measured: Importance) -> "Figure":
    """Each metric that ranks heads against what leaving that head out costs; one point a head."""
    from matplotlib.ticker import MaxNLocator

    cost = measured.values("leave_one_out")
    agreement = {metric: rho for metric, rho in measured.agreement().items() if np.isfinite(rho)}
    if not agreement:
        raise ValueError("measured must have a metric beside leave_one_out that ranks heads. Got none.")
    columns = min(4, len(agreement))
    lines = -(-len(agreement) // columns)
    figure = _figure(2.7 * columns, 2.4 * lines)
    axes: Any = figure.subplots(lines, columns, squeeze=False, sharey=True)
    layers = list(dict.fromkeys(layer for layer, _ in measured.heads))
    colours = [layers.index(layer) for layer, _ in measured.heads]
    for i, (axis, (metric, rho)) in enumerate(zip(axes.flat, agreement.items(), strict=False)):
        picture = axis.scatter(measured.values(metric), cost, c=colours, cmap="viridis", s=16)
        axis.axhline(0, color="grey", linewidth=0.5)
        axis.set(xlabel=f"{metric} ({METRICS[metric].important_if}: important)", title=f"rank correlation {rho:.2f}")
        axis.title.set_fontsize(9)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        if i % columns == 0:
            axis.set_ylabel("loss without the head,\nminus the loss")
    for axis in axes.flat[len(agreement) :]:
        axis.set_axis_off()
    if len(layers) > 1:
        figure.colorbar(picture, ax=axes, shrink=0.6, label="layer", ticks=range(len(layers)))
    return figure


def score_curves(candidates: Sequence[Candidate], whole: float, score_name: str) -> "Figure":
    """The score as more heads go, by each metric, and the range and mean of the random sets."""
    figure = _figure(7.0, 4.2)
    axis = figure.subplots()
    by: dict[str, dict[float, list[float]]] = {}
    for candidate in candidates:
        by.setdefault(candidate.by, {}).setdefault(candidate.share, []).append(candidate.score)
    if random := by.pop(RANDOM, None):
        shares = sorted(random)
        low, high = [[of(random[s]) for s in shares] for of in (min, max)]
        axis.fill_between(shares, low, high, color="0.85", label="random, from worst to best")
        axis.plot(shares, [np.mean(random[s]) for s in shares], color="0.4", linestyle="--", label="random, mean")
    for i, (metric, points) in enumerate(by.items()):
        shares = sorted(points)
        style: dict[str, Any] = {"color": f"C{i}", "marker": "os^vDPX*<"[i % 9], "markersize": 4}
        axis.plot([0, *shares], [whole, *[points[s][0] for s in shares]], label=metric, linewidth=1.2, **style)
    axis.set(xlabel="share of the heads that are switched off", ylabel=score_name)
    axis.xaxis.set_major_formatter("{x:.0%}")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def score_bars(candidates: Sequence[Candidate], share: float, whole: float, score_name: str) -> "Figure":
    """What the model is worth without this share of its heads, by each metric and at random."""
    here = [c for c in candidates if c.share == share]
    names = list(dict.fromkeys(c.by for c in here))
    scores = [[c.score for c in here if c.by == name] for name in names]
    means = [float(np.mean(s)) for s in scores]
    order = np.argsort(means)
    figure = _figure(6.5, 0.35 * len(names) + 1.2)
    axis = figure.subplots()
    for row, i in enumerate(order):
        axis.barh(row, means[i], color="0.6" if names[i] == RANDOM else "C0")
        axis.plot([min(scores[i]), max(scores[i])], [row, row], color="black", linewidth=1)
        axis.text(max(scores[i]), row, f" {means[i]:.3f}", va="center", fontsize=8)
    axis.axvline(whole, color="C3", linestyle="--", label=f"whole model, {whole:.3f}")
    axis.set(yticks=range(len(names)), xlabel=f"{score_name}, {percent(share)} of the heads switched off")
    axis.set_yticklabels([names[i] for i in order])
    axis.margins(x=0.15)
    axis.legend(fontsize=8, loc="lower right")
    return figure


def trade_off(study: Study) -> "Figure":
    """How fast each smaller model is, and what it is worth."""
    figure = _figure(6.5, 4.0)
    axis = figure.subplots()
    kinds = {
        "pruned": [o for o in study.options if not o.tuned],
        "pruned in rounds and tuned": [o for o in study.options if o.tuned],
        "chosen": [study.chosen],
    }
    for i, (label, options) in enumerate(kinds.items()):
        points = [study.speed_up(o) for o in options], [o.score for o in options]
        if label == "chosen":
            axis.scatter(*points, s=160, facecolors="none", edgecolors="C3", linewidths=1.5, label=label)
            continue
        axis.scatter(*points, color=f"C{i}", marker="os"[i], label=label, zorder=3)
        for option, x, y in zip(options, *points, strict=True):
            place: dict[str, Any] = {"xytext": (0, -15 if i else 8), "textcoords": "offset points", "ha": "center"}
            axis.annotate(percent(option.share), (x, y), fontsize=8, **place)
    axis.scatter(1, study.whole.score, color="black", marker="D", label="whole model", zorder=3)
    axis.axhline(study.whole.score - study.allowed_drop, color="grey", linestyle="--", linewidth=0.8, label="allowed")
    axis.set(xlabel="predictions, times as fast as the whole model", ylabel=study.score_name)
    axis.margins(x=0.1, y=0.15)
    axis.legend(fontsize=8)
    return figure


def rounds_of_refinement(rounds: Sequence[Round], whole: float, score_name: str) -> "Figure":
    """The score, down when heads are removed, and up again when the model is tuned."""
    figure = _figure(6.0, 3.4)
    axis = figure.subplots()
    shares, scores = [0.0], [whole]
    for r in rounds:
        shares += [r.share, r.share]
        scores += [r.before, r.after]
    axis.plot(shares, scores, color="C0", marker="o", markersize=4)
    axis.axhline(whole, color="grey", linestyle="--", linewidth=0.8)
    axis.xaxis.set_major_formatter("{x:.0%}")
    axis.set(xlabel="share of the heads that are gone", ylabel=score_name)
    return figure


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _short(path: str) -> str:
    return path.removesuffix(".attention").removesuffix(".self_attn") or "0"
