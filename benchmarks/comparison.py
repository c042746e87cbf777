"""Columns that do the same work: compiled, held to one another's results, and then measured in turns."""

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.rounds import Run, measure
from benchmarks.scratch import scratch_of

OURS = "jattn"
FLOOR = "products alone"  # what no way to do the rest can avoid
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 4e-2}  # of the largest entry; bfloat16 has 8 bits
MIB = 2**20
PASSES = ["forward", "forward+backward"]
SHORT = {"forward": "fwd", "forward+backward": "fwd+bwd"}  # in a table


class Column(NamedTuple):
    """One way to do the work."""

    call: Callable[[], tuple[Any, ...]]  # its results may still be under way
    scratch: int  # bytes beside arguments and results
    compiling: float | None = None  # seconds, where there is something to compile ahead
    comparable: bool = True  # whether its results are those of the others


class LeftOut(Exception):
    """Why a column has no part in a row."""


Row = dict[str, Any]
Maker = Callable[[], Column]


def jitted(f: Callable[..., Any], *arguments: Any) -> Column:
    """A JAX function, compiled for these arguments."""
    start = time.perf_counter()
    try:
        compiled = jax.jit(f).lower(*arguments).compile()
    except (ValueError, NotImplementedError, RuntimeError) as error:  # RuntimeError: also the compiler's
        raise LeftOut(f"refused: {str(error).splitlines()[0]}") from error
    seconds = time.perf_counter() - start
    return Column(lambda: compiled(*arguments), scratch_of(compiled), seconds)


def with_gradients(f: Callable[..., Any], differentiated: int) -> Callable[..., tuple[Any, ...]]:
    """f's result and its gradients for the first ``differentiated`` arguments, as a function that takes the cotangent
    of the result before all else."""

    def both(cotangent: Any, *arguments: Any) -> tuple[Any, ...]:
        rest = arguments[differentiated:]
        output, pull = jax.vjp(lambda *inputs: f(*inputs, *rest), *arguments[:differentiated])
        return output, *pull(cotangent)

    return both


def torch_column(
    f: Callable[..., Any],
    inputs: Iterable[np.ndarray],
    cotangent: np.ndarray | None,
    *,
    dtype: str = "float32",
    view: Callable[[Any], Any] = lambda x: x,
    scratch: int = 0,
) -> Column:
    """A PyTorch function; given a cotangent, also its gradients for all inputs. ``view`` of each result is compared."""
    import torch

    def tensor(x: np.ndarray) -> Any:
        return torch.tensor(x, dtype=getattr(torch, dtype))

    tensors = [tensor(x).requires_grad_(cotangent is not None) for x in inputs]
    if cotangent is None:

        def forward() -> tuple[Any, ...]:
            with torch.no_grad():
                return (view(f(*tensors)),)

        return Column(forward, scratch)
    pull = tensor(cotangent)

    def both() -> tuple[Any, ...]:
        output = f(*tensors)
        gradients = torch.autograd.grad(output, tensors, pull)
        return tuple(view(x) for x in (output.detach(), *gradients))

    return Column(both, scratch)


def compare(makers: Mapping[str, Maker], *, rounds: int, tolerance: float | None, limit: float, at_least: float) -> Row:
    """Measures the columns whose results are the first one's within ``tolerance``; says why the others are left out."""
    columns: dict[str, Column] = {}
    left_out: dict[str, str] = {}
    expected: list[np.ndarray] = []
    for name, make in makers.items():
        try:
            column = make()
            if column.scratch > limit:
                raise LeftOut(f"needs {column.scratch / 2**30:.1f} GiB")
            if column.comparable:
                results = [_as_numpy(x) for x in column.call()]
                expected = expected or results
                if tolerance is not None and (error := _error(results, expected)) > tolerance:
                    raise LeftOut(f"does other work: its result is {error:.1e} from that of {next(iter(columns))}")
            columns[name] = column
        except ImportError as error:
            left_out[name] = f"{error}. Install it with: pip install -e '.[bench]'"
        except LeftOut as reason:
            left_out[name] = str(reason)
    latest: list[Any] = []
    runs = {name: _run(column, latest) for name, column in columns.items()}
    _, seconds = measure(runs, rounds, at_least, wait=lambda: jax.block_until_ready(latest))
    compiled = {name: column for name, column in columns.items() if column.compiling is not None}
    return {
        "seconds": seconds,
        "seconds to compile": {name: column.compiling for name, column in compiled.items()},
        "bytes of scratch": {name: column.scratch for name, column in compiled.items()},
        "left out": left_out,
    }


def _run(column: Column, latest: list[Any]) -> Run:
    """On a GPU without waiting for the results: that would measure the calls, not the work."""
    one_by_one = jax.default_backend() == "cpu"

    def run() -> int:
        latest[:] = column.call()
        if one_by_one:
            jax.block_until_ready(latest)
        return 1

    return run


def _as_numpy(x: Any) -> np.ndarray:
    return np.asarray(x.float() if str(getattr(x, "dtype", "")) == "torch.bfloat16" else x).astype(np.float64)


