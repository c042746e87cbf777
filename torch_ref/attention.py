"""Attention, softmax over keys of (score + bias, where mask allows) @ value, in its several signatures."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from torch_ref.masks import all_of, causal, lengths, sliding_window
from torch_ref.pooling import masked_logsumexp, masked_softmax
from torch_ref.scores import additive, at_least_float32, dot_product

Score = Callable[[Tensor, Tensor], Tensor]


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
    logits = _logits(query, key, score, bias, scale, logits_soft_cap)
    weights = _softmax_beside_sinks(logits, mask, sinks)
    kept = weights if keep is None else weights * keep / (1 - dropout_rate)
    output = _average(kept, _repeat_heads(value, query.shape[-2]))
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
    weights = _softmax_beside_sinks(_logits(query, key, score, bias, scale, logits_soft_cap), mask, sinks)
    if heads is not None:
        weights = weights[..., heads, :, :]
    if queries is not None:
        weights = weights[..., queries, :]
    return weights


def dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Tensor | None = None,
    key_value_seq_lengths: Tensor | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    return_residual: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention with the arguments of jax.nn.dot_product_attention.

    Shapes: query "b t h d", key "b s k d", value "b s k e", or all of them without b; mask and bias
    broadcastable to "b h t s"; sequence lengths "b". Rows at or past query_seq_lengths give zeros.

    Returns output "b t h e", or (output, residual "b t h"), the residual being the log-sum-exp of the logits.
    """
    t, s = query.shape[-3], key.shape[-3]
    if is_causal:
        mask = all_of(mask, causal(t, s).to(query.device))
    if local_window_size is not None:
        w = local_window_size
        left, right = (w, w) if isinstance(w, int) else w
        mask = all_of(mask, sliding_window(t, s, left, right).to(query.device))
    if query_seq_lengths is not None:
        mask = all_of(mask, lengths(query_seq_lengths, t).mT)
    if key_value_seq_lengths is not None:
        mask = all_of(mask, lengths(key_value_seq_lengths, s))

    # Lengths and masks may bring a batch axis of one that the query lacks; the reshapes take it off again.
    output, _ = attention(query, key, value, mask=mask, bias=bias, scale=scale, return_weights=True)
    output = output.reshape(*query.shape[:-1], value.shape[-1])
    if not return_residual:
        return output
    residual = masked_logsumexp(_logits(query, key, None, bias, scale, None), mask)
    return output, residual.mT.reshape(query.shape[:-1])


def single_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Score | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    keep: Tensor | None = None,
    dropout_rate: float = 0.0,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention for arguments that have no head axis.

    Shapes: query "*b t d", key "*b s d", value "*b s e", mask broadcastable to "*b t s", keep "*b t s".
    Returns output "*b t e", or (output, weights "*b t s").
    """
    output, weights = attention(
        query.unsqueeze(-2),
        key.unsqueeze(-2),
        value.unsqueeze(-2),
        score=score,
        mask=None if mask is None else torch.atleast_2d(mask).unsqueeze(-3),
        scale=scale,
        keep=None if keep is None else keep.unsqueeze(-3),
        dropout_rate=dropout_rate,
        return_weights=True,
    )
    output, weights = output.squeeze(-2), weights.squeeze(-3)
    return (output, weights) if return_weights else output


def additive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    w_query: Tensor,
    w_key: Tensor,
    w_value: Tensor,
    *,
    mask: Tensor | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention by the score w_value . tanh(q W_query + k W_key), without heads.

    Shapes: query "*b t c", key "*b s d", value "*b s e", w_query "c n", w_key "d n", w_value "n", mask
    broadcastable to "*b t s". Returns output "*b t e", or (output, weights "*b t s").
    """
    score = partial(additive, w_query=w_query, w_key=w_key, w_value=w_value)
    return single_head_attention(query, key, value, score=score, mask=mask, return_weights=return_weights)


def _logits(
    query: Tensor,
    key: Tensor,
    score: Score | None,
    bias: Tensor | None,
    scale: float | None,
    logits_soft_cap: float | None,
) -> Tensor:
    """What the softmax is taken of: cap * tanh(x / cap), x = scale * score(query, key) + bias."""
    key = _repeat_heads(key, query.shape[-2])
    if score is None:
        logits = dot_product(query, key, scale)
    else:
        logits = at_least_float32(score(query, key)) * (1.0 if scale is None else scale)
    if bias is not None:
        logits = logits + bias
    if logits_soft_cap is not None:
        capped = logits_soft_cap * torch.tanh(logits / logits_soft_cap)
        logits = torch.where(logits == -torch.inf, logits, capped)  # what is out of reach stays so
    return logits


def _softmax_beside_sinks(logits: Tensor, mask: Tensor | None, sinks: Tensor | None) -> Tensor:
    """The weights "*b h t s", with the sinks as the logits of one more key, which every query may attend to."""
    if sinks is None:
        return masked_softmax(logits, mask)
    one_more = sinks.to(logits.dtype)[..., None, None].expand(*logits.shape[:-1], 1)
    if mask is not None:
        mask = torch.cat([mask.expand(logits.shape), torch.ones_like(one_more, dtype=torch.bool)], dim=-1)
    return masked_softmax(torch.cat([logits, one_more], dim=-1), mask)[..., :-1]


def _repeat_heads(x: Tensor, num_heads: int) -> Tensor:
    """One key/value head per query head, "*b s k d" -> "*b s h d": each is repeated h / k times in a row."""
    return x.repeat_interleave(num_heads // x.shape[-2], dim=-2)


def _average(weights: Tensor, value: Tensor) -> Tensor:
    """Weighted sums of values: "*b h t s", "*b s h e" -> "*b t h e"."""
    return torch.einsum("...hts,...she->...the", weights, at_least_float32(value))
