"""What a cause is."""

from collections.abc import Callable
from typing import NamedTuple

from jattn.parity.locate import Site

__all__ = ["Cause"]


class Cause(NamedTuple):
    """A way in which ports go wrong."""

    name: str
    explanation: str
    remedy: str
    test: Callable[[Site], str | None]  # what was found, if this is it
    generic: bool = False  # whether it says little, and counts only if no other fits
