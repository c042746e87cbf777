"""Classification of small images: a transformer over patches (Dosovitskiy et al. 2021)."""

from torch import Tensor, nn

from torch_ref.nn import LearnedPositions, TransformerBlock


class DigitsClassifier(nn.Module):
    """Pre-norm transformer blocks over the patches of an image, averaged over them and classified."""

    def __init__(
        self,
        *,
        image_size: int = 8,
        patch_size: int = 2,
        features: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
        num_classes: int = 10,
        feedforward_features: int | None = None,
        dropout_rate: float = 0.1,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.patches = nn.Linear(patch_size**2, features)
        self.positions = LearnedPositions((image_size // patch_size) ** 2, features)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                num_heads,
                features,
                feedforward_features or 2 * features,
                norm="pre",
                activation="gelu",
                dropout_rate=dropout_rate,
                attention_dropout_rate=dropout_rate,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(features)
        self.output = nn.Linear(features, num_classes)

    def forward(self, images: Tensor, *, return_weights: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """images "b height width" -> logits "b c" [, weights "b h t s" of each layer]."""
        x, weights = self.positions(self.patches(to_patches(images, self.patch_size))), []
        for block in self.blocks:
            x, layer_weights = block(x, return_weights=True)
            weights.append(layer_weights)
        logits = self.output(self.norm(x).mean(-2))
        return (logits, weights) if return_weights else logits


def to_patches(images: Tensor, size: int) -> Tensor:
    """The patches of images, row by row, each flattened row by row: "b height width" -> "b t size*size"."""
    rows = images.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))  # "b rows size columns size"
    return rows.transpose(-3, -2).flatten(-2).flatten(-3, -2)
