"""CLIP's towers, one for texts and one for images. c is the width of the vectors that they make."""

from collections import ChainMap
from collections.abc import Mapping
from typing import Any, Literal, Unpack, overload

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jattn._engine import checks
from jattn.masks import Mask
from jattn.models.hugging_face.activations import activation_of
from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.settings import count_setting, real_setting
from jattn.models.hugging_face.stack import TextOptions, WithHidden, and_within, real_tokens, returned
from jattn.models.hugging_face.vision import VisionEncoder
from jattn.nn import Linear, Norm, Outputs
from jattn.weights import Table, dropped, prefixed, rename

__all__ = ["CLIP_TEXT", "CLIP_UNUSED", "CLIP_VISION", "CLIPText", "CLIPVision", "clip_lines"]

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


def _projected_features(config: Mapping[str, Any]) -> int | None:
    kind = (config.get("architectures") or [""])[0]
    return count_setting(config, "projection_dim") if kind.endswith("WithProjection") else None


def _text_options(config: Mapping[str, Any]) -> dict[str, Any]:
    config = ChainMap(config, _TEXT_DEFAULTS)  # type: ignore[arg-type]  # which is only read
    eos = checks.number("config's eos_token_id", config.get("eos_token_id", EOS), "[0, inf)", integer=True)
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        max_length=count_setting(config, "max_position_embeddings"),
        eos=None if eos == MISTAKEN_EOS else eos,
        output_features=_projected_features(config),
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
        output_features=_projected_features(config),
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
CLIP_TEXT = {
    "embeddings.token_embedding": "embedding",
    "embeddings.position_embedding": "positions.embedding",
    "final_layer_norm": "norm",
}
CLIP_VISION = {
    "embeddings.class_embedding": "class_token",
    "embeddings.patch_embedding": "patches",
    "embeddings.position_embedding": "positions.embedding",
    "pre_layrnorm": "embedding_norm",
    "post_layernorm": "norm",
}


def clip_lines(tower: Mapping[str, str], theirs: str, ours: str = "") -> list[Any]:
    """Of a tower, whose names have these prefixes; older files also hold 0, 1, 2, ..."""
    names = {**tower, **{f"encoder.layers.#.{name}": f"blocks.#.{own}" for name, own in _CLIP_LAYER.items()}}
    return [
        dropped(f"{theirs}embeddings.position_ids", optional=True),
        *(rename(theirs + name, ours + own) for name, own in names.items()),
    ]


def _tower_table(tower: Mapping[str, str], prefix: str, projection: str, ours: str, projected: bool) -> Table:
    """Of a tower alone, whose names have a prefix beside a projection, and in older files always."""
    if projected:
        return Table([rename(projection, ours), *clip_lines(tower, prefix)])
    return Table([prefixed(prefix, optional=True, back=False), *clip_lines(tower, "")])


CLIP_UNUSED = frozenset({"dropout", "initializer_factor", "tie_word_embeddings"})  # dropout is in the first files


def _tower_family(kind: str, name: str, table: Any, options: Any) -> Family:
    architectures = (None, [f"{name}Model"], [f"{name}ModelWithProjection"])
    return Family(
        table=table,
        implemented={"model_type": (kind,), "architectures": architectures},
        options=options,
        without_effect=CLIP_UNUSED | {"projection_dim"},  # of a tower without a projection
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
            CLIP_TEXT, "text_model.", "text_projection", "projection", model.projection is not None
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

    @overload  # type: ignore[override]  # a text that has ended does not go on, so there is no cache
    def __call__(
        self,
        tokens: Array,
        *,
        return_hidden: Literal[True],
        return_weights: bool = False,
        **options: Unpack[TextOptions],
    ) -> WithHidden: ...
    @overload
    def __call__(self, tokens: Array, *, return_weights: Literal[True], **options: Unpack[TextOptions]) -> Outputs: ...
    @overload
    def __call__(
        self, tokens: Array, *, return_weights: Literal[False] = False, **options: Unpack[TextOptions]
    ) -> Float[Array, "b c"] | Float[Array, "b t m"]: ...
    @overload
    def __call__(
        self,
        tokens: Array,
        *,
        return_weights: bool = False,
        return_hidden: bool = False,
        **options: Unpack[TextOptions],
    ) -> Float[Array, "b c"] | Float[Array, "b t m"] | Outputs | WithHidden: ...

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
    ) -> Float[Array, "b c"] | Float[Array, "b t m"] | Outputs | WithHidden:
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
        real = and_within(real_tokens(attention_mask, tokens.shape), valid_lens, tokens.shape)
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
        lambda model: _tower_table(CLIP_VISION, "vision_model.", "visual_projection", "outputs.0", bool(model.outputs)),
        _vision_options,
    )
