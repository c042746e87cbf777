"""What a cause is."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jattn.parity.locate import NamedArray, Site

__all__ = ["Cause", "agreed_within", "is_own", "maps_within", "outermost"]


class Cause(NamedTuple):
    """A way in which ports go wrong."""

    name: str
    explanation: str
    remedy: str
    test: Callable[[Site], str | None]  # what was found, if this is it
    rank: int = 0  # 1 fits a number that may be anything, 2 says little; each counts only if none of a lower rank fits


def maps_within(site: Site) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weight and bias of the linear maps that a module holds and computes with without calling them."""
    called = {call.path for call in site.torch_calls if call.path != site.torch_name}
    layers = [
        layer
        for layer in (*site.layers, *site.others)
        if layer.name == site.torch_name
        or (layer.name.rpartition(".")[0] == site.torch_name and layer.name not in called)
    ]
    weights = [layer.parameters for layer in layers if layer.parameters.get("weight", np.ones(1)).ndim == 2]
    return [(p["weight"], p.get("bias", np.zeros(len(p["weight"])))) for p in weights]


def agreed_within(site: Site) -> set[str]:
    """The submodules whose outputs agree."""
    return {x.name for x in site.before if not x.name.startswith(("its input", "the input of "))}


def is_own(site: Site, path: str) -> bool:
    """Whether what this module computes may be what parts: another one that has a match would be the site itself."""
    return path == site.torch_name or path not in site.pairs


def outermost(site: Site) -> list[NamedArray]:
    """What agreed, without what is inside of a submodule that agrees: from these the module itself computes."""
    agreed = agreed_within(site)

    def inside(path: str) -> bool:
        outer = path.rpartition(".")[0]
        return bool(outer) and outer != site.torch_name and (outer in agreed or inside(outer))

    return [x for x in site.before if not inside(x.name.removeprefix("the input of "))]
