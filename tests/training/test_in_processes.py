"""`fit` in several processes, each of which reads its own part of the batches."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.training.placement import placement_of
from tests import processes
from tests.training.killed_processes import MODULE, check, told, trained
from tests.training.on_mesh import TOKENS, fit, made


@pytest.mark.parametrize(
    ("count", "devices", "layout", "accumulate"),
    [
        (2, 1, {"data": 2}, 1),
        pytest.param(2, 2, {"data": 2, "fsdp": 2}, 8, marks=pytest.mark.whole),
        pytest.param(4, 1, {"fsdp": 2, "tensor": 2}, 1, marks=pytest.mark.whole),
    ],
)
@pytest.mark.every_case
def test_losses_are_those_of_one_device(count: int, devices: int, layout: dict[str, int], accumulate: int) -> None:
    options = {"epochs": 3, "accumulate": accumulate}
    with jax.enable_x64(True):
        alone = fit(made(), validation=TOKENS[:9], **options)
    said = processes.run(MODULE, json.dumps(layout), json.dumps(options), processes=count, devices=devices)
    for losses, checksum in map(told, said):
        np.testing.assert_allclose(losses, [*alone.step_losses, *alone.validation_losses], rtol=1e-9)
        assert checksum == told(said[0])[1]


def test_examples_are_read_by_whom_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch, the rows of a process's own devices; the data may be larger than its memory."""
    place = placement_of(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), jax.make_mesh((1,), ("data",)), "data")
    read = []

    class Watched(np.ndarray):
        def __getitem__(self, rows: Any) -> np.ndarray:
            read.append(rows)
            return np.asarray(self)[rows]

    monkeypatch.setattr(type(place.mesh), "is_multi_process", True)  # type: ignore[attr-defined]
    data, batches = place.epoch([np.zeros((6, 2)).view(Watched)], jnp.array([[3, 1], [0, 5]]))
    assert data is None
    assert batches[0].shape == (2, 2, 2)
    np.testing.assert_array_equal(read, [[[3, 1], [0, 5]]])


@pytest.mark.whole
@pytest.mark.parametrize(("dies", "epoch"), [(1, "1"), (0, "3")])
def test_a_process_is_killed(dies: int, epoch: str, tmp_path: Path) -> None:
    """Of many other moments: python -m tests.training.killed_processes."""
    expected = trained(tmp_path / "whole")[0]
    check(tmp_path / "killed", dies, (tmp_path / "killed" / epoch).is_dir, expected)
