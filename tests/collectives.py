"""What the devices of a compiled program send each other."""

import re
from typing import Any

__all__ = ["collectives"]

_NAMES = re.compile(r"\b(all-gather|all-reduce|all-to-all|collective-[a-z]+|reduce-scatter)(?:-start)?\(")


def collectives(compiled: Any) -> list[str]:
    """The name of each collective in what `jax.stages.Lowered.compile` gives."""
    return _NAMES.findall(compiled.as_text())
