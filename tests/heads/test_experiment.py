"""The experiment: choice, decision in words, and report."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from jattn import heads, nn
from jattn.heads.experiment import choose
from jattn.training import fit
from tests.errors import raises
from tests.heads.useless_heads import ADAM, ATTEND, TEST, TRAIN, VALIDATION, loss, measured, predict, score, task


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
        task=task(metrics=("l1", "entropy", "leave_one_out"), random_draws=2, score_name="closeness"),
        predict=predict,
        allowed_drop=100.0,
        shares=(0.05, 0.25, 0.3, 0.5),  # none, and one twice
        fine_tune=fine_tune,
        rounds=1,
        fresh=lambda train: ATTEND,
        folds=2,
        fold_rounds=1,
        timing_rounds=2,
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
    title = "Which <b>heads</b> | can go?"
    path = heads.report(study, tmp_path / "deep" / "report", {"More <i>": "of this & that"}, title=title)
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
    assert text.startswith(f"# {title}\n")
    assert heads.decision(study) in text
    assert "closeness" in text
    assert "the whole model was not tuned further." in text
    assert heads.Importance.from_json((path.parent / "importance.json").read_text()) == study.importance


def test_decisions_in_words(study: heads.Study) -> None:
    whole, smaller = option("whole", 0.95, 2.0), option("50 % pruned", 0.94, 1.0)
    base: dict[str, Any] = dict(whole=whole, options=(smaller,), score_name="accuracy", allowed_drop=0.02)
    kept = dataclasses.replace(study, **base, chosen=whole, test_scores={})
    assert heads.decision(kept) == (
        "Keep the whole model: no smaller one was both faster and within 0.02 of its accuracy, 0.9500."
    )
    taken = dataclasses.replace(study, **base, chosen=smaller, test_scores={"whole": 0.96, "50 % pruned": 0.95})
    assert heads.decision(taken) == (
        "Take the model with 50 % of its heads removed (without tuning, by leave_one_out). It predicts 2.00 times as "
        "fast, has 0 % fewer parameters, and costs 0.0100 of accuracy on the validation data (0.9500 to 0.9400; at "
        "most 0.02 was allowed). On the test data, which nothing was chosen by, accuracy goes from 0.9600 to 0.9500."
    )
    worse = dataclasses.replace(taken, test_scores={"whole": 0.96, "50 % pruned": 0.9})
    assert heads.decision(worse).endswith(
        "That is more than was allowed: the validation data were too few, or too often looked at."
    )
    tuned = option("round 1: 50 %, tuned", 0.94, 1.0)
    alone = dataclasses.replace(
        study, **base | dict(options=(smaller, tuned)), chosen=tuned, control=0.97, test_scores={}
    )
    assert heads.decision(alone).endswith(
        "at most 0.02 was allowed). Tuned as long, the whole model has 0.9700 on the validation data. There were no "
        "test data: the validation data chose the metric and the model, so its score flatters."
    )
    early = dataclasses.replace(alone, options=(tuned, smaller))
    assert "Tuned longer, the whole model has 0.9700" in heads.decision(early)
    for value, words in ((0.95, "and leaves its accuracy as it is on"), (0.96, "it rises by 0.0100")):
        chosen = option("50 % pruned", value, 1.0)
        assert words in heads.decision(dataclasses.replace(taken, options=(chosen,), chosen=chosen))


def test_pictures_of_importance() -> None:
    pytest.importorskip("matplotlib")
    figure = heads.plot_importance(measured("l1", "entropy"))
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
        ({"fold_metrics": ("l3",)}, r"metrics must be some of"),
    ],
)
def test_studies_that_are_refused(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = dict(task=task(), predict=predict, allowed_drop=0.1) | options
    with pytest.raises(ValueError, match=message):
        heads.study(ATTEND, TRAIN, VALIDATION, **given)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.torch.MultiheadAttention(12, 3, rngs=nnx.Rngs(0)), "a jattn.nn.torch.MultiheadAttention"),
        (
            nn.MultiHeadAttention(3, 12, normalize_qk="rms", qk_norm_over="width", rngs=nnx.Rngs(0)),
            'which norms the queries of all heads together (qk_norm_over="width")',
        ),
    ],
    ids=["torch", "norm over the width"],
)
def test_a_model_that_cannot_lose_heads_is_refused_before_anything_is_measured(model: Any, why: str) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("it was measured")

    tasks = task(loss=never, score=never)
    with raises("model must have layers that can lose heads. Got ''", why, "jattn.heads.gated"):
        heads.study(model, TRAIN, VALIDATION, task=tasks, predict=never, allowed_drop=0.1)
    with raises("model must have layers that can lose heads", why):
        heads.refine(model, TRAIN, VALIDATION, task=tasks, fine_tune=never, share=0.5, metric="l1")
