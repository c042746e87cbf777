"""Causes in how sublayers, residuals and norms are put together.

What is known of the port are its calls. A cause here says which call of PyTorch's belongs to which of the port's, and
that the numbers that part are those of the other wiring.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jattn.parity.cause import Cause, outermost
from jattn.parity.locate import NamedArray, Site
from jattn.parity.trace import ModuleCall

__all__ = ["BLOCK_CAUSES", "stand_ins"]


def _is_norm(call: ModuleCall) -> bool:
    return "norm" in f"{call.kind} {call.path.rpartition('.')[2]}".lower() or call.path.rpartition(".")[2][:3] == "ln_"


def _takes(site: Site, call: ModuleCall, x: np.ndarray) -> bool:
    return any(y.size == x.size and site.same(y, x) for y in call.inputs)


def _makes(site: Site, call: ModuleCall, x: np.ndarray) -> bool:
    return any(y.size == x.size and site.same(y, x) for y in call.outputs)


def _is_pair(site: Site, theirs: ModuleCall, ours: ModuleCall) -> bool:
    return site.pairs.get(theirs.path) == ours.path


def _sublayers(site: Site, calls: list[ModuleCall], x: np.ndarray) -> list[ModuleCall]:
    """The outermost calls, no norms, in this module that take these numbers."""
    taking = [call for call in calls[:-1] if not _is_norm(call) and _takes(site, call, x)]
    return [call for call in taking if not any(call.within(other) for other in taking)]


def _norms_that_part(site: Site) -> Iterator[tuple[ModuleCall, ModuleCall]]:
    """Norms of both sides that belong together and take the numbers that part."""
    for theirs in filter(_is_norm, site.torch_calls[:-1]):
        for ours in filter(_is_norm, site.flax_calls[:-1]):
            if _is_pair(site, theirs, ours) and _takes(site, theirs, site.torch) and _takes(site, ours, site.flax):
                yield theirs, ours


# ----------------------------------------------------------------------------------------------------------------------
# Where norms stand.


def norm_before(site: Site) -> str | None:
    """PyTorch's f(x), and later norm(x + f(x)); the port's f(norm(x))."""
    for norm in filter(_is_norm, site.flax_calls[:-1]):
        if not (_takes(site, norm, site.torch) and _makes(site, norm, site.flax)):
            continue
        for theirs in filter(_is_norm, site.torch_calls[:-1]):
            if not _is_pair(site, theirs, norm):
                continue
            for f in _sublayers(site, site.torch_calls, site.torch):
                total = [site.torch + y for y in f.outputs if y.shape == site.torch.shape]
                if any(_takes(site, theirs, y) for y in total):
                    return f"{f.path} is given {norm.path} of what it is given in PyTorch."
    return None


def norm_after(site: Site) -> str | None:
    """PyTorch's f(norm(x)); the port's f(x), and later norm(x + f(x))."""
    u = site.torch
    for theirs, ours in _norms_that_part(site):
        for f in _sublayers(site, site.flax_calls, u):
            if any(site.is_flax(u + y) for y in f.outputs if y.shape == u.shape):
                after = [x for x in site.torch_calls if _is_pair(site, x, f)]
                if any(_takes(site, x, y) for x in after for y in theirs.outputs):
                    return f"{ours.path} is given the sum of {f.path} and its input, not that input."
    return None


def norm_of_sum(site: Site) -> str | None:
    """PyTorch's x + norm(f(x)); the port's norm(x + f(x))."""
    for theirs, ours in _norms_that_part(site):
        if not any(_makes(site, f, site.torch) for f in site.torch_calls if f is not theirs):
            continue
        for x in site.before:
            if x.array.shape == site.torch.shape and site.is_flax(x.array + site.torch):
                return f"{ours.path} is given the sum with {x.name} in the port, the output alone in PyTorch."
    return None


def norm_of_output(site: Site) -> str | None:
    """PyTorch's norm(x + f(x)); the port's x + norm(f(x))."""
    for _, ours in _norms_that_part(site):
        for x, _ in _residuals(site):
            normed = [x.array + y for y in ours.outputs if y.shape == x.array.shape]
            later = [*site.flax_calls[site.flax_calls.index(ours) + 1 :]]
            if any(_takes(site, call, y) or _makes(site, call, y) for call in later for y in normed):
                return f"{ours.path} is given the output alone in the port, the sum with {x.name} in PyTorch."
    return None


class StandIn(NamedTuple):
    """A call of the port's that takes what another module takes in PyTorch."""

    theirs: ModuleCall  # PyTorch's call, which takes the numbers
    ours: ModuleCall  # the port's call that takes them
    twin: str  # PyTorch's module with the weights that it has


