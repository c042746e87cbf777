"""Translation by a recurrent encoder and a recurrent decoder that attends to it (Bahdanau et al. 2015).

v vocabulary · n hidden width · l layer of the recurrent network
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from torch_ref.nn import GRU, AdditiveAttention, DotProductAttention


class DecoderState(NamedTuple):
    """What the decoder knows before a step."""

    outputs: Tensor  # of the encoder, "b s n"
    hidden: Tensor  # of the decoder, "l b n"; to begin with, the encoder's last
    valid_lens: Tensor | None  # of the source, "b"


class Encoder(nn.Module):
    """Embeds the source and runs a GRU over it."""

    def __init__(
        self,
        vocab_size: int,
        embedding_features: int,
        hidden_features: int,
        num_layers: int,
        dropout_rate: float,
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_features)
        self.gru = GRU(embedding_features, hidden_features, num_layers, dropout_rate)

    def forward(self, source: Tensor, valid_lens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """source "b s" -> outputs "b s n", state "l b n"."""
        return self.gru(self.embedding(source), valid_lens=valid_lens)


class Decoder(nn.Module):
    """A GRU over the last token and a context, the encoder's outputs pooled by attention.

    The query is the top layer's previous state: context = attention(state, outputs, outputs).
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_features: int,
        hidden_features: int,
        num_layers: int,
        score: str,
        dropout_rate: float,
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_features)
        self.attention: nn.Module
        if score == "additive":
            self.attention = AdditiveAttention(hidden_features, hidden_features, hidden_features)
        elif score == "dot":
            self.attention = DotProductAttention(scale=1.0)
        self.gru = GRU(embedding_features + hidden_features, hidden_features, num_layers, dropout_rate)
        self.output = nn.Linear(hidden_features, vocab_size)

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState, Tensor]:
        """token "b" -> logits "b v" of the next token, state, weights "b s"."""
        query = state.hidden[-1].unsqueeze(1)  # the top layer's state, "b 1 n"
        context, weights = self.attention(
            query, state.outputs, state.outputs, valid_lens=state.valid_lens, return_weights=True
        )
        x = torch.cat([self.embedding(token).unsqueeze(1), context], dim=-1)
        output, hidden = self.gru(x, state.hidden)
        return self.output(output).squeeze(1), state._replace(hidden=hidden), weights.squeeze(1)


class Seq2Seq(nn.Module):
    """Encoder and decoder together, taught with the true target as the decoder's input."""

    def __init__(
        self,
        source_vocab_size: int,
        target_vocab_size: int,
        *,
        embedding_features: int = 32,
        hidden_features: int = 32,
        num_layers: int = 2,
        score: str = "additive",
        dropout_rate: float = 0.1,
    ):
        super().__init__()
        self.encoder = Encoder(source_vocab_size, embedding_features, hidden_features, num_layers, dropout_rate)
        self.decoder = Decoder(target_vocab_size, embedding_features, hidden_features, num_layers, score, dropout_rate)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_valid_lens: Tensor | None = None,
        *,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """source "b s", target "b t" -> logits "b t v" [, weights "b t s"]."""
        outputs, hidden = self.encoder(source, source_valid_lens)
        state = DecoderState(outputs, hidden, source_valid_lens)
        logits, weights = [], []
        for token in target.unbind(1):
            step_logits, state, step_weights = self.decoder.step(token, state)
            logits.append(step_logits)
            weights.append(step_weights)
        if return_weights:
            return torch.stack(logits, dim=1), torch.stack(weights, dim=1)
        return torch.stack(logits, dim=1)
