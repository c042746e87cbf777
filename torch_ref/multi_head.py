"""Attention: softmax over keys of (score + bias, where mask allows) @ value."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_ref.logits import Score, logits_of, repeat_heads
from torch_ref.scores import at_least_float32
from torch_ref.softmax import softmax_beside_sinks


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Score | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    logits_soft_cap: float | None = None,
    sinks: Tensor | None = None,
    keep: Tensor | None = None,
    dropout_rate: float = 0.0,
    head_gates: Tensor | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Average of the values, weighted by how well their keys match the query.

        logits = soft_cap(scale * score(query, key) + bias)
        output = head_gates * dropout(softmax(logits where mask, beside the sinks)) @ value

    Shapes: query "*b t h d", key "*b s k d", value "*b s k e"; mask and bias broadcastable to, and keep of,
    "*b h t s"; sinks and head_gates broadcastable to "*b h". Each key/value head serves h / k consecutive query
    heads. keep says which weights survive dropout; without it nothing is dropped. A sink is the logit of a further
    key that has no value: it takes its share of the weights, and is left out of them.

    Returns output "*b t h e", or (output, weights "*b h t s"), the weights from before dropout.
    """
    logits = logits_of(query, key, score, bias, scale, logits_soft_cap)
    weights = softmax_beside_sinks(logits, mask, sinks)
    kept = weights if keep is None else weights * keep / (1 - dropout_rate)
    output = _average(kept, repeat_heads(value, query.shape[-2]))
    if head_gates is not None:
        output = output * head_gates[..., None, :, None]
    output = output.to(value.dtype)
    return (output, weights) if return_weights else output


def attention_weights(
    query: Tensor,
    key: Tensor,
    *,
    score: Score | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    logits_soft_cap: float | None = None,
    sinks: Tensor | None = None,
    heads: Sequence[int] | None = None,
    queries: Sequence[int] | None = None,
) -> Tensor:
    """The weights of attention, of the selected heads and queries only.

    Shapes: query "*b t h d", key "*b s k d" -> "*b heads queries s"; None selects all.
    """
    weights = softmax_beside_sinks(logits_of(query, key, score, bias, scale, logits_soft_cap), mask, sinks)
    if heads is not None:
        weights = weights[..., heads, :, :]
    if queries is not None:
        weights = weights[..., queries, :]
    return weights


def _average(weights: Tensor, value: Tensor) -> Tensor:
    """Weighted sums of values: "*b h t s", "*b s h e" -> "*b t h e"."""
    return torch.einsum("...hts,...she->...the", weights, at_least_float32(value))
