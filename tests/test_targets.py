"""The kept run of `python -m benchmarks targets --peers`, against what is chosen today; it needs no compiler."""

import json
import math

import pytest

from benchmarks import gpu, targets

ROWS = json.loads(targets.KEPT.read_text())["rows"]
CASES = targets.cases()


def test_every_case_is_there() -> None:
    assert {(row["case"], row["chip"]) for row in ROWS} == {(name, chip) for name in CASES for chip in targets.CHIPS}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.every_case
def test_what_is_chosen_compiles(name: str) -> None:
    """As it was chosen, in less than half a minute; so does the kernel, in memory of a few arrays like the query."""
    query, *_ = CASES[name].arrays()
    for row in (row for row in ROWS if row["case"] == name):
        assert row["chosen"] == targets.chosen_for(CASES[name], targets.CHIPS[row["chip"]])
        kernel = row.get("pallas", row["jattn"])
        for found in (row["jattn"], kernel):
            assert "refused" not in found
            assert found["seconds"] < 30
        if name not in NOT_LINEAR:
            assert kernel["scratch"] <= 6 * math.prod(query.shape) * query.dtype.itemsize
        if "splash" in row and name not in MORE_THAN_SPLASH:
            assert kernel["scratch"] <= row["splash"]["scratch"]


NOT_LINEAR = {"an array", "Gaussian"}  # the first is not itself; the second streams where its products lose digits
# XLA keeps some arrays in the chip's own memory, which counts as none: of these it keeps more for splash.
MORE_THAN_SPLASH = {"float32", "heads of 256"}


def test_what_runs_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m benchmarks gpu`, of one case, on whatever is here; and what is chosen for the others."""
    gpu.main(["--cases", "ALiBi", "--lengths", "64", "--columns", "XLA", "jattn", "--rounds", "1", "--turn", "1"])
    assert "ALiBi, 64 tokens: nothing to compare" in capsys.readouterr().out
    for length in gpu.GOALS:
        chosen = {name: targets.chosen_for(case, "cuda") for name, case in gpu.cases(length).items()}
        assert chosen["full"] == chosen["causal"] == "cudnn"
        assert chosen["ALiBi"] == "streaming"


def test_how_goals_are_judged() -> None:
    row = {"case": "full", "tokens": 4096, "seconds": {"XLA": [4.0, 3.0], "jattn": [3.0], "kernel": [1.0]}}
    assert gpu.verdict(row) == "full, 4,096 tokens: kernel takes 0.33 of XLA's time; the goal, 0.5, is met"
    del row["seconds"]["kernel"]
    assert gpu.verdict(row) == "full, 4,096 tokens: jattn takes 1.00 of XLA's time; the goal, 0.5, is missed"
