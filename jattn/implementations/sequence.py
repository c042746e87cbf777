"""Attention with the sequence divided over an axis of a mesh: what the devices send each other around a part's call.

Each device has a part of the keys, and, but for ``merge``, the part of the queries of the same number. A method brings
queries and keys together and has any other implementation compute what has met; `ring` is a file of its own.

Axes beyond the usual: n parts.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jattn._engine.axes import axis_in
from jattn._engine.collectives import automatic_beside, exchanged_over, gathered_over
from jattn._engine.grouped_heads import repeat_heads
from jattn.implementations.call import Call, Result
from jattn.implementations.parts import (
    against,
    arrays_of,
    beside_all_keys,
    bytes_of_keys,
    bytes_of_output,
    division_of,
    gathered,
    sinks_of,
    varying_over,
)
from jattn.softmax import merged_over

__all__ = ["NO_PART", "AllGather", "Attend", "Merge", "OverSequence", "Ulysses"]

Attend = Callable[[Call], Result]  # of a part

NO_PART = "each device has all queries, whose keys' partial results are merged"


class OverSequence(abc.ABC):
    """A way to bring the queries and the keys of several devices together."""

    name: str

    @abc.abstractmethod
    def refusal(self, call: Call) -> str | None:
        """What in a device's part of a call it cannot honour; None if nothing."""

    @abc.abstractmethod
    def sent(self, call: Call) -> int:
        """How many bytes each device sends, forward."""

    @abc.abstractmethod
    def met(self, call: Call) -> Call:
        """What another implementation is asked for, as far as it may refuse it."""

    @abc.abstractmethod
    def run(self, attend: Attend, call: Call) -> Result:
        """The result for a device's queries, in float32 or wider."""


class AllGather(OverSequence):
    """Each device gathers all keys. Memory as for the whole sequence's keys; forward mode and second order."""

    name = "all_gather"

    def refusal(self, call: Call) -> str | None:
        return None

    def sent(self, call: Call) -> int:
        divided = division_of(call)
        output = 0 if divided.with_queries else bytes_of_output(call)
        return (divided.parts - 1) * bytes_of_keys(call) + 2 * output * (divided.parts - 1) // divided.parts

    def met(self, call: Call) -> Call:
        return dataclasses.replace(call, divided=None)

    def run(self, attend: Attend, call: Call) -> Result:
        divided = division_of(call)
        result = attend(gathered(call))
        if divided.with_queries:
            return result
        is_first = lax.axis_index(divided.axis) == 0  # all have the same, and so JAX knows
        return jax.tree.map(lambda x: lax.psum(jnp.where(is_first, x, 0), divided.axis), result)


