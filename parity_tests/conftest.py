"""The `parity` fixture, and the table at the end of the run."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from rich.console import Console
from rich.table import Table

from parity_tests.compare import DTYPES, Comparison, compare


class Parity(Protocol):
    """`parity_tests.compare.compare`, whose findings are recorded and asserted."""

    def __call__(self, pair: str, *args: Any, **kwargs: Any) -> None: ...


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Parity:
    """Compare a pair, keep the errors for the table, fail where it parts; without --whole in float64 alone."""

    whole = request.config.getoption("--whole")

    def run(pair: str, *args: Any, **kwargs: Any) -> None:
        if not whole:
            kwargs["dtypes"] = tuple(kwargs.get("dtypes", DTYPES))[:1]
        comparisons = compare(pair, *args, **kwargs)
        for comparison in comparisons:
            request.node.user_properties.append(("parity", tuple(comparison)))  # as pytest-xdist can send it
        problems = [f"{c.pair} in {c.dtype}: {problem}" for c in comparisons for problem in c.problems]
        assert not problems, "\n".join(problems)

    return run


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The arrays are tiny, and threads would only wait for each other."""
    torch.set_num_threads(1)


COLUMNS = ("pair", "dtype", "cases", "outputs", "PyTorch's", "gradients", "PyTorch's", "")
MARKS = ("<!-- written by a command -->", "<!-- until here -->")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table: pair, dtype, cases, worst errors against float64, PyTorch's own beside them, pass or fail."""
    rows: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, value in report.user_properties:
                    if name == "parity":
                        rows[value[0], value[1]].append(Comparison(*value))
    if not rows:
        return
    cells = [row(*key, comparisons) for key, comparisons in sorted(rows.items(), key=lambda row: row[0][0])]
    terminalreporter.write_line("")
    terminalreporter.write_line(_render(cells))
    if page := config.getoption("--parity-table"):
        write(Path(page), cells)


def row(pair: str, dtype: str, comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """A pair in one dtype: the worst of its cases."""
    worst = [max(errors) for errors in zip(*[c[2:6] for c in comparisons], strict=True)]
    shown = [f"{error:.1e}" for error in worst]
    failed = sum(bool(c.problems) for c in comparisons)
    own = ["", ""] if dtype == "float64" else [shown[2], shown[3]]  # there, PyTorch is the truth
    verdict = f"{failed} fail" if failed else "pass"
    return pair, dtype, str(len(comparisons)), shown[0], own[0], shown[1], own[1], verdict


def write(page: Path, rows: Sequence[Sequence[str]]) -> None:
    """Between the marks of a page in Markdown, as a table without columns that say nothing."""
    kept = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    table = "\n".join("| " + " | ".join(line[i].replace("|", "\\|") for i in kept) + " |" for line in lines)
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    page.write_text(f"{before}{MARKS[0]}\n\n{table}\n\n{MARKS[1]}{after}", encoding="utf-8")


def _render(rows: Sequence[Sequence[str]]) -> str:
    table = Table(
        title="jattn and PyTorch: the worst relative error against float64",
        caption="training: of the loss at every step, and of the parameters after the last",
    )
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("pair", "dtype", "") else "right", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    console = Console(width=130)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
