"""Pairs of modules that are the same on either side, and how to call them."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx


def both(kind: type[nnx.Module], *args: Any, **options: Any) -> dict[str, nnx.Module | torch.nn.Module]:
    """A module of jattn and its counterpart in torch_ref, made alike, as `compare` takes them."""
    module = blank(lambda: kind(*args, **options, rngs=nnx.Rngs(0)))
    return {"module": module, "torch_module": randomised(counterpart(kind)(*args, **options))}


def counterpart(kind: type[nnx.Module]) -> type[torch.nn.Module]:
    """torch_ref's class for one of jattn's: the same name in the same file."""
    return getattr(import_module(kind.__module__.replace("jattn", "torch_ref", 1)), kind.__name__)


def blank(make: Callable[[], nnx.Module]) -> nnx.Module:
    """A module in eval mode, its parameters zero: they are loaded later, and to draw them costs a compilation each."""
    graph, state = nnx.split(nnx.eval_shape(make))
    module = nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), state))
    module.eval()
    return module


def randomised(torch_module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """In float64 and eval mode, every parameter random: a bias of zero or a scale of one could be lost unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in torch_module.double().parameters():
        std = 0.5 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    return torch_module.eval()


def call(module: Any, **arguments: Any) -> Any:
    """What both sides of a pair do with their module."""
    return module(**arguments)


def call_for_weights(module: Any, **arguments: Any) -> Any:
    """Likewise, and the attention weights are compared too."""
    return module(**arguments, return_weights=True)