def stand_ins(site: Site) -> Iterator[StandIn]:
    """Where the numbers that part go into a module of PyTorch's, and in the port not into its pair but another one."""
    u, there = site.torch, {ours: theirs for theirs, ours in site.pairs.items()}
    for theirs in (call for call in site.torch_calls[:-1] if call.outputs and _takes(site, call, u)):
        pair = site.pairs.get(theirs.path)
        for ours in (call for call in site.flax_calls[:-1] if call.outputs and call.path != pair):
            alike = _is_norm(ours) == _is_norm(theirs) and ours.outputs[0].size == theirs.outputs[0].size
            if pair is None or not alike or ours.path not in there or not _takes(site, ours, u):
                continue
            twin = there[ours.path]
            if not any(_takes(site, x, u) for x in site.torch_calls if x.path == twin):
                yield StandIn(theirs, ours, twin)


def _swapped(site: Site) -> Iterator[tuple[str, bool]]:
    """Another norm of the port's that takes what PyTorch's norm takes; whether it goes to the same sublayer."""
    for theirs, other, twin in stand_ins(site):
        if not _is_norm(theirs) or not _is_norm(other):
            continue
        fed = _sublayers(site, site.flax_calls, other.outputs[0])
        if not any(_takes(site, call, other.outputs[0]) for call in site.flax_calls[:-1]):  # what it gives is added
            yield f"{other.path} is called in the port where PyTorch calls {theirs.path}.", True
        for f in fed:
            mates = [x for x in site.torch_calls if _is_pair(site, x, f)]
            its = [y for x in site.torch_calls if x.path == twin for y in x.outputs]
            if any(_takes(site, x, y) for x in mates for y in theirs.outputs):
                yield f"{f.path} is given {other.path} in the port, {theirs.path} in PyTorch.", True
            elif any(_takes(site, x, y) for x in mates for y in its):
                yield f"{f.path} comes first in the port, what is given {theirs.path} in PyTorch.", False


def swapped_norms(site: Site) -> str | None:
    return next((text for text, same in _swapped(site) if same), None)


def order_of_sublayers(site: Site) -> str | None:
    return next((text for text, same in _swapped(site) if not same), None)


def norm_twice(site: Site) -> str | None:
    """The port normalises what PyTorch goes on with as it is, and no other wiring says why."""
    if norm_before(site) is not None or not any(site.is_torch(x.array) for x in site.before):
        return None
    for norm in filter(_is_norm, site.flax_calls[:-1]):
        if not (_takes(site, norm, site.torch) and _makes(site, norm, site.flax)):
            continue
        for theirs in filter(_is_norm, site.torch_calls[:-1]):
            if _makes(site, theirs, site.torch):
                return f"{norm.path} normalises in the port what {theirs.path} has made in PyTorch."
        if not any(_takes(site, x, site.torch) for x in filter(_is_norm, site.torch_calls[:-1])):
            return f"{norm.path} normalises in the port what PyTorch takes as it is."
    return None


# ----------------------------------------------------------------------------------------------------------------------
# Residuals, and what is left out.


def _residuals(site: Site) -> Iterator[tuple[NamedArray, NamedArray]]:
    """What PyTorch adds to the numbers with which the port goes on, and these."""
    for v in (x for x in site.before if x.array.size == site.flax.size and site.is_flax(x.array)):
        for u in site.before:
            if u.array.shape == site.torch.shape and site.is_torch(u.array + v.array.reshape(u.array.shape)):
                yield u, v
                break


def missing_residual(site: Site) -> str | None:
    if norm_of_output(site) is not None:
        return None
    u, v = next(_residuals(site), (None, None))
    if u is None or v is None or _is_output(u, v) or any(u.array is x.array for x in site.inputs[1:]):
        return None  # what a module is handed to add, the port may well add outside of it
    return f"{u.name} is added in PyTorch only."


