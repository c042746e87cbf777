"""A study in words: its decision, and its report."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jattn.heads import pictures
from jattn.heads.document import Section, html_page, markdown, picture_file, png
from jattn.heads.metrics import METRICS
from jattn.heads.records import RANDOM, TUNED_WHOLE, Option, Study, percent

__all__ = ["decision", "report"]


def decision(study: Study) -> str:
    """What was decided and what it costs, in plain words."""
    whole, chosen, name = study.whole, study.chosen, study.score_name
    if chosen is whole:
        return (
            f"Keep the whole model: no smaller one was both faster and within {study.allowed_drop:g} of its {name}, "
            f"{whole.score:.4f}."
        )
    lost = whole.score - chosen.score
    if round(lost, 4) == 0:
        change = f"leaves its {name} as it is"
    else:
        change = f"costs {lost:.4f} of {name}" if lost > 0 else f"costs no {name} (it rises by {-lost:.4f})"
    smaller = 1 - chosen.parameters / whole.parameters
    text = (
        f"Take the model with {percent(chosen.share)} of its heads removed ({_how(chosen)}, by {study.metric}). It "
        f"predicts {study.speed_up(chosen):.2f} times as fast, has {percent(smaller)} fewer parameters, and {change} "
        f"on the validation data ({whole.score:.4f} to {chosen.score:.4f}; at most {study.allowed_drop:g} was allowed)."
    )
    long = "as long" if chosen is study.options[-1] else "longer"  # the control is tuned in every round
    if chosen.tuned and study.control is not None:
        text += f" Tuned {long}, the whole model has {study.control:.4f} on the validation data."
    if study.test_scores:
        before, after = study.test_scores[whole.name], study.test_scores[chosen.name]
        text += f" On the test data, which nothing was chosen by, {name} goes from {before:.4f} to {after:.4f}."
        if chosen.tuned and TUNED_WHOLE in study.test_scores:
            text += f" The whole model, tuned {long}, has {study.test_scores[TUNED_WHOLE]:.4f} there."
        if before - after > study.allowed_drop:
            text += " That is more than was allowed: the validation data were too few, or too often looked at."
    else:
        text += " There were no test data: the validation data chose the metric and the model, so its score flatters."
    return text


def report(
    study: Study,
    folder: str | os.PathLike[str],
    extra: Mapping[str, str] | None = None,
    *,
    title: str = "Which heads can go?",
) -> Path:
    """Write ``report.html`` (its pictures inside), ``report.md`` with pictures beside it, and the numbers.

    Needs matplotlib.

    Args:
        study: what `jattn.heads.study` found out.
        folder: where to; made if there is none.
        extra: further sections, from heading to text.
        title: over it all.

    Returns:
        The path of ``report.html``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sections = [*_sections(study), *(Section(heading, text) for heading, text in (extra or {}).items())]
    images = {s.heading: png(s.picture) for s in sections if s.picture is not None}
    for heading, image in images.items():
        (folder / picture_file(heading)).write_bytes(image)
    (folder / "importance.json").write_text(study.importance.to_json(), encoding="utf-8")
    (folder / "report.md").write_text(markdown(title, sections), encoding="utf-8")
    (folder / "report.html").write_text(html_page(title, sections, images), encoding="utf-8")
    return folder / "report.html"


# ----------------------------------------------------------------------------------------------------------------------
# What it says.


