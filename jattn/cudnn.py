"""NVIDIA's cuDNN kernel: how a call is put into its words, and what it cannot honour.

It knows a few masks by name: causal, a causal window, one length for each example. Any other it is handed as an array,
for blocks of queries with the keys in reach of the mask's span. The blocks are examples of a batch to it, so its work
and the array fall with the mask.

Axes beyond the usual: n examples · i blocks · r query rows of a block · w keys in its reach.
"""

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jattn.blocks import Block, Group, plan, reach
from jattn.loops import largest_divisor
from jattn.mask_types import And, Causal, Lengths, Mask, SlidingWindow
from jattn.scores import DotProduct

if TYPE_CHECKING:
    from jattn.implementations import Call

_AT_ONCE = 2**27  # entries of masks, and of keys and values taken out for blocks, that are in memory at a time
_SMALL = 2**24  # entries of a mask up to which the whole takes no longer than blocks
_FEW = 4  # blocks that a key is in: the gradients of more are added up in float32

Words = dict[str, Any]  # arguments of jax.nn.dot_product_attention


def refusal(call: "Call") -> str | None:
    """Everything that is not known to have the same meaning there."""
    query, key, value = call.query, call.key, call.value
    *batch, t, h, d = query.shape
    s = key.shape[-3]
    capability = compute_capability()
    widest = 128 if capability < 9 else 256
    reasons = {
        "it needs an NVIDIA GPU, Ampere or newer": capability < 8,
        "its score is the dot product, with a number known at compile time for a scale": not (
            isinstance(call.score, DotProduct) and isinstance(call.score.scale, (int, float, type(None)))
        ),
        "it takes bfloat16 and float16": query.dtype not in (jnp.bfloat16, jnp.float16),
        f"query, key and value must have one dtype and one width, a multiple of 8 up to {widest}": not (
            query.dtype == key.dtype == value.dtype and d == value.shape[-1] and d % 8 == 0 and d <= widest
        ),
        "there is nothing to compute: an axis has length 0": 0 in (*query.shape, *key.shape),
        "a bias must have all its axes, and even numbers of queries and keys": not (
            call.bias is None or (call.bias.shape == (*batch, h, t, s) and t % 2 == s % 2 == 0)
        ),
        "beside a bias it has causal(), a causal sliding_window, and lengths(), as many queries as keys": not (
            call.bias is None or _words(call.mask, tuple(batch), t, s) is not None
        ),
        "it has no soft cap": call.logits_soft_cap is not None,
        "it drops other weights for the same rng": call.dropout_rate > 0,
        "it returns no weights and no log-sum-exp": call.return_weights or call.return_log_sum_exp,
    }
    return next((reason for reason, refuse in reasons.items() if refuse), None)


def compute_capability() -> float:
    """Of the NVIDIA GPU that is the default device, such as 9.0 for Hopper; 0 if there is none."""
    if jax.default_backend() != "gpu":
        return 0.0
    version = str(getattr(jax.devices()[0], "compute_capability", ""))
    return float(version) if re.fullmatch(r"\d+\.\d+", version) else 0.0  # AMD's has letters


def run(call: "Call") -> Float[Array, "*b t h e"]:
    """The output; `refusal` has had nothing to say."""
    *batch, t, _, _ = call.query.shape
    s = call.key.shape[-3]
    assert isinstance(call.score, DotProduct)
    query, key, value = (x.reshape(-1, *x.shape[-3:]) for x in (call.query, call.key, call.value))
    bias = None if call.bias is None else call.bias.reshape(-1, *call.bias.shape[-3:])
    kernel = functools.partial(_kernel, scale=call.score.scale)
    words = _words(call.mask, tuple(batch), t, s)
    if words is not None:
        output = kernel(query, key, value, bias=bias, **words)
    else:
        assert call.mask is not None
        output = _over_blocks(kernel, query, key, value, call.mask, tuple(batch))
    return output.reshape(call.query.shape)


