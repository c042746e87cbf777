"""Attention beside its peers: jax.nn, flax.nnx, Equinox, PyTorch's flash attention, and PyTorch as one writes it.

    python -m benchmarks attention [--cases NAME ...] [--lengths T ...] [--columns NAME ...] [--passes PASS ...]
        [--dtype float32] [--implementation NAME] [--rounds 7] [--limit GiB] [--json FILE] [--plot FILE]
    python -m benchmarks attention --read FILE [--plot FILE]

8 heads of 64; one example, or four with lengths that are T / 2 on average. Each column gets the mask in the form it is
fastest with; PyTorch's flash has its own causal, and a tensor otherwise. All do the same work: before a row is measured
their outputs and gradients are held to jattn's, except for dropout, which each draws for itself. The columns take turns
in each round, 20 ms or more each. On request, --columns jattn PyTorch "products alone" shows the floor: jattn's matrix
products without the rest. --read prints the table, and draws the plot, of what --json kept. On a GPU the peers
are cuDNN, in its own words for the mask and with an array, and XLA's own attention, all through jax.nn, in bfloat16 on
1,024 to 32,768 tokens.
"""

import argparse
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from benchmarks.attention_peers import CASES, COLUMNS, FLOOR, GPU_COLUMNS, Work
from benchmarks.comparison import (
    PASSES,
    TOLERANCE,
    Column,
    Row,
    at_least_one,
    best_of,
    new_file,
    parser_of,
    print_table,
    run,
    table_of,
)


def main(arguments: list[str]) -> None:
    gpu = jax.default_backend() == "gpu"
    columns = GPU_COLUMNS if gpu else COLUMNS | FLOOR
    options = _options(arguments, columns, gpu)
    if options.read:
        kept = options.read
        rows = kept["rows"]
        print_table(table_of(kept["title"], rows, kept["labels"], kept["columns"]))
    else:
        makers = columns | {"jattn": functools.partial(columns["jattn"], implementation=options.implementation)}
        rows = run(f"attention, {options.dtype}", _works(options), makers, options)
    if options.plot:
        plot(rows, options.plot)


def _works(options: argparse.Namespace) -> Iterator[tuple[Row, Work, float | None]]:
    for name in options.cases:
        case = CASES[name]
        tolerance = None if case.dropout else TOLERANCE[options.dtype]
        for which in options.passes:
            for t in options.lengths:
                if t >= case.shortest:
                    work = Work(case, t, options.dtype, backward=which == PASSES[1])
                    yield {"case": name, "pass": which, "T": t}, work, tolerance


def plot(rows: list[Row], path: Path) -> None:
    """Time against T, a panel for each case, of forward+backward if it was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    shown = max((row["pass"] for row in rows), key=PASSES.index)
    rows = [row for row in rows if row["pass"] == shown]
    columns = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    across = min(3, len(cases))
    down = -(-len(cases) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(3.6 * across, 3.1 * down), squeeze=False, sharey=True, layout="constrained"
    )
    for case, ax in zip(cases, axes.flat, strict=False):
        of_case = [row for row in rows if row["case"] == case]
        for i, name in enumerate(columns):
            points = [(row["T"], 1000 * best_of(row, name)) for row in of_case if name in row["seconds"]]
            ours = name == "jattn"
            style = dict(color="black", linewidth=2.4, zorder=3) if ours else dict(color=f"C{i - 1}", linewidth=1.3)
            ax.plot(*zip(*points, strict=True) if points else ([], []), marker=".", label=name, **style)
        lengths = [row["T"] for row in of_case]
        ax.set(xscale="log", yscale="log", title=case)
        ax.set_xticks(lengths, [f"{t // 1024}k" if t % 1024 == 0 else str(t) for t in lengths])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    for ax in axes.flat[len(cases) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("tokens")
    for ax in axes[:, 0]:
        ax.set_ylabel("milliseconds")
    figure.suptitle(f"attention, {shown}: less is better")
    handles = axes.flat[0].get_legend_handles_labels()
    figure.legend(*handles, ncols=len(columns), loc="outside lower center", frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def kept_file(text: str) -> dict[str, Any]:
    """What --json kept."""
    try:
        kept = json.loads(Path(text).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"must be a file that --json wrote. Got {text}: {error}") from error
    if not isinstance(kept, dict) or not {"title", "labels", "columns", "rows"} <= kept.keys():
        raise argparse.ArgumentTypeError(f"must be a file that this command's --json wrote. Got {text}.")
    return kept


def _options(arguments: list[str], columns: dict[str, Callable[..., Column]], gpu: bool) -> argparse.Namespace:
    parser = parser_of("attention", __doc__, columns)
    parser.set_defaults(columns=[name for name in columns if name not in FLOOR], limit=24.0 if gpu else 6.0)
    lengths = [2**i for i in (range(10, 16) if gpu else range(7, 14))]
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="of these only")
    parser.add_argument("--lengths", nargs="+", type=at_least_one, default=lengths, metavar="T", help="how many tokens")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16" if gpu else "float32")
    parser.add_argument(
        "--implementation", choices=["dense", "streaming", "cudnn"], help="jattn's, by default its own choice"
    )
    parser.add_argument("--read", type=kept_file, metavar="FILE", help="measure nothing, show what --json kept there")
    parser.add_argument("--plot", type=new_file, metavar="FILE", help="draw time against T there")
    return parser.parse_args(arguments)
