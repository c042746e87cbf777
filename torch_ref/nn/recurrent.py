"""The gated recurrent unit as a loop over layers and time."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GRU(nn.Module):
    """Gated recurrent unit (Cho et al. 2014) with the parameters of torch.nn.GRU.

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h = (1 - z) * n + z * h

    The weights and biases of the three are stacked in the order r, z, n.
    """

    def __init__(self, in_features: int, hidden_features: int, num_layers: int = 1, dropout_rate: float = 0.0):
        super().__init__()
        self.num_layers, self.hidden_features = num_layers, hidden_features
        self.dropout = nn.Dropout(dropout_rate)
        for layer in range(num_layers):
            inputs = in_features if layer == 0 else hidden_features
            shapes = {"weight_ih": (inputs,), "weight_hh": (hidden_features,), "bias_ih": (), "bias_hh": ()}
            for name, shape in shapes.items():
                parameter = nn.Parameter(torch.empty(3 * hidden_features, *shape))
                nn.init.uniform_(parameter, -(hidden_features**-0.5), hidden_features**-0.5)
                self.register_parameter(f"{name}_l{layer}", parameter)

    def forward(
        self, x: Tensor, state: Tensor | None = None, valid_lens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x "b t m", state "l b n", valid_lens "b" -> outputs "b t n", state "l b n".

        From valid_lens on, an example's state stays as it is and its outputs are zeros.
        """
        if state is None:
            state = x.new_zeros(self.num_layers, len(x), self.hidden_features)
        final = []
        for layer in range(self.num_layers):
            h, outputs = state[layer], []
            for step, x_t in enumerate(x.unbind(1)):
                new = output = self._step(layer, x_t, h)
                if valid_lens is not None:
                    valid = (step < valid_lens)[:, None]
                    new, output = torch.where(valid, new, h), torch.where(valid, new, 0.0)
                h = new
                outputs.append(output)
            final.append(h)
            x = torch.stack(outputs, dim=1)
            if layer < self.num_layers - 1:
                x = self.dropout(x)
        return x, torch.stack(final)

    def _step(self, layer: int, x: Tensor, h: Tensor) -> Tensor:
        """The next state of a layer: x "b m", h "b n" -> "b n"."""
        w_i, w_h, b_i, b_h = (
            getattr(self, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        r_i, z_i, n_i = F.linear(x, w_i, b_i).chunk(3, dim=-1)
        r_h, z_h, n_h = F.linear(h, w_h, b_h).chunk(3, dim=-1)
        r, z = torch.sigmoid(r_i + r_h), torch.sigmoid(z_i + z_h)
        n = torch.tanh(n_i + r * n_h)
        return (1 - z) * n + z * h
