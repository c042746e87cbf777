"""What the arguments of `jattn.training.fit` must be, found out before anything slow."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, PyTree

from jattn._engine import checks
from jattn._engine.of_caller import takes

__all__ = ["examples", "function", "functions", "not_traced", "predicate", "trainable", "variable_at"]


def not_traced(model: nnx.Module, *data: PyTree, name: str = "fit") -> None:
    """Within a function that JAX transforms, neither the model nor the data nor new arrays are numbers."""
    if not all(map(checks.is_concrete, [jnp.zeros(()), *jax.tree.leaves((nnx.state(model), data))])):
        raise ValueError(
            f"{name} must be called outside of jax.jit, jax.grad and jax.vmap. Got arrays that are being traced. "
            "It compiles its steps by itself."
        )


def examples(name: str, data: PyTree, train: PyTree | None = None, *, on_host: bool = False) -> tuple[PyTree, int]:
    """The arrays on the device or as NumPy's, in a nest like ``train``'s, and how many examples they hold."""
    data = jax.tree.map_with_path(lambda path, x: _array(name + jax.tree_util.keystr(path), x, on_host), data)
    leaves = [(name + jax.tree_util.keystr(path), x.shape) for path, x in jax.tree.leaves_with_path(data)]
    first, shape = leaves[0] if leaves else ("no array", ())
    for other, its_shape in leaves or [(first, shape)]:
        if its_shape[:1] != shape[:1] or shape[:1] in ((), (0,)):
            beside = f" and {other} of shape {its_shape}" if other != first else ""
            raise ValueError(
                f"{name} must be arrays whose first axis counts the same examples, at least one. Got {first} of shape "
                f"{shape}{beside}. Pass arrays in place of lists of numbers or pairs."
            )
    nests: list[Any] = [jax.tree.structure(nest) for nest in (data, train)]
    if train is not None and nests[0] != nests[1]:
        raise ValueError(f"{name} must be a nest like train's {nests[1]!s:.80}. Got {nests[0]!s:.80}.")
    return data, len(jax.tree.leaves(data)[0])


def _array(name: str, x: Any, on_host: bool) -> Array | np.ndarray:
    if isinstance(x, jax.Array):
        return np.asarray(x) if on_host else x
    try:
        known = np.asarray(x)
        if not (jnp.issubdtype(known.dtype, jnp.number) or known.dtype == np.bool_):
            raise TypeError(f"its dtype is {known.dtype}")
    except Exception as error:  # whatever another library's array raises
        reason = str(error).split("\n")[0][:200]
        raise ValueError(
            f"{name} must be an array of numbers. Got {type(x).__name__}: {reason}. Pass a NumPy or JAX array; of a "
            "PyTorch tensor, tensor.detach().float().numpy()."
        ) from error
    dtype = jax.dtypes.canonicalize_dtype(known.dtype)
    if dtype != known.dtype and known.dtype.kind in "iuf":
        limits: Any = (jnp.finfo if known.dtype.kind == "f" else jnp.iinfo)(dtype)
        lost = np.isfinite(known) & ((known < limits.min) | (known > limits.max))
        if lost.any():
            raise ValueError(
                f"{name} must fit {dtype}, which JAX makes of {known.dtype}. Got {known[lost][0]}. Map it to smaller "
                'numbers, or jax.config.update("jax_enable_x64", True).'
            )
    return known.astype(dtype, copy=False) if on_host else jnp.asarray(known)


def functions(loss: Any, metrics: Any, optimizer: Any) -> None:
    """What is compiled, and kept with what was compiled."""
    if not isinstance(metrics, Mapping) or not all(isinstance(name, str) for name in metrics):
        raise ValueError(f'metrics must be functions by name, such as {{"accuracy": accuracy}}. Got {metrics!r:.80}.')
    function("loss", loss, "model", "batch", "rng")
    for name, metric in metrics.items():
        function(f"metrics[{name!r}]", metric, "model", "batch")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer must be an optax GradientTransformation. Got {optimizer!r:.80}.")


def function(name: str, x: Any, *arguments: str) -> None:
    """A function of these arguments, which is hashable, so that it can be kept with what was compiled."""
    if not callable(x):
        raise ValueError(f"{name} must be a function of {', '.join(arguments)}. Got {x!r:.80}.")
    if not isinstance(x, type):
        takes(name, x, arguments)
    try:
        hash(x)
    except TypeError as error:
        raise ValueError(
            f"{name} must be hashable. Got {type(x).__name__}, which is not. If it is a dataclass, give it eq=False."
        ) from error


def predicate(wrt: Any) -> Any:
    """The filter as a function, which is hashable."""
    try:
        return nnx.filterlib.to_predicate(wrt)
    except (TypeError, ValueError) as error:
        raise ValueError(f"wrt must be a Flax filter, such as nnx.Param. Got {wrt!r:.80}.") from error


def trainable(selected: Any, wrt: Any) -> None:
    """The variables that are to be trained."""
    if not jax.tree.leaves(selected):
        raise ValueError(f"wrt must select some of the model's variables. Got {wrt!r:.80}, which selects none.")
    for path, x in jax.tree.leaves_with_path(selected):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"wrt must select variables that are floating point. Got {variable_at(path)} of {x.dtype}. Leave it "
                "out, or make it an nnx.Variable that is no nnx.Param."
            )


def variable_at(path: Any) -> str:
    """What a model's user knows a variable as, by its path in a state."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
