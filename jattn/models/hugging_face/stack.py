"""Tokens through a stack of blocks: which of them are real, where they stand, and what each block gives."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.biases import Bias
from jattn.masks import Mask, all_of, dense, sliding_window
from jattn.nn import TransformerBlock
from jattn.nn.weights import as_pair, outputs

__all__ = ["Ran", "WithHidden", "blocks_of", "positions_of", "real_tokens", "returned", "run_blocks"]


class WithHidden(NamedTuple):
    """What a model returns with ``return_hidden``."""

    output: Array
    weights: Any  # of each block, b h t t, or None if not asked for
    # list of b t m: what the first block gets, then what each gives, the last one normed as in the output; of an
    # encoder-decoder an EncoderDecoderHidden
    hidden: Any


class Ran(NamedTuple):
    """What `run_blocks` returns."""

    x: Array  # b t m
    weights: list[Any]
    hidden: list[Array]


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
    rngs: Sequence[PRNGKeyArray | None],
    return_weights: bool,
    **options: Any,
) -> Ran:
    """One block after the other; each sees real tokens alone, and those in its window.

    Args:
        blocks: in their order.
        windows: for each how far it sees, its own token included; None is all of them.
        x: ``b t m``.
        memory: what they attend to with cross attention; or a list of what each block's own projected.
        real: which tokens may be attended to.
        mask: further, who may attend to whom.
        bias_of: the bias of the logits of the heads with these numbers, an index into all; a block may have lost some.
        rngs: one for each block.
        return_weights: whether their weights are wanted.
        options: further arguments of each block's call.
    """
    hidden, weights = [x], []
    memories = memory if isinstance(memory, list) else [memory] * len(blocks)
    keys = None if real is None else dense(real[:, None, None, :])
    for block, window, own, rng in zip(blocks, windows, memories, rngs, strict=True):
        near = None if window is None else sliding_window(window - 1, window - 1)
        numbers = block.attention.head_numbers
        bias = None if bias_of is None else bias_of(slice(None) if numbers is None else np.array(numbers))
        result = block(
            x, own, mask=all_of(near, keys, mask), bias=bias, return_weights=return_weights, rng=rng, **options
        )
        x, of_block = as_pair(result, return_weights)
        hidden.append(x)
        weights.append(of_block)
    return Ran(x, weights, hidden)


def returned(output: Array, ran: Ran, *, return_weights: bool, return_hidden: bool) -> Any:
    """What a model returns that was asked for this; ``ran.x`` stands for what the last block gave."""
    if return_hidden:
        return WithHidden(output, ran.weights if return_weights else None, [*ran.hidden[:-1], ran.x])
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
    return given != 0


def positions_of(real: Bool[Array, "b t"]) -> Int[Array, "b t"]:
    """Of each token, how many real ones stand before it."""
    return jnp.maximum(jnp.cumsum(real, axis=-1) - 1, 0)
