"""CLIP: texts and images as vectors that can be compared, and either of its towers alone. c is the vectors' width."""

from collections import ChainMap
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn._engine.dtypes import at_least_float32
from jattn.masks import Mask
from jattn.models.hugging_face.activations import activation_of
from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.family import Family, PretrainedModel, count_setting, real_setting
from jattn.models.hugging_face.stack import WithHidden, real_tokens, returned
from jattn.models.hugging_face.vision import VisionEncoder
from jattn.nn import Linear, Norm, Outputs
from jattn.nn.dropout import split
from jattn.weights import Table, dropped, prefixed, rename

__all__ = ["CLIP", "CLIPOutput", "CLIPText", "CLIPVision"]

# What a tower has that its settings don't say; its part of a CLIP's often says only what differs.
_TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
}
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
EOS = 49407
# Of files from before a correction of transformers, which names a token that ends no text.
MISTAKEN_EOS = 2


def _tower_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What texts and images have in common."""
    norm = Norm("layer", epsilon=real_setting(config, "layer_norm_eps", "[0, inf)", 1e-5))
    block = dict(
        num_heads=count_setting(config, "num_attention_heads"),
        norm="pre",
        norm_kind=norm,
        feedforward_features=count_setting(config, "intermediate_size"),
        activation=activation_of(config, "hidden_act", "quick_gelu"),
        attention_dropout_rate=real_setting(config, "attention_dropout", "[0, 1)", 0.0),
    )
    return dict(
        features=count_setting(config, "hidden_size"),
        layers=[block] * count_setting(config, "num_hidden_layers"),
        norm=norm,
    )


def _projection(config: Mapping[str, Any]) -> int | None:
    kind = (config.get("architectures") or [""])[0]
    return count_setting(config, "projection_dim") if kind.endswith("WithProjection") else None


def _text_options(config: Mapping[str, Any]) -> dict[str, Any]:
    config = ChainMap(config, _TEXT_DEFAULTS)  # type: ignore[arg-type]  # which is only read
    eos = checks.number("config's eos_token_id", config.get("eos_token_id", EOS), "[0, inf)", integer=True)
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        max_length=count_setting(config, "max_position_embeddings"),
        eos=None if eos == MISTAKEN_EOS else eos,
        output_features=_projection(config),
        **_tower_options(config),
    )


def _vision_options(config: Mapping[str, Any]) -> dict[str, Any]:
    config = ChainMap(config, _VISION_DEFAULTS)  # type: ignore[arg-type]
    options = _tower_options(config)
    return dict(
        image_size=config["image_size"],
        patch_size=config["patch_size"],
        channels=count_setting(config, "num_channels"),
        patch_bias=False,
        embedding_norm=options["norm"],
        norm_over="special",
        output_features=_projection(config),
        output_bias=False,
        **options,
    )


_CLIP_LAYER = {
    "layer_norm1": "norm1",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.out_proj": "attention.out",
    "layer_norm2": "norm2",
    "mlp.fc1": "feed_forward.linear1",
    "mlp.fc2": "feed_forward.linear2",
}
_CLIP_TEXT = {
    "embeddings.token_embedding": "embedding",
    "embeddings.position_embedding": "positions.embedding",
    "final_layer_norm": "norm",
}
_CLIP_VISION = {
    "embeddings.class_embedding": "class_token",
    "embeddings.patch_embedding": "patches",
    "embeddings.position_embedding": "positions.embedding",
    "pre_layrnorm": "embedding_norm",
    "post_layernorm": "norm",
}


def _tower_lines(tower: Mapping[str, str], theirs: str, ours: str = "") -> list[Any]:
    """Of a tower, whose names have these prefixes; older files also hold 0, 1, 2, ..."""
    names = {**tower, **{f"encoder.layers.#.{name}": f"blocks.#.{own}" for name, own in _CLIP_LAYER.items()}}
    return [
        dropped(f"{theirs}embeddings.position_ids", optional=True),
        *(rename(theirs + name, ours + own) for name, own in names.items()),
    ]


def _tower_table(tower: Mapping[str, str], prefix: str, projection: str, ours: str, projected: bool) -> Table:
    """Of a tower alone, whose names have a prefix beside a projection, and in older files always."""
    if projected:
        return Table([rename(projection, ours), *_tower_lines(tower, prefix)])
    return Table([prefixed(prefix, optional=True, back=False), *_tower_lines(tower, "")])


# Settings of all models, of which only these values mean what these do.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({}, None),
}
_UNUSED = frozenset(
    {"dropout", "initializer_factor", "projection_dim", "tie_encoder_decoder", "tie_word_embeddings"}
)  # dropout is in the first files, and in no code


def _tower_family(kind: str, name: str, table: Any, options: Any) -> Family:
    architectures = (None, [f"{name}Model"], [f"{name}ModelWithProjection"])
    return Family(
        table=table,
        implemented={"model_type": (kind,), "architectures": architectures, **_PLAIN},
        options=options,
        without_effect=_UNUSED,
    )


class CLIPText(TextDecoder):
    """CLIP's text tower: a decoder, of which the state of the token that ends a text stands for the text.

    Args:
        vocab_size: v, how many tokens there are.
        eos: the token that ends a text, of which the first counts; None is the token with the highest number, as CLIP
            itself has it.
        output_features: c, the width of a projection of that state; by default there is none, and the output is the
            state of every token.
        options: further ones of `TextDecoder`.

    Example:

        >>> block = dict(num_heads=2, feedforward_features=16, norm="pre", activation="gelu")
        >>> sizes = dict(features=8, layers=[block], norm=Norm(), max_length=7, output_features=6)
        >>> model = CLIPText(20, eos=19, **sizes, rngs=nnx.Rngs(0))
        >>> model(jnp.array([[1, 2, 3, 19], [4, 19, 19, 19]])).shape
        (2, 6)
    """

    hugging_face = _tower_family(
        "clip_text_model",
        "CLIPText",
        lambda model: _tower_table(
            _CLIP_TEXT, "text_model.", "text_projection", "projection", model.projection is not None
        ),
        _text_options,
    )

    def __init__(
        self,
        vocab_size: int,
        *,
        features: int,
        eos: int | None = None,
        output_features: int | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        super().__init__(vocab_size, features=features, **options, **types)
        self.eos = None if eos is None else checks.count("eos", eos, ", a token")
        self.projection = (
            None if output_features is None else Linear(features, output_features, use_bias=False, **types)
        )

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        *,
        attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None = None,
        valid_lens: int | Int[Array, "b"] | None = None,
        positions: Int[Array, "b t"] | None = None,
        mask: Mask | Bool[Array, "..."] | None = None,
        return_weights: bool = False,
        return_hidden: bool = False,
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b c"] | Float[Array, "b t m"] | Any:
        """A vector for each text, or without a projection the states of all tokens; arguments as of `TextDecoder`."""
        options: dict[str, Any] = dict(positions=positions, mask=mask, return_weights=return_weights, rng=rng)
        ran = self._run(tokens, attention_mask=attention_mask, valid_lens=valid_lens, **options)
        output = ran.x
        if self.projection is not None:
            output = self.projection(self.pooled(ran.x, tokens, attention_mask=attention_mask, valid_lens=valid_lens))
        return returned(output, ran, return_weights=return_weights, return_hidden=return_hidden)

    def pooled(
        self,
        states: Float[Array, "b t m"],
        tokens: Int[Array, "b t"],
        *,
        attention_mask: Bool[Array, "..."] | Int[Array, "..."] | None = None,
        valid_lens: int | Int[Array, "b"] | None = None,
    ) -> Float[Array, "b m"]:
        """What stands for each text: the last state of the token that ends it.

        Padding does not count where an attention_mask or valid_lens tells of it. `transformers` looks at all tokens, so
        that the two differ where padding on the left is the token ``eos`` itself.
        """
        tokens = checks.tokens("tokens", tokens, self.embedding.num_embeddings, "b t", 2)
        valid_lens = checks.example_lengths("valid_lens", valid_lens, tokens.shape[:1])
        real = real_tokens(attention_mask, tokens.shape)
        if valid_lens is not None:
            before = jnp.arange(tokens.shape[1]) < jnp.reshape(valid_lens, (-1, 1))
            real = before if real is None else real & before
        ends = tokens if self.eos is None else (tokens == self.eos).astype(int)
        ends = ends if real is None else jnp.where(real, ends, -1)
        if self.eos is not None and checks.is_concrete(ends) and not (np.asarray(ends).max(axis=1) == 1).all():
            raise ValueError(f"tokens must have eos, {self.eos}, in each text. Got at least one without.")
        return jnp.take_along_axis(states, jnp.argmax(ends, axis=1)[:, None, None], axis=1)[:, 0]


class CLIPVision(VisionEncoder):
    """CLIP's vision tower; the arguments are those of `VisionEncoder`.

    The output is a projection of the class token's state, or without one the states of all tokens, not normed.
    """

    hugging_face = _tower_family(
        "clip_vision_model",
        "CLIPVision",
        lambda model: _tower_table(
            _CLIP_VISION, "vision_model.", "visual_projection", "outputs.0", bool(model.outputs)
        ),
        _vision_options,
    )


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
                arguments = tower.hugging_face.arguments({} if given is None else given)
            except ValueError as error:
                raise ValueError(f"{key} of this config can't be taken: {error}") from error
    return {key: value for key, value in arguments.items() if key != "output_features"}


def _clip_table(model: Any) -> Table:
    return Table(
        [
            *_tower_lines(_CLIP_TEXT, "text_model.", "text."),
            *_tower_lines(_CLIP_VISION, "vision_model.", "vision."),
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
        implemented={"model_type": ("clip",), "architectures": (None, ["CLIPModel"]), **_PLAIN},
        options=_clip_options,
        without_effect=_UNUSED - {"projection_dim"},
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
        wanted = dict(return_weights=return_weights, return_hidden=return_hidden)
        options: dict[str, Any] = dict(valid_lens=valid_lens, positions=positions, mask=mask, rng=rngs[0], **wanted)
        texts = self.embed_texts(tokens, attention_mask=attention_mask, **options)
        found = self.embed_images(images, interpolate_positions=interpolate_positions, rng=rngs[1], **wanted)
        scale = jnp.exp(self.logit_scale[...].astype(at_least_float32(self.logit_scale[...])))
        vectors = [x.output if isinstance(x, Outputs | WithHidden) else x for x in (texts, found)]
        cosines = jnp.einsum("nc,ic->ni", *vectors)
        per_text = (scale * cosines).astype(cosines.dtype)
        return CLIPOutput(per_text.T, per_text, texts, found)

    def embed_texts(self, tokens: Int[Array, "n t"], **options: Any) -> Float[Array, "n c"] | Any:
        """The vectors of texts; ``options`` are those of `CLIPText`, and say whether there are weights beside them."""
        return _of_length_one(self.text(tokens, **options))

    def embed_images(self, images: Float[Array, "i height width channel"], **options: Any) -> Any:
        """The vectors ``i c`` of images; ``options`` are those of `CLIPVision`."""
        return _of_length_one(self.vision(images, **options))

    def _check_heads(self) -> None:
        """Of each tower by itself."""
        for tower in (self.text, self.vision):
            tower._check_heads()


def _of_length_one(result: Any) -> Any:
    """With the vectors in what a tower returned divided by their lengths."""
    if isinstance(result, Outputs | WithHidden):
        return result._replace(output=_of_length_one(result.output))
    wide = result.astype(at_least_float32(result))
    return (wide / jnp.linalg.norm(wide, axis=-1, keepdims=True)).astype(result.dtype)
