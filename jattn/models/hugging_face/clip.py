"""CLIP: texts and images as vectors that can be compared. c is the vectors' width."""

from collections import ChainMap
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Unpack, overload

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn._engine.dtypes import at_least_float32
from jattn.masks import Mask
from jattn.models.hugging_face.clip_towers import (
    CLIP_TEXT,
    CLIP_UNUSED,
    CLIP_VISION,
    CLIPText,
    CLIPVision,
    clip_lines,
)
from jattn.models.hugging_face.family import Family, PretrainedModel
from jattn.models.hugging_face.settings import count_setting, real_setting
from jattn.models.hugging_face.stack import TextOptions, WithHidden
from jattn.models.hugging_face.vision import VisionOptions
from jattn.nn import Outputs
from jattn.nn.dropout import split
from jattn.portable import Inputs
from jattn.weights import Table, rename

__all__ = ["CLIP", "CLIPOutput"]


class CLIPOutput(NamedTuple):
    """What `CLIP` returns: how well each image and text belong together, and what that is computed from."""

    per_image: Float[Array, "i n"]  # logits: of i images for n texts
    per_text: Float[Array, "n i"]  # the same, of texts for images
    texts: Any  # what `CLIP.embed_texts` returns
    images: Any  # what `CLIP.embed_images` returns


def _clip_options(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        text=_tower_settings(config, "text_config", CLIPText),
        vision=_tower_settings(config, "vision_config", CLIPVision),
        features=count_setting(ChainMap(config, {"projection_dim": 512}), "projection_dim"),  # type: ignore[arg-type]
        logit_scale=real_setting(config, "logit_scale_init_value", "(-inf, inf)", 2.6592),
    )


def _tower_settings(config: Mapping[str, Any], name: str, tower: type[PretrainedModel]) -> dict[str, Any]:
    """The arguments of a tower; what stands under the name's older form goes before, with its own defaults."""
    arguments: dict[str, Any] = {}
    for key in (name, f"{name}_dict"):
        if (given := config.get(key)) is not None or key == name:
            try:
                if not isinstance(given, Mapping | None):
                    raise ValueError(f"it must be a dict. Got {given!r:.80}.")
                arguments = tower.hugging_face.arguments({} if given is None else given)
            except ValueError as error:
                raise ValueError(f"{key} of this config can't be taken: {error}") from error
    return {key: value for key, value in arguments.items() if key != "output_features"}


def _clip_table(model: Any) -> Table:
    return Table(
        [
            *clip_lines(CLIP_TEXT, "text_model.", "text."),
            *clip_lines(CLIP_VISION, "vision_model.", "vision."),
            rename("text_projection", "text.projection"),
            rename("visual_projection", "vision.outputs.0"),
        ]
    )


