"""The image encoder of all families: what differs between them is data. c is the number of classes."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack, overload

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, Shaped

from jattn._engine import checks
from jattn._engine.dtypes import at_least_float32
from jattn.masks import Mask
from jattn.models.hugging_face.family import PretrainedModel
from jattn.models.hugging_face.stack import StackOptions, WithHidden, blocks_of, real_tokens, returned, run_blocks
from jattn.nn import Conv, LearnedPositions, Linear, Norm, Outputs
from jattn.nn.dropout import Dropout, split
from jattn.nn.feed_forward import Activation, activation_function
from jattn.portable import Inputs

__all__ = ["VisionEncoder", "VisionOptions"]

_token_init = nnx.initializers.normal(0.02)


class VisionOptions(StackOptions, total=False):
    """What a `VisionEncoder` takes beside its images."""

    interpolate_positions: bool


class VisionEncoder(PretrainedModel):
    """A vision transformer: patches of an image as tokens, a class token, positions, blocks, and an output.

    Images are ``b height width channel``, channels last as in Flax. Those of `transformers`, ``pixel_values``, are
    ``b channel height width``: pass ``jnp.moveaxis(pixel_values, 1, -1)``.

    The tokens are the special ones, then the patches row by row. There may be an output layer on the state of the class
    token, for classes or for a projection, or one on that of each special token, of which the output is the mean.
    Without any the output is the state of every token.

    Args:
        image_size: of the images that it is trained on, (height, width) or one number for both.
        patch_size: of a patch, likewise; what is left of an image at its right and lower edge is not seen.
        features: m, the width.
        layers: for each block its arguments, those of `TransformerBlock`.
        channels: of an image.
        special_tokens: 1, the class token, or 2, which DeiT's distillation token is.
        patch_bias: whether patches are projected with a bias.
        embedding_norm: what norms tokens with their positions, if anything.
        norm: what follows the last block; a layer norm by default.
        norm_over: ``"tokens"``, all of them, or ``"special"``, those that an output is made of, as in CLIP.
        pooler_features: the width of a layer on the class token beside the output, that `pooled` ends with.
        pooler_activation: what follows that layer.
        output_features: c, the width of the output layers; by default there are none.
        num_outputs: how many of the special tokens have one.
        output_bias: whether they have biases.
        dropout_rate: of the embeddings, in training.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, 2021.

    Example (an image of 3 x 2 patches, so 7 tokens):

        >>> block = dict(num_heads=4, feedforward_features=24, norm="pre", activation="gelu")
        >>> sizes = dict(image_size=(12, 8), patch_size=4, features=16, layers=[block, block])
        >>> model = VisionEncoder(**sizes, output_features=10, rngs=nnx.Rngs(0))
        >>> logits, weights = model(jnp.ones((2, 12, 8, 3)), return_weights=True)
        >>> logits.shape, weights[-1].shape
        ((2, 10), (2, 4, 7, 7))
        >>> model.on_grid(weights[-1][:, :, 0]).shape  # how the class token's weights lie on the image
        (2, 4, 3, 2)
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        features: int,
        layers: Sequence[Mapping[str, Any]],
        channels: int = 3,
        special_tokens: Literal[1, 2] = 1,
        patch_bias: bool = True,
        embedding_norm: Norm | None = None,
        norm: Norm | None = None,
        norm_over: Literal["tokens", "special"] = "tokens",
        pooler_features: int | None = None,
        pooler_activation: Activation = jnp.tanh,
        output_features: int | None = None,
        num_outputs: int = 1,
        output_bias: bool = True,
        dropout_rate: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.image_size, self.patch_size = _pair("image_size", image_size), _pair("patch_size", patch_size)
        checks.one_of("special_tokens", special_tokens, (1, 2))
        checks.one_of("norm_over", norm_over, ("tokens", "special"))
        checks.one_of("num_outputs", num_outputs, tuple(range(1, special_tokens + 1)))
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.patches = Conv(channels, features, self.patch_size, strides=self.patch_size, use_bias=patch_bias, **types)
        self.special_tokens, self.norm_over = special_tokens, norm_over
        rows, columns = self.grid()
        self.class_token = nnx.Param(_token_init(rngs.params(), (features,), param_dtype))
        self.distillation_token = (
            nnx.Param(_token_init(rngs.params(), (features,), param_dtype)) if special_tokens == 2 else None
        )
        self.positions = LearnedPositions(special_tokens + rows * columns, features, **types)
        self.embedding_norm = None if embedding_norm is None else embedding_norm(features, **types)
        blocks, self.windows = blocks_of(features, layers, causal=False, **types)
        self.blocks = nnx.List(blocks)
        self.norm = (Norm() if norm is None else norm)(features, **types)
        self.pooler = None if pooler_features is None else Linear(features, pooler_features, **types)
        self.pooler_activation: Activation = pooler_activation
        outputs = 0 if output_features is None else num_outputs
        self.outputs = nnx.List(
            [Linear(features, output_features or 0, use_bias=output_bias, **types) for _ in range(outputs)]
        )
        self.dropout = Dropout(dropout_rate)

    @overload
    def __call__(
        self,
        images: Array,
        *,
        return_hidden: Literal[True],
        return_weights: bool = False,
        **options: Unpack[VisionOptions],
    ) -> WithHidden: ...
    @overload
    def __call__(
        self, images: Array, *, return_weights: Literal[True], **options: Unpack[VisionOptions]
    ) -> Outputs: ...
    @overload
    def __call__(
        self, images: Array, *, return_weights: Literal[False] = False, **options: Unpack[VisionOptions]
    ) -> Float[Array, "b c"] | Float[Array, "b t m"]: ...
    @overload
    def __call__(
        self,
        images: Array,
        *,
        return_weights: bool = False,
        return_hidden: bool = False,
        **options: Unpack[VisionOptions],
    ) -> Float[Array, "b c"] | Float[Array, "b t m"] | Outputs | WithHidden: ...

    def __call__(
        self,
        images: Float[Array, "b height width channel"],
        *,
        interpolate_positions: bool = False,
        attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None = None,
        mask: Mask | Bool[Array, "..."] | None = None,
        return_weights: bool = False,
        return_hidden: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b c"] | Float[Array, "b t m"] | Outputs | WithHidden:
        """Logits, an embedding, or the states of all tokens, as the class says.

        Args:
            images: ``b height width channel``, not ``b channel height width`` as in `transformers`.
            interpolate_positions: whether images of another size than ``image_size`` are taken, with positions between
                the learned ones, as `transformers` has them with ``interpolate_pos_encoding=True``.
            attention_mask: ``b t``, 1 where a token is seen and 0 where not, special tokens first.
            mask: further, who may attend to whom.
            return_weights: also return the list of each block's weights ``b h t t``.
            return_hidden: return `WithHidden`.
            rng: a ``jax.random.key`` for dropout in training.

        Returns:
            The output; with return_weights an `Outputs` of it and the weights; with return_hidden a `WithHidden`, whose
            last state is normed unless ``norm_over`` is ``"special"``.
        """
        rngs = split(rng, len(self.blocks) + 1)
        x = self._embed(images, interpolate_positions, rngs[0])
        ran = run_blocks(
            self.blocks,
            self.windows,
            x,
            real=real_tokens(attention_mask, x.shape[:2]),
            mask=mask,
            return_weights=return_weights,
            rngs=rngs[1:],
        )
        if self.norm_over == "tokens":
            ran = ran._replace(x=self.norm(ran.x))
        each = self.each_output(ran.x)
        output = sum(each[1:], each[0]) / len(each) if each else ran.x
        return returned(output, ran, return_weights=return_weights, return_hidden=return_hidden)

    def each_output(self, states: Float[Array, "b t m"]) -> list[Float[Array, "b c"]]:
        """The output of each special token that has a layer, of the last states; DeiT's are classified one by one."""
        return [layer(self._special(states, i)) for i, layer in enumerate(self.outputs)]

    def pooled(self, states: Float[Array, "b t m"]) -> Float[Array, "b p"]:
        """What stands for the whole image: the class token's last state, normed, and through the pooler if any."""
        x = self._special(states, 0)
        return x if self.pooler is None else activation_function(self.pooler_activation)(self.pooler(x))

    def grid(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """How many rows and columns of patches an image has; by default one of the size that it is trained on."""
        size = (self.image_size[0] if height is None else height, self.image_size[1] if width is None else width)
        rows, columns = (n // patch for n, patch in zip(size, self.patch_size, strict=True))
        if rows < 1 or columns < 1:
            raise ValueError(
                f"images must be as large as a patch, {' x '.join(map(str, self.patch_size))}. "
                f"Got {size[0]} x {size[1]}."
            )
        return rows, columns

    def on_grid(
        self, x: ArrayLike, height: int | None = None, width: int | None = None
    ) -> Shaped[Array, "... rows columns"]:
        """Numbers of tokens where their patches lie in the image, without those of the special tokens.

        Args:
            x: ``... t``, one number for each token, such as the weights of a query, ``weights[:, :, 0]``.
            height, width: of the image, if it is not of the size that the model is trained on.
        """
        rows, columns = self.grid(height, width)
        x = checks.array("x", x)
        if x.ndim < 1 or x.shape[-1] != self.special_tokens + rows * columns:
            raise ValueError(
                f"x must have {self.special_tokens + rows * columns} entries on its last axis, {self.special_tokens} "
                f"for special tokens and {rows} x {columns} for patches. Got shape {x.shape}. Pass height and width of "
                "the image if it has another size."
            )
        return x[..., self.special_tokens :].reshape(*x.shape[:-1], rows, columns)

    def inputs(self) -> Inputs:
        """What a program of it is called with: images of the size that it is trained on."""
        return Inputs({"images": f"float[b,{self.image_size[0]},{self.image_size[1]},{self.patches.in_features}]"})

    def _embed(self, images: Any, interpolate: bool, rng: Any) -> Array:
        images = checks.floating("images", images, "b height width channel", 4)
        channels = self.patches.in_features
        if images.ndim != 4 or images.shape[-1] != channels or 0 in images.shape:
            first = images.ndim == 4 and images.shape[1] == channels
            remedy = " Channels come last: pass jnp.moveaxis(images, 1, -1)." if first else ""
            raise ValueError(
                f"images must have the axes b height width channel, with {channels} channels, none of them empty. "
                f"Got shape {images.shape}.{remedy}"
            )
        b, height, width, _ = images.shape
        checks.flag("interpolate_positions", interpolate)
        if (height, width) != self.image_size and not interpolate:
            raise ValueError(
                f"images must be of {self.image_size[0]} x {self.image_size[1]} pixels, which there are positions for. "
                f"Got {height} x {width}. Resize them, or pass interpolate_positions=True."
            )
        rows, columns = self.grid(height, width)
        patches = self.patches(images).reshape(b, rows * columns, -1)
        special = [token for token in (self.class_token, self.distillation_token) if token is not None]
        tokens = [jnp.broadcast_to(token[...].astype(patches.dtype), (b, 1, patches.shape[-1])) for token in special]
        x = jnp.concatenate([*tokens, patches], axis=1)
        x = self.positions(x) if (rows, columns) == self.grid() else x + self._between(rows, columns).astype(x.dtype)
        x = x if self.embedding_norm is None else self.embedding_norm(x)
        return self.dropout(x, rng)

    def _between(self, rows: int, columns: int) -> Float[Array, "t m"]:
        """The positions of another grid, between those of the learned one."""
        table = self.positions.embedding.embedding[...]
        table = table.astype(at_least_float32(table))
        special, learned = table[: self.special_tokens], table[self.special_tokens :]
        own = self.grid()
        down, across = (jnp.asarray(_bicubic(*n), table.dtype) for n in zip(own, (rows, columns), strict=True))
        moved = jnp.einsum("ai,ijm,bj->abm", down, learned.reshape(*own, -1), across)
        return jnp.concatenate([special, moved.reshape(rows * columns, -1)])

    def _special(self, states: Array, i: int) -> Array:
        x = states[:, i]
        return x if self.norm_over == "tokens" else self.norm(x)


def _pair(name: str, size: Any) -> tuple[int, int]:
    """Height and width, of both or of one number."""
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(checks.is_count(n) and n > 0 for n in sides):
        raise ValueError(f"{name} must be a positive integer, or two, height and width. Got {size!r:.80}.")
    return int(sides[0]), int(sides[1])


def _bicubic(n: int, new: int) -> np.ndarray:
    """The factors "new n" of n samples in new ones: cubic convolution as in PyTorch, whose parameter is -3/4.

    Source: Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981.
    """
    a, factors = -0.75, np.zeros((new, n))
    places = (np.arange(new) + 0.5) * n / new - 0.5  # of the new samples, between the old ones
    for tap in range(-1, 3):
        near = np.floor(places) + tap
        x = np.abs(places - near)
        inner, outer = ((a + 2) * x - (a + 3)) * x * x + 1, ((x - 5) * x + 8) * x * a - 4 * a
        # Beyond the edge stand copies of the sample there.
        np.add.at(factors, (np.arange(new), np.clip(near, 0, n - 1).astype(int)), np.where(x <= 1, inner, outer))
    return factors
