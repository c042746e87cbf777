"""Scratch memory of attention in jattn, jax.nn, flax.nnx and Equinox, compiled and never run.

    python -m benchmarks memory [--cases NAME ...] [--lengths T ...] [--columns NAME ...] [--passes PASS ...]
        [--dtype float32] [--implementation NAME] [--json FILE]

The heads and cases of `python -m benchmarks attention`, up to 32,768 tokens. Scratch is what a compiled function needs
beside its arguments and results, as `benchmarks.scratch` finds it.
"""

import argparse
import functools
from pathlib import Path

from rich import box
from rich.table import Table

from benchmarks.attention_peers import CASES, JAX_COLUMNS, Work
from benchmarks.comparison import OURS, PASSES, LeftOut, Row, mebibytes, print_left_out, print_table, write

LABELS = ["case", "pass", "T"]


def main(arguments: list[str]) -> None:
    options = _options(arguments)
    makers = JAX_COLUMNS | {OURS: functools.partial(JAX_COLUMNS[OURS], implementation=options.implementation)}
    rows: list[Row] = []
    for case in options.cases:
        for which in options.passes:
            for t in options.lengths:
                if t < CASES[case].shortest:
                    continue
                work = Work(CASES[case], t, options.dtype, backward=which == PASSES[1], abstract=True)
                row: Row = {"case": case, "pass": which, "T": t, "bytes of scratch": {}, "left out": {}}
                for name in options.columns:
                    try:
                        row["bytes of scratch"][name] = makers[name](work).scratch
                    except (ImportError, LeftOut) as reason:
                        row["left out"][name] = str(reason)
                rows.append(row)
                print_left_out(row, LABELS)
    write(options.json, dtype=options.dtype, labels=LABELS, columns=options.columns, rows=rows)
    print_table(_table(rows, options.columns, options.dtype))


def _table(rows: list[Row], columns: list[str], dtype: str) -> Table:
    table = Table(*LABELS, title=f"scratch memory of attention, {dtype}", box=box.SIMPLE_HEAD, show_edge=False)
    for name in columns:
        table.add_column(f"{name} MiB", justify="right")
    table.add_column("jax.nn / jattn", justify="right")
    for row in rows:
        scratch = row["bytes of scratch"]
        ratio = (
            f"{scratch['jax.nn'] / scratch[OURS]:.1f}" if {"jax.nn", OURS} <= scratch.keys() and scratch[OURS] else "-"
        )
        cells = [mebibytes(scratch[name]) if name in scratch else "-" for name in columns]
        table.add_row(*[str(row[label]) for label in LABELS], *cells, ratio)
    return table


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["full", "causal"], help="of these only")
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=[2**i for i in range(10, 16)], metavar="T", help="how many tokens"
    )
    parser.add_argument("--columns", nargs="+", choices=list(JAX_COLUMNS), default=list(JAX_COLUMNS), help="of these")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES, help="both by default")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--implementation", help="jattn's, by default its own choice")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser.parse_args(arguments)
