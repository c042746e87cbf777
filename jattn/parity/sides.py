"""Either side made ready and run: in a dtype, in eval mode, on copies, so that what was given stays as it was."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jattn.parity.arrays import is_floating, leaves, named_leaves, numbers, some
from jattn.parity.flow import Place
from jattn.parity.pairing import selected
from jattn.parity.trace import Trace, submodules, trace_flax, trace_torch
from jattn.parity.widen import float64_throughout, restore_buffers
from jattn.weights import load_state_dict, state_dict, to_numpy, to_tensor
from jattn.weights.table import Renaming

if TYPE_CHECKING:
    import torch

__all__ = [
    "DTYPES",
    "Arguments",
    "Forward",
    "Side",
    "arguments",
    "check_modules",
    "flax_copy",
    "rounded",
    "run_flax",
    "run_torch",
    "torch_copy",
]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
DTYPES = ("float64", "float32", "bfloat16", "float16")


class Gradients(NamedTuple):
    """By name; and why there are none of parameters, if that is so."""

    inputs: dict[str, np.ndarray]
    parameters: dict[str, np.ndarray]
    why: str | None


class Forward(NamedTuple):
    """What a run gives, before it is known which output is which of the other side's."""

    names: list[str]  # of the outputs, empty where they have none
    outputs: list[np.ndarray]
    pull: Callable[[Mapping[int, np.ndarray]], Gradients]  # from the cotangents of outputs
    trace: Trace
    notes: list[str]
    places: list[Place]  # of PyTorch's outputs, in the trace's flow


class Side(NamedTuple):
    """What is compared: outputs by the names that both sides share, and gradients."""

    outputs: dict[str, np.ndarray]
    input_gradients: dict[str, np.ndarray]
    parameter_gradients: dict[str, np.ndarray]
    trace: Trace
    places: dict[str, Place]
    why: str | None  # there are no gradients of parameters

    @classmethod
    def of(
        cls, run: Forward, names: Mapping[str, int | None], seed: int | None, counted: Mapping[str, np.ndarray]
    ) -> "Side":
        """A run, with gradients if there is a seed of cotangents, which are zero in what isn't ``counted``."""
        at = {name: i for name, i in names.items() if i is not None}
        shapes = {name: run.outputs[i].shape for name, i in at.items()}
        cotangents = {
            i: cotangent(name, shapes[name], seed, counted.get(name)) for name, i in at.items() if seed is not None
        }
        gradients = Gradients({}, {}, None) if seed is None else run.pull(cotangents)
        outputs = {name: run.outputs[i] for name, i in at.items()}
        places = {name: run.places[i] for name, i in at.items()} if run.places else {}
        return cls(outputs, gradients.inputs, gradients.parameters, run.trace, places, gradients.why)


def check_modules(torch_module: Any, flax_module: Any) -> None:
    """That they are what they should be."""
    import torch

    if not isinstance(torch_module, torch.nn.Module):
        raise ValueError(f"torch_module must be a torch.nn.Module. Got {type(torch_module).__name__}.")
    if not isinstance(flax_module, nnx.Module):
        raise ValueError(f"flax_module must be a flax.nnx.Module. Got {type(flax_module).__name__}.")


def arguments(inputs: Any, name: str = "inputs") -> Arguments:
    """Positional and keyword arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    if hasattr(inputs, "shape"):
        return (inputs,), {}
    raise ValueError(f"{name} must be an array, a tuple or a dictionary of arrays. Got {type(inputs).__name__}.")


def rounded(nest: Any, dtype: str) -> Any:
    """The arrays of a nest as NumPy's, floating-point ones in ``dtype``, 64-bit ones otherwise kept."""
    return _map(nest, lambda x: x.astype(jnp.dtype(dtype)) if is_floating(x) else x)