class CLIP(PretrainedModel):
    """Texts and images as vectors of length 1, and the logits of which belong together.

    ``logit[i, n] = exp(logit_scale) image[i] · text[n]``

    Args:
        text: the arguments of `CLIPText` but for ``output_features``.
        vision: those of `CLIPVision`, likewise.
        features: c, the width of the vectors.
        logit_scale: the logarithm of the factor, which is learned, at first.
        dtype, param_dtype: as in ``flax.nnx.Linear``.
        rngs: for the initial parameters.

    Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021.

    Example:

        >>> from jattn.nn import Norm
        >>> block = dict(num_heads=2, feedforward_features=16, norm="pre", activation="gelu")
        >>> both = dict(features=8, layers=[block], norm=Norm())
        >>> text = dict(vocab_size=20, eos=19, max_length=7, **both)
        >>> vision = dict(image_size=8, patch_size=4, **both)
        >>> model = CLIP(text=text, vision=vision, features=6, rngs=nnx.Rngs(0))
        >>> out = model(jnp.array([[1, 2, 19], [4, 5, 19]]), jnp.ones((3, 8, 8, 3)))
        >>> out.per_image.shape, out.per_text.shape, out.texts.shape
        ((3, 2), (2, 3), (2, 6))
    """

    hugging_face = Family(
        table=_clip_table,
        implemented={"model_type": ("clip",), "architectures": (None, ["CLIPModel"])},
        options=_clip_options,
        without_effect=CLIP_UNUSED,
    )

    def __init__(
        self,
        *,
        text: Mapping[str, Any],
        vision: Mapping[str, Any],
        features: int,
        logit_scale: float = 2.6592,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.text = CLIPText(**text, output_features=features, **types)
        own: dict[str, Any] = {"norm_over": "special", "output_bias": False, **vision}
        self.vision = CLIPVision(**own, output_features=features, **types)
        self.logit_scale = nnx.Param(jnp.asarray(logit_scale, param_dtype))

    def __call__(
        self,
        tokens: Int[Array, "n t"],
        images: Float[Array, "i height width channel"],
        *,
        attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None = None,
        valid_lens: int | Int[Array, "n"] | None = None,
        positions: Int[Array, "n t"] | None = None,
        mask: Mask | Bool[Array, "..."] | None = None,
        interpolate_positions: bool = False,
        return_weights: bool = False,
        return_hidden: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> CLIPOutput:
        """How well each of n texts and i images belong together.

        Args:
            tokens: ``n t``, each text with its end token.
            images: ``i height width channel``, not ``i channel height width`` as in `transformers`.
            attention_mask, valid_lens, positions, mask: of the texts, as in `TextDecoder`.
            interpolate_positions: of the images, as in `VisionEncoder`.
            return_weights, return_hidden: whether the output's ``texts`` and ``images`` are `Outputs` or `WithHidden`,
                with what their tower returned beside the vectors.
            rng: a ``jax.random.key`` for dropout in training.
        """
        rngs = split(rng, 2)
        wanted: dict[str, Any] = dict(return_weights=return_weights, return_hidden=return_hidden)
        options: dict[str, Any] = dict(valid_lens=valid_lens, positions=positions, mask=mask, rng=rngs[0], **wanted)
        texts = self.embed_texts(tokens, attention_mask=attention_mask, **options)
        found = self.embed_images(images, interpolate_positions=interpolate_positions, rng=rngs[1], **wanted)
        scale = jnp.exp(self.logit_scale[...].astype(at_least_float32(self.logit_scale[...])))
        vectors = [x.output if isinstance(x, Outputs | WithHidden) else x for x in (texts, found)]
        cosines = jnp.einsum("nc,ic->ni", *vectors)
        per_text = (scale * cosines).astype(cosines.dtype)
        return CLIPOutput(per_text.T, per_text, texts, found)

    @overload
    def embed_texts(
        self,
        tokens: Array,
        *,
        return_hidden: Literal[True],
        return_weights: bool = False,
        **options: Unpack[TextOptions],
    ) -> WithHidden: ...
    @overload
    def embed_texts(
        self, tokens: Array, *, return_weights: Literal[True], **options: Unpack[TextOptions]
    ) -> Outputs: ...
    @overload
    def embed_texts(
        self, tokens: Array, *, return_weights: Literal[False] = False, **options: Unpack[TextOptions]
    ) -> Float[Array, "n c"]: ...
    @overload
    def embed_texts(
        self,
        tokens: Array,
        *,
        return_weights: bool = False,
        return_hidden: bool = False,
        **options: Unpack[TextOptions],
    ) -> Float[Array, "n c"] | Outputs | WithHidden: ...

    def embed_texts(self, tokens: Int[Array, "n t"], **options: Any) -> Float[Array, "n c"] | Outputs | WithHidden:
        """The vectors of texts; ``options`` are those of `CLIPText`, and say whether there are weights beside them."""
        return _of_length_one(self.text(tokens, **options))

    @overload
    def embed_images(
        self,
        images: Array,
        *,
        return_hidden: Literal[True],
        return_weights: bool = False,
        **options: Unpack[VisionOptions],
    ) -> WithHidden: ...
    @overload
    def embed_images(
        self, images: Array, *, return_weights: Literal[True], **options: Unpack[VisionOptions]
    ) -> Outputs: ...
    @overload
    def embed_images(
        self, images: Array, *, return_weights: Literal[False] = False, **options: Unpack[VisionOptions]
    ) -> Float[Array, "i c"]: ...
    @overload
    def embed_images(
        self,
        images: Array,
        *,
        return_weights: bool = False,
        return_hidden: bool = False,
        **options: Unpack[VisionOptions],
    ) -> Float[Array, "i c"] | Outputs | WithHidden: ...

    def embed_images(
        self, images: Float[Array, "i height width channel"], **options: Any
    ) -> Float[Array, "i c"] | Outputs | WithHidden:
        """The vectors ``i c`` of images; ``options`` are those of `CLIPVision`."""
        return _of_length_one(self.vision(images, **options))

    def inputs(self) -> Inputs:
        """What a program of it is called with: n texts and i images. Either tower can be exported by itself."""
        (tokens, constraints, _), (images, _, _) = self.text.inputs(), self.vision.inputs()
        both = {name: x.replace("[b,", "[n,") for name, x in tokens.items()}
        return Inputs({**both, **{name: x.replace("[b,", "[i,") for name, x in images.items()}}, constraints)

    def _stacks_of_equal_heads(self) -> list[nnx.Module]:
        return [self.text, self.vision]


def _of_length_one(result: Any) -> Any:
    """With the vectors in what a tower returned divided by their lengths."""
    if isinstance(result, Outputs | WithHidden):
        return result._replace(output=_of_length_one(result.output))
    wide = result.astype(at_least_float32(result))
    return (wide / jnp.linalg.norm(wide, axis=-1, keepdims=True)).astype(result.dtype)
