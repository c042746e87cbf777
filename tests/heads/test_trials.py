"""Trials of pruning: candidates, rounds, timing, folds, and the task that they are for."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import heads
from jattn.nn import MultiHeadAttention
from jattn.training import NonFiniteError, fit
from tests.heads.useless_heads import ADAM, ATTEND, TARGET, TRAIN, VALIDATION, X, loss, measured, predict, score, task


@pytest.mark.whole
def test_candidates() -> None:
    traces: list[None] = []

    def counted(model: Any, data: Any) -> jax.Array:
        traces.append(None)
        return score(model, data)

    options: dict[str, Any] = dict(task=task(score=counted, random_draws=3), shares=(0.25, 0.5))
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
    found = heads.try_out(ATTEND, VALIDATION, measured("l2"), task=task(random_draws=1), shares=shares)
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
        heads.try_out(other, VALIDATION, found, task=task(), shares=(0.5,))
    for options, message in (
        ({"shares": 0.5}, r"shares must be several numbers in \[0, 1\)\. Got 0\.5\."),
        ({"shares": (0.5, 2)}, r"shares must be a number in \[0, 1\)\. Got 2\."),
        (
            {"shares": (0.9,)},
            r"shares must leave each of 1 layers a head: at most 3 of 4 heads\. Got 0\.9, which is 4\.",
        ),
        ({"metrics": "entropie"}, r"metrics must be some of entropy\. Got entropie\."),
        ({"metrics": "l2"}, r"metrics must be some of entropy\. Got l2\."),
        (
            {"task": task(score=predict)},
            r"score must return one number of all the data\. Got an array of shape \(6, 5, 12\)\.",
        ),
    ):
        given: dict[str, Any] = dict(task=task(), shares=(0.5,)) | options
        with pytest.raises(ValueError, match=message):
            heads.try_out(ATTEND, VALIDATION, found, **given)
    with pytest.raises(NonFiniteError, match=r"score must be finite\. Got nan without the heads"):
        heads.try_out(ATTEND, VALIDATION, found, task=task(score=lambda m, d: jnp.nan * score(m, d)), shares=(0.5,))


def test_rounds_of_refinement() -> None:
    before = jax.tree.map(jnp.copy, nnx.state(ATTEND))
    seen = []

    def fine_tune(model: Any, train: Any) -> None:
        seen.append(heads.counts(model)[""])
        fit(model, train, loss=loss, optimizer=ADAM, epochs=3, batch_size=6, progress=False)

    options: dict[str, Any] = dict(fine_tune=fine_tune, metric="gradient", share=0.75, rounds=2)
    found = heads.refine(ATTEND, TRAIN, VALIDATION, task=task(), **options)
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


def test_folds_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
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

    measured_on = []

    def importance(task: heads.Task, model: Any, data: Any) -> heads.Importance:
        measured_on.append(np.asarray(data[2]))
        return own_importance(task, model, data)

    own_importance = heads.Task.importance
    monkeypatch.setattr(heads.Task, "importance", importance)
    of_three = task(loss=loss_of_three, score=noted, batch_size=8, metrics=("leave_one_out", "l1"), random_draws=2)
    folds = heads.cross_validate((X, TARGET, numbers), task=of_three, fresh=fresh, share=0.5, folds=3)
    held_out = [np.setdiff1d(numbers, train) for train in trained_on]
    assert sorted(np.concatenate(held_out)) == list(range(24))
    assert [len(part) for part in held_out] == [8, 8, 8]
    assert set(judged) == {16, 8}
    assert [sorted(part) for part in measured_on] == [sorted(part) for part in trained_on]
    for fold, part in zip(folds, held_out, strict=True):
        assert fold.best == "leave_one_out"
        assert fold.scores["leave_one_out"] == pytest.approx(0, abs=1e-9)
        assert len(fold.random) == 2
        assert fold.whole == pytest.approx(float(score(ATTEND, (X[part], TARGET[part]))), rel=1e-4)
        assert fold.refined is None
        assert fold.beats_random == (np.mean(fold.random) < fold.scores["leave_one_out"])
    with pytest.raises(ValueError, match=r"folds must be at most the 24 examples\. Got 25\."):
        heads.cross_validate((X, TARGET), task=task(), fresh=fresh, share=0.5, folds=25)


@pytest.mark.usefixtures("unchecked")
def test_what_refinement_and_folds_refuse() -> None:
    """Before any training."""
    wrong: dict[str, Any]
    for wrong, message in (
        ({"share": 1.5}, r"share must be a number in \[0, 1\)\. Got 1\.5\."),
        ({"share": 0.9}, r"share must leave each of 1 layers a head: at most 3 of 4 heads\. Got 0\.9, which is 4\."),
        ({"metric": "l3"}, r"metric must be one of 'l1', .* Got 'l3'\."),
        ({"fine_tune": None}, r"fine_tune must be a function of model, train\. Got None\."),
    ):
        given: dict[str, Any] = dict(task=task(), fine_tune=pytest.fail, share=0.5, metric="l2") | wrong
        with pytest.raises(ValueError, match=message):
            heads.refine(ATTEND, TRAIN, VALIDATION, **given)
    for wrong, message in (
        ({"share": -1}, r"share must be a number in \[0, 1\)\. Got -1\."),
        ({"task": task(random_draws=0)}, r"random_draws must be an integer in \[1, inf\)\. Got 0\."),
        ({"fresh": 1}, r"fresh must be a function of train\. Got 1\."),
    ):
        given = dict(task=task(), fresh=pytest.fail, share=0.5) | wrong
        with pytest.raises(ValueError, match=message):
            heads.cross_validate((X, TARGET), **given)


# ----------------------------------------------------------------------------------------------------------------------
# The task.


@pytest.mark.usefixtures("unchecked")
def test_a_task_holds_pythons_own() -> None:
    given = task(batch_size=np.int64(6), metrics="entropy", seed=np.int64(3), random_draws=np.int64(2))
    assert (given.batch_size, given.metrics, given.seed, given.random_draws) == (6, ("entropy",), 3, 2)
    assert given == task(metrics=["entropy"], seed=3, random_draws=2)
    assert hash(given) == hash(task(metrics=["entropy"], seed=3, random_draws=2))


def test_importance_of_a_task() -> None:
    found = heads.importance(ATTEND, TRAIN, loss=loss, batch_size=4, metrics=("entropy", "l2"), seed=1, progress=False)
    assert task(batch_size=4, metrics=("entropy", "l2"), seed=1).importance(ATTEND, TRAIN) == found


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": 1}, r"loss must be a function of model, batch, rng\. Got 1\."),
        ({"score": None}, r"score must be a function of model, data\. Got None\."),
        ({"batch_size": 0}, r"batch_size must be an integer in \[1, inf\)\. Got 0\."),
        ({"metrics": "entropie"}, r"metrics must be some of l1, .* Got entropie\."),
        ({"metrics": ()}, r"metrics must be some of l1, .* Got none\."),
        ({"random_draws": -1}, r"random_draws must be an integer in \[0, inf\)\. Got -1\."),
        ({"seed": -1}, r"seed must be an integer in \[0, 4294967296\)\. Got -1\."),
        ({"progress": 2}, r"progress must be True or False\. Got 2\."),
    ],
)
def test_tasks_that_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**wrong)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_task_is_refused() -> None:
    others: dict[Any, dict[str, Any]] = {
        functools.partial(heads.try_out, ATTEND, VALIDATION, None): {"shares": (0.5,)},
        functools.partial(heads.refine, ATTEND, TRAIN, VALIDATION): dict(fine_tune=fit, share=0.5, metric="l2"),
        functools.partial(heads.cross_validate, TRAIN): dict(fresh=fit, share=0.5),
        functools.partial(heads.study, ATTEND, TRAIN, VALIDATION): dict(predict=predict, allowed_drop=0.1),
    }
    for call, arguments in others.items():
        with pytest.raises(ValueError, match=r"task must be a jattn\.heads\.Task\. Got .*loss.*\. Write Task\(loss="):
            call(task=loss, **arguments)
