"""Flash attention as kernels of Pallas: one tile of `Logits` after the other, forward and backward.

What a kernel computes of a tile is `Logits.tile`, traced in it, and backward that one's derivative: a score, a mask or
a bias is in a kernel by being a formula. Rows are averaged as their tiles come, and no array of logits is ever in
memory.

Axes beyond the usual: n example · i block of queries · j block of keys · r query rows of a block · w keys of a block.
Queries, keys and values are ``n t hd`` or, heads first, ``n h t d``; the fields of a call ``n h 1 t s`` and their own.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from jattn.implementations.flash import gpu, tpu
from jattn.implementations.flash.backward import run_backward
from jattn.implementations.flash.plain import run_plain
from jattn.implementations.flash.tiles import Field, Ranges, Tiles
from jattn.implementations.flash.tpu import LANES

__all__ = ["LANES", "Field", "Ranges", "Tiles", "flash"]


def flash(
    query: Float[Array, "n *ht c"],
    key: Float[Array, "n *ks d"],
    value: Float[Array, "n *ks e"],
    fields: list[Field],
    ranges: Ranges,
    tiles: Tiles,
) -> tuple[Float[Array, "n *ht _"], Float[Array, "n h t"]]:
    """The output, and the logarithm of the sum under the softmax: minus infinity for a query that attends to nothing.

    Queries, keys and fields are padded to whole blocks. There is a kernel for each pass of reverse mode; derivatives of
    these are those of the same in plain JAX, so that second order works. JAX refuses forward mode by itself.
    """
    kernels = gpu if tiles.for_gpu else tpu
    learned = [field.is_learned for field in fields]
    axes = [field.axes for field in fields]

    def joined(parameters: list[Array], others: list[Array]) -> list[Field]:
        left = iter(parameters), iter(others)
        arrays = [next(left[0 if is_learned else 1]) for is_learned in learned]
        return [Field(*field) for field in zip(axes, arrays, strict=True)]

    # What is known while tracing would not be as an argument.
    by_data = None if ranges.are_known else ranges

    def of_kernel(q: Array, k: Array, v: Array, parameters: Any, others: Any, by_data: Ranges | None) -> Any:
        return kernels.run_forward(q, k, v, joined(parameters, others), by_data or ranges, tiles)

    def of_jax(q: Array, k: Array, v: Array, parameters: Any, others: Any, by_data: Ranges | None) -> Any:
        return run_plain(q, k, v, joined(parameters, others), tiles)

    def gradients_of_kernel(arguments: Any, result: Any, cotangents: Any) -> Any:
        q, k, v, parameters, others, by_data = arguments
        return run_backward(kernels, q, k, v, joined(parameters, others), by_data or ranges, tiles, result, cotangents)

    def gradients_of_jax(arguments: Any, result: Any, cotangents: Any) -> Any:
        return jax.vjp(lambda *learned: of_jax(*learned, *arguments[4:]), *arguments[:4])[1](cotangents)

    forward_pass = _with_derivative_of(of_jax, of_kernel)
    backward_pass = _with_derivative_of(gradients_of_jax, gradients_of_kernel)
    attend = jax.custom_vjp(forward_pass)

    def with_residuals(*arguments: Any) -> Any:
        result = forward_pass(*arguments)
        return result, (arguments, result)

    attend.defvjp(with_residuals, lambda residuals, cotangents: (*backward_pass(*residuals, cotangents), None, None))
    arrays = [field.array for field in fields]
    parameters = [x for x, is_learned in zip(arrays, learned, strict=True) if is_learned]
    others = [x for x, is_learned in zip(arrays, learned, strict=True) if not is_learned]
    result: tuple[Array, Array] = attend(query, key, value, parameters, others, by_data)
    return result


def _with_derivative_of(derived: Callable[..., Any], f: Callable[..., Any]) -> Any:
    """f, and the derivative of another function that gives the same."""
    result = jax.custom_jvp(f)
    result.defjvp(lambda primals, tangents: jax.jvp(derived, primals, tangents))
    return result
