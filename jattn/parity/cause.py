"""What a cause is."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jattn.parity.locate import Site

__all__ = ["Cause", "maps_within"]


class Cause(NamedTuple):
    """A way in which ports go wrong."""

    name: str
    explanation: str
    remedy: str
    test: Callable[[Site], str | None]  # what was found, if this is it
    generic: bool = False  # whether it says little, and counts only if no other fits


def maps_within(site: Site) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weight and bias of the linear maps in the module of a site, also of those whose module is not called."""
    inside = f"{site.torch_name}." if site.torch_name else ""
    layers = [*site.layers, *(layer for layer in site.others if layer.name.startswith(inside))]
    weights = [layer.parameters for layer in layers if layer.parameters.get("weight", np.ones(1)).ndim == 2]
    return [(p["weight"], p.get("bias", np.zeros(len(p["weight"])))) for p in weights]
