"""Attention on arrays that lie on several devices, in a process that has them."""

import pytest

from tests import processes


@pytest.mark.whole
def test_no_device_waits_for_another() -> None:
    """Every mask, bias and score: no collective, the numbers of one device, all in its place."""
    assert len(processes.lines_of("tests.implementations.on_a_mesh")) == 5


@pytest.mark.parametrize(("count", "devices"), [(2, 2), (4, 1)])
def test_arrays_in_several_processes(count: int, devices: int) -> None:
    said = processes.run("tests.implementations.in_processes", processes=count, devices=devices)
    assert said == ["Explicit 4 devices\nAuto 4 devices\n"] * count


def test_a_process_that_fails_is_named_and_none_is_left() -> None:
    with pytest.raises(RuntimeError, match=r"tests.no_such_module failed in process 0 of 2[^$]*No module named"):
        processes.run("tests.no_such_module", processes=2)
