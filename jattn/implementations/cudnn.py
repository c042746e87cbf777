"""NVIDIA's cuDNN kernel: how a call is put into its arguments, and what it cannot honour.

It knows a few masks by name: causal, a causal window, one length for each example. Any other it is given as an array,
for blocks of queries with the keys in the mask's range. The blocks are examples of a batch to it, so its work and the
array fall with the mask.

Axes beyond the usual: n examples · i blocks · r query rows of a block · w keys of a block.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jattn._engine.loops import broadcast_map, largest_divisor, side_by_side
from jattn._engine.plan import Block, Group, key_ranges, plan
from jattn._engine.platform import Platform, capability_here
from jattn._mask import And, Mask
from jattn._masks import Causal, Lengths, SlidingWindow
from jattn.implementations.call import Call, Implementation, Result
from jattn.logits import Logits
from jattn.scores import DotProduct

__all__ = ["Cudnn", "KernelArguments"]

_SMALL = 2**24  # entries of a mask up to which the whole takes no longer than blocks
_AT_ONCE = 2**27  # entries of masks, and of keys and values taken out for blocks, that are in memory at a time
_FEW = 4  # blocks that a key is in; beyond it their gradients are added up in float32
_TILE = 128  # keys that the kernel takes at a time

KernelArguments = dict[str, Any]  # of jax.nn.dot_product_attention


class Cudnn(Implementation):
    """The kernel that JAX calls by the name of cudnn."""

    name = "cudnn"

    def refusal(self, call: Call, platform: Platform) -> str | None:
        """Why the kernel cannot be asked, if so: whatever is not known to mean the same there."""
        logits, value = call.logits, call.value
        query, key, score = logits.query, logits.key, logits.score
        assert value is not None
        d = query.shape[-1]
        widest = 256 if min(platform.capability, capability_here()) >= 9 else 128  # JAX asks the GPU that is here
        sizes = [n for x in (query, key) for n in x.shape]
        reasons = {
            "JAX does not save its kernel in a program": bool(platform.saved_for),
            "it needs an NVIDIA GPU, Ampere or newer": platform.capability < 8,
            "its score is the dot product, with a number known at compile time for a scale": not (
                type(score) is DotProduct and isinstance(score.scale, int | float | None)
            ),
            "it takes bfloat16 and float16": query.dtype not in (jnp.bfloat16, jnp.float16),
            f"query, key and value must have one dtype and one width, a multiple of 8 up to {widest}": not (
                query.dtype == key.dtype == value.dtype and d == value.shape[-1] and d % 8 == 0 and d <= widest
            ),
            "it needs lengths that are known while tracing": not all(isinstance(n, int) for n in sizes),
            "there is nothing to compute: an axis has length 0": 0 in sizes,
            "it does not modify a score": logits.modification is not None,
            "it takes a bias of minus infinity for a number": logits.bias is not None,
            "it has no soft cap": logits.logits_soft_cap is not None,
            "it has no sinks": logits.sinks is not None,
            "it drops other weights for the same rng": call.dropout_rate > 0,
            "XLA was asked for": call.xla_only,
            "it returns no weights and no log-sum-exp": call.return_weights or call.return_log_sum_exp,
        }
        return next((reason for reason, refuse in reasons.items() if refuse), None)

    def rank(self, call: Call, platform: Platform) -> tuple[int, str]:
        return 3, "the fastest on an NVIDIA GPU"

    def program(self, platform: Platform) -> Any:
        return platform.capability

    def run(self, call: Call, platform: Platform) -> Result:
        """The output; `refusal` has had nothing to say."""
        logits, score = call.logits, call.logits.score
        assert isinstance(score, DotProduct)
        assert call.value is not None
        scale: Any = score.scale  # a number, or it had been refused
        attended = logits.attended()
        key, value = logits.key, call.value
        if attended is not None:  # also in the derivative, since the kernel's may overflow there
            key, value = (jnp.where(attended, x, 0) for x in (key, value))
        shape = logits.query.shape
        query, key, value = (x.reshape(-1, *x.shape[-3:]) for x in (logits.query, key, value))
        arguments = _arguments(logits)
        if arguments is not None:
            return Result(_by_name(query, key, value, scale=scale, **arguments).reshape(shape))
        return Result(_over_blocks(query, key, value, logits, scale, platform).reshape(shape))


# ----------------------------------------------------------------------------------------------------------------------
# Masks that the kernel knows by name.


def _arguments(logits: Logits) -> KernelArguments | None:
    """The mask in the kernel's own arguments, if it has them."""
    batch, _, t, s, _ = logits.shape
    if logits.mask is None:
        return {}
    whole = all(isinstance(first, int) and first == 0 for first in (logits.first_query, logits.first_key))
    if not whole:
        return None
    at_indices = logits.query_positions is None and logits.key_positions is None
    arguments: KernelArguments = {}
    for mask in _conjuncts(logits.mask):
        own = _arguments_of(mask, batch or (), t, s, at_indices)
        if own is None or arguments.keys() & own.keys() - {"is_causal"}:
            return None
        arguments |= own
    return arguments