def _map(nest: Any, f: Any) -> Any:
    if isinstance(nest, Mapping):  # ordered, as JAX would sort the names of a plain one
        return OrderedDict((name, _map(item, f)) for name, item in nest.items())
    if isinstance(nest, tuple | list):
        items = [_map(item, f) for item in nest]
        return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)
    return f(to_numpy(nest)) if hasattr(nest, "shape") and hasattr(nest, "dtype") else nest


# ----------------------------------------------------------------------------------------------------------------------
# PyTorch's side.


def torch_copy(module: "torch.nn.Module", dtype: str) -> "torch.nn.Module":
    """A copy in eval mode whose parameters all have gradients."""
    import torch

    copied = copy.deepcopy(module).to(getattr(torch, dtype)).eval()
    restore_buffers(copied, module, dtype)
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return copied


def run_torch(module: "torch.nn.Module", given: Arguments, dtype: str, output: Any = None) -> Forward:
    """Run a copy made by `torch_copy` in ``dtype``."""
    import torch

    args, kwargs = _map(given, lambda x: to_tensor(x).requires_grad_(is_floating(x)))
    with _explaining_errors("PyTorch's module"), torch.enable_grad(), _plain_layers():
        result, trace, notes = _traced(module, lambda: module(*args, **kwargs), wide=dtype == "float64")
    outputs = list(named_leaves(selected(result, output, "PyTorch's module gives")))
    tensors = [x for _, x in outputs]
    places = [trace.flow.place(x) for x in tensors]
    inputs = _named_inputs((args, kwargs))
    parameters = {n: p for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}

    def pull(cotangents: Mapping[int, np.ndarray]) -> Gradients:
        used = {i: y for i, y in cotangents.items() if tensors[i].requires_grad}
        if not used:
            return Gradients({}, {}, None)
        grads = torch.autograd.grad(
            [tensors[i] for i in used],
            [*inputs.values(), *parameters.values()],
            [to_tensor(y).to(tensors[i].dtype) for i, y in used.items()],
            allow_unused=True,
            materialize_grads=True,
        )
        found = iter(map(numbers, grads))
        return Gradients({name: next(found) for name in inputs}, {name: next(found) for name in parameters}, None)

    return Forward([name for name, _ in outputs], [numbers(x) for x in tensors], pull, trace, notes, places)


def _traced(module: "torch.nn.Module", run: Callable[[], Any], *, wide: bool) -> tuple[Any, Trace, list[str]]:
    """What a run gives, its calls, and what is to be said of its casts to float32, which don't count if ``wide``."""
    if not wide:
        return *trace_torch(module, run, Trace()), []
    trace, found = Trace(), list[str]()
    try:
        with float64_throughout(lambda: trace.place, found):
            result, _ = trace_torch(module, run, trace)
    except Exception as problem:  # of a module that insists on float32, for one
        result, trace = trace_torch(module, run, Trace())
        return result, trace, [f"PyTorch's own casts to float32 were left as they are, as float64 gave: {problem}"]
    if not found:
        return result, trace, []
    places = some([name or "the module itself" for name in found])
    return result, trace, [f"PyTorch's own casts to float32 were to float64 in the float64 run: {places}."]


