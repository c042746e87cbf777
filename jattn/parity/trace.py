"""What each submodule was called with and gave back, on either side, in the order of execution."""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from jattn.parity.arrays import leaves, named_leaves, numbers
from jattn.parity.flow import Flow, Place

if TYPE_CHECKING:
    import torch

__all__ = ["ModuleCall", "Trace", "submodules", "trace_flax", "trace_torch"]


@dataclasses.dataclass(eq=False)
class ModuleCall:
    """One call of one module."""

    path: str  # of the module, dotted; "" is the whole
    kind: str  # its class
    number: int  # 0 for the first call of this module
    parent: "ModuleCall | None"  # the call in which it happened
    inputs: list[np.ndarray]
    outputs: list[np.ndarray] = dataclasses.field(default_factory=list)
    input_names: list[str] = dataclasses.field(default_factory=list)  # beside them, empty where there is none
    output_names: list[str] = dataclasses.field(default_factory=list)
    input_places: list[Place] = dataclasses.field(default_factory=list)  # on PyTorch's side, beside the inputs
    output_places: list[Place] = dataclasses.field(default_factory=list)

    def within(self, other: "ModuleCall") -> bool:
        """Whether this happened in that call."""
        return any(call is other for call in self.ancestors())

    def ancestors(self) -> "Iterator[ModuleCall]":
        """The calls that this one happened in, the innermost first."""
        if self.parent is not None:
            yield self.parent
            yield from self.parent.ancestors()


class Trace:
    """The calls of a run, as they ended."""

    def __init__(self) -> None:
        self.calls: list[ModuleCall] = []
        self.flow = Flow()
        self._open: list[tuple[ModuleCall, Any]] = []
        self._counts: dict[str, int] = {}
        self._ended: dict[tuple[str, int], ModuleCall] = {}

    def begin(self, path: str, module: Any, arguments: Mapping[str, Any]) -> None:
        parent = self._open[-1][0] if self._open else None
        number = self._counts.get(path, 0)
        self._counts[path] = number + 1
        call = ModuleCall(path, type(module).__name__, number, parent, _arrays_in(arguments) or [])
        call.input_names, call.input_places = _names(arguments), self._places(arguments)
        self._open.append((call, module))

    def end(self, result: Any) -> None:
        call, _ = self._open.pop()
        outputs = _arrays_in(result)
        if outputs is not None:  # what was inside a compiled function or a scan has no numbers to show
            call.outputs, call.output_names, call.output_places = outputs, _names(result), self._places(result)
            self.calls.append(call)
            self._ended[call.path, call.number] = call

    def _places(self, nest: Any) -> list[Place]:
        return [self.flow.place(x) for x in leaves(nest) if hasattr(x, "requires_grad")]

    def calling(self, module: Any) -> bool:
        """Whether the innermost open call is one of this module."""
        return bool(self._open) and self._open[-1][1] is module

    @property
    def place(self) -> str:
        """The path of the innermost open call's module."""
        return self._open[-1][0].path if self._open else ""

    def find(self, path: str, number: int) -> ModuleCall | None:
        return self._ended.get((path, number))


def _arrays_in(nest: Any) -> list[np.ndarray] | None:
    try:
        return [numbers(x) for x in leaves(nest) if not _is_rng(x)]
    except jax.errors.TracerArrayConversionError:
        return None


def _names(nest: Any) -> list[str]:
    return [name for name, x in named_leaves(nest) if not _is_rng(x)]


def _bound(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by the names of its parameters, with "" for all that have none."""
    try:
        signature = inspect.signature(function)
        named = dict(signature.bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):  # of what isn't Python's, or what the call itself will refuse
        return {"": args, **kwargs}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
        elif parameter.kind is parameter.VAR_POSITIONAL and name in named:
            named[""] = named.pop(name)
    return named


def _is_rng(x: Any) -> bool:
    return isinstance(x, jax.Array) and bool(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def trace_torch(module: "torch.nn.Module", run: Callable[[], Any], trace: Trace) -> tuple[Any, Trace]:
    """What ``run`` gives, and the calls of ``module``'s submodules in it."""
    handles = []
    for path, submodule in module.named_modules():

        def before(m: Any, args: Any, kwargs: Any, path: str = path) -> None:
            trace.begin(path, m, _bound(m.forward, args, kwargs))

        def after(m: Any, args: Any, result: Any) -> None:
            trace.end(result)

        handles += [
            submodule.register_forward_pre_hook(before, with_kwargs=True),
            submodule.register_forward_hook(after),
        ]
    try:
        return run(), trace
    finally:
        for handle in handles:
            handle.remove()


def trace_flax(module: nnx.Module, run: Callable[[], Any]) -> tuple[Any, Trace]:
    """Likewise for a Flax module: while ``run`` runs, its submodules' classes call through the recorder."""
    trace = Trace()
    paths = {id(m): path for path, m in submodules(module)}
    with contextlib.ExitStack() as stack:
        for cls in {type(m) for _, m in submodules(module) if callable(m)}:
            for name in ("__call__", *getattr(cls, "_called_as", ())):
                stack.enter_context(_recording(cls, name, paths, trace))
        return run(), trace


@contextlib.contextmanager
def _recording(cls: Any, name: str, paths: dict[int, str], trace: Trace) -> Iterator[None]:
    own, original = name in vars(cls), getattr(cls, name)

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        if id(self) not in paths or trace.calling(self):  # the latter is a call of super()
            return original(self, *args, **kwargs)
        trace.begin(paths[id(self)], self, _bound(functools.partial(original, self), args, kwargs))
        result = original(self, *args, **kwargs)
        trace.end(result)
        return result

    setattr(cls, name, recorded)
    try:
        yield
    finally:
        if own:
            setattr(cls, name, original)
        else:
            delattr(cls, name)


def submodules(module: nnx.Module) -> list[tuple[str, nnx.Module]]:
    """The modules of a Flax module by dotted path, itself among them."""
    return [(".".join(map(str, path)), m) for path, m in nnx.iter_modules(module)]
