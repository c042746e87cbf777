"""PyTorch in float64 throughout, where a module casts to float32 by itself or was made in it.

Norms, softmax and rotary positions of Hugging Face's `transformers` compute in float32 whatever the dtype of a model.
In float64 a right port would part from them by 1e-7, which hides all that comes after.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["float64_throughout", "narrow_buffers", "restore_buffers", "shaken"]

SHORT = 2.0**12  # numbers of so few binary digits were written down; a buffer with others was computed
SHAKE = 4.0  # by how many roundings of float32, as a buffer may be made in several operations
FLOAT32 = 2.0**-23
HUGE = 1e30  # numbers that hide keys, such as the least of float32


# ----------------------------------------------------------------------------------------------------------------------
# Casts.


@contextlib.contextmanager
def float64_throughout(place: Callable[[], str] = str, found: list[str] | None = None) -> Iterator[None]:
    """Within, what PyTorch would cast to float32, or make in it, is float64.

    Args:
        place: which module is running.
        found: gets the places where digits would have been lost.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    places = [] if found is None else found

    class Widening(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            wide = _widened(func, args, kwargs or {})
            if wide is None:
                return func(*args, **(kwargs or {}))
            if _is_wide(args) and place() not in places:
                places.append(place())
            func, args, kwargs = wide
            return func(*args, **kwargs)

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Widening():
            yield
    finally:
        torch.set_default_dtype(before)


def _widened(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any] | None:
    """The call that gives float64 where this one gives float32; None where it doesn't, or only reads bits anew."""
    import torch

    wide, name = _wide_dtypes(), getattr(func, "__name__", "")

    def widen(x: Any) -> Any:
        if isinstance(x, torch.Tensor):  # the one whose dtype is wanted
            x = x.dtype if x.dtype in wide else x
        return wide.get(x, x) if isinstance(x, torch.dtype | type | str) else x

    if name in ("float", "cfloat"):
        return torch.Tensor.to, (args[0], torch.float64 if name == "float" else torch.complex128), kwargs
    if name == "type_as":
        return torch.Tensor.to, (args[0], widen(args[1])), kwargs
    if name == "view":
        return None
    like = name == "to"
    new = tuple(x if isinstance(x, torch.Tensor) and not (like and i) else widen(x) for i, x in enumerate(args))
    named = {key: x if isinstance(x, torch.Tensor) and not like else widen(x) for key, x in kwargs.items()}
    same = all(x is y for x, y in zip((*args, *kwargs.values()), (*new, *named.values()), strict=True))
    return None if same else (func, new, named)


@functools.cache
def _wide_dtypes() -> dict[Any, "torch.dtype"]:
    import torch

    single = torch.float32, torch.FloatTensor, "torch.FloatTensor"
    return {**dict.fromkeys(single, torch.float64), torch.complex64: torch.complex128}


def _is_wide(args: Any) -> bool:
    import torch

    return bool(args) and isinstance(args[0], torch.Tensor) and args[0].dtype in (torch.float64, torch.complex128)


# ----------------------------------------------------------------------------------------------------------------------
# Buffers.


def restore_buffers(module: "torch.nn.Module", original: "torch.nn.Module", dtype: str) -> None:
    """Give a copy in another dtype the buffers that it would have, had it been made in that.

    Frequencies of rotary positions are made in float32 by a module without parameters, out of its ``config``. In
    float64 that is done again; to less than float32 they are not rounded, as a model that is loaded in it has them so.
    """
    import torch

    wide = dtype == "float64"
    for m, before in zip(module.modules(), original.modules(), strict=True):
        fresh = _made_again(before, wide)
        for name, old in before.named_buffers(recurse=False):
            if old.is_floating_point() and (new := _exact(before, fresh, name, old, wide)) is not None:
                m._buffers[name] = new
        if wide:
            for name, x in vars(m).items():  # which PyTorch doesn't convert, as they are no buffers
                if isinstance(x, torch.Tensor) and x.dtype in (torch.float32, torch.complex64):
                    setattr(m, name, x.double() if x.dtype == torch.float32 else x.to(torch.complex128))


def _made_again(module: "torch.nn.Module", wide: bool) -> "torch.nn.Module | None":
    buffers = [x for x in module.buffers() if x.is_floating_point()]
    config = getattr(module, "config", None)
    if config is None or not buffers or next(module.parameters(), None) is not None:
        return None
    with float64_throughout() if wide else contextlib.nullcontext(), contextlib.suppress(Exception):
        return type(module)(copy.deepcopy(config))
    return None


def _exact(
    module: "torch.nn.Module", fresh: "torch.nn.Module | None", name: str, old: "torch.Tensor", wide: bool
) -> "torch.Tensor | None":
    """The same numbers with the digits that they should have: made again, or of a number that the module has too."""
    import torch

    new = dict(fresh.named_buffers(recurse=False)).get(name) if fresh is not None else None
    if new is not None and new.shape == old.shape and torch.allclose(new.double(), old.double(), rtol=1e-5, atol=0):
        return new.detach().to(device=old.device)
    if wide and old.ndim == 0:
        for x in vars(module).values():
            if isinstance(x, float) and np.float32(x) == np.float32(old.item()):
                return torch.tensor(x, dtype=torch.float64, device=old.device)
    return None


def narrow_buffers(module: "torch.nn.Module") -> list[str]:
    """The buffers that were computed in float32, so that in float64 they lack the other digits."""
    return [
        name
        for name, x in module.named_buffers()
        if x.is_floating_point() and not name.endswith(("running_mean", "running_var")) and _has_few_digits(x)
    ]


def _has_few_digits(x: "torch.Tensor") -> bool:
    x = x.detach().double().cpu()
    array = x[x.abs() < HUGE].numpy()
    computed = np.frexp(array)[0] * SHORT % 1 != 0
    return bool(computed.any() and (array.astype(np.float32) == array).all())


def shaken(module: "torch.nn.Module", names: list[str]) -> "torch.nn.Module":
    """A copy in which these buffers differ by a few of float32's roundings, to see what that changes.

    Of the largest entry, as a sine that is near zero has the rounding of its angle.
    """
    import torch

    module, rng = copy.deepcopy(module), np.random.default_rng(0)
    for name, x in module.named_buffers():
        if name in names:
            signs = x.new_tensor(rng.choice([-1.0, 1.0], tuple(x.shape)))
            usual = x.data.abs() < HUGE
            x.data = torch.where(usual, x.data + SHAKE * FLOAT32 * signs * x.data.abs()[usual].amax(), x.data)
    return module