def _conjuncts(mask: Mask) -> list[Mask]:
    return [*_conjuncts(mask.a), *_conjuncts(mask.b)] if isinstance(mask, And) else [mask]


def _arguments_of(mask: Mask, batch: tuple[int, ...], t: int, s: int, at_indices: bool) -> KernelArguments | None:
    square = at_indices and t == s
    if type(mask) is Causal and _is_zero(mask.offset) and square:
        return {"is_causal": True}
    if type(mask) is SlidingWindow and _is_zero(mask.offset) and mask.right == 0 and square:
        return {"is_causal": True, "local_window_size": (mask.left, 0)}
    if type(mask) is Lengths and (at_indices or not mask.by_position):
        valid_lens = jnp.broadcast_to(jnp.clip(mask.valid_lens, 0, s), batch)
        return {"key_value_seq_lengths": valid_lens.reshape(-1).astype(jnp.int32)}
    return None


def _is_zero(offset: Any) -> bool:
    return isinstance(offset, int) and offset == 0


def _by_name(
    query: Float[Array, "n t h d"], key: Float[Array, "n s k d"], value: Float[Array, "n s k d"], **arguments: Any
) -> Float[Array, "n t h d"]:
    """The kernel, which has gradients only for even numbers of queries and keys."""
    (n, t), s = query.shape[:2], key.shape[1]
    if s % 2 and not arguments.get("is_causal"):  # which hides the key after the last
        arguments = {"key_value_seq_lengths": jnp.full(n, s, jnp.int32)} | arguments
    even = (_padded(x, x.shape[1] % 2, axis=1) for x in (query, key, value))
    attend: Any = jax.nn.dot_product_attention
    return attend(*even, **arguments, implementation="cudnn")[:, :t]


# ----------------------------------------------------------------------------------------------------------------------
# Masks that it is given as arrays.


