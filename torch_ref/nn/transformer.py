"""The transformer block: attention and a network on each position, with residuals and norms."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from torch_ref.masks import all_of
from torch_ref.masks import causal as causal_mask
from torch_ref.nn.experts import MixtureOfExperts
from torch_ref.nn.feed_forward import FeedForward
from torch_ref.nn.multi_head import MultiHeadAttention


class TransformerBlock(nn.Module):
    """Self-attention, optionally attention to a memory, and a feed-forward network, each f with a residual.

        norm="post":      x = dropout(norm(drop(f(x)) + x))    (dropout here, none inside the feed-forward)
        norm="pre":       x = x + drop(f(norm(x)))             (dropout inside the feed-forward only)
        norm="sandwich":  x = x + norm'(drop(f(norm(x))))      (Gemma 2)
        norm="branch":    x = x + norm(drop(f(x)))             (OLMo 2)

    drop has residual_dropout_rate, and multiplies by residual_scale. With experts, arguments of a MixtureOfExperts,
    that is the feed-forward network. If parallel, the network sees what attention saw: x + f(norm1(x)) + g(norm2(x)),
    where norm2 is norm1 with shared_norm.
    attention_dropout_rate is for the attention weights; norm_kind is "layer" or "rms".
    """

    def __init__(
        self,
        num_heads: int,
        features: int,
        feedforward_features: int,
        *,
        norm: str = "post",
        norm_kind: str = "layer",
        norm_epsilon: float | None = None,
        first_norm: bool = True,
        parallel: bool = False,
        shared_norm: bool = False,
        activation: str = "relu",
        gated: bool = False,
        feedforward_bias: bool = True,
        experts: Mapping[str, Any] | None = None,
        dropout_rate: float = 0.0,
        residual_dropout_rate: float = 0.0,
        residual_scale: float = 1.0,
        attention_dropout_rate: float = 0.0,
        use_bias: bool = True,
        causal: bool = False,
        cross_attention: bool = False,
        num_kv_heads: int | None = None,
        normalize_qk: bool = False,
        rotary_base: float | None = None,
        attention_options: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.place, self.parallel, self.causal = norm, parallel, causal
        heads: dict[str, Any] = dict(
            num_kv_heads=num_kv_heads,
            use_bias=use_bias,
            normalize_qk=normalize_qk,
            dropout_rate=attention_dropout_rate,
        )

        def make_norm() -> nn.Module:
            if norm_kind == "rms":
                return nn.RMSNorm(features, eps=norm_epsilon)
            return nn.LayerNorm(features, eps=1e-5 if norm_epsilon is None else norm_epsilon)

        own = {"rotary_base": rotary_base, **heads, **(attention_options or {})}
        self.attention = MultiHeadAttention(num_heads, features, **own)
        # The positions of a memory are not those of x, so cross attention is never rotary.
        self.cross_attention = MultiHeadAttention(num_heads, features, **heads) if cross_attention else None
        network: dict[str, Any] = dict(
            activation=activation,
            gated=gated,
            use_bias=feedforward_bias,
            dropout_rate=0.0 if norm == "post" else dropout_rate,
        )
        self.feed_forward = (
            FeedForward(features, feedforward_features, **network)
            if experts is None
            else MixtureOfExperts(features, feedforward_features, **network, **experts)
        )
        self.norm1 = make_norm() if first_norm else nn.Identity()
        self.shared_norm = shared_norm
        self.norm2 = nn.Identity() if shared_norm else make_norm()
        self.norm3 = make_norm() if cross_attention else None
        sublayers = 3 if cross_attention else 2
        self.norms_after = nn.ModuleList(make_norm() for _ in range(sublayers)) if norm == "sandwich" else None
        self.residual_dropout = nn.Dropout(residual_dropout_rate)
        self.residual_scale = residual_scale
        self.dropout = nn.Dropout(dropout_rate)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        valid_lens: Tensor | None = None,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        positions: Tensor | None = None,
        memory_valid_lens: Tensor | None = None,
        memory_mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """x "*b t m" [, memory "*b s m"] -> "*b t m" [, weights "*b h t s", or (self, cross) weights]."""
        t = x.shape[-2]
        if self.causal:
            mask = all_of(mask, causal_mask(t, t).to(x.device))

        y = self._before(self.norm1, x)
        y, weights = self.attention(
            y, valid_lens=valid_lens, mask=mask, bias=bias, positions=positions, return_weights=True
        )
        before, x = x, self._after(0, self.norm1, x, y)

        if self.cross_attention is not None:
            y = self._before(self.norm2, x)
            y, cross_weights = self.cross_attention(
                y, memory, valid_lens=memory_valid_lens, mask=memory_mask, return_weights=True
            )
            x = self._after(1, self.norm2, x, y)
            weights = (weights, cross_weights)

        norm = self.norm1 if self.shared_norm else self.norm3 or self.norm2
        y = self.feed_forward(self._before(norm, before if self.parallel else x))
        x = self._after(-1, norm, x, y)
        return (x, weights) if return_weights else x

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        """What a sublayer sees of x."""
        return norm(x) if self.place in ("pre", "sandwich") else x

    def _after(self, i: int, norm: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x with the output y of the i-th sublayer added."""
        y = self.residual_scale * self.residual_dropout(y)
        if self.place == "post":
            return self.dropout(norm(y + x))
        if self.place == "branch":
            return x + norm(y)
        return x + (y if self.norms_after is None else self.norms_after[i](y))
