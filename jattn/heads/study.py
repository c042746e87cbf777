"""The whole experiment: which heads matter, how many can go, what it costs, what it saves."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from jattn._engine import checks
from jattn.heads.gates import counts
from jattn.heads.importance import importance
from jattn.heads.metrics import METRICS
from jattn.heads.pictures import percent
from jattn.heads.pruning import number_of_heads, numbers_of_heads, prune
from jattn.heads.result import Importance
from jattn.heads.trials import (
    TUNED_WHOLE,
    Candidate,
    Fold,
    Round,
    Score,
    best_metric,
    cross_validate,
    refine,
    scorer,
    speed,
    try_out,
)
from jattn.training.steps import Loss


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
        title: of the report.
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

    title: str
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

    def decision(self) -> str:
        """What was decided and what it costs, in plain words."""
        from jattn.heads.report import decision

        return decision(self)

    def report(self, folder: str | os.PathLike[str], extra: Mapping[str, str] | None = None) -> Path:
        """Write ``report.html`` (its pictures inside), ``report.md`` with pictures beside it, and the numbers.

        Args:
            folder: where to; made if there is none.
            extra: further sections, from heading to text.

        Returns:
            The path of ``report.html``.
        """
        from jattn.heads.report import write

        return write(self, Path(folder), extra or {})


def study(
    model: nnx.Module,
    train: PyTree,
    validation: PyTree,
    test: PyTree | None = None,
    *,
    loss: Loss,
    score: Score,
    predict: Callable[[Any, Any], Any],
    batch_size: int,
    allowed_drop: float,
    share: float = 0.5,
    shares: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    metrics: Sequence[str] = tuple(METRICS),
    random_draws: int = 5,
    fine_tune: Callable[[Any, Any], Any] | None = None,
    rounds: int = 2,
    fresh: Callable[[Any], nnx.Module] | None = None,
    folds: int = 4,
    fold_metrics: Sequence[str] | None = None,
    fold_rounds: int = 0,
    timing_rounds: int = 7,
    title: str = "Which heads can go?",
    score_name: str = "score",
    seed: int = 0,
    progress: bool = True,
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
        loss: ``loss(model, batch, rng)``, a mean over the batch, as in `jattn.training.fit`.
        score: ``score(model, data)``, one number of all the data, larger is better.
        predict: ``predict(model, data)``, what is timed, on the validation data.
        batch_size: of the measurement.
        allowed_drop: how far the score may fall.
        share: the share of the heads that refinement removes and cross-validation is about.
        shares: those that are tried, rounded to whole heads; the same number of heads is tried once, and none is not.
        metrics: names in `METRICS`.
        random_draws: how many random sets for each share.
        fine_tune: ``fine_tune(model, train)`` trains the model in place; None for no refinement.
        rounds: of refinement.
        fresh: ``fresh(train)`` trains a new model on the training folds; None for no cross-validation. Its data are
            train and validation together.
        folds: how many.
        fold_metrics: the metrics in the folds; those above by default.
        fold_rounds: of refinement in the folds; 0 for none.
        timing_rounds: of the timing.
        title, score_name: for the report.
        seed: of random sets, folds and the measurement's rng.
        progress: whether to show progress bars.

    Returns:
        The `Study`: ``print(study.decision())``, ``study.report(folder)``, ``study.model``.

    Raises:
        ValueError: naming the argument that doesn't fit.
        NonFiniteError: if a measure or score is NaN or infinite.
    """
    allowed_drop = float(checks.number("allowed_drop", allowed_drop, "[0, inf)"))
    total = sum(counts(model).values())
    in_all, tried = number_of_heads("share", share, model), sorted(set(numbers_of_heads(shares, model)) - {0})
    for name, given, remove_some in (("share", share, in_all > 0), ("shares", shares, bool(tried))):
        if not remove_some:
            raise ValueError(f"{name} must remove at least one of the model's {total} heads. Got {given!r:.80}.")
    share = in_all / total
    common: dict[str, Any] = dict(loss=loss, batch_size=batch_size, progress=progress)
    measured = importance(model, train, metrics=metrics, seed=seed, **common)
    candidates = try_out(
        model,
        validation,
        measured,
        score=score,
        shares=[number / total for number in tried],
        random_draws=random_draws,
        seed=seed,
        progress=progress,
    )
    metric = best_metric(candidates)

    built: list[tuple[str, float, bool, float, Any]] = [
        (f"{percent(c.share)} pruned", c.share, False, c.score, prune(model, c.removed))
        for c in candidates
        if c.by == metric
    ]
    refined: list[Round] = []
    control = None
    if fine_tune is not None:
        refined = refine(
            model,
            train,
            validation,
            score=score,
            fine_tune=fine_tune,
            share=share,
            metric=metric,
            rounds=rounds,
            **common,
        )
        built += [
            (f"round {i}: {percent(r.share)}, tuned", r.share, True, r.after, r.model)
            for i, r in enumerate(refined, 1)
            if r.share > 0
        ]
        control = nnx.clone(model)
        for _ in refined:
            fine_tune(control, train)
        control.eval()
    built.insert(0, ("whole", 0.0, False, scorer(model, validation, score)({}), nnx.clone(model)))
    # By number, as two shares of very many heads may have one name.
    models = {str(i): m for i, (*_, m) in enumerate(built)}
    times = speed(models, validation, predict=predict, rounds=timing_rounds)
    whole, *options = [
        Option(name, gone, tuned, counts(m), _parameters(m), value, tuple(seconds), m)
        for (name, gone, tuned, value, m), seconds in zip(built, times.values(), strict=True)
    ]
    cross_validated: list[Fold] = []
    if fresh is not None:
        both = jax.tree.map(lambda *x: jnp.concatenate(x), train, validation)
        cross_validated = cross_validate(
            both,
            fresh=fresh,
            score=score,
            share=share,
            folds=folds,
            metrics=metrics if fold_metrics is None else fold_metrics,
            random_draws=random_draws,
            fine_tune=fine_tune if fold_rounds else None,
            rounds=max(fold_rounds, 1),
            seed=seed,
            **common,
        )
    chosen = choose(whole, options, allowed_drop)
    judged = {whole.name: whole.model, chosen.name: chosen.model}
    if control is not None:
        judged |= {TUNED_WHOLE: control, options[-1].name: options[-1].model}
    test_scores = {} if test is None else {name: scorer(m, test, score)({}) for name, m in judged.items()}
    return Study(
        title=title,
        score_name=score_name,
        importance=measured,
        candidates=tuple(candidates),
        metric=metric,
        whole=whole,
        options=tuple(options),
        chosen=chosen,
        rounds=tuple(refined),
        control=None if control is None else scorer(control, validation, score)({}),
        folds=tuple(cross_validated),
        share=share,
        allowed_drop=allowed_drop,
        test_scores=test_scores,
    )


def choose(whole: Option, options: Sequence[Option], allowed_drop: float) -> Option:
    """The fastest option whose score is at most allowed_drop below the whole model's, which is itself one."""
    allowed = [o for o in options if o.score >= whole.score - allowed_drop]
    return max([whole, *allowed], key=lambda option: option.speed_up(whole))


def _parameters(model: nnx.Module) -> int:
    return sum(int(np.size(x)) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