def _kernel(
    query: Float[Array, "n t h d"],
    key: Float[Array, "n s k d"],
    value: Float[Array, "n s k d"],
    *,
    mask: Bool[Array, "n #h t s"] | None = None,
    **words: Any,
) -> Float[Array, "n t h d"]:
    """The kernel, which has gradients only for even numbers of queries and keys."""
    n, t = query.shape[:2]
    s = key.shape[1]
    if t % 2 or s % 2:
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (0, 0), (0, t % 2), (0, s % 2)))
        elif not words.get("is_causal"):  # that one hides the key after the last
            words = {"key_value_seq_lengths": jnp.full(n, s, jnp.int32)} | words
        query, key, value = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (query, key, value))
    attend: Any = jax.nn.dot_product_attention
    return attend(query, key, value, mask=mask, **words, implementation="cudnn")[:, :t]


# ----------------------------------------------------------------------------------------------------------------------
# Masks that the kernel knows by name.


def _words(mask: Mask | None, batch: tuple[int, ...], t: int, s: int) -> Words | None:
    """The mask in the kernel's own words, if it has them."""
    if mask is None:
        return {}
    words: Words = {}
    for rule in _conjuncts(mask):
        of_rule = _words_of_rule(rule, batch, t, s)
        if of_rule is None or words.keys() & of_rule.keys() - {"is_causal"}:
            return None
        words |= of_rule
    return words


def _conjuncts(mask: Mask) -> list[Mask]:
    return [*_conjuncts(mask.a), *_conjuncts(mask.b)] if isinstance(mask, And) else [mask]


def _words_of_rule(rule: Mask, batch: tuple[int, ...], t: int, s: int) -> Words | None:
    if isinstance(rule, Causal) and _is_zero(rule.offset) and t == s:
        return {"is_causal": True}
    if isinstance(rule, SlidingWindow) and _is_zero(rule.offset) and rule.right == 0 and t == s:
        return {"is_causal": True, "local_window_size": (rule.left, 0)}
    if isinstance(rule, Lengths) and not rule.per_query:
        valid_lens = jnp.broadcast_to(jnp.clip(rule.valid_lens, 0, s), batch)
        return {"key_value_seq_lengths": valid_lens.reshape(-1).astype(jnp.int32)}
    return None


def _is_zero(offset: Any) -> bool:
    return isinstance(offset, int) and offset == 0


# ----------------------------------------------------------------------------------------------------------------------
# Masks that it does not know.


def _over_blocks(
    kernel: Callable[..., Array],
    query: Float[Array, "n t h d"],
    key: Float[Array, "n s k d"],
    value: Float[Array, "n s k d"],
    mask: Mask,
    batch: tuple[int, ...],
) -> Float[Array, "n t h d"]:
    """The kernel on all blocks of queries, each with the keys in reach of the mask's span."""
    n, t, h, _ = query.shape
    s = key.shape[1]

    def part(example: Array) -> Mask:
        return mask.part(jnp.unravel_index(example, batch) if batch else (), 0, h)

    def allowed(rows: int, width: int, example: Array, start: Array, first: Array) -> Bool[Array, "#h r w"]:
        x = part(example).block(start, rows, first, width)
        return jnp.broadcast_to(x, (*((1,) * (3 - x.ndim) + x.shape)[:-2], rows, width))

    heads = jax.eval_shape(functools.partial(allowed, 1, s), *[jnp.zeros((), int)] * 3).shape[0]
    pieces = []
    for blocks, widths, by_data in _plan(t, s, mask):
        start, rows, first, _ = blocks[0]
        queries = query[:, start : start + len(blocks) * rows].reshape(n, len(blocks), rows, *query.shape[2:])
        starts = jnp.asarray([x.start for x in blocks])
        firsts, chosen = jnp.broadcast_to(jnp.asarray([x.first for x in blocks]), (n, len(blocks))), jnp.zeros(n, int)
        if by_data:
            spans = functools.partial(reach, starts=starts, rows=rows, s=s, widths=widths)
            firsts, chosen = jax.vmap(lambda example, spans=spans: spans(part(example)))(jnp.arange(n))
        shared = min(first, s - widths[0]) if not by_data and len({x.first for x in blocks}) == 1 else None
        branches: list[Callable[..., Array]] = [
            functools.partial(_of_width, kernel, allowed, heads, width, shared) for width in widths
        ]
        if len(branches) > 1:  # what a branch keeps for the backward pass has a place also when another is taken
            branches = [jax.checkpoint(branch, prevent_cse=False) for branch in branches]
        piece = lax.switch(chosen.max(), branches, queries, key, value, starts, firsts)
        pieces.append(piece.reshape(n, -1, *query.shape[2:]))
    return jnp.concatenate(pieces, axis=1)


