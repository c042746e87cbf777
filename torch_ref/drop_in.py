"""Attention in the signature of jax.nn's dot_product_attention."""

from torch import Tensor

from torch_ref.logits import logits_of
from torch_ref.masks import all_of, causal, lengths, sliding_window
from torch_ref.multi_head import attention
from torch_ref.softmax import masked_logsumexp


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
    residual = masked_logsumexp(logits_of(query, key, None, bias, scale, None), mask)
    return output, residual.mT.reshape(query.shape[:-1])
