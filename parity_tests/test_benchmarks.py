"""The benchmarks: every command runs, its columns do the same work, and its file has what the README's table needs."""

import importlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.attention_peers import CASES, COLUMNS, Work
from benchmarks.comparison import Column, compare, jitted
from benchmarks.rounds import measure
from benchmarks.scratch import scratch_of

COMMANDS = {  # without PyKeOps, which would compile for a minute
    "attention": ["--lengths", "16", "--cases", "dropout 0.1", "--columns", "jattn", "PyTorch", "jax.nn"],
    "kernel_regression": ["--sizes", "16", "--features", "2", "--columns", "jattn", "naive PyTorch", "naive JAX"],
    "additive": ["--lengths", "16", "--width", "8"],
}


def kept(name: str, path: Path, *options: str) -> dict[str, Any]:
    file = path / f"{name}.json"
    importlib.import_module(f"benchmarks.{name}").main([*options, "--json", str(file)])
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_columns_do_the_same_work(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = kept(name, tmp_path, *COMMANDS[name], "--rounds", "1", "--turn", "0")
    assert {"machine", "title", "labels", "columns", "rows"} <= results.keys()
    assert {row["pass"] for row in results["rows"]} == {"forward", "forward+backward"}
    for row in results["rows"]:
        assert set(results["labels"]) <= row.keys()
        without = {"jax.nn"} if row.get("case") == "dropout 0.1" else set()
        assert row["left out"].keys() == without, row["left out"]
        assert row["seconds"].keys() == set(results["columns"]) - without
        assert all(len(seconds) == 1 for seconds in row["seconds"].values())
        assert row["seconds to compile"]["jattn"] > 0
        assert row["bytes of scratch"]["jattn"] > 0
    assert "jattn /" in capsys.readouterr().out


@pytest.mark.whole
def test_every_peer_has_the_same_mask() -> None:
    for name in ("causal", "window 256", "half padded", "segments 512"):
        work = Work(CASES[name], max(16, CASES[name].shortest), "float32", backward=False)
        columns = {column: lambda make=make, work=work: make(work) for column, make in COLUMNS.items()}
        row = compare(columns, rounds=1, tolerance=1e-4, limit=2**30, at_least=0)
        assert not row["left out"]


WHOLE = {
    "models": (["--width", "64", "--layers", "1", "--lengths", "8", "--batch", "2"], 3),
    "decoding": (["--sizes", "384 x 6", "--batches", "1", "--prompts", "4", "--new", "1", "3", "--flat", "40"], 2),
    "serving": (["--jobs", "3", "--slots", "2", "--longest", "16"], 1),
}


@pytest.mark.whole
@pytest.mark.parametrize("name", WHOLE)
def test_whole_models(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="no transformers: whole models were not run beside its own")
    options, rows = WHOLE[name]
    results = kept(name, tmp_path, *options, "--rounds", "1", "--turn", "0")
    assert len(results["rows"]) == rows
    for row in results["rows"]:
        assert not row["left out"]
        assert row["seconds"].keys() == set(results["columns"])


def test_attention_is_read_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attention = importlib.import_module("benchmarks.attention")
    few = ["--cases", "full", "causal", "--columns", "jattn", "PyTorch", "--passes", "forward", "--rounds", "1"]
    kept("attention", tmp_path, "--lengths", "8", "16", "--turn", "0", *few)
    first = capsys.readouterr().out
    attention.main(["--read", str(tmp_path / "attention.json"), "--plot", str(tmp_path / "plot.png")])
    assert capsys.readouterr().out == first
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.whole
def test_memory_is_found_without_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = kept("memory", tmp_path, "--lengths", "4096", "--passes", "forward")
    matrix = 8 * 4096**2 * 4  # bytes of all weights
    for row in results["rows"]:
        assert not row["left out"]
        assert row["bytes of scratch"].keys() == {"jattn", "jax.nn", "nnx", "Equinox"}
        assert all(row["bytes of scratch"][name] >= matrix for name in ("jax.nn", "nnx", "Equinox"))
    assert "jax.nn / jattn" in capsys.readouterr().out


def test_scratch_of_a_sum_is_less_than_its_argument() -> None:
    compiled = jax.jit(lambda x: (2 * x).sum()).lower(jnp.ones((256, 256))).compile()
    assert scratch_of(compiled) < 256 * 256 * 4


def test_other_work_too_much_memory_and_an_absent_package_are_left_out() -> None:
    def absent() -> Column:
        raise ImportError("No module named 'absent'")

    row = compare(
        {
            "jattn": lambda: jitted(lambda x: (x,), jnp.ones(3)),
            "same": lambda: Column(lambda: (np.ones(3),), 0),
            "other": lambda: Column(lambda: (np.ones(3) + 1e-3,), 0),
            "nan": lambda: Column(lambda: (np.full(3, np.nan),), 0),
            "shape": lambda: Column(lambda: (np.ones((3, 1)),), 0),
            "large": lambda: Column(lambda: pytest.fail("was called"), 2**40),
            "absent": absent,
        },
        rounds=2,
        tolerance=1e-4,
        limit=2**30,
        at_least=0,
    )
    assert row["seconds"].keys() == {"jattn", "same"}
    assert row["left out"]["other"] == "does other work: its result is 1.0e-03 from that of jattn"
    assert row["left out"]["nan"] == row["left out"]["shape"] == "does other work: its result is inf from that of jattn"
    assert row["left out"]["large"] == "needs 1024.0 GiB"
    assert row["left out"]["absent"] == "No module named 'absent'. Install it with: pip install -e '.[bench]'"


def test_columns_take_turns() -> None:
    turns: list[str] = []
    runs = {name: lambda name=name: turns.append(name) or 1 for name in "ab"}
    first, seconds = measure(runs, rounds=3)
    # The first run of each; then the rounds, a turn being two runs.
    assert turns == ["a", "b"] + ["a", "a", "b", "b"] * 3
    assert first.keys() == {"a", "b"}
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_a_short_turn_is_many_runs() -> None:
    calls: list[None] = []
    measure({"short": lambda: calls.append(None) or 1}, rounds=1, at_least=0.001)
    assert len(calls) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "--rounds: must be at least 1. Got 0."),
        (["--lengths", "-3"], "--lengths: must be at least 1. Got -3."),
        (["--json", "nowhere/x.json"], "--json: must be a file in a folder that exists. Got nowhere/x.json."),
        (["--read", "nowhere.json"], "--read: must be a file that --json wrote. Got nowhere.json"),
        (["--read", "README.md"], "--read: must be a file that --json wrote. Got README.md"),
        (["--implementation", "flash"], "--implementation: invalid choice: 'flash'"),
    ],
)
def test_mistakes(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module("benchmarks.attention").main(options)
    assert message in capsys.readouterr().err