def _plan(t: int, s: int, mask: Mask) -> list[Group]:
    return [Group([Block(0, t, 0, s)], [s], by_data=False)] if t * s <= _SMALL else plan(t, 1, s, mask)


def _of_width(
    kernel: Callable[..., Array],
    allowed: Callable[..., Bool[Array, "#h r w"]],
    heads: int,
    width: int,
    shared: int | None,
    query: Float[Array, "n i r h d"],
    key: Float[Array, "n s k d"],
    value: Float[Array, "n s k d"],
    starts: Int[Array, "i"],
    firsts: Int[Array, "n i"],
) -> Float[Array, "n i r h d"]:
    """The kernel on blocks of one width; ``shared`` is the first key of all of them, where that is known."""
    n, count, rows, *_ = shape = query.shape
    s, k, d = key.shape[1:]
    if width == s:
        shared = 0
    if shared is None:
        at_once = largest_divisor(count, _AT_ONCE // (n * width * (heads * rows + 2 * k * d)))
        keys_are_in = width // rows
    else:  # blocks of the same keys are one
        larger = largest_divisor(count, _AT_ONCE // (n * width * heads * rows))
        starts, firsts, rows, count = starts[::larger], firsts[:, ::larger], rows * larger, count // larger
        key, value = (x[:, shared : shared + width] for x in (key, value))
        at_once, keys_are_in = 1, count
    if keys_are_in > _FEW:
        key, value = (x.astype(jnp.float32) for x in (key, value))

    def some(x: tuple[Array, Array, Array]) -> Float[Array, "n i r h d"]:
        queries, starts, firsts = x  # n i r h d, i, n i
        mask = _for_each(functools.partial(allowed, rows, width), jnp.arange(n), starts, firsts)

        def in_reach(x: Array) -> Array:
            if shared is None:
                x = _for_each(lambda x, _, first: lax.dynamic_slice_in_dim(x, first, width), x, starts, firsts)
            return x.reshape(-1, width, k, d).astype(query.dtype)

        mask = mask.reshape(-1, *mask.shape[2:])
        output = kernel(queries.reshape(-1, *queries.shape[2:]), in_reach(key), in_reach(value), mask=mask)
        # The kernel averages all values for a query that may attend to nothing.
        reached = jnp.swapaxes(mask.any(axis=-1), 1, 2)[..., None]
        return jnp.where(reached, output, 0).reshape(queries.shape)

    firsts = jnp.clip(firsts, 0, s - width)
    xs = (
        jnp.moveaxis(query.reshape(n, count // at_once, at_once, rows, *shape[3:]), 1, 0),
        starts.reshape(-1, at_once),
        jnp.moveaxis(firsts.reshape(n, -1, at_once), 1, 0),
    )
    if count == at_once:
        return some(jax.tree.map(lambda x: x[0], xs)).reshape(shape)
    return jnp.moveaxis(lax.map(jax.checkpoint(some, prevent_cse=False), xs), 0, 1).reshape(shape)


def _for_each(
    f: Callable[..., Array], of_example: Array, of_block: Int[Array, "i"], of_both: Int[Array, "n i"]
) -> Array:
    """f of each example and block."""
    return jax.vmap(jax.vmap(f, (None, 0, 0)), (0, None, 0))(of_example, of_block, of_both)
