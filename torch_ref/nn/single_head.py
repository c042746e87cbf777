"""Attention modules without heads."""

from functools import partial

from torch import Tensor, nn

from torch_ref.masks import all_of, lengths
from torch_ref.nn.dropout import draw_keep
from torch_ref.scores import additive
from torch_ref.single_head import single_head_attention


class DotProductAttention(nn.Module):
    """Scaled dot-product attention without heads, softmax(scale * q . k) @ value; scale 1 / sqrt(d)."""

    def __init__(self, dropout_rate: float = 0.0, scale: float | None = None):
        super().__init__()
        self.dropout_rate, self.scale = dropout_rate, scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        valid_lens: Tensor | None = None,
        mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """query "*b t d", key "*b s d", value "*b s e" -> "*b t e" [, weights "*b t s"]."""
        s = key.shape[-2]
        if valid_lens is not None:
            mask = all_of(mask, lengths(valid_lens, s).squeeze(-3))
        return single_head_attention(
            query,
            key,
            value,
            mask=mask,
            scale=self.scale,
            keep=draw_keep(self.dropout_rate, self.training, query, *query.shape[:-1], s),
            dropout_rate=self.dropout_rate,
            return_weights=return_weights,
        )


class AdditiveAttention(nn.Module):
    """Additive attention without heads (Bahdanau et al. 2015), softmax(w . tanh(W_q q + W_k k)) @ value."""

    def __init__(self, query_features: int, key_features: int, hidden_features: int, dropout_rate: float = 0.0):
        super().__init__()
        self.query = nn.Linear(query_features, hidden_features, bias=False)
        self.key = nn.Linear(key_features, hidden_features, bias=False)
        self.score = nn.Linear(hidden_features, 1, bias=False)
        self.dropout_rate = dropout_rate

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        valid_lens: Tensor | None = None,
        mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """query "*b t c", key "*b s d", value "*b s e" -> "*b t e" [, weights "*b t s"]."""
        s = key.shape[-2]
        if valid_lens is not None:
            mask = all_of(mask, lengths(valid_lens, s).squeeze(-3))
        w_query, w_key, w_value = self.query.weight.T, self.key.weight.T, self.score.weight[0]
        return single_head_attention(
            query,
            key,
            value,
            score=partial(additive, w_query=w_query, w_key=w_key, w_value=w_value),
            mask=mask,
            keep=draw_keep(self.dropout_rate, self.training, query, *query.shape[:-1], s),
            dropout_rate=self.dropout_rate,
            return_weights=return_weights,
        )
