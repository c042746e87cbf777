"""The kept run of `python -m benchmarks targets --peers`, against what is chosen today; it needs no compiler."""

import json
import math

import pytest

from benchmarks import targets

ROWS = json.loads(targets.KEPT.read_text())["rows"]
CASES = targets.cases()


def test_every_case_is_there() -> None:
    assert {(row["case"], row["chip"]) for row in ROWS} == {(name, chip) for name in CASES for chip in targets.CHIPS}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.every_case
def test_what_is_chosen_compiles(name: str) -> None:
    """As it was chosen, in less than half a minute, in memory linear in the sequence, at most splash attention's."""
    for row in (row for row in ROWS if row["case"] == name):
        assert row["chosen"] == targets.chosen_for(CASES[name])
        found = row["jattn"]
        assert "refused" not in found
        assert found["seconds"] < 30
        if row["chosen"] == "pallas" and name not in (
            "an array",
            "Gaussian",
        ):  # which are not linear, or stream as well
            arguments = sum(math.prod(x.shape) * x.dtype.itemsize for x in CASES[name].arrays())
            assert found["scratch"] <= 2 * arguments
        if "splash" in row and "refused" not in row["splash"]:
            assert found["scratch"] <= row["splash"]["scratch"]
