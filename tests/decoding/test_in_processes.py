"""Generation where a model's heads lie in several processes."""

import pytest

from tests import processes


@pytest.mark.whole
def test_the_tokens_of_one_process() -> None:
    """Greedy, drawn and by beams."""
    said = processes.run("tests.decoding.in_processes", processes=2)
    assert [out.splitlines()[-1] for out in said] == ["as alone"] * 2
