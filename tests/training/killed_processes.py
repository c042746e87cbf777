"""One of two processes that train is killed, at any moment.

python -m tests.training.killed_processes [--moments 20] [--seed 0]
"""

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import processes

MODULE = "tests.training.in_processes"


def told(said: str) -> Any:
    """What a process printed in the end, after what Gloo says of its ranks."""
    return json.loads(said.splitlines()[-1])


def trained(folder: Path) -> list[Any]:
    """What each process tells of a run with checkpoints there, whose last whole one it goes on from."""
    return [told(said) for said in processes.run(MODULE, *_arguments(folder), processes=2)]


def check(folder: Path, dies: int, happened: Callable[[], bool], expected: Any) -> None:
    """The other ends with an error that says which; started again, both end as if nothing had happened."""
    errors = processes.run_until(happened, MODULE, *_arguments(folder), processes=2, dies=dies)
    named = r"[Tt]ask:?\s?1" if dies == 1 else r"leader|[Tt]ask:?\s?0|coordination service"
    assert re.search(named, errors[1 - dies]), errors[1 - dies]
    for found in trained(folder):
        assert found == expected


def _arguments(folder: Path) -> tuple[str, str]:
    return json.dumps({"fsdp": 2}), json.dumps({"epochs": 20, "checkpoints": str(folder)})


def main(moments: int, seed: int) -> None:
    """Moments are spread over the run: before its first step, between epochs, while a checkpoint is written."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        expected = trained(Path(folder) / "whole")[0]
        seconds = time.monotonic() - start
        for i in range(moments):
            at, dies = draw.uniform(0.2, 0.9) * seconds, draw.randrange(2)
            start = time.monotonic()
            into = Path(folder) / str(i)
            check(into, dies, lambda start=start, at=at: time.monotonic() > start + at, expected)
            print(f"{i + 1}: process {dies} after {at:.1f} s of {seconds:.1f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
