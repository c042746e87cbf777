"""The one routine: a function of jattn and its PyTorch counterpart on the same numbers.

Compared are shapes, dtypes, outputs (weights among them), and, under a random cotangent, the gradients of every input
and of every parameter. In float32 and bfloat16 the inputs and parameters are rounded first, so that PyTorch in float64
on the rounded numbers is the truth for both.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jattn.weights import load_state_dict, state_dict, to_numpy, to_tensor
from parity_tests import tolerances

DTYPES = ("float64", "float32", "bfloat16")
Arrays = Mapping[str, np.ndarray]


class Result(NamedTuple):
    """What a run gives: name to array."""

    outputs: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]


class Comparison(NamedTuple):
    """One row for the table at the end: the worst errors of a pair in one dtype, and PyTorch's own."""

    pair: str
    dtype: str
    output_error: float
    gradient_error: float
    reference_output_error: float
    reference_gradient_error: float
    problems: list[str]


def compare(
    pair: str,
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    inputs: Arrays,
    fixed: Mapping[str, Any] | None = None,
    *,
    module: nnx.Module | None = None,
    torch_module: torch.nn.Module | None = None,
    dtypes: tuple[str, ...] = DTYPES,
    seed: int = 0,
) -> list[Comparison]:
    """Run both sides in each dtype and say where they part.

    Args:
        pair: the name in the table.
        ours, theirs: called as ``f(**inputs, **fixed)``, or ``f(module, **inputs, **fixed)`` where there are modules;
            they return an array or a nest of arrays.
        inputs: floating-point arrays in float64, cast to the dtype and differentiated.
        fixed: everything else: integer and boolean arrays are converted to either side's, other values handed over.
        module, torch_module: modules with the same parameters; torch_module's (in float64) are loaded into module.
        dtypes: in which to compare.
        seed: of the cotangents.
    """
    return [_compare(pair, ours, theirs, inputs, fixed or {}, module, torch_module, dtype, seed) for dtype in dtypes]


def _compare(
    pair: str,
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    inputs: Arrays,
    fixed: Mapping[str, Any],
    module: nnx.Module | None,
    torch_module: torch.nn.Module | None,
    dtype: str,
    seed: int,
) -> Comparison:
    rounded = {name: to_numpy(torch.as_tensor(x).to(getattr(torch, dtype))) for name, x in inputs.items()}
    low = None if torch_module is None else copy.deepcopy(torch_module).to(getattr(torch, dtype))
    wide = None if low is None else copy.deepcopy(low).double()
    truth = _run_torch(theirs, {name: x.astype(np.float64) for name, x in rounded.items()}, fixed, wide, seed)
    reference = truth if dtype == "float64" else _run_torch(theirs, rounded, fixed, low, seed)
    with jax.enable_x64(dtype == "float64"):
        result = _run_jax(ours, rounded, fixed, module, low, seed)

    problems: list[str] = []
    worst = {"outputs": [0.0, 0.0], "gradients": [0.0, 0.0]}
    for kind in ("outputs", "gradients"):
        ours_, reference_, truth_ = getattr(result, kind), getattr(reference, kind), getattr(truth, kind)
        if ours_.keys() != reference_.keys():
            problems.append(f"{kind}: ours has {sorted(ours_)}, the reference {sorted(reference_)}")
            continue
        scales = _scales(truth_)
        for name, true in truth_.items():
            a, b = ours_[name], reference_[name]
            if a.shape != b.shape or a.dtype != b.dtype:
                problems.append(f"{name}: ours {a.shape} {a.dtype}, the reference {b.shape} {b.dtype}")
                continue
            error, reference_error = _error(a, true, scales[name]), _error(b, true, scales[name])
            allowed = tolerances.limit(pair, dtype, reference_error)
            if not error <= allowed:
                problems.append(f"{name}: error {error:.2e} > {allowed:.2e} (PyTorch's own {reference_error:.2e})")
            worst[kind] = [max(worst[kind][0], error), max(worst[kind][1], reference_error)]
    return Comparison(
        pair, dtype, worst["outputs"][0], worst["gradients"][0], worst["outputs"][1], worst["gradients"][1], problems
    )


