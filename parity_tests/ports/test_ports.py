"""Ports of seven models are equal as they stand, and the port debugger finds what is wrong with them if anything is.

Against `transformers`' own classes, made and called as always, tiny and with random weights.
"""

import warnings

import pytest

pytest.importorskip("transformers", reason="no transformers: ports were not compared with its models")

from jattn.parity import CAUSES
from parity_tests.ports.port import Port, look_for
from parity_tests.ports.table import PORTS

PLANTED = [(port, mistake) for port in PORTS.values() for mistake in port.mistakes]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("port", "implementation"),
    [pytest.param(port, name, id=f"{port.name}, {name}") for port in PORTS.values() for name in port.implementations],
)
def test_equal_as_it_stands(port: Port, implementation: str) -> None:
    port.compare(implementation).assert_equal()


@pytest.mark.whole
def test_as_many_are_found_as_is_said() -> None:
    """Of all mistakes: 95 of 100 located, the cause of 80 of 100 named, and none named wrongly."""
    assert len(PLANTED) >= 120
    with warnings.catch_warnings(action="ignore"):
        found = [look_for(*each) for each in PLANTED]
    assert not [one for one in found if one.wrong]
    assert sum(one.located for one in found) >= 0.95 * len(found), [one for one in found if not one.located]
    assert sum(one.named for one in found) >= 0.8 * len(found), [one for one in found if not one.named]


def test_expected_causes_are_some_that_there_are() -> None:
    known = {cause.name for cause in CAUSES}
    assert {name for _, mistake in PLANTED for name in mistake.causes} <= known