def _over_blocks(
    query: Float[Array, "n t h d"],
    key: Float[Array, "n s k d"],
    value: Float[Array, "n s k d"],
    logits: Logits,
    scale: float | None,
    platform: Platform,
) -> Float[Array, "n t h d"]:
    """All blocks of queries, each with the keys in the mask's range."""
    n, t, h, _ = query.shape
    s = key.shape[1]
    batch, *_ = logits.shape
    rules = dataclasses.replace(logits, query=None, key=None, score=None).aligned(len(batch)).by_head(batch, 1, h)
    rules = jax.tree.map(lambda x: x[:, 0], rules)  # n h t s

    def of_examples(f: Callable[[Logits], Any]) -> Any:
        """f of the rules of each example, ``h t s``, in an axis in front."""
        results = broadcast_map(f, rules, side_by_side)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape[1:])), results)

    def allowed(rows: int, width: int, start: Array, first: Array, rules: Logits) -> Bool[Array, "#h r w"]:
        part = rules.rows(start, rows).columns(first, width)
        assert part.mask is not None
        x = part.mask.formula(part.grid(rows, width, start, first))
        return jnp.broadcast_to(x, (*((1,) * (3 - x.ndim) + x.shape)[:-2], rows, width))

    zero = jnp.zeros((), int)
    heads = jax.eval_shape(lambda: of_examples(functools.partial(allowed, 1, s, zero, zero))).shape[1]
    example = jax.tree.map(lambda x: x[0], rules)
    pieces = []
    for blocks, widths, by_data in _plan(t, s, example, n * heads, platform):
        start, rows, first, _ = blocks[0]
        queries = query[:, start : start + len(blocks) * rows].reshape(n, len(blocks), rows, *query.shape[2:])
        starts = jnp.asarray([x.start for x in blocks])
        firsts, chosen = jnp.broadcast_to(jnp.asarray([x.first for x in blocks]), (n, len(blocks))), jnp.zeros(n, int)
        if by_data:

            def ranges(rules: Logits, starts: Array = starts, rows: int = rows, widths: list[int] = widths) -> Any:
                return key_ranges(functools.partial(rules.key_range, s=s), starts, rows, widths, platform)

            firsts, chosen = of_examples(ranges)
        shared = min(first, s - widths[0]) if not by_data and len({x.first for x in blocks}) == 1 else None
        branches: list[Callable[..., Array]] = [
            functools.partial(_of_width, allowed, rules, heads, width, shared, scale) for width in widths
        ]
        if len(branches) > 1:  # what a branch keeps for the backward pass has a place also when another is taken
            branches = [jax.checkpoint(branch, prevent_cse=False) for branch in branches]
        piece = lax.switch(chosen.max(), branches, queries, key, value, starts, firsts)
        pieces.append(piece.reshape(n, -1, *query.shape[2:]))
    return jnp.concatenate(pieces, axis=1)


def _plan(t: int, s: int, rules: Logits, matrices: int, platform: Platform) -> list[Group]:
    if matrices * t * s <= _SMALL:
        return [Group([Block(0, t, 0, s)], [s], by_data=False)]
    return plan(t, 1, s, functools.partial(rules.key_range, s=s), platform)


