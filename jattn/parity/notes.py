"""Sentences of a report on what was not compared, and on what could not show."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from flax import nnx

from jattn.parity.arrays import FLOAT64, error, largest, numbers, some
from jattn.parity.judge import Sides, as_in_port
from jattn.parity.settings import Comparing
from jattn.weights import state_dict

if TYPE_CHECKING:
    import torch

__all__ = ["constant_parameters", "narrow_buffers_matter", "of_outputs", "of_padding", "of_run", "of_weights"]

BY_ROUNDING = 1e-5  # what rounding changes, in any dtype above bfloat16


def constant_parameters(module: "torch.nn.Module") -> list[str]:
    """Biases of zero and scales of one hide what is wrong with them."""
    constant = [n for n, p in module.named_parameters() if p.numel() > 1 and bool((p == p.flatten()[0]).all())]
    if not constant:
        return []
    return [
        f"all entries of {len(constant)} parameters are equal ({some(constant)}), which may hide a mistake. "
        "Randomise them."
    ]


def of_outputs(compared: str, others: Sequence[str]) -> list[str]:
    """One of several outputs is compared, as the other side has one only."""
    if not others:
        return []
    return [f"of the outputs only {compared} is compared, as one side gives nothing else: not {some(others)}."]


def of_run(sides: Sides, settings: Comparing) -> Iterator[str]:
    """Outputs that hide others, and gradients without a name."""
    for name, x in sides.theirs.outputs.items():
        y = sides.ours.outputs.get(name)
        if y is not None and not np.isfinite(x).all() and not np.isfinite(y).all():
            yield f"{name} is not finite on either side, which hides other differences."
    theirs, ours = sides.theirs.parameter_gradients, sides.ours.parameter_gradients
    if theirs and not ours:
        yield f"gradients of parameters are not compared: {sides.ours.why or 'the port has none by name.'}"
    elif not settings.load and (other := sorted(set(as_in_port(theirs, sides, settings)) ^ set(ours))):
        number = f"{len(other)} gradients are" if len(other) > 1 else "a gradient is"
        yield f"{number} not compared, as only one side has {'them' if len(other) > 1 else 'it'}: {some(other, 6)}."


def of_padding(module: "torch.nn.Module", sides: Sides) -> Iterator[str]:
    """Gradients that differ in the row of a padding token alone."""
    for path, m in module.named_modules():
        theirs = f"{path}.weight".removeprefix(".")
        row, ours = getattr(m, "padding_idx", None), sides.names[theirs].name if theirs in sides.names else ""
        x, y = sides.theirs.parameter_gradients.get(theirs), sides.ours.parameter_gradients.get(ours)
        if isinstance(row, int) and x is not None and y is not None and x.shape == y.shape:
            apart = [i for i in range(len(x)) if error(y[i], x[i], largest(x) or 1.0) > BY_ROUNDING]
            if apart == [row]:
                yield (
                    f"the gradient of {ours} differs in row {row} alone, which is PyTorch's padding_idx and "
                    "gets none there."
                )


def of_weights(low: "torch.nn.Module", port: nnx.Module, sides: Sides, settings: Comparing) -> list[str]:
    """Where the port came with weights of its own."""
    if settings.load:
        return []
    try:
        ours = {name: numbers(x) for name, x in state_dict(port).items()}
    except ValueError:  # layers without a map have no names to compare by
        return []
    theirs = as_in_port({name: numbers(x) for name, x in low.state_dict().items()}, sides, settings)
    other = [name for name, x in theirs.items() if name in ours and error(ours[name], x) > FLOAT64]
    return [f"the port's weights are not PyTorch's: {', '.join(other)}."] if other else []


def narrow_buffers_matter(names: Sequence[str], size: float) -> str:
    """A table that was made in float32 is why float64 doesn't agree."""
    return (
        f"{some(names)} on PyTorch's side {'was' if len(names) == 1 else 'were'} made in float32, whose digits are "
        f"all that float64 has there. What their rounding may change, here by {size:.0e}, is not held against the port."
    )
