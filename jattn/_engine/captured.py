"""Functions of the caller's as values: equal where their code is the same, and what they see besides their arguments.

What a function captures becomes part of the program that it is compiled into. So the program may be used once more
only where all of that is as it was: the numbers, lists and arrays in its closure, its defaults and the globals that it
names, the attributes of objects among these, and of the object that a method is bound to.
"""

import contextlib
import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

__all__ = ["Function", "as_seen"]

_NOT_THERE = object()
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, np.dtype)
_OF_LIBRARIES = ("jattn", "jax", "jaxlib", "numpy", "flax", "optax")  # functions that look at no state


class Function:
    """A function together with what it sees now."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self._seen = _seen(function, {})

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.function(*arguments, **options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Function) and self._seen == other._seen

    def __hash__(self) -> int:
        return hash(self._seen)

    def __repr__(self) -> str:
        return repr(self.function)


def as_seen(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the caller's as a `Function`; one of a library's as it is."""
    is_own = isinstance(f, types.FunctionType | types.MethodType) or _is_partial(f) or _is_plain_object(f)
    return Function(f) if is_own and not _is_of_a_library(f) else f


def _is_of_a_library(f: Any) -> bool:
    return not inspect.ismethod(f) and _package(getattr(f, "__module__", None)) in _OF_LIBRARIES


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _is_partial(value: Any) -> bool:
    return isinstance(value, functools.partial | jax.tree_util.Partial)


def _is_plain_object(value: Any) -> bool:
    """Whether an object may change, and is the same only while its attributes are."""
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, type | types.ModuleType | types.FunctionType | types.MethodType | Function)
        and not isinstance(value, jax.Array | np.ndarray)
        and _package(type(value).__module__) not in ("jax", "jaxlib", "numpy")
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Itself:
    """Equal to itself alone, which is kept, so that nothing else can be at its address."""

    x: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.x is other.x

    def __hash__(self) -> int:
        return id(self.x)


def _seen(x: Any, met: dict[int, int]) -> Any:
    """What is the same as long as ``x`` means the same; ``met`` are the numbers of what is being looked at already."""
    if isinstance(x, _PLAIN):
        return type(x), x
    if isinstance(x, np.ndarray):
        return np.ndarray, x.shape, x.dtype, x.tobytes() if x.dtype != object else _Itself(x)
    if id(x) in met:
        return met[id(x)]
    met = {**met, id(x): len(met)}
    if isinstance(x, tuple | list):
        return type(x), tuple(_seen(part, met) for part in x)
    if isinstance(x, set | frozenset):
        return type(x), frozenset(_seen(part, met) for part in x)
    if isinstance(x, Mapping):
        return type(x), tuple((_seen(key, met), _seen(value, met)) for key, value in x.items())
    if isinstance(x, types.MethodType):
        return "method", _seen(x.__func__, met), _seen(x.__self__, met)
    if _is_partial(x):
        return "partial", _seen(x.func, met), _seen(x.args, met), _seen(x.keywords, met)
    if isinstance(x, types.FunctionType) and not _is_of_a_library(x):
        besides = (x.__defaults__, x.__kwdefaults__, *(_content(cell) for cell in x.__closure__ or ()), *_globals_of(x))
        return x.__code__, id(x.__globals__), *(_seen(part, met) for part in besides)
    if _is_plain_object(x):
        return type(x), _seen(dict(_state_of(x)), met)
    return _Itself(x)


def _state_of(x: Any) -> Iterator[tuple[str, Any]]:
    """Those in slots as well, as Flax's variables have them."""
    yield from vars(x).items()
    for owner in type(x).__mro__:
        slots = owner.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if isinstance(descriptor := owner.__dict__.get(name), types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # it has none yet
                    yield name, descriptor.__get__(x)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is filled later
        return _NOT_THERE


def _globals_of(function: types.FunctionType) -> Iterator[Any]:
    """The globals that it names."""
    for name in _names_in(function.__code__):
        yield function.__globals__.get(name, _NOT_THERE)


@functools.lru_cache(maxsize=1024)
def _names_in(code: types.CodeType) -> tuple[str, ...]:
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return tuple(dict.fromkeys([*code.co_names, *(name for part in inner for name in _names_in(part))]))
