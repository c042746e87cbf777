"""Multi-head self-attention with heads of full width."""

import torch
from torch import Tensor, nn

from torch_ref.masks import all_of, lengths
from torch_ref.multi_head import attention


class WideMultiHeadSelfAttention(nn.Module):
    """Self-attention whose every head is as wide as the model, with its own three affine maps.

    head_h = softmax((W_q x)_h . (W_k x)_h / sqrt(features)) @ (W_v x)_h;  output = W_out concat_h head_h
    """

    def __init__(self, features: int, num_heads: int):
        super().__init__()
        self.query = nn.ModuleList(nn.Linear(features, features) for _ in range(num_heads))
        self.key = nn.ModuleList(nn.Linear(features, features) for _ in range(num_heads))
        self.value = nn.ModuleList(nn.Linear(features, features) for _ in range(num_heads))
        self.out = nn.Linear(num_heads * features, features)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        valid_lens: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x "*b t m" -> "*b t m" [, weights "*b h t s"]."""
        if valid_lens is not None:
            mask = all_of(mask, lengths(valid_lens, x.shape[-2]))
        q = torch.stack([head(x) for head in self.query], dim=-2)  # "*b t h m"
        k = torch.stack([head(x) for head in self.key], dim=-2)
        v = torch.stack([head(x) for head in self.value], dim=-2)
        heads, weights = attention(q, k, v, mask=mask, return_weights=True)
        output = self.out(heads.flatten(-2))
        return (output, weights) if return_weights else output
