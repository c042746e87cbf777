"""`compare`: both modules once on the same numbers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jattn.parity.comparison import Comparison
from jattn.parity.report import Report
from jattn.parity.settings import checked_comparison, checked_dtypes, checked_inputs
from jattn.parity.sides import check_modules
from jattn.weights.table import Renaming

if TYPE_CHECKING:
    import torch

__all__ = ["compare"]


def compare(
    torch_module: "torch.nn.Module",
    flax_module: Any,
    inputs: Any,
    *,
    flax_inputs: Any = None,
    gradients: bool = True,
    dtypes: Sequence[str] = ("float64", "float32"),
    load: bool = True,
    rename: Renaming | None = None,
    names: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    output: Any = None,
    where: Any = None,
    tolerance: float | Mapping[str, float] | None = None,
    seed: int = 0,
) -> Report:
    """Run a PyTorch module and its port on the same numbers, and say where they first part, and why.

    That is the first difference from which the output's comes: one that what follows makes up for, as an embedding that
    is scaled within its module on one side and after it on the other, is only mentioned.

    Both run in eval mode and on copies: what was given stays as it was. In float64 the error may be 1e-10 of the
    largest entry. In less, the error against PyTorch in float64 on the same rounded numbers may be four times
    PyTorch's own plus 32 ulp. In the float64 run neither side computes in less: a layer of the port that has float32
    as its own dtype computes in float64, and so does PyTorch's module where it casts to float32 by itself.

    Args:
        torch_module: the original.
        flax_module: the port.
        inputs: a tuple or a dictionary of arrays (NumPy's or tensors), the arguments of both; integers and whatever is
            no array are handed over as they are.
        flax_inputs: the port's arguments where they differ in form from PyTorch's; floating-point ones in PyTorch's
            order.
        gradients: whether to compare those of inputs and parameters under a random cotangent.
        dtypes: in which to compare, of float64, float32, bfloat16 and float16.
        load: whether the port gets PyTorch's weights, by `jattn.weights.load_state_dict`; otherwise it has them.
        rename: as there, a `jattn.weights.Table` too.
        names: submodules on PyTorch's side to submodules of the port, where neither their names nor their numbers nor
            their order tell.
        ignore: submodules on PyTorch's side that are not looked at, with all that is in them: paths, or patterns such
            as ``*.rotary_emb``.
        output: what of the results is compared: the name of a field (a side that gives one array gives that), or a
            function that is called with the result of either side. By default all, fields by name, and beside a port
            that gives one array Hugging Face's logits or else last hidden state.
        where: a boolean array, True where outputs count, such as the real tokens ``b t``: of each output whose leading
            axes it fits, and of what modules give in between. Gradients don't see the rest.
        tolerance: how large errors may be, relative to the largest entry, instead of the above: a number, or one a
            dtype.
        seed: of the cotangents.

    Returns:
        The report: print it, or call its ``assert_equal()``. Its notes say what was not compared, what the inputs did
        not reach, such as a window wider than they are long, and how to.

    Raises:
        ValueError: if the inputs hold NaN or don't fit both modules, or the weights can't be loaded.

    Example:

        >>> import numpy as np
        >>> import torch
        >>> from flax import nnx
        >>> report = compare(torch.nn.LayerNorm(8), nnx.LayerNorm(8, rngs=nnx.Rngs(0)), np.eye(3, 8))
        >>> print(report.finding)
        They part in the module itself: its output is off by ... in float64, 1e-10 allowed.
        Cause: layer-norm epsilon. It has epsilon 1e-06 in the port, 1e-05 in PyTorch.
        ...
    """
    check_modules(torch_module, flax_module)
    dtypes = checked_dtypes(dtypes)
    settings = checked_comparison(
        torch_module,
        flax_module,
        gradients=gradients,
        load=load,
        rename=rename,
        names=names,
        ignore=ignore,
        output=output,
        where=where,
        tolerance=tolerance,
        seed=seed,
    )
    given, flax_given = checked_inputs(inputs, flax_inputs)
    comparison = Comparison(torch_module, flax_module, settings)
    for dtype in dtypes:
        comparison.add(dtype, given, flax_given)
    return comparison.report()
