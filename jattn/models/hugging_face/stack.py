"""Tokens through a stack of blocks: which of them are real, where they stand, and what each block gives."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.biases import Bias
from jattn.cache import Cache, positions_of
from jattn.masks import Mask, all_of, dense, sliding_window
from jattn.nn import TransformerBlock, new_cache
from jattn.nn.weights import Cached, as_pair, outputs

__all__ = [
    "StackOptions",
    "StackOutput",
    "TextOptions",
    "WithHidden",
    "and_within",
    "blocks_of",
    "caches_of",
    "looked_up",
    "next_tokens",
    "real_tokens",
    "returned",
    "run_blocks",
]


class StackOptions(TypedDict, total=False):
    """What every model of blocks takes beside its inputs."""

    attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None
    mask: Mask | Bool[Array, "..."] | None
    rng: PRNGKeyArray | None


class TextOptions(StackOptions, total=False):
    """Likewise, of text."""

    valid_lens: int | Int[Array, "b"] | None
    positions: Int[Array, "b t"] | None


class WithHidden(NamedTuple):
    """What a model returns with ``return_hidden``."""

    output: Array
    weights: Any  # of each block, b h t t, or None if not asked for
    # list of b t m: what the first block gets, then what each gives, the last one normed as in the output; of an
    # encoder-decoder an EncoderDecoderHidden
    hidden: Any


class StackOutput(NamedTuple):
    """What `run_blocks` returns."""

    x: Array  # b t m
    weights: list[Any]
    hidden: list[Array]
    caches: tuple[Cache, ...] | None = None


def blocks_of(
    features: int, layers: Sequence[Mapping[str, Any]], *, causal: bool, **types: Any
) -> tuple[list[TransformerBlock], tuple[int | None, ...]]:
    """The blocks of these settings, those of `TransformerBlock` and ``window``, and the window of each."""
    settings = [{"causal": causal, **layer} for layer in layers]
    windows = tuple(layer.pop("window", None) for layer in settings)
    return [TransformerBlock(features=features, **layer, **types) for layer in settings], windows


def run_blocks(
    blocks: Sequence[TransformerBlock],
    windows: Sequence[int | None],
    x: Float[Array, "b t m"],
    memory: Any = None,
    *,
    real: Bool[Array, "b t"] | None = None,
    mask: Mask | Bool[Array, "..."] | None = None,
    bias_of: Callable[[Any], Bias] | None = None,
    caches: Sequence[Cache] | None = None,
    rngs: Sequence[PRNGKeyArray | None],
    return_weights: bool,
    **options: Any,
) -> StackOutput:
    """One block after the other; each sees real tokens alone, and those in its window.

    Args:
        blocks: in their order.
        windows: for each how far it sees, its own token included; None is all of them.
        x: ``b t m``.
        memory: what they attend to with cross attention; or a list of what each block's own projected.
        real: which tokens may be attended to.
        mask: further, who may attend to whom.
        bias_of: the bias of the logits of the heads with these numbers, an index into all; a block may have lost some.
        caches: of the tokens before these, one for each block.
        rngs: one for each block.
        return_weights: whether their weights are wanted.
        options: further arguments of each block's call.
    """
    hidden, weights = [x], []
    memories = memory if isinstance(memory, list) else [memory] * len(blocks)
    keys, after = None, []
    if caches is None:
        keys = None if real is None else dense(real[:, None, None, :])
    else:
        _check_rings(caches, windows)
        options["real"] = real
    of_each = [None] * len(blocks) if caches is None else caches
    for block, window, own, cache, rng in zip(blocks, windows, memories, of_each, rngs, strict=True):
        near = None if window is None else sliding_window(window - 1, window - 1)
        numbers = block.attention.head_numbers
        bias = None if bias_of is None else bias_of(slice(None) if numbers is None else np.array(numbers))
        result = block(
            x,
            own,
            mask=all_of(near, keys, mask),
            bias=bias,
            cache=cache,
            return_weights=return_weights,
            rng=rng,
            **options,
        )
        if isinstance(result, Cached):
            x, cache, of_block, _ = result
            after.append(cache)
        else:
            x, of_block = as_pair(result, return_weights)
        hidden.append(x)
        weights.append(of_block)
    return StackOutput(x, weights, hidden, None if caches is None else tuple(after))


def caches_of(
    blocks: Sequence[TransformerBlock], windows: Sequence[int | None], batch_size: int, room: int, dtype: Any
) -> tuple[Cache, ...]:
    """One without tokens for each block's attention within x."""
    if not checks.is_symbol(batch_size):
        checks.positive_integers(batch_size=batch_size)
    return tuple(
        new_cache(block.attention, (batch_size,), room, window=window, dtype=dtype)
        for block, window in zip(blocks, windows, strict=True)
    )


