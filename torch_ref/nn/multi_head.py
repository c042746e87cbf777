"""Multi-head attention as a module."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from torch_ref.masks import all_of, lengths
from torch_ref.multi_head import attention
from torch_ref.nn.dropout import draw_keep
from torch_ref.nn.rotary_positions import Rotary


class NormOfEachHead(nn.Module):
    """A layer norm of each head by itself, with parameters "h d" of its own."""

    def __init__(self, heads: int, features: int, epsilon: float, *, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, features))
        self.bias = nn.Parameter(torch.zeros(heads, features)) if bias else None
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """x "*b t h d", in its shape."""
        y = self.weight * nn.functional.layer_norm(x, x.shape[-1:], eps=self.epsilon)
        return y if self.bias is None else y + self.bias


class MultiHeadAttention(nn.Module):
    """Several attentions side by side (Vaswani et al. 2017), concat_h attention(W_q q, W_k k, W_v v)_h W_out.

    qkv_features is num_heads times the width of a query and key head, value_head_features the width of a value head;
    key_features and value_features are the widths that key and value come with. use_bias may name those of query, key,
    value and out that have one. normalize_qk is True or "layer" for a layer norm, "rms" for an RMS norm, of each head
    by itself or of the whole width; not qk_norm_shared is for parameters of each head; rotary turns queries and keys
    by their positions. kv_heads is the key and value head of each query head where, after pruning, the groups are of
    unequal sizes.
    """

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        *,
        num_kv_heads: int | None = None,
        qkv_features: int | None = None,
        key_features: int | None = None,
        value_features: int | None = None,
        value_head_features: int | None = None,
        out_features: int | None = None,
        use_bias: bool | Collection[str] = False,
        normalize_qk: bool | str = False,
        qk_norm_epsilon: float | None = None,
        qk_norm_over: str = "head",
        qk_norm_shared: bool = True,
        rotary: nn.Module | None = None,
        rotary_base: float | None = None,
        scale: float | None = None,
        logits_soft_cap: float | None = None,
        use_sinks: bool = False,
        dropout_rate: float = 0.0,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_heads: list[int] | None = None
        d = (qkv_features or in_features) // num_heads
        e = value_head_features or d
        biased = {"query", "key", "value", "out"} if use_bias is True else use_bias or ()
        self.query = nn.Linear(in_features, num_heads * d, bias="query" in biased)
        self.key = nn.Linear(key_features or in_features, self.num_kv_heads * d, bias="key" in biased)
        self.value = nn.Linear(value_features or in_features, self.num_kv_heads * e, bias="value" in biased)
        self.out = nn.Linear(num_heads * e, out_features or in_features, bias="out" in biased)
        self.normalize_qk, self.qk_norm_over = normalize_qk, qk_norm_over

        def make_norm(heads: int) -> nn.Module:
            width = d if qk_norm_over == "head" else heads * d
            if normalize_qk == "rms":
                return nn.RMSNorm(width, eps=qk_norm_epsilon)
            usual = 1e-6 if normalize_qk is True else 1e-5
            epsilon = usual if qk_norm_epsilon is None else qk_norm_epsilon
            if not qk_norm_shared:
                return NormOfEachHead(heads, d, epsilon, bias=normalize_qk == "layer")
            return nn.LayerNorm(width, eps=epsilon, bias=normalize_qk == "layer")

        if normalize_qk:
            self.query_ln, self.key_ln = make_norm(num_heads), make_norm(self.num_kv_heads)
        self.rotary = rotary if rotary_base is None else Rotary(rotary_base)
        self.scale, self.logits_soft_cap = scale, logits_soft_cap
        self.sinks = nn.Parameter(torch.zeros(num_heads)) if use_sinks else None
        self.dropout_rate = dropout_rate

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        valid_lens: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        positions: Tensor | None = None,
        key_positions: Tensor | None = None,
        head_gates: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """query "*b t m", key "*b s m", value "*b s m" -> "*b t m" [, weights "*b h t s"].

        key defaults to query and value to key; mask and bias are broadcastable to "*b h t s", head_gates to "*b h".
        positions "*b t" and key_positions "*b s" are those of rotary, 0 ... n - 1 by default.
        """
        if key is None:
            key, key_positions = query, positions if key_positions is None else key_positions
        value = key if value is None else value
        t, s = query.shape[-2], key.shape[-2]

        q = self.query(query).unflatten(-1, (self.num_heads, -1))  # "*b t h d"
        k = self.key(key).unflatten(-1, (self.num_kv_heads, -1))  # "*b s k d"
        v = self.value(value).unflatten(-1, (self.num_kv_heads, -1))  # "*b s k e"
        if self.normalize_qk and self.qk_norm_over == "head":
            q, k = self.query_ln(q), self.key_ln(k)
        elif self.normalize_qk:
            q, k = self.query_ln(q.flatten(-2)).view_as(q), self.key_ln(k.flatten(-2)).view_as(k)
        if self.rotary is not None:
            q, k = self.rotary(q, positions), self.rotary(k, key_positions)
        if self.kv_heads is not None:
            k, v = k[..., self.kv_heads, :], v[..., self.kv_heads, :]
        if valid_lens is not None:
            mask = all_of(mask, lengths(valid_lens, s))

        heads, weights = attention(
            q,
            k,
            v,
            mask=mask,
            bias=bias,
            scale=self.scale,
            logits_soft_cap=self.logits_soft_cap,
            sinks=self.sinks,
            keep=draw_keep(self.dropout_rate, self.training, query, *query.shape[:-2], self.num_heads, t, s),
            dropout_rate=self.dropout_rate,
            head_gates=head_gates,
            return_weights=True,
        )
        output = self.out(heads.flatten(-2))
        return (output, weights) if return_weights else output