def parallel(site: Site) -> str | None:
    """``x + f(x) + g(x)`` for ``y + g(y)`` with ``y = x + f(x)``: g does not see what f gives."""
    u, v = next(_residuals(site), (None, None))
    if u is None or v is None or not _is_output(u, v):
        return None
    return f"What follows {u.name} sees {v.name} without it in the port."


def _is_output(u: NamedArray, v: NamedArray) -> bool:
    """Whether the first is what a submodule gives, and the second what goes around it."""
    return "input" not in u.name and "input" in v.name


def left_out(site: Site) -> str | None:
    for call in (c for c in site.torch_calls if c.outputs and c.path != site.torch_name):
        y = call.outputs[0]
        if site.is_torch(y) and any(site.is_flax(x) for x in call.inputs):
            return f"{call.path} is not called in the port."
        for u in (x.array for x in outermost(site) if x.array.shape == site.torch.shape == y.shape):
            if site.is_torch(u + y) and any(x.shape == u.shape and site.is_flax(u + x) for x in call.inputs):
                return f"{call.path} is not called in the port."
    return None


def residual_factor(site: Site) -> str | None:
    """``x + c f(x)`` with another c."""
    looked_up = {call.path for call in site.torch_calls if "embed" in call.kind.lower()}
    same = [x for x in outermost(site) if x.array.shape == site.torch.shape and x.name not in looked_up]
    for u in same:
        for f in (x for x in same if x is not u):
            theirs, ours = (_factor(y - u.array, f.array) for y in (site.torch, site.flax))
            if abs(theirs - ours) < 1e-9 or 0 in (theirs, ours):
                continue
            if site.is_torch(u.array + theirs * f.array) and site.is_flax(u.array + ours * f.array):
                return f"{f.name} is added {ours:.6g} times in the port, {theirs:.6g} times in PyTorch."
    return None


def _factor(y: np.ndarray, x: np.ndarray) -> float:
    return round(float((x * y).sum() / ((x**2).sum() or 1.0)), 9)


BLOCK_CAUSES = [
    Cause(
        "pre-norm for post-norm",
        "PyTorch's module normalises after the residual, norm(x + f(x)), the port before the sublayer, x + f(norm(x)).",
        "Normalise after the residual, as PyTorch's own layers do without norm_first.",
        norm_before,
    ),
    Cause(
        "post-norm for pre-norm",
        "PyTorch's module normalises before the sublayer, x + f(norm(x)), the port after the residual, norm(x + f(x)).",
        "Normalise before the sublayer, as PyTorch's own layers do with norm_first.",
        norm_after,
    ),
    Cause(
        "norm of the sum for norm of the output",
        "PyTorch's module normalises what a sublayer gives and adds that, x + norm(f(x)); the port normalises the sum.",
        "Normalise the output, then add it, as Gemma 2 and OLMo 2 do.",
        norm_of_sum,
    ),
    Cause(
        "norm of the output for norm of the sum",
        "PyTorch's module normalises the sum, norm(x + f(x)); the port the output of the sublayer, x + norm(f(x)).",
        "Add, then normalise.",
        norm_of_output,
    ),
    Cause(
        "swapped norms",
        "The norms of a block have each other's place.",
        "Call each where PyTorch's module calls the one of its name.",
        swapped_norms,
    ),
    Cause(
        "order of sublayers",
        "The sublayers of a block come in another order, such as cross-attention before self-attention.",
        "Call them in PyTorch's order.",
        order_of_sublayers,
    ),
    Cause(
        "a norm too many",
        "The port normalises what PyTorch goes on with as it is.",
        "Leave the norm out here.",
        norm_twice,
    ),
    Cause(
        "missing residual",
        "What goes around a sublayer is not added to its output.",
        "Add it: x + f(x).",
        missing_residual,
    ),
    Cause(
        "sublayers in parallel",
        "Attention and feed-forward network see the same x, x + f(x) + g(x); or one sees what the other adds.",
        "Add the output of the first sublayer before the second sees it, or have both see the same.",
        parallel,
    ),
    Cause(
        "module left out",
        "The port goes on with the input of a module instead of its output.",
        "Call it.",
        left_out,
    ),
    Cause(
        "factor of a residual",
        "The output of a sublayer is multiplied before it is added, by another number or on one side only.",
        "Give the port PyTorch's factor; configs call it residual_multiplier.",
        residual_factor,
    ),
]
