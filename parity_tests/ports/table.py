"""What the port debugger finds of each planted mistake, as a table.

    python -m parity_tests.ports.table [--ports NAME ...] [--markdown FILE]

A minute or two on 2 cores.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from parity_tests.ports.decoders import DECODERS
from parity_tests.ports.encoders import ENCODERS
from parity_tests.ports.port import Found, look_for

__all__ = ["PORTS", "shares"]

PORTS = {port.name: port for port in (*DECODERS, *ENCODERS)}
COLUMNS = ("port", "planted", "where they part", "cause")


def shares(found: Sequence[Found]) -> str:
    """How many were located, named, and named wrongly."""
    located, named, wrong = (sum(getattr(one, what) for one in found) for what in ("located", "named", "wrong"))
    n = len(found)
    ports = len({one.port for one in found})
    return (
        f"{n} mistakes in {ports} ports: {located} located ({located / n:.0%}), the cause of {named} named "
        f"({named / n:.0%}), {wrong} named wrongly."
    )


def rows(found: Sequence[Found]) -> list[tuple[str, ...]]:
    return [(one.port, one.mistake, one.place, one.cause or "none named") for one in found]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ports", nargs="+", choices=list(PORTS), default=list(PORTS), help="of these only")
    parser.add_argument("--markdown", type=Path, help="write the table there too")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    planted = [(PORTS[name], mistake) for name in options.ports for mistake in PORTS[name].mistakes]
    found = [look_for(*each) for each in track(planted, "Comparing", transient=True)]
    table = Table(*COLUMNS, title=shares(found))
    for row in rows(found):
        table.add_row(*row)
    Console().print(table)
    if options.markdown is not None:
        lines = [COLUMNS, ("---",) * len(COLUMNS), *rows(found)]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        options.markdown.write_text(f"{HEAD}\n{shares(found)}\n\n{text}\n")


HEAD = """# What the port debugger finds

Mistakes that are planted in ports of seven models of Hugging Face, of random weights, and what `jattn.parity.compare`
says of each. Written by `python -m parity_tests.ports.table --markdown FILE`;
[some of the reports](reports_of_mistakes.md). A mistake counts as named if one of the causes is it, as named wrongly if
the first one is not.
"""


if __name__ == "__main__":
    main(sys.argv[1:])