class Ulysses(OverSequence):
    """Each device gets all tokens of some of the heads, and gives them back. Forward mode and second order.

    Source: Jacobs et al., DeepSpeed Ulysses, 2023.
    """

    name = "ulysses"

    def refusal(self, call: Call) -> str | None:
        divided = division_of(call)
        t, h, _ = call.logits.query.shape[-3:]
        reasons = {
            NO_PART: not divided.with_queries,
            f"{h} heads are not divisible by {divided.parts} devices": h % divided.parts != 0,
            "a device has a single query": t == 1,
        }
        return next((reason for reason, refuse in reasons.items() if refuse), None)

    def sent(self, call: Call) -> int:
        n = division_of(call).parts
        query, key, value = arrays_of(call)
        k = _key_heads(query.shape[-2], key.shape[-2], n)
        keys = sum(math.prod(x.shape[:-2]) * k * x.shape[-1] * x.dtype.itemsize for x in (key, value))
        output = math.prod(query.shape[:-1]) * value.shape[-1] * value.dtype.itemsize
        *_, t, h, _ = query.shape
        s = key.shape[-3]
        exchanged, gathered = keys + output + query.size * query.dtype.itemsize, 0
        if call.return_weights:
            exchanged += math.prod(query.shape[:-1]) * s * n * max(query.dtype.itemsize, 4)

        def of(name: str, axes: str | None, x: Any) -> Any:
            nonlocal exchanged, gathered
            heads, queries, keys = _where(axes, x, h, t, s)
            if heads is not None and queries is not None:
                exchanged += x.size * x.dtype.itemsize
            elif queries is not None or keys is not None:
                gathered += x.size * x.dtype.itemsize // (1 if heads is None else n)
            return x

        call.logits.map_fields(of)
        # Heads that automatic axes divide as well may have to come together before they are exchanged.
        others = automatic_beside(division_of(call).axis)
        return exchanged * (n - 1) // n + gathered * (n - 1) + exchanged * (others - 1)

    def met(self, call: Call) -> Call:
        return dataclasses.replace(call, divided=None)

    def run(self, attend: Attend, call: Call) -> Result:
        divided = division_of(call)
        axis, n = divided.axis, divided.parts
        query, key, value = arrays_of(call)
        t, h, _ = query.shape[-3:]
        s, k = key.shape[-3:-1]
        number = lax.axis_index(axis)

        def exchanged(x: Array, split: int, joined: int) -> Array:
            return exchanged_over(x, axis, split, joined)

        def own_heads(x: Array, at: int) -> Array:
            return lax.dynamic_slice_in_dim(x, number * (h // n), h // n, at)

        def of(name: str, axes: str | None, x: Array) -> Array:
            heads, queries, keys = _where(axes, x, h, t, s)
            if heads is not None and queries is not None:
                x = exchanged(x, heads, queries)
            else:
                x = x if heads is None else own_heads(x, heads)
                x = x if queries is None else gathered_over(x, axis, queries)
            return x if keys is None or queries is not None else gathered_over(x, axis, keys)

        key, value = (repeat_heads(x, _key_heads(h, k, n)) for x in (key, value))
        query, key, value = (exchanged(x, -2, -3) for x in (query, key, value))
        logits = call.logits.map_fields(of)
        logits = dataclasses.replace(logits, query=query, key=key, first_query=0, first_key=0)
        matrices = own_heads(call.matrix_numbers(), -1) if call.dropout_rate > 0 else None
        gates = None if call.head_gates is None else own_heads(call.head_gates, -1)
        whole = dataclasses.replace(call, logits=logits, value=value, matrices=matrices, head_gates=gates, divided=None)
        output, weights, log_sum_exp = attend(whole)
        return Result(
            exchanged(output.astype(value.dtype), -3, -2),
            None if weights is None else exchanged(weights, -2, -3),
            None if log_sum_exp is None else exchanged(log_sum_exp, -2, -1),
        )


def _where(axes: str | None, x: Any, h: int, t: int, s: int) -> list[int | None]:
    """The axes of a field that has entries for each head, for each query and for each key of a device's."""
    return [axis_in(letter, axes, x, length) for letter, length in (("h", h), ("t", t), ("s", s))]


class Merge(OverSequence):
    """Each device has all queries, as in decoding, and attends to its keys; the results are merged.

    Forward mode and second order.
    """

    name = "merge"

    def refusal(self, call: Call) -> str | None:
        reasons = {
            "the queries are divided, too": division_of(call).with_queries,
            "return_weights=True asks for all columns": call.return_weights,
        }
        return next((reason for reason, refuse in reasons.items() if refuse), None)

    def sent(self, call: Call) -> int:
        n = division_of(call).parts
        return 2 * bytes_of_output(call) * (n - 1) // n

    def met(self, call: Call) -> Call:
        return beside_all_keys(call)

    def run(self, attend: Attend, call: Call) -> Result:
        divided = division_of(call)
        call = varying_over(call)
        own = attend(beside_all_keys(against(call, lax.axis_index(divided.axis))))
        assert own.log_sum_exp is not None
        output, log_sum_exp = merged_over(own.output, own.log_sum_exp, divided.axis, sinks_of(call))
        return Result(output, log_sum_exp=log_sum_exp if call.return_log_sum_exp else None)


def _key_heads(h: int, k: int, n: int) -> int:
    """To how many heads k are repeated, so that each of n devices has as many."""
    least = math.lcm(k, n)
    return least if h % least == 0 else h
