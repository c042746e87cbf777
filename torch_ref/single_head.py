"""Attention for arrays without a head axis."""

from functools import partial

import torch
from torch import Tensor

from torch_ref.logits import Score
from torch_ref.multi_head import attention
from torch_ref.scores import additive


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
