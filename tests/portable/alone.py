"""Run by a process of its own: a file of Python, in which neither jattn nor Flax can be imported."""

import runpy
import sys
from typing import Any


class Refused:
    """Finds no module of these."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """As ``sys.meta_path`` asks."""
        if name.split(".")[0] in ("jattn", "flax"):
            raise ImportError(f"{name} is not here")


if __name__ == "__main__":
    sys.meta_path.insert(0, Refused())  # type: ignore[arg-type]
    runpy.run_path(sys.argv[1], run_name="__main__")
