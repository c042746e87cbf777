"""Llama: a decoder with rotary positions, grouped heads and no biases (Touvron et al. 2023)."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from torch_ref.masks import causal
from torch_ref.nn import MultiHeadAttention


class SwiGLU(nn.Module):
    """A gated network on each position, W_down (silu(W_gate x) * W_up x) (Shazeer 2020)."""

    def __init__(self, features: int, hidden_features: int):
        super().__init__()
        self.gate = nn.Linear(features, hidden_features, bias=False)
        self.up = nn.Linear(features, hidden_features, bias=False)
        self.down = nn.Linear(hidden_features, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x "*b t m" -> "*b t m"."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class LlamaBlock(nn.Module):
    """Causal self-attention with rotary positions and a SwiGLU, each f with a residual, x + f(norm(x))."""

    def __init__(self, features: int, hidden_features: int, epsilon: float, heads: dict[str, Any]):
        super().__init__()
        self.norm1 = nn.RMSNorm(features, eps=epsilon)
        self.attention = MultiHeadAttention(in_features=features, **heads)
        self.norm2 = nn.RMSNorm(features, eps=epsilon)
        self.feed_forward = SwiGLU(features, hidden_features)

    def forward(self, x: Tensor, valid_lens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x "b t m" -> "b t m", weights "b h t t"."""
        t = x.shape[-2]
        y, weights = self.attention(self.norm1(x), valid_lens=valid_lens, mask=causal(t, t), return_weights=True)
        x = x + y
        return x + self.feed_forward(self.norm2(x)), weights


class Llama(nn.Module):
    """Token embeddings, pre-norm blocks without biases, a norm, and logits."""

    def __init__(
        self,
        vocab_size: int,
        *,
        features: int,
        num_heads: int,
        num_layers: int,
        feedforward_features: int,
        num_kv_heads: int | None = None,
        head_features: int | None = None,
        rotary_base: float = 10000.0,
        tied: bool = False,
        attention_dropout_rate: float = 0.0,
        norm_epsilon: float = 1e-6,
    ):
        super().__init__()
        heads: dict[str, Any] = dict(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            qkv_features=None if head_features is None else num_heads * head_features,
            rotary_base=rotary_base,
            dropout_rate=attention_dropout_rate,
        )
        self.embedding = nn.Embedding(vocab_size, features)
        self.blocks = nn.ModuleList(
            LlamaBlock(features, feedforward_features, norm_epsilon, heads) for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm(features, eps=norm_epsilon)
        self.output = None if tied else nn.Linear(features, vocab_size, bias=False)

    def forward(
        self, tokens: Tensor, *, valid_lens: Tensor | None = None, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """tokens "b t" -> logits "b t v" [, weights "b h t t" of each layer]."""
        x, weights = self.embedding(tokens), []
        for block in self.blocks:
            x, layer_weights = block(x, valid_lens)
            weights.append(layer_weights)
        output = self.embedding if self.output is None else self.output
        logits = self.norm(x) @ output.weight.T
        return (logits, weights) if return_weights else logits
