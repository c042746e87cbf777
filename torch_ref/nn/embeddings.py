"""Vectors that are looked up by number."""

from torch import Tensor, nn


class Embed(nn.Embedding):
    """A lookup table, whose vectors are multiplied by a scale, which is rounded to their dtype (Gemma's sqrt(m))."""

    def __init__(
        self, num_embeddings: int, features: int, *, padding_idx: int | None = None, scale: float | None = None
    ):
        super().__init__(num_embeddings, features, padding_idx)
        self.scale = scale

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens "..." -> "... m"."""
        x = super().forward(tokens)
        return x if self.scale is None else x * x.new_tensor(self.scale)

    def attend(self, x: Tensor) -> Tensor:
        """Products with all vectors, without the scale: x "... m" -> "... n"."""
        return x @ self.weight.T
