"""A network on each position that is one of several, which a router chooses."""

import torch
from torch import Tensor, nn

from torch_ref.nn.feed_forward import FeedForward


class MixtureOfExperts(nn.Module):
    """The sum of share(i) expert_i(x) over the experts_per_token experts that the router prefers.

    shares="of_chosen": a softmax over the logits of those chosen; "of_all": over all, without those not chosen.
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        num_experts: int,
        experts_per_token: int,
        shares: str = "of_chosen",
        activation: str = "relu",
        gated: bool = False,
        use_bias: bool = True,
        router_bias: bool = False,
        dropout_rate: float = 0.0,
    ):
        super().__init__()
        self.router = nn.Linear(features, num_experts, bias=router_bias)
        self.experts = nn.ModuleList(
            FeedForward(features, hidden_features, activation=activation, gated=gated, use_bias=use_bias)
            for _ in range(num_experts)
        )
        self.experts_per_token, self.shares = experts_per_token, shares
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """x "*b t m" -> "*b t m"."""
        tokens = x.flatten(0, -2)
        logits = self.router(tokens)
        chosen = torch.topk(logits, self.experts_per_token, dim=-1).indices
        shares = logits.softmax(-1)
        if self.shares == "of_chosen":
            shares = shares / shares.gather(-1, chosen).sum(-1, keepdim=True)
        output = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            (rows,) = torch.nonzero((chosen == i).any(-1), as_tuple=True)
            output = output.index_add(0, rows, shares[rows, i, None] * expert(tokens[rows]))
        return self.dropout(output.view_as(x))
