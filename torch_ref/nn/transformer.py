"""The transformer block: attention and a network on each position, with residuals and layer norms."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from torch_ref.masks import all_of
from torch_ref.masks import causal as causal_mask
from torch_ref.nn.multi_head import MultiHeadAttention

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "relu": F.relu,
    "gelu": F.gelu,  # the exact one, x * Phi(x)
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class FeedForward(nn.Module):
    """The same two-layer network on each position, dropout(W_2 dropout(activation(W_1 x)))."""

    def __init__(self, features: int, hidden_features: int, *, activation: str = "relu", dropout_rate: float = 0.0):
        super().__init__()
        self.linear1 = nn.Linear(features, hidden_features)
        self.linear2 = nn.Linear(hidden_features, features)
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """x "*b t m" -> "*b t m"."""
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class TransformerBlock(nn.Module):
    """Self-attention, optionally attention to a memory, and a feed-forward network, each f with a residual.

        norm="post":  x = dropout(norm(f(x) + x))    (dropout here, none inside the feed-forward)
        norm="pre":   x = x + f(norm(x))             (dropout inside the feed-forward only)

    attention_dropout_rate is for the attention weights, in both.
    """

    def __init__(
        self,
        num_heads: int,
        features: int,
        feedforward_features: int,
        *,
        norm: str = "post",
        activation: str = "relu",
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        use_bias: bool = True,
        causal: bool = False,
        cross_attention: bool = False,
        num_kv_heads: int | None = None,
        normalize_qk: bool = False,
        rotary_base: float | None = None,
    ):
        super().__init__()
        self.pre_norm, self.causal = norm == "pre", causal
        heads: dict[str, Any] = dict(
            num_kv_heads=num_kv_heads,
            use_bias=use_bias,
            normalize_qk=normalize_qk,
            dropout_rate=attention_dropout_rate,
        )
        self.attention = MultiHeadAttention(num_heads, features, rotary_base=rotary_base, **heads)
        # The positions of a memory are not those of x, so cross attention is never rotary.
        self.cross_attention = MultiHeadAttention(num_heads, features, **heads) if cross_attention else None
        self.feed_forward = FeedForward(
            features,
            feedforward_features,
            activation=activation,
            dropout_rate=dropout_rate if self.pre_norm else 0.0,
        )
        self.norm1 = nn.LayerNorm(features)
        self.norm2 = nn.LayerNorm(features)
        self.norm3 = nn.LayerNorm(features) if cross_attention else None
        self.dropout = nn.Dropout(dropout_rate)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        valid_lens: Tensor | None = None,
        mask: Tensor | None = None,
        memory_valid_lens: Tensor | None = None,
        memory_mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """x "*b t m" [, memory "*b s m"] -> "*b t m" [, weights "*b h t s", or (self, cross) weights]."""
        t = x.shape[-2]
        if self.causal:
            mask = all_of(mask, causal_mask(t, t).to(x.device))

        y = self._before(self.norm1, x)
        y, weights = self.attention(y, valid_lens=valid_lens, mask=mask, return_weights=True)
        x = self._after(self.norm1, x, y)

        if self.cross_attention is not None:
            y = self._before(self.norm2, x)
            y, cross_weights = self.cross_attention(
                y, memory, valid_lens=memory_valid_lens, mask=memory_mask, return_weights=True
            )
            x = self._after(self.norm2, x, y)
            weights = (weights, cross_weights)

        norm = self.norm2 if self.norm3 is None else self.norm3
        y = self.feed_forward(self._before(norm, x))
        x = self._after(norm, x, y)
        return (x, weights) if return_weights else x

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        """What a sublayer sees of x."""
        return norm(x) if self.pre_norm else x

    def _after(self, norm: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x with the output y of a sublayer added."""
        return x + y if self.pre_norm else self.dropout(norm(y + x))
