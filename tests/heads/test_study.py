"""The experiment: candidates, rounds, timing, folds, choice and report."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import heads
from jattn.heads.study import choose
from jattn.nn import MultiHeadAttention
from jattn.training import NonFiniteError, adam, fit

rng = np.random.default_rng(0)
ATTEND = MultiHeadAttention(4, 12, rngs=nnx.Rngs(0))
X = jnp.asarray(rng.standard_normal((24, 5, 12)), jnp.float32)
# Heads 1 and 2 are of no use for this; the model without them is perfect.
TARGET = heads.gated(ATTEND, {"": jnp.array([1.0, 0.0, 0.0, 1.0])})(X)
TRAIN, VALIDATION, TEST = ((X[part], TARGET[part]) for part in (slice(12), slice(12, 18), slice(18, 24)))


ADAM = adam(1e-3)  # one object, as each compiles anew


def loss(model: Any, batch: Any, rng: Any) -> jax.Array:
    x, target = batch
    return ((model(x) - target) ** 2).mean()


def score(model: Any, data: Any) -> jax.Array:
    return -loss(model, data, None)


def predict(model: Any, data: Any) -> jax.Array:
    return model(data[0])


def measured(*metrics: str) -> heads.Importance:
    return heads.importance(ATTEND, TRAIN, loss=loss, batch_size=6, metrics=metrics, progress=False)


@pytest.mark.whole
def test_candidates() -> None:
    traces: list[None] = []

    def counted(model: Any, data: Any) -> jax.Array:
        traces.append(None)
        return score(model, data)

    options: dict[str, Any] = dict(score=counted, shares=(0.25, 0.5), random_draws=3, progress=False)
    found = heads.try_out(ATTEND, VALIDATION, measured("leave_one_out", "entropy"), **options)
    assert len(traces) == 1  # all sets by one compiled function
    assert [(c.by, c.draw, c.share) for c in found[:5]] == [
        ("leave_one_out", 0, 0.25),
        ("entropy", 0, 0.25),
        ("random", 0, 0.25),
        ("random", 1, 0.25),
        ("random", 2, 0.25),
    ]
    assert len(found) == 10
    for candidate in found:
        assert sum(map(len, candidate.removed.values())) == 4 * candidate.share
        expected = nnx.jit(score)(heads.prune(ATTEND, candidate.removed), VALIDATION)
        np.testing.assert_allclose(candidate.score, expected, rtol=1e-4, atol=1e-7)
    by = {(c.by, c.share): c for c in found}
    assert by["leave_one_out", 0.5].removed == {"": [1, 2]}
    assert by["leave_one_out", 0.5].score == pytest.approx(0, abs=1e-9)
    assert heads.best_metric(found) == "leave_one_out"
    again = heads.try_out(ATTEND, VALIDATION, measured("leave_one_out", "entropy"), **options)
    assert [c.removed for c in again] == [c.removed for c in found]


def test_shares_are_those_really_removed() -> None:
    shares = (0.1, 0.2, 0.3)
    found = heads.try_out(
        ATTEND, VALIDATION, measured("l2"), score=score, shares=shares, random_draws=1, progress=False
    )
    assert [c.share for c in found] == [0, 0, 0.25, 0.25, 0.25, 0.25]
    assert [sum(map(len, c.removed.values())) for c in found] == [0, 0, 1, 1, 1, 1]


def test_the_best_metric_is_one_that_ranks() -> None:
    def candidate(by: str, value: float) -> heads.Candidate:
        return heads.Candidate(by, 0, 0.5, {}, value)

    assert (
        heads.best_metric([candidate("random", 9), candidate("l1", 8), candidate("l2", 1), candidate("taylor", 2)])
        == "taylor"
    )
    with pytest.raises(ValueError, match=r"candidates must include some of a metric that ranks heads\. Got none\."):
        heads.best_metric([candidate("random", 1)])


@pytest.mark.usefixtures("unchecked")
def test_what_candidates_refuse() -> None:
    found = measured("entropy")
    other = MultiHeadAttention(3, 12, rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=r"measured must be the importance of this model's heads\. Got that of others\."
    ):
        heads.try_out(other, VALIDATION, found, score=score, shares=(0.5,), progress=False)
    for options, message in (
        ({"shares": 0.5}, r"shares must be several numbers in \[0, 1\)\. Got 0\.5\."),
        ({"shares": (0.5, 2)}, r"shares must be a number in \[0, 1\)\. Got 2\."),
        (
            {"shares": (0.9,)},
            r"shares must leave each of 1 layers a head: at most 3 of 4 heads\. Got 0\.9, which is 4\.",
        ),
        ({"metrics": "entropie"}, r"metrics must be some of entropy\. Got entropie\."),
        ({"metrics": "l2"}, r"metrics must be some of entropy\. Got l2\."),
        ({"score": predict}, r"score must return one number of all the data\. Got an array of shape \(6, 5, 12\)\."),
    ):
        given: dict[str, Any] = dict(score=score, shares=(0.5,), progress=False) | options
        with pytest.raises(ValueError, match=message):
            heads.try_out(ATTEND, VALIDATION, found, **given)
    with pytest.raises(NonFiniteError, match=r"score must be finite\. Got nan without the heads"):
        heads.try_out(
            ATTEND, VALIDATION, found, score=lambda m, d: jnp.nan * score(m, d), shares=(0.5,), progress=False
        )


def test_rounds_of_refinement() -> None:
    before = jax.tree.map(jnp.copy, nnx.state(ATTEND))
    seen = []

    def fine_tune(model: Any, train: Any) -> None:
        seen.append(heads.counts(model)[""])
        fit(model, train, loss=loss, optimizer=ADAM, epochs=3, batch_size=6, progress=False)

    options: dict[str, Any] = dict(loss=loss, score=score, fine_tune=fine_tune, metric="gradient", batch_size=6)
    found = heads.refine(ATTEND, TRAIN, VALIDATION, **options, share=0.75, rounds=2, progress=False)
    assert seen == [2, 1]
    assert [r.share for r in found] == [0.5, 0.75]
    assert [heads.counts(r.model)[""] for r in found] == [2, 1]
    for r in found:
        np.testing.assert_allclose(score(r.model, VALIDATION), r.after, rtol=1e-4, atol=1e-9)
        assert r.after != r.before
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(ATTEND))


def test_speed() -> None:
    half = heads.prune(ATTEND, {"": [0, 1]})
    times = heads.speed({"whole": ATTEND, "half": half}, X, predict=lambda m, x: m(x), rounds=4, at_least=0.001)
    assert list(times) == ["whole", "half"]
    assert all(len(seconds) == 4 and min(seconds) > 0 for seconds in times.values())


def test_folds_are_held_out() -> None:
    numbers = jnp.arange(24)
    trained_on = []

    def fresh(train: Any) -> nnx.Module:
        trained_on.append(np.asarray(train[2]))
        return ATTEND

    judged = []

    def noted(model: Any, data: Any) -> jax.Array:
        judged.append(data[2].shape[0])
        return score(model, data[:2])

    def loss_of_three(model: Any, batch: Any, rng: Any) -> jax.Array:
        return loss(model, batch[:2], rng)

    folds = heads.cross_validate(
        (X, TARGET, numbers),
        fresh=fresh,
        loss=loss_of_three,
        score=noted,
        share=0.5,
        batch_size=8,
        folds=3,
        metrics=("leave_one_out", "l1"),
        random_draws=2,
        progress=False,
    )
    held_out = [np.setdiff1d(numbers, train) for train in trained_on]
    assert sorted(np.concatenate(held_out)) == list(range(24))
    assert [len(part) for part in held_out] == [8, 8, 8]
    assert set(judged) == {16, 8}
    for fold, part in zip(folds, held_out, strict=True):
        assert fold.best == "leave_one_out"
        assert fold.scores["leave_one_out"] == pytest.approx(0, abs=1e-9)
        assert len(fold.random) == 2
        assert fold.whole == pytest.approx(float(score(ATTEND, (X[part], TARGET[part]))), rel=1e-4)
        assert fold.refined is None
        assert fold.beats_random == (np.mean(fold.random) < fold.scores["leave_one_out"])
    with pytest.raises(ValueError, match=r"folds must be at most the 24 examples\. Got 25\."):
        heads.cross_validate(
            (X, TARGET), fresh=fresh, loss=loss, score=score, share=0.5, batch_size=8, folds=25, progress=False
        )


@pytest.mark.usefixtures("unchecked")
def test_what_refinement_and_folds_refuse() -> None:
    """Before any training."""
    common: dict[str, Any] = dict(loss=loss, score=score, batch_size=6, progress=False)
    wrong: dict[str, Any]
    for wrong, message in (
        ({"share": 1.5}, r"share must be a number in \[0, 1\)\. Got 1\.5\."),
        ({"share": 0.9}, r"share must leave each of 1 layers a head: at most 3 of 4 heads\. Got 0\.9, which is 4\."),
        ({"metric": "l3"}, r"metric must be one of 'l1', .* Got 'l3'\."),
        ({"fine_tune": None}, r"fine_tune must be a function of model and train\. Got None\."),
    ):
        given: dict[str, Any] = dict(fine_tune=pytest.fail, share=0.5, metric="l2") | common | wrong
        with pytest.raises(ValueError, match=message):
            heads.refine(ATTEND, TRAIN, VALIDATION, **given)
    for wrong, message in (
        ({"share": -1}, r"share must be a number in \[0, 1\)\. Got -1\."),
        ({"metrics": "entropie"}, r"metrics must be some of l1, .* Got entropie\."),
        ({"fresh": 1}, r"fresh must be a function of train\. Got 1\."),
    ):
        given = dict(fresh=pytest.fail, share=0.5) | common | wrong
        with pytest.raises(ValueError, match=message):
            heads.cross_validate((X, TARGET), **given)


def option(name: str, value: float, *seconds: float) -> heads.Option:
    return heads.Option(name, 0.5, "tuned" in name, {"": 2}, 100, value, seconds, ATTEND)


def test_the_choice() -> None:
    whole = option("whole", 0.95, 3.0, 1.0, 2.0)  # one round was undisturbed
    fast, faster, slow = (
        option("a", 0.945, 1.5, 1.2, 1.6),
        option("b", 0.93, 1.0, 1.0, 1.0),
        option("c", 0.96, 3.1, 3.1, 2.1),
    )
    assert (fast.speed_up(whole), faster.speed_up(whole)) == (1.25, 2.0)
    assert choose(whole, [fast, faster, slow], 0.01) is fast
    assert choose(whole, [fast, faster, slow], 0.03) is faster
    assert choose(whole, [slow], 0.01) is whole
    assert choose(whole, [faster], 0.01) is whole


@pytest.fixture(scope="module")
def study() -> heads.Study:
    def fine_tune(model: Any, train: Any) -> None:
        fit(model, train, loss=loss, optimizer=ADAM, epochs=1, batch_size=6, progress=False)

    return heads.study(
        ATTEND,
        TRAIN,
        VALIDATION,
        TEST,
        loss=loss,
        score=score,
        predict=predict,
        batch_size=6,
        allowed_drop=100.0,
        shares=(0.05, 0.25, 0.3, 0.5),  # none, and one twice
        metrics=("l1", "entropy", "leave_one_out"),
        random_draws=2,
        fine_tune=fine_tune,
        rounds=1,
        fresh=lambda train: ATTEND,
        folds=2,
        fold_rounds=1,
        timing_rounds=2,
        title="Which <b>heads</b> | can go?",
        score_name="closeness",
        progress=False,
    )


def test_a_study(study: heads.Study) -> None:
    assert study.metric == "leave_one_out"
    assert [o.name for o in study.options] == ["25 % pruned", "50 % pruned", "round 1: 50 %, tuned"]
    assert [o.heads[""] for o in (study.whole, *study.options)] == [4, 3, 2, 2]
    assert study.whole.parameters == 4 * 12 * 12
    assert study.options[1].parameters == 2 * 12 * 12
    assert study.options[1].score == pytest.approx(0, abs=1e-9)
    assert [o.tuned for o in study.options] == [False, False, True]
    allowed = [o for o in study.options if o.score >= study.whole.score - study.allowed_drop]
    assert study.chosen is max((study.whole, *allowed), key=study.speed_up)
    assert study.model is study.chosen.model
    assert study.control is not None
    assert len(study.folds) == 2
    assert all(fold.refined is not None for fold in study.folds)
    assert {"whole", "whole, tuned as long", "round 1: 50 %, tuned"} <= study.test_scores.keys()
    np.testing.assert_allclose(study.test_scores["whole"], score(ATTEND, TEST), rtol=1e-4)


def test_the_report(study: heads.Study, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = study.report(tmp_path / "deep" / "report", {"More <i>": "of this & that"})
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 6
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<b>" not in page
    assert "Which &lt;b&gt;heads&lt;/b&gt; | can go?" in page
    assert "of this &amp; that" in page
    text = (path.parent / "report.md").read_text(encoding="utf-8")
    for name in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (path.parent / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 20
    assert study.decision() in text
    assert "the whole model was not tuned further." in text
    assert heads.Importance.from_json((path.parent / "importance.json").read_text()) == study.importance


def test_decisions_in_words(study: heads.Study) -> None:
    whole, smaller = option("whole", 0.95, 2.0), option("50 % pruned", 0.94, 1.0)
    base: dict[str, Any] = dict(whole=whole, options=(smaller,), score_name="accuracy", allowed_drop=0.02)
    kept = dataclasses.replace(study, **base, chosen=whole, test_scores={})
    assert kept.decision() == (
        "Keep the whole model: no smaller one was both faster and within 0.02 of its accuracy, 0.9500."
    )
    taken = dataclasses.replace(study, **base, chosen=smaller, test_scores={"whole": 0.96, "50 % pruned": 0.95})
    assert taken.decision() == (
        "Take the model with 50 % of its heads removed (without tuning, by leave_one_out). It predicts 2.00 times as "
        "fast, has 0 % fewer parameters, and costs 0.0100 of accuracy on the validation data (0.9500 to 0.9400; at "
        "most 0.02 was allowed). On the test data, which nothing was chosen by, accuracy goes from 0.9600 to 0.9500."
    )
    worse = dataclasses.replace(taken, test_scores={"whole": 0.96, "50 % pruned": 0.9})
    assert worse.decision().endswith(
        "That is more than was allowed: the validation data were too few, or too often looked at."
    )
    tuned = option("round 1: 50 %, tuned", 0.94, 1.0)
    alone = dataclasses.replace(
        study, **base | dict(options=(smaller, tuned)), chosen=tuned, control=0.97, test_scores={}
    )
    assert alone.decision().endswith(
        "at most 0.02 was allowed). Tuned as long, the whole model has 0.9700 on the validation data. There were no "
        "test data: the validation data chose the metric and the model, so its score flatters."
    )
    early = dataclasses.replace(alone, options=(tuned, smaller))
    assert "Tuned longer, the whole model has 0.9700" in early.decision()
    for value, words in ((0.95, "and leaves its accuracy as it is on"), (0.96, "it rises by 0.0100")):
        chosen = option("50 % pruned", value, 1.0)
        assert words in dataclasses.replace(taken, options=(chosen,), chosen=chosen).decision()


def test_pictures_of_importance() -> None:
    pytest.importorskip("matplotlib")
    figure = measured("l1", "entropy").plot()
    assert [axis.get_title() for axis in figure.axes[:2]] == ["l1", "entropy"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allowed_drop": -1}, r"allowed_drop must be a number in \[0, inf\)\. Got -1"),
        ({"share": 1}, r"share must be a number in \[0, 1\)\. Got 1"),
        ({"share": 0.05}, r"share must remove at least one of the model's 4 heads\. Got 0\.05\."),
        ({"shares": ()}, r"shares must remove at least one of the model's 4 heads\. Got \(\)\."),
        ({"shares": (0.05, 0.1)}, r"shares must remove at least one of .* Got \(0\.05, 0\.1\)\."),
        ({"shares": (0.5, 1.0)}, r"shares must be a number in \[0, 1\)\. Got 1\.0"),
        ({"shares": 0.5}, r"shares must be several numbers in \[0, 1\)\. Got 0\.5\."),
        ({"metrics": ("l3",)}, r"metrics must be some of"),
    ],
)
def test_studies_that_are_refused(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = dict(loss=loss, score=score, predict=predict, batch_size=6, allowed_drop=0.1) | options
    with pytest.raises(ValueError, match=message):
        heads.study(ATTEND, TRAIN, VALIDATION, **given, progress=False)
