"""The `parity` fixture, and the table at the end of the run."""

from collections import defaultdict
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


def pytest_terminal_summary(terminalreporter: Any) -> None:
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
    table = Table(
        title="jattn and PyTorch: the worst relative error against float64",
        caption="training: of the loss at every step, and of the parameters after the last",
    )
    table.add_column("pair", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    for column in ("cases", "outputs", "PyTorch's", "gradients", "PyTorch's"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for (pair, dtype), comparisons in sorted(rows.items(), key=lambda row: row[0][0]):
        worst = [max(errors) for errors in zip(*[c[2:6] for c in comparisons], strict=True)]
        shown = [f"{error:.1e}" for error in worst]
        failed = sum(bool(c.problems) for c in comparisons)
        own = ["", ""] if dtype == "float64" else [shown[2], shown[3]]  # there, PyTorch is the truth
        table.add_row(
            pair,
            dtype,
            str(len(comparisons)),
            shown[0],
            own[0],
            shown[1],
            own[1],
            f"{failed} fail" if failed else "pass",
        )
    terminalreporter.write_line("")
    terminalreporter.write_line(_render(table))


def _render(table: Table) -> str:
    console = Console(width=130)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
