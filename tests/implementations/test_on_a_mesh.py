"""Attention on arrays that lie on several devices, in a process that has them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.whole
def test_no_device_waits_for_another() -> None:
    """Every mask, bias and score: no collective, the numbers of one device, all in its place."""
    command = [sys.executable, "-m", "tests.implementations.on_a_mesh"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 5