def _check_rings(caches: Sequence[Cache], windows: Sequence[int | None]) -> None:
    """Raise ValueError where one forgets tokens that its block sees, such as that of another block."""
    for i, (cache, window) in enumerate(zip(caches, windows, strict=True)):
        if cache.ring and (window is None or cache.room < window):
            seen = "all tokens" if window is None else f"{window} tokens"
            raise ValueError(
                f"cache must keep what each block sees, {seen} in block {i}. Got a ring of {cache.room} slots there. "
                "Pass them in the order of new_cache."
            )


def next_tokens(
    caches: Any,
    blocks: Sequence[TransformerBlock],
    shape: tuple[int, ...],
    real: Bool[Array, "b t"] | None,
    valid_lens: int | Int[Array, "b"] | None,
    positions: Int[Array, "b t"] | None,
) -> tuple[Bool[Array, "b t"] | None, Int[Array, "b t"] | None]:
    """Which of the tokens after those of the caches are real, and the positions of all; None are 0 ... t - 1.

    Raises:
        ValueError: if there is not one cache for each block, of this batch.
    """
    if not isinstance(caches, tuple | list) or not all(isinstance(cache, Cache) for cache in caches):
        raise ValueError(f"cache must be what new_cache or an earlier call returned. Got {type(caches).__name__}.")
    if len(caches) != len(blocks):
        raise ValueError(f"cache must be one for each of {len(blocks)} blocks. Got {len(caches)}.")
    if caches[0].length.shape != shape[:1]:
        raise ValueError(f"cache must be of {shape[0]} examples. Got one of shape {caches[0].length.shape}.")
    real = and_within(real, valid_lens, shape)
    if positions is None and not (real is None and caches[0].is_known_empty):
        positions = caches[0].next_positions(shape[1], real)
    return real, positions


def returned(output: Array, ran: StackOutput, *, return_weights: bool, return_hidden: bool) -> Any:
    """What a model returns that was asked for this; ``ran.x`` stands for what the last block gave."""
    weights, hidden = ran.weights if return_weights else None, [*ran.hidden[:-1], ran.x]
    if ran.caches is not None:
        return Cached(output, ran.caches, weights, hidden if return_hidden else None)
    if return_hidden:
        return WithHidden(output, weights, hidden)
    return outputs(output, ran.weights, return_weights)


def real_tokens(attention_mask: Any, shape: tuple[int, ...], name: str = "attention_mask") -> Bool[Array, "b t"] | None:
    """Which tokens are real, as booleans."""
    if attention_mask is None:
        return None
    given = checks.array(name, attention_mask)
    if given.shape != shape or not (given.dtype == jnp.bool_ or jnp.issubdtype(given.dtype, jnp.integer)):
        raise ValueError(
            f"{name} must have a 1 or a 0 for each token, integers or booleans of shape {shape}. Got "
            f"{given.dtype} of shape {given.shape}."
        )
    if checks.is_concrete(given) and not np.isin(np.asarray(given), (0, 1)).all():
        raise ValueError(f"{name} must hold 1 for real tokens and 0 for padding. Got other numbers.")
    return given.astype(bool)


def and_within(
    real: Bool[Array, "b t"] | None, valid_lens: int | Int[Array, "b"] | None, shape: tuple[int, ...]
) -> Bool[Array, "b t"] | None:
    """Which tokens are real, where that many of each sequence are at most."""
    if valid_lens is None:
        return real
    lens = jnp.reshape(jnp.asarray(valid_lens), (-1, 1))
    within = jnp.broadcast_to(jnp.arange(shape[1], dtype=lens.dtype)[None] < lens, shape)
    return within if real is None else within & real


def looked_up(
    name: str, t: int, max_length: int | None, real: Bool[Array, "b t"] | None, positions: Int[Array, "b t"] | None
) -> Int[Array, "b t"] | None:
    """Which learned positions t tokens have: those given, or as many as there are, counted over the real tokens."""
    if positions is not None:
        return positions
    assert max_length is not None
    checks.at_most(name, t, "max_length", max_length)
    return None if real is None else positions_of(real)
