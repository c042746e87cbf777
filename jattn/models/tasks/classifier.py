"""An image classifier whose tokens are the patches of the image."""

from typing import Any, Literal, overload

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jattn._engine import checks
from jattn.nn import LayerNorm, LearnedPositions, Linear, TransformerBlock
from jattn.nn.dropout import split
from jattn.nn.weights import Outputs, in_turn, outputs
from jattn.portable import Exportable, Inputs

__all__ = ["DigitsClassifier", "to_patches"]


class DigitsClassifier(Exportable, nnx.Module):
    """A small vision transformer: patches, positions, pre-norm blocks, the mean over tokens, a class.

    Its default size is for the 8 x 8 digits that come with scikit-learn.

    Args:
        image_size: the side of an image in pixels.
        patch_size: the side of a patch; divides image_size.
        features: m, the width.
        num_heads: heads in each block.
        num_layers: how many blocks.
        num_classes: c.
        feedforward_features: the feed-forward network's inner width; 2 m by default.
        dropout_rate: in training, also of the attention weights.
        param_dtype: of the parameters.
        rngs: for the initial parameters.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, 2020 (with the mean over tokens for the class token).

    Example:

        >>> model = DigitsClassifier(rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> logits, weights = model(jnp.ones((3, 8, 8)), return_weights=True)
        >>> logits.shape, len(weights), weights[0].shape
        ((3, 10), 2, (3, 4, 16, 16))
    """

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
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        checks.divides("patch_size", patch_size, "image_size", image_size)
        self.image_size, self.patch_size = image_size, patch_size
        options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
        self.patches = Linear(patch_size**2, features, **options)
        self.positions = LearnedPositions((image_size // patch_size) ** 2, features, **options)
        self.blocks = nnx.List(
            [
                TransformerBlock(
                    num_heads,
                    features,
                    2 * features if feedforward_features is None else feedforward_features,
                    norm="pre",
                    activation="gelu",
                    dropout_rate=dropout_rate,
                    attention_dropout_rate=dropout_rate,
                    **options,
                )
                for _ in range(num_layers)
            ]
        )
        self.norm = LayerNorm(features, **options)
        self.output = Linear(features, num_classes, **options)

    @overload
    def __call__(self, images: Array, *, return_weights: Literal[True], rng: PRNGKeyArray | None = None) -> Outputs: ...
    @overload
    def __call__(
        self, images: Array, *, return_weights: Literal[False] = False, rng: PRNGKeyArray | None = None
    ) -> Float[Array, "b c"]: ...
    @overload
    def __call__(
        self, images: Array, *, return_weights: bool, rng: PRNGKeyArray | None = None
    ) -> Float[Array, "b c"] | Outputs: ...

    def __call__(
        self, images: Float[Array, "b i i"], *, return_weights: bool = False, rng: PRNGKeyArray | None = None
    ) -> Float[Array, "b c"] | Outputs:
        """Logits ``b c``; with return_weights also the list of each block's weights ``b h t t``."""
        if jnp.shape(images)[1:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images must have shape (b, {self.image_size}, {self.image_size}). Got {jnp.shape(images)}."
            )
        x = self.positions(self.patches(to_patches(checks.floating("images", images, "b i i", 3), self.patch_size)))
        rngs = split(rng, len(self.blocks))
        x, weights = in_turn(self.blocks, x, return_weights=return_weights, rngs=rngs)
        logits = self.output(self.norm(x).mean(axis=-2))
        return outputs(logits, weights, return_weights)

    def inputs(self) -> Inputs:
        """What a program of it is called with: images."""
        return Inputs({"images": f"float[b,{self.image_size},{self.image_size}]"})


def to_patches(images: Float[Array, "b height width"], size: int) -> Float[Array, "b t pixel"]:
    """Square patches, row by row, each with its pixels row by row.

    >>> to_patches(jnp.arange(16.0).reshape(1, 4, 4), 2)[0]
    Array([[ 0.,  1.,  4.,  5.],
           [ 2.,  3.,  6.,  7.],
           [ 8.,  9., 12., 13.],
           [10., 11., 14., 15.]], dtype=float32)
    """
    b, height, width = images.shape
    grid = images.reshape(b, height // size, size, width // size, size)
    return jnp.swapaxes(grid, 2, 3).reshape(b, -1, size**2)