def _of_width(
    allowed: Callable[..., Bool[Array, "#h r w"]],
    rules: Logits,
    heads: int,
    width: int,
    shared: int | None,
    scale: float | None,
    query: Float[Array, "n i r h d"],
    key: Float[Array, "n s k d"],
    value: Float[Array, "n s k d"],
    starts: Int[Array, "i"],
    firsts: Int[Array, "n i"],
) -> Float[Array, "n i r h d"]:
    """Blocks of one width; ``shared`` is the first key of all of them, where that is known."""
    n, count, rows, *_ = shape = query.shape
    s, k, d = key.shape[1:]
    if width == s:
        shared = 0
    if shared is None:
        at_once = largest_divisor(count, _AT_ONCE // (n * width * (heads * rows + 2 * k * d)))
        keys_are_in = width // rows
    else:  # blocks of the same keys are one
        larger = largest_divisor(count, _AT_ONCE // (n * width * heads * rows))
        starts, rows, count = starts[::larger], rows * larger, count // larger
        key, value = (x[:, shared : shared + width] for x in (key, value))
        at_once, keys_are_in = 1, count
    if keys_are_in > _FEW:
        key, value = (x.astype(jnp.float32) for x in (key, value))

    def some(blocks: tuple[Array, Array, Array]) -> Float[Array, "n i r h d"]:
        queries, starts, firsts = blocks  # n i r h d, i, and n i or, if shared, one number
        axis = 0 if shared is None else None

        def of_example(x: tuple[Array, Array, Logits]) -> Bool[Array, "i #h r w"]:
            _, firsts, rules = x
            return jax.vmap(lambda start, first: allowed(rows, width, start, first, rules), (0, axis))(starts, firsts)

        each_first = firsts if shared is None else jnp.full(n, firsts)
        array = broadcast_map(of_example, (jnp.arange(n), each_first, rules), side_by_side)

        def in_range(x: Float[Array, "n s k d"]) -> Float[Array, "_ w k d"]:
            if shared is None:
                x = jax.vmap(jax.vmap(lambda x, first: lax.dynamic_slice_in_dim(x, first, width), (None, 0)))(x, firsts)
            return x.reshape(-1, width, k, d).astype(query.dtype)

        output = _by_array(
            queries.reshape(-1, *queries.shape[2:]),
            in_range(key),
            in_range(value),
            array.reshape(-1, *array.shape[2:]),
            scale,
        )
        return output.reshape(queries.shape)

    turns = count // at_once
    if shared is None:
        firsts = jnp.moveaxis(jnp.clip(firsts, 0, s - width).reshape(n, turns, at_once), 1, 0)
    else:
        firsts = jnp.full(turns, shared)
    blocks = (
        jnp.moveaxis(query.reshape(n, turns, at_once, rows, *shape[3:]), 1, 0),
        starts.reshape(turns, at_once),
        firsts,
    )
    # Without a checkpoint the arrays of all blocks would be kept for the backward pass.
    if turns == 1:
        return jax.checkpoint(some)(jax.tree.map(lambda x: x[0], blocks)).reshape(shape)
    return jnp.moveaxis(lax.map(jax.checkpoint(some, prevent_cse=False), blocks), 0, 1).reshape(shape)


def _by_array(
    query: Float[Array, "n t h d"],
    key: Float[Array, "n s k d"],
    value: Float[Array, "n s k d"],
    allowed: Bool[Array, "n #h t s"],
    scale: float | None,
) -> Float[Array, "n t h d"]:
    """The kernel, given the mask as an array."""
    t, s = allowed.shape[2:]
    # For a query that may attend to nothing the kernel averages all values, and on Hopper its gradient may overflow: so
    # it is shown all keys, and its output dropped. The gradient also wants even numbers of queries and whole tiles.
    reached = allowed.any(axis=-1, keepdims=True)
    shown = _padded(_padded(allowed | ~reached, t % 2, axis=2), -s % _TILE, axis=3)
    key, value = (_padded(x, -s % _TILE, axis=1) for x in (key, value))
    output = _array_kernel(scale)(_padded(query, t % 2, axis=1), key, value, shown)[:, :t]
    return jnp.where(jnp.swapaxes(reached, 1, 2), output, 0)


def _padded(x: Array, n: int, axis: int) -> Array:
    return jnp.pad(x, [(0, n if i == axis else 0) for i in range(x.ndim)]) if n else x


@functools.cache
def _array_kernel(scale: float | None) -> Callable[..., Array]:
    """The kernel, with a gradient that computes it anew, as JAX's keeps the array, and under vmap as a larger batch."""

    def forward(query: Array, key: Array, value: Array, allowed: Array) -> Array:
        attend: Any = jax.nn.dot_product_attention
        return attend(query, key, value, mask=allowed, scale=scale, implementation="cudnn")

    def backward(cotangent: Array, query: Array, key: Array, value: Array, allowed: Array) -> tuple[Array, ...]:
        return jax.vjp(lambda q, k, v: forward(q, k, v, allowed), query, key, value)[1](cotangent)

    forward_of_many, backward_of_many = _as_larger_batch(forward), _as_larger_batch(backward)
    kernel = jax.custom_vjp(forward_of_many)
    kernel.defvjp(
        lambda *arguments: (forward_of_many(*arguments), arguments),
        lambda arguments, cotangent: (*backward_of_many(cotangent, *arguments), None),
    )
    return kernel


def _as_larger_batch(f: Callable[..., Any]) -> Callable[..., Any]:
    """f of arrays whose first axis is a batch's; under vmap the mapped axis joins it.

    JAX's own rule for the kernel fails for an array that has one head for all.
    """
    mapped = jax.custom_batching.custom_vmap(f)

    @mapped.def_vmap
    def rule(size: int, in_batched: list[bool], *arguments: Array) -> Any:
        all_mapped = (
            x if batched else jnp.broadcast_to(x, (size, *x.shape))
            for x, batched in zip(arguments, in_batched, strict=True)
        )
        results = mapped(*(x.reshape(-1, *x.shape[2:]) for x in all_mapped))
        return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), results), jax.tree.map(lambda x: True, results)

    return mapped