def _sections(study: Study) -> list[Section]:
    whole, measured = study.whole, study.importance
    shares = sorted({c.share for c in study.candidates})
    nearest = min(shares, key=lambda s: abs(s - study.share))
    layers = dict.fromkeys(layer for layer, _ in measured.heads)
    sections = [
        Section("Decision", decision(study)),
        Section(
            "How much each head matters",
            f"{len(measured.heads)} heads in {len(layers)} layers, measured on {measured.examples} examples in "
            f"{measured.batches} batches. What each metric means, and where it misleads:",
            [
                ("metric", "meaning", "range", "important if", "misleads", "source"),
                *(
                    (n, m.meaning, m.range, m.important_if, m.misleads, m.source)
                    for n, m in METRICS.items()
                    if n in measured.metrics
                ),
            ],
            pictures.plot_importance(measured),
        ),
    ]
    agreement = measured.agreement() if "leave_one_out" in measured.metrics else {}
    if np.isfinite(list(agreement.values())).any():
        sections.append(
            Section(
                "Which cheap metric to trust",
                "Spearman's rank correlation with leave-one-out, the exact cost of each single head. It says nothing "
                "of heads that go together.",
                [("metric", "rank correlation"), *((m, _number(rho)) for m, rho in agreement.items())],
                pictures.importance_scatter(measured),
            )
        )
    sections += [
        Section(
            "Importance and performance",
            f"The {study.score_name} on the validation data with the least important heads switched off, by each "
            f"metric and at random (mean of the random sets). The whole model has {whole.score:.4f}. The best "
            f"mean over all shares: {study.metric}, which is used from here on.",
            _table_of_candidates(study, shares),
            pictures.score_curves(study.candidates, whole.score, study.score_name),
        ),
        Section(
            f"At {percent(nearest)}",
            "Bars: the mean; lines: from the worst to the best random set.",
            (),
            pictures.score_bars(study.candidates, nearest, whole.score, study.score_name),
        ),
        Section(
            "Speed and threshold",
            f"Smaller models, really pruned by {study.metric}, timed in turn with the whole one, {len(whole.seconds)} "
            f"rounds. Chosen is the fastest whose {study.score_name} is at most {study.allowed_drop:g} lower: "
            f"{study.chosen.name}.",
            [
                (
                    "model",
                    "heads in each layer",
                    "parameters",
                    study.score_name,
                    "least ms",
                    "median ms",
                    "times as fast by the least",
                    "by the median of the rounds",
                ),
                *(_row_of_option(study, option) for option in (whole, *study.options)),
            ],
            pictures.trade_off(study),
        ),
    ]
    if study.rounds:
        last = study.rounds[-1]
        sections.append(
            Section(
                "Refinement",
                f"In each round the heads that are left were measured again, some removed, and the model tuned. "
                f"With {percent(last.share)} of the heads gone the {study.score_name} is {last.after:.4f}, "
                f"{_signed(last.after - whole.score)} of the whole model; of the whole model tuned as long it is "
                f"{study.control:.4f}.",
                [
                    ("round", "heads gone", f"{study.score_name} after removal", "after tuning"),
                    *(
                        (str(i), f"{percent(r.share)}", f"{r.before:.4f}", f"{r.after:.4f}")
                        for i, r in enumerate(study.rounds, 1)
                    ),
                ],
                pictures.rounds_of_refinement(study.rounds, whole.score, study.score_name),
            )
        )
    if study.folds:
        sections.append(_section_of_folds(study))
    if study.test_scores:
        rows = [(name, f"{value:.4f}") for name, value in study.test_scores.items()]
        sections.append(Section("Test data", "Nothing was chosen by them.", [("model", study.score_name), *rows]))
    return sections


def _section_of_folds(study: Study) -> Section:
    won = sum(fold.beats_random for fold in study.folds)
    conclusion = "beats" if won == len(study.folds) else "does not beat"
    metrics = list(study.folds[0].scores)
    rows = [
        (
            str(i),
            f"{fold.whole:.4f}",
            fold.best,
            f"{fold.scores[fold.best]:.4f}",
            f"{np.mean(fold.random):.4f}",
            f"{max(fold.random):.4f}",
            "yes" if fold.beats_random else "no",
            "" if fold.refined is None else f"{fold.refined:.4f}",
            *(f"{fold.scores[m]:.4f}" for m in metrics),
        )
        for i, fold in enumerate(study.folds, 1)
    ]
    return Section(
        "Cross-validation",
        f"In each fold, {percent(study.share)} of the heads were switched off by the metric that did best on the other "
        f"folds. On the fold left out it {conclusion} the mean of {len(study.folds[0].random)} random sets on every "
        f"fold: {won} of {len(study.folds)}. {_tuned_folds(study)}",
        [
            (
                "fold",
                "whole",
                "chosen metric",
                "its score",
                "random, mean",
                "random, best",
                "beats the mean",
                "tuned",
                *metrics,
            ),
            *rows,
        ],
    )


def _tuned_folds(study: Study) -> str:
    changes = [fold.refined - fold.whole for fold in study.folds if fold.refined is not None]
    if not changes:
        return "No tuning."
    mean = float(np.mean(changes))
    return (
        f"Pruned by it and tuned, the model's {study.score_name} on the fold left out is on average {abs(mean):.4f} "
        f"{'above' if mean >= 0 else 'below'} the whole model's ({min(changes):+.4f} to {max(changes):+.4f}); "
        "the whole model was not tuned further."
    )


def _table_of_candidates(study: Study, shares: Sequence[float]) -> list[tuple[str, ...]]:
    names = dict.fromkeys(c.by for c in study.candidates)

    def score(name: str, share: float) -> str:
        scores = [c.score for c in study.candidates if c.by == name and c.share == share]
        return f"{np.mean(scores):.4f}" + (f" ({min(scores):.4f} to {max(scores):.4f})" if name == RANDOM else "")

    return [("by", *(f"{percent(s)}" for s in shares)), *((name, *(score(name, s) for s in shares)) for name in names)]


def _row_of_option(study: Study, option: Option) -> tuple[str, ...]:
    return (
        option.name,
        " ".join(map(str, option.heads.values())),
        f"{option.parameters:,}",
        f"{option.score:.4f}",
        f"{1000 * min(option.seconds):.2f}",
        f"{1000 * float(np.median(option.seconds)):.2f}",
        f"{min(study.whole.seconds) / min(option.seconds):.2f}",
        f"{study.speed_up(option):.2f}",
    )


def _how(option: Option) -> str:
    return "in rounds of tuning" if option.tuned else "without tuning"


def _signed(x: float) -> str:
    return f"{abs(x):.4f} {'above' if x >= 0 else 'below'} that"


def _number(x: float) -> str:
    return "ranks nothing" if np.isnan(x) else f"{x:.2f}"
