"""Keys that go around a ring of devices, while each device attends from its queries to those that it holds.

    output = sum over parts j of w_j output_j,  w_j = exp(log_sum_exp_j - log_sum_exp)

The gradient goes around once more: a part is computed anew, and its keys' gradients travel with them and come home. So
a device never has more than its own part and the one that it holds. It is a rule for reverse mode.

Source: Liu et al., Ring Attention with Blockwise Transformers, 2023.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jattn._engine.dtypes import at_least_float32
from jattn._engine.varying import varying_as
from jattn.implementations.call import Call, Result
from jattn.implementations.parts import (
    against,
    beside_all_keys,
    bytes_of_keys,
    division_of,
    hops,
    reached_parts,
    travelling,
    varying_over,
    with_sinks,
)
from jattn.implementations.sequence import NO_PART, Attend, OverSequence
from jattn.softmax import merged_pair, share_of

__all__ = ["Ring"]

Visit = Callable[..., Any]


class Ring(OverSequence):
    """Keys go around; memory linear in a device's part, also of the gradient. No forward mode."""

    name = "ring"

    def refusal(self, call: Call) -> str | None:
        lengths = call.logits.query.shape[-3], call.logits.key.shape[-3]
        reasons = {
            NO_PART: not division_of(call).with_queries,
            "return_weights=True asks for all columns": call.return_weights,
            "it needs lengths that are known while tracing": not all(isinstance(n, int) for n in lengths),
        }
        return next((reason for reason, refuse in reasons.items() if refuse), None)

    def sent(self, call: Call) -> int:
        return sum(hops(reached_parts(call))) * bytes_of_keys(call)

    def met(self, call: Call) -> Call:
        return beside_all_keys(call)

    def run(self, attend: Attend, call: Call) -> Result:
        ways = hops(reached_parts(call))
        call = varying_over(call)
        without_sinks = dataclasses.replace(beside_all_keys(call), divided=call.divided)
        return with_sinks(call, *_around_the_ring(attend, without_sinks, ways))


def _around_the_ring(attend: Attend, call: Call, ways: tuple[int, int]) -> tuple[Array, Array]:
    """The output and the log-sum-exp of a device's queries over all keys."""
    leaves, structure = jax.tree.flatten(call)
    travels = travelling(call)
    learned = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]
    divided = division_of(call)
    axis, n = divided.axis, divided.parts

    def chosen(moves: bool, floats: bool) -> list[Array]:
        return [x for x, *kind in zip(leaves, travels, learned, strict=True) if kind == [moves, floats]]

    def partial(own: Any, held: Any, r: Any) -> tuple[Array, Array]:
        """Of the part that is r before the device's own; ``own``, ``held``: numbers with a gradient, and others."""
        kinds = {(False, True): own[0], (False, False): own[1], (True, True): held[0], (True, False): held[1]}
        entries = {kind: iter(xs) for kind, xs in kinds.items()}
        part = jax.tree.unflatten(structure, [next(entries[kind]) for kind in zip(travels, learned, strict=True)])
        result = attend(against(part, (lax.axis_index(axis) - r) % n))
        assert result.log_sum_exp is not None
        return result.output, result.log_sum_exp

    def moved(by: int, xs: Any) -> Any:
        return lax.ppermute(xs, axis, [(i, (i + by) % n) for i in range(n)]) if jax.tree.leaves(xs) else xs

    def tour(visit: Visit, state: Any, held: Any, cargo: Any, first: int, last: int) -> Any:
        """``visit(state, held, cargo, r)`` from r = first to last; the keys that are held leave before it is over."""
        by = 1 if last >= 0 else -1

        def stay(carry: Any, r: Array) -> Any:
            state, held, cargo = carry
            following = moved(by, held)
            state, cargo = visit(state, held, cargo, r)
            return (state, following, moved(by, cargo)), None

        if first != last:
            (state, held, cargo), _ = lax.scan(stay, (state, held, cargo), jnp.arange(first, last, by))
        state, cargo = visit(state, held, cargo, last)
        return state, moved(-last, cargo) if last else cargo

    def all_tours(visit: Visit, state: Any, held: Any, cargo: Any) -> Any:
        onward, back = ways
        state, came = tour(visit, state, held, cargo, 0, onward)
        if back == 0:
            return state, came
        state, also = tour(visit, state, moved(-1, held), cargo, -1, -back)
        return state, jax.tree.map(jnp.add, came, also)

    def forward(own: Any, held: Any) -> tuple[Array, Array]:
        def visit(state: Any, held: Any, cargo: Any, r: Any) -> Any:
            return merged_pair(state, partial(own, held, r)), cargo

        output, log_sum_exp = jax.eval_shape(partial, own, held, 0)
        empty = jnp.zeros(output.shape, output.dtype), jnp.full(log_sum_exp.shape, -jnp.inf, log_sum_exp.dtype)
        nothing = tuple(varying_as(x, own[0][0]) for x in empty)
        return all_tours(visit, nothing, held, ())[0]

    def backward(kept: Any, cotangents: Any) -> Any:
        own, held, (output, log_sum_exp) = kept
        d_output, d_log_sum_exp = cotangents

        def visit(state: Any, held: Any, cargo: Any, r: Any) -> Any:
            (part, part_log_sum_exp), pull = jax.vjp(
                lambda of_own, of_held: partial((of_own, own[1]), (of_held, held[1]), r), own[0], held[0]
            )
            share = share_of(part_log_sum_exp, log_sum_exp)
            d_part = d_output * share[..., None]
            d_part_log_sum_exp = share * (jnp.sum(d_output * (part - output), axis=-1) + d_log_sum_exp)
            d_own, d_held = pull((d_part, d_part_log_sum_exp))
            return _added(state, d_own), _added(cargo, d_held)

        state, cargo = (
            [varying_as(jnp.zeros(x.shape, at_least_float32(x)), own[0][0]) for x in xs] for xs in (own[0], held[0])
        )
        sums = all_tours(visit, state, held, cargo)
        d_own, d_held = (
            [d.astype(x.dtype) for d, x in zip(ds, xs, strict=True)]
            for ds, xs in zip(sums, (own[0], held[0]), strict=True)
        )
        return (d_own, None), (d_held, None)

    @jax.custom_vjp
    def around(own: Any, held: Any) -> tuple[Array, Array]:
        return forward(own, held)

    def kept(own: Any, held: Any) -> Any:
        result = forward(own, held)
        return result, (own, held, result)

    around.defvjp(kept, backward)
    return around((chosen(False, True), chosen(False, False)), (chosen(True, True), chosen(True, False)))


def _added(sums: list[Array], xs: list[Array]) -> list[Array]:
    return [total + x.astype(total.dtype) for total, x in zip(sums, xs, strict=True)]
