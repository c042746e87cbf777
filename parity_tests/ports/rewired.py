"""Mistakes in the code of a port's attention, between its projections."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jattn import biases
from jattn.nn import MultiHeadAttention
from parity_tests.ports.port import Change, Parts

__all__ = [
    "heads_as_time",
    "keys_for_queries",
    "merged_by_feature",
    "queries_ahead",
    "rotary_of_queries",
    "split_by_feature",
    "subtracted_bias",
    "tiled",
    "transposed_bias",
]


def _rewired(method: str, otherwise: Callable[..., Any]) -> Change:
    """All attentions with another method, which is given their own one first."""

    def rewire(model: nnx.Module) -> None:
        for _, module in nnx.iter_modules(model):
            if isinstance(module, MultiHeadAttention):
                setattr(module, method, _Instead(otherwise, getattr(module, method)))

    def change(parts: Parts) -> None:
        parts.rewire = rewire

    return change


class _Instead:
    """A function with another as its first argument."""

    def __init__(self, otherwise: Callable[..., Any], own: Callable[..., Any]) -> None:
        self.otherwise, self.own = otherwise, own

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.otherwise(self.own, *args, **options)


# ----------------------------------------------------------------------------------------------------------------------
# What attention gets: query, key and value, ``b t h d`` each.


def _of_each(otherwise: Callable[[Any], Any]) -> Change:
    return _rewired("_attend", lambda attend, *qkv, **options: attend(*map(otherwise, qkv), **options))


def _tiled(attend: Callable[..., Any], query: Any, key: Any, value: Any, **options: Any) -> Any:
    times = query.shape[-2] // key.shape[-2]
    return attend(query, *(jnp.concatenate([x] * times, axis=-2) for x in (key, value)), **options)


def _swapped(attend: Callable[..., Any], query: Any, key: Any, value: Any, **options: Any) -> Any:
    same = query.shape == key.shape
    return attend(*((key, query) if same else (query, key)), value, **options)


def _merged(attend: Callable[..., Any], *qkv: Any, **options: Any) -> Any:
    heads = attend(*qkv, **options)
    return heads.swapaxes(-1, -2).reshape(heads.shape)


def _biased(otherwise: Callable[[Any], Any]) -> Change:
    """Another bias of the logits, as an array."""

    def attend(own: Callable[..., Any], query: Any, key: Any, value: Any, *, bias: Any, **options: Any) -> Any:
        if bias is not None:
            bias = biases.dense(otherwise(bias.as_array(query.shape[1], key.shape[1])))
        return own(query, key, value, bias=bias, **options)

    return _rewired("_attend", attend)


tiled = _rewired("_attend", _tiled)
keys_for_queries = _rewired("_attend", _swapped)
merged_by_feature = _rewired("_attend", _merged)
split_by_feature = _of_each(lambda x: x.reshape(*x.shape[:-2], x.shape[-1], x.shape[-2]).swapaxes(-1, -2))
heads_as_time = _of_each(lambda x: x.reshape(x.shape[0], x.shape[2], x.shape[1], -1).swapaxes(1, 2))
subtracted_bias = _biased(jnp.negative)
transposed_bias = _biased(lambda bias: bias.swapaxes(-1, -2))

# ----------------------------------------------------------------------------------------------------------------------
# By which positions queries and keys are turned; only for queries there are longest ones.


def _turned_alone(turn: Callable[..., Any], x: Any, norm: Any, positions: Any, longest: Any = None) -> Any:
    return x if longest is None else turn(x, norm, positions, longest)


def _turned_ahead(turn: Callable[..., Any], x: Any, norm: Any, positions: Any, longest: Any = None) -> Any:
    return turn(x, norm, None if longest is None else longest + 1, longest)


rotary_of_queries = _rewired("_positioned", _turned_alone)
queries_ahead = _rewired("_positioned", _turned_ahead)