@contextmanager
def _plain_layers() -> Iterator[None]:
    """PyTorch's fused encoder layer would run without its submodules."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# ----------------------------------------------------------------------------------------------------------------------
# Flax's side.


def flax_copy(module: nnx.Module, tensors: Mapping[str, Any] | None, dtype: str, rename: Renaming) -> nnx.Module:
    """A copy in eval mode and in ``dtype``, with the numbers of a state dict if there is one."""
    module = nnx.clone(module)
    module.eval()
    for _, variable in nnx.iter_graph(module):
        if isinstance(variable, nnx.Variable) and isinstance(variable[...], jax.Array) and is_floating(variable[...]):
            variable.set_value(variable[...].astype(dtype))
    if dtype == "float64":
        for _, layer in submodules(module):  # nnx.Embed among others keeps the dtype that it was made with
            if vars(layer).get("dtype") in (jnp.float32, jnp.dtype("float32")):
                layer.dtype = jnp.float64  # type: ignore[attr-defined]
    return module if tensors is None else load_state_dict(module, tensors, rename=rename)


def run_flax(module: nnx.Module, given: Arguments, output: Any = None) -> Forward:
    """Run a copy made by `flax_copy`."""
    args, kwargs = _map(given, jnp.asarray)
    with _explaining_errors("the port"):
        result, trace = trace_flax(module, lambda: module(*args, **kwargs))
    outputs = [(name, numbers(x)) for name, x in named_leaves(selected(result, output, "the port gives"))]

    def pull(cotangents: Mapping[int, np.ndarray]) -> Gradients:
        with _explaining_errors("the gradient of the port"):
            return _pull_flax(module, args, kwargs, output, cotangents)

    return Forward([name for name, _ in outputs], [x for _, x in outputs], pull, trace, [], [])


def _pull_flax(module: nnx.Module, args: Any, kwargs: Any, output: Any, cotangents: Mapping[int, Any]) -> Gradients:
    flat, tree = jax.tree.flatten((args, kwargs))
    places = [i for i, x in enumerate(flat) if isinstance(x, jax.Array) and is_floating(x)]
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]

    def run(parameters: Any, inputs: list[Any]) -> dict[int, Any]:
        everything = list(flat)
        for i, x in zip(places, inputs, strict=True):
            everything[i] = x
        args, kwargs = jax.tree.unflatten(tree, everything)
        result = nnx.merge(graph, parameters, rest, copy=True)(*args, **kwargs)
        found = enumerate(leaves(selected(result, output, "the port gives")))
        return {i: x for i, x in found if i in cotangents and is_floating(x)}

    @jax.jit
    def pull(parameters: Any, inputs: list[Any]) -> Any:
        outputs, back = jax.vjp(run, parameters, inputs)
        return back({i: jnp.asarray(cotangents[i], x.dtype) for i, x in outputs.items()})

    gradient, input_gradients = pull(parameters, [flat[i] for i in places])
    of_inputs = dict(zip(_named_inputs((args, kwargs)), map(numbers, input_gradients), strict=True))
    try:
        tensors = state_dict(nnx.merge(graph, gradient, rest))
    except ValueError as problem:  # a layer without a map has no names to compare by
        return Gradients(of_inputs, {}, str(problem))
    return Gradients(of_inputs, {name: numbers(x) for name, x in tensors.items()}, None)


# ----------------------------------------------------------------------------------------------------------------------
# Both.


def cotangent(name: str, shape: Any, seed: int, counted: np.ndarray | None) -> np.ndarray:
    """The same numbers on both sides, if only the number of entries is the same; zero in what isn't ``counted``."""
    rng = np.random.default_rng([seed, *name.encode()])
    numbers = rng.standard_normal(int(np.prod(tuple(shape))))
    if counted is not None and counted.size == numbers.size:
        numbers *= counted.ravel()
    return numbers.reshape(tuple(shape)).astype(np.float32)


def _named_inputs(given: Arguments) -> dict[str, Any]:
    """The floating-point arrays among the arguments."""
    args, kwargs = given
    named = [(f"input {i}", arg) for i, arg in enumerate(args)] + list(kwargs.items())
    found: dict[str, Any] = {}
    for name, nest in named:
        arrays = [x for x in leaves(nest) if is_floating(x)]
        found |= {name if len(arrays) == 1 else f"{name}[{i}]": x for i, x in enumerate(arrays)}
    return found


@contextmanager
def _explaining_errors(side: str) -> Iterator[None]:
    try:
        yield
    except Exception as problem:
        raise ValueError(
            f"inputs must be what both modules take. Got {type(problem).__name__} from {side}: {problem}"
        ) from problem