def _run_torch(
    f: Callable[..., Any], inputs: Arrays, fixed: Mapping[str, Any], module: torch.nn.Module | None, seed: int
) -> Result:
    tensors = {name: to_tensor(x).requires_grad_() for name, x in inputs.items()}
    constants = {name: to_tensor(x) if isinstance(x, np.ndarray) else x for name, x in fixed.items()}
    arguments = () if module is None else (module,)
    outputs = _named(f(*arguments, **tensors, **constants))
    cotangents = {name: to_tensor(c).to(outputs[name].dtype) for name, c in _cotangents(outputs, seed).items()}
    leaves = {**tensors, **({} if module is None else dict(module.named_parameters()))}
    differentiable = [name for name, x in outputs.items() if x.requires_grad]
    gradients = torch.autograd.grad(
        [outputs[name] for name in differentiable],
        list(leaves.values()),
        [cotangents[name] for name in differentiable],
        allow_unused=True,  # a boxcar's query, say, whose gradient is zero
        materialize_grads=True,
    )
    return Result(
        {name: to_numpy(x) for name, x in outputs.items()},
        {f"d {name}": to_numpy(g) for name, g in zip(leaves, gradients, strict=True)},
    )


def _run_jax(
    f: Callable[..., Any],
    inputs: Arrays,
    fixed: Mapping[str, Any],
    module: nnx.Module | None,
    torch_module: torch.nn.Module | None,
    seed: int,
) -> Result:
    arrays = {name: jnp.asarray(x) for name, x in inputs.items()}
    constants = {name: jnp.asarray(x) if isinstance(x, np.ndarray) else x for name, x in fixed.items()}
    if module is None or torch_module is None:
        return _run_compiled(lambda _, xs: f(**xs, **constants), {}, arrays, seed)
    load_state_dict(module, torch_module.state_dict())
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)
    result = _run_compiled(lambda p, xs: f(nnx.merge(graph, p, rest), **xs, **constants), parameters, arrays, seed)
    gradients = state_dict(nnx.merge(graph, result.gradients.pop("parameters"), rest))
    return result._replace(
        gradients={**result.gradients, **{f"d {name}": to_numpy(g) for name, g in gradients.items()}}
    )


def _run_compiled(f: Callable[[Any, Any], Any], parameters: Any, inputs: Mapping[str, jax.Array], seed: int) -> Result:
    cotangents = _cotangents(jax.eval_shape(lambda *xs: _named(f(*xs)), parameters, inputs), seed)

    @jax.jit
    def run(parameters: Any, inputs: Any, cotangents: Any) -> Any:
        outputs, pull = jax.vjp(lambda *xs: _named(f(*xs)), parameters, inputs)
        return outputs, pull({name: c.astype(outputs[name].dtype) for name, c in cotangents.items()})

    outputs, (parameter_gradients, gradients) = run(parameters, inputs, cotangents)
    named = {f"d {name}": np.asarray(g) for name, g in gradients.items()}
    extra = {} if not jax.tree.leaves(parameters) else {"parameters": parameter_gradients}
    return Result({name: np.asarray(x) for name, x in outputs.items()}, {**named, **extra})


def _named(nest: Any) -> dict[str, Any]:
    """The arrays of a nest of tuples and lists, by number."""
    leaves = jax.tree.leaves(nest, is_leaf=lambda x: isinstance(x, torch.Tensor))
    return {f"output {i}": leaf for i, leaf in enumerate(leaves)}


def _cotangents(outputs: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(tuple(x.shape)).astype(np.float32) for name, x in outputs.items()}


def _scales(true: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What the errors of each array are relative to: its largest entry.

    Where that is nothing but rounding (the gradient of a key's bias is zero, as softmax does not see what all keys
    share), the largest entry of all.
    """
    largest = {name: float(np.max(np.abs(x), initial=0.0, where=np.isfinite(x))) for name, x in true.items()}
    most = max(largest.values(), default=0.0)
    return {name: x if x > 1e-12 * most else most or 1.0 for name, x in largest.items()}


def _error(x: np.ndarray, true: np.ndarray, scale: float) -> float:
    """The largest difference on that scale. Equal infinities differ by nothing; NaN by NaN."""
    x, true = x.astype(np.float64), true.astype(np.float64)
    same = x == true
    return float(np.max(np.abs(np.where(same, 0, x - np.where(same, 0, true))), initial=0.0)) / scale
