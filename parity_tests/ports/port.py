"""A port, the mistakes that are planted in it, and what the port debugger says of each."""

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import torch
from flax import nnx

from jattn.parity import Report, compare
from jattn.weights import Table, dropped, rename, split
from parity_tests.nn import randomised

__all__ = [
    "SWAPPED_KEYS",
    "SWAPPED_NORMS",
    "Change",
    "Found",
    "Mistake",
    "Parts",
    "Port",
    "argument",
    "block",
    "change_layer",
    "every",
    "look_for",
    "squared_relu",
    "swapped",
    "table_of",
    "whole",
]

# The causes that say what it is where two norms, or keys and values, have each other's weights.
SWAPPED_NORMS = ("swapped norms", "swapped weights", "parameters of a norm")
SWAPPED_KEYS = ("swapped weights", "key and value swapped")

Settings = dict[str, Any]


@dataclasses.dataclass
class Parts:
    """What a port is made of, for a mistake to change in place."""

    settings: Settings
    names: dict[str, Any]
    given: dict[str, Any]  # the port's arguments
    rewire: Callable[[nnx.Module], None] | None = None  # what is done to the port's own code


Change = Callable[[Parts], None]


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One that is made on the way."""

    name: str
    change: Change
    place: str  # a regular expression: the module of PyTorch's in which, or at whose input, it shows first
    causes: tuple[str, ...]  # of `jattn.parity.CAUSES` that say what it is; none where there is no such cause


@dataclasses.dataclass(frozen=True)
class Port:
    """A model of `transformers`, and its port."""

    name: str
    theirs: Callable[[str], torch.nn.Module]  # of an implementation of attention
    ours: Callable[..., nnx.Module]
    settings: Settings
    names: Mapping[str, Any]
    inputs: Mapping[str, Any]
    flax_inputs: Mapping[str, Any]
    mistakes: tuple[Mistake, ...]
    implementations: tuple[str, ...] = ("eager", "sdpa")

    def compare(self, implementation: str = "eager", mistake: Mistake | None = None, **options: Any) -> Report:
        """The report on this port, with a mistake or without."""
        parts = Parts(copy.deepcopy(self.settings), dict(self.names), dict(self.flax_inputs))
        if mistake is not None:
            mistake.change(parts)
        ours = self.ours(**parts.settings, rngs=nnx.Rngs(0))
        if parts.rewire is not None:
            parts.rewire(ours)
        theirs = randomised(self.theirs(implementation))
        given = dict(inputs=dict(self.inputs), flax_inputs=parts.given, rename=table_of(parts.names))
        return compare(theirs, ours, **given, **options)


def table_of(names: Mapping[str, Any]) -> Table:
    """Each of PyTorch's names under the port's; dropped where that is empty; a packed projection taken apart, by head
    where a number of heads is given.
    """
    lines = []
    for theirs, ours in names.items():
        if ours == "":
            lines.append(dropped(theirs))
        elif isinstance(ours, tuple):
            parts = [ours[0] + part for part in ("query", "key", "value")]
            lines.append(split(theirs, parts, num_heads=ours[1]))
        else:
            lines.append(rename(theirs, ours))
    return Table(sorted(lines, key=lambda line: "dropped" not in repr(line)))  # a part's bias before the part


class Found(NamedTuple):
    """What the debugger says of a mistake."""

    port: str
    mistake: str
    place: str  # where it says that they part
    cause: str  # what it names, or nothing
    located: bool
    named: bool
    wrong: bool  # whether what it names first is not the cause


def look_for(port: Port, mistake: Mistake) -> Found:
    """What `compare` finds of a mistake."""
    report = port.compare(mistake=mistake, dtypes=("float64",), gradients=False)
    if report.parting is None:
        return Found(port.name, mistake.name, "nowhere", "", False, False, False)
    p = report.parting
    causes = [] if p.diagnosis is None else [each.cause for each in (p.diagnosis, *p.diagnosis.others)]
    place = f"{p.torch_name or 'the model'}: {p.where}"
    return Found(
        port.name,
        mistake.name,
        place,
        ", ".join(causes),
        re.search(mistake.place, place) is not None,
        bool(set(causes) & set(mistake.causes)),
        bool(causes) and causes[0] not in mistake.causes,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Changes.


def squared_relu(x: Any) -> Any:
    """An activation that a port may have wrongly."""
    return jax.nn.relu(x) ** 2


def whole(**changed: Any) -> Change:
    """Other settings of the model."""

    def change(parts: Parts) -> None:
        parts.settings.update(changed)

    return change


def change_layer(layer: Settings, changed: Mapping[str, Any]) -> None:
    """Other settings of a block; options of its attentions beside those that it has."""
    options = changed.keys() & {"attention_options", "cross_attention_options"}
    layer.update({**changed, **{name: {**layer.get(name, {}), **changed[name]} for name in options}})


def block(i: int, **changed: Any) -> Change:
    """Other settings of one of the blocks."""

    def change(parts: Parts) -> None:
        change_layer(parts.settings["layers"][i], changed)

    return change


def every(**changed: Any) -> Change:
    """Other settings of every block."""

    def change(parts: Parts) -> None:
        for i in range(len(parts.settings["layers"])):
            block(i, **changed)(parts)

    return change


def swapped(one: str, other: str) -> Change:
    """Two of PyTorch's names for each other."""

    def change(parts: Parts) -> None:
        parts.names[one], parts.names[other] = parts.names[other], parts.names[one]

    return change


def argument(name: str, change: Callable[[Any], Any]) -> Change:
    """Another argument of the port's."""

    def changed(parts: Parts) -> None:
        parts.given[name] = change(parts.given[name])

    return changed
