"""`jattn.training.fit` with checkpoints: killed, damaged, of another run, or of another program."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jattn import training
from tests.training.killed import run as run_to_be_killed
from tests.training.test_fit import Linear, X, Y, bits, fit


@pytest.mark.whole
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL after the third epoch at the earliest, wherever the run is then."""
    folder = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "tests.training.killed", str(folder)])
    while process.poll() is None and not any(int(path.name) >= 3 for path in saved(folder)):
        time.sleep(0.001)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run_to_be_killed(folder) == run_to_be_killed(None)


def saved(folder: Path) -> list[Path]:
    """The finished checkpoints."""
    return [path for path in folder.glob("*") if path.name.isdigit()]


def test_damaged_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    whole = run_to_be_killed(None, epochs=6)
    run_to_be_killed(folder, epochs=5)
    assert sorted(os.listdir(folder)) == ["4", "5", "jattn_checkpoints"]
    damage(folder / "5")
    with pytest.warns(UserWarning, match=r"run.5 cannot be read"):
        assert run_to_be_killed(folder, epochs=6) == whole
    assert sorted(path.name for path in saved(folder)) == ["5", "6"]
    damage(folder / "5")
    damage(folder / "6")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(training.CheckpointError, match=r"at least one that can be read. Got 2 .* another folder"),
    ):
        run_to_be_killed(folder, epochs=6)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_checkpoints_that_were_half_deleted(tmp_path: Path) -> None:
    """As by a SIGKILL in the middle: of the older one, which nobody needs, and of the last one."""
    folder = tmp_path / "run"
    whole = run_to_be_killed(None, epochs=6)
    run_to_be_killed(folder, epochs=4)
    shutil.rmtree(folder / "3" / "about")
    (folder / "2").mkdir()
    run_to_be_killed(folder, epochs=5)
    assert sorted(path.name for path in saved(folder)) == ["4", "5"]
    shutil.rmtree(folder / "5" / "about")
    with pytest.warns(UserWarning, match=r"run.5 cannot be read"):
        assert run_to_be_killed(folder, epochs=6) == whole


def test_checkpoints_of_another_program_are_left_alone(tmp_path: Path) -> None:
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(tmp_path)
    manager.save(3, args=ocp.args.StandardSave({"x": X}))
    manager.wait_until_finished()
    with pytest.raises(training.CheckpointError, match=r"a folder of jattn's own. Got .* with 3 of another program"):
        fit(Linear(), checkpoints=tmp_path)
    np.testing.assert_array_equal(manager.restore(3, args=ocp.args.StandardRestore())["x"], X)


@pytest.mark.parametrize("name", ["2", "another.orbax-checkpoint-tmp"])
def test_files_of_the_user_are_left_alone(tmp_path: Path, name: str) -> None:
    """Also in a folder of jattn's own."""
    for folder in (tmp_path, tmp_path / "own"):
        if folder != tmp_path:
            fit(Linear(), checkpoints=folder, epochs=1)
        (folder / name).write_text("mine")
        with pytest.raises(training.CheckpointError, match=f"with {name} of another program"):
            fit(Linear(), checkpoints=folder, epochs=3)
        assert (folder / name).read_text() == "mine"


def test_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fit(Linear(), checkpoints="~/run")
    assert len(saved(tmp_path / "run")) == 2
    (tmp_path / "file").touch()
    for folder in ("file", "file/in it"):
        with pytest.raises(training.CheckpointError, match=r"a folder that can be written to. Got .*file"):
            fit(Linear(), checkpoints=tmp_path / folder)


def test_a_full_disk_leaves_what_was_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("jattn.training.checkpoints.Checkpoints.save", full)
    model, until_then = Linear(), Linear()
    with pytest.raises(OSError, match="No space"):
        fit(model, checkpoints=tmp_path)
    fit(until_then, epochs=1)
    assert bits(model) == bits(until_then)


def damage(checkpoint: Path) -> None:
    """Flip one bit in the middle of the largest file."""
    file = max((file for file in checkpoint.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    model, again = Linear(), Linear()
    history = fit(model, checkpoints=tmp_path)
    repeated = fit(again, checkpoints=tmp_path)
    assert bits(model) == bits(again)
    np.testing.assert_array_equal(history.step_losses, repeated.step_losses)
    longer = fit(Linear(), checkpoints=tmp_path, epochs=5)
    np.testing.assert_array_equal(longer.losses, fit(Linear(), epochs=5).losses)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4, "seed": np.int64(1)}, "batch_size was 8 and is 4; seed was 0 and is 1"),
        ({"optimizer": training.adam(0.1)}, "of another: the optimizer's first state is not as it was"),
        ({"optimizer": training.sgd(0.2)}, "of another: the optimizer's first state is not as it was"),
        ({"train": (X, Y + 1)}, "of another: train or validation is not as it was"),
        ({"validation": (X, Y), "patience": 2}, "patience was None and is 2; train or validation is not"),
        ({"epochs": 2}, "epochs must be at least the 3 of the checkpoint. Got 2"),
    ],
)
def test_checkpoints_of_another_run_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    fit(Linear(), checkpoints=tmp_path)
    with pytest.raises(training.CheckpointError, match=message):
        fit(Linear(), changes.pop("train", (X, Y)), changes.pop("validation", None), checkpoints=tmp_path, **changes)


def test_a_cell_that_is_run_again(tmp_path: Path) -> None:
    model = Linear()
    fit(model, checkpoints=tmp_path)
    with pytest.raises(
        training.CheckpointError, match=r"of another: the model is not as it was .*make it anew"
    ) as error:
        fit(model, checkpoints=tmp_path, epochs=5)
    assert len(str(error.value).replace(str(tmp_path), "")) < 200  # no checksums


def test_patience_goes_on_where_it_was(tmp_path: Path) -> None:
    """Epochs two and three are no better than the first: the run that is resumed after them waits for one more."""
    options: dict[str, Any] = dict(optimizer=training.sgd(0.0), patience=3, checkpoints=tmp_path / "run")
    assert len(fit(Linear(), validation=(X, Y), epochs=3, **options).validation_losses) == 3
    assert len(fit(Linear(), validation=(X, Y), epochs=9, **options).validation_losses) == 4