def _error(results: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest difference, relative to the largest entry; infinite where the shapes differ, or for a NaN."""
    worst = 0.0
    for x, y in zip(results, expected, strict=True):
        if x.shape != y.shape:
            return float("inf")
        error = np.abs(x - y).max() / max(np.abs(y).max(), np.finfo(np.float64).tiny)
        worst = max(worst, float(error) if np.isfinite(error) else float("inf"))
    return worst


# ----------------------------------------------------------------------------------------------------------------------
# The command line, the table and the file.


def run(
    title: str,
    works: Iterable[tuple[Row, Any, float | None]],
    makers: Mapping[str, Callable[[Any], Column]],
    options: argparse.Namespace,
    **about: Any,
) -> list[Row]:
    """Compares the columns at each work, which comes with its labels and tolerance; keeps and prints the rows."""
    columns = [name for name in makers if name in options.columns]
    rows: list[Row] = []
    labels: list[str] = []
    for label, work, tolerance in works:
        labels = list(label)
        row = compare(
            {name: functools.partial(makers[name], work) for name in columns},
            rounds=options.rounds,
            tolerance=tolerance,
            limit=options.limit * 2**30,
            at_least=options.turn / 1000,
        )
        rows.append(label | row)
        print_left_out(rows[-1], labels)
        write(options.json, title=title, labels=labels, columns=columns, rows=rows, **about)  # as the whole takes long
    print_table(table_of(title, rows, labels, columns))
    return rows


def parser_of(name: str, doc: str | None, columns: Iterable[str]) -> argparse.ArgumentParser:
    """With the options that all comparisons have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--columns", nargs="+", choices=list(columns), default=list(columns), help="of these only")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES, help="both by default")
    parser.add_argument("--rounds", type=at_least_one, default=7, help="in each, every column takes its turn")
    parser.add_argument("--turn", type=float, default=20.0, metavar="MS", help="repeat what is shorter, 20 by default")
    parser.add_argument("--limit", type=float, default=6.0, metavar="GiB", help="leave out what needs more memory")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write all times there")
    return parser


def at_least_one(text: str) -> int:
    """A number of the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1. Got {number}.")
    return number


def new_file(text: str) -> Path:
    """A file of the command line that can be written once the measurement is over."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file in a folder that exists. Got {text}.")
    return path


def best_of(row: Row, name: str) -> float:
    """Seconds of the fastest round."""
    return min(row["seconds"][name])


def print_left_out(row: Row, labels: Iterable[str]) -> None:
    """Says which columns have no part in a row, and why."""
    for name, reason in row["left out"].items():
        print(f"{', '.join(str(row[label]) for label in labels)}: {name} {reason}", flush=True)


def table_of(title: str, rows: list[Row], labels: list[str], columns: list[str]) -> Table:
    """jattn beside the first of the other columns, in milliseconds; and the ratios of all."""
    peers = [name for name in columns if name != OURS]
    baseline, *others = peers or [OURS]
    scratch = [name for name in columns if name in (OURS, "jax.nn")]
    table = new_table(title)
    table.caption = (
        "ms: the fastest round, and the median one. Then ratios of the fastest, less is better: jattn's to "
        f"{baseline}'s and to the best of all others', and the others' to {baseline}'s. MiB: scratch memory."
    )
    for label in labels:
        table.add_column(label, no_wrap=True)
    ours = [f"{OURS}\nms", f"{baseline}\nms", f"{OURS} /\n{baseline}", "/ best"]
    ratios = [name.replace(" ", "\n") for name in others]
    for header in [*ours, *ratios, "compile\ns", *[f"{name}\nMiB" for name in scratch]]:
        table.add_column(header, justify="right", no_wrap=True)

    def cells(row: Row) -> Iterable[str]:
        times, compiling = row["seconds"], row["seconds to compile"]
        fastest = min(
            (name for name in peers if name in times and name != FLOOR), key=lambda name: best_of(row, name), default=""
        )

        def ratio(name: str, to: str) -> str:
            return f"{best_of(row, name) / best_of(row, to):.2f}" if name in times and to in times else "-"

        yield from (SHORT.get(row[label], str(row[label])) for label in labels)
        for name in (OURS, baseline):
            yield " ".join(_milliseconds(f(times[name])) for f in (min, statistics.median)) if name in times else "-"
        yield ratio(OURS, baseline)
        yield ratio(OURS, fastest)
        yield from (ratio(name, baseline) for name in others)
        yield f"{compiling[OURS]:.1f}" if OURS in compiling else "-"
        bytes_of = row["bytes of scratch"]
        yield from (mebibytes(bytes_of[name]) if name in bytes_of else "-" for name in scratch)

    for i, row in enumerate(rows):
        table.add_row(*cells(row), end_section=i + 1 < len(rows) and row[labels[0]] != rows[i + 1][labels[0]])
    return table


def new_table(title: str) -> Table:
    """Without rows."""
    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)


def _milliseconds(seconds: float) -> str:
    x = 1000 * seconds
    return f"{x:.{2 if x < 10 else 1 if x < 100 else 0}f}"


def mebibytes(count: int) -> str:
    return f"{count / MIB:.0f}" if count >= 10 * MIB else f"{count / MIB:.1f}"


def print_table(table: Table, width: int = 120) -> None:
    """Of the same width on every terminal."""
    Console(width=width).print(table)


def machine() -> dict[str, Any]:
    """Where the figures are from."""
    versions = {}
    for package in ("jax", "jaxlib", "flax", "equinox", "torch", "pykeops", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "versions": versions,
    }


def write(path: Path | None, **results: Any) -> None:
    """The machine and the results, if a file was asked for."""
    if path:
        path.write_text(json.dumps({"machine": machine(), **results}, indent=1))
