"""ViT, T5 and Whisper out of parts of `jattn.nn`, and the mistakes that are made on the way."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jattn import biases, masks
from jattn.nn import Conv, Embed, Linear, Norm, TransformerBlock
from parity_tests.ports import rewired
from parity_tests.ports.port import (
    SWAPPED_KEYS,
    SWAPPED_NORMS,
    Mistake,
    Parts,
    Port,
    argument,
    change_layer,
    squared_relu,
    swapped,
    whole,
)

__all__ = ["ENCODERS"]

M, FF, H = 20, 28, 4
Settings = dict[str, Any]


def stack(n: int, settings: Mapping[str, Any], rngs: nnx.Rngs) -> nnx.List:
    return nnx.List([TransformerBlock(H, M, FF, **settings, rngs=rngs) for _ in range(n)])


def of(part: str, **changed: Any) -> Any:
    """Other settings of the blocks of a part."""

    def change(parts: Parts) -> None:
        change_layer(parts.settings[part], changed)

    return change


def quick_gelu(x: Any) -> Any:
    return x * jax.nn.sigmoid(1.702 * x)


# ----------------------------------------------------------------------------------------------------------------------
# ViT.


class ViT(nnx.Module):
    """An image ``b 3 height width``, as PyTorch has it, to classes by its first token."""

    def __init__(self, blocks: Settings, *, norm: Norm, stride: int = 4, first: int = 0, rngs: nnx.Rngs) -> None:
        self.patches = Conv(3, M, (4, 4), strides=stride, rngs=rngs)
        self.cls_token = nnx.Param(jnp.zeros((1, 1, M)))
        self.positions = nnx.Param(jnp.zeros((1, 10, M)))
        self.blocks = stack(2, blocks, rngs)
        self.norm = norm(M, rngs=rngs)
        self.classifier = Linear(M, 5, rngs=rngs)
        self.first = first

    def __call__(self, pixel_values: Any) -> Any:
        x = self.patches(jnp.moveaxis(pixel_values, 1, -1))
        x = x.reshape(x.shape[0], -1, M)
        x = jnp.concatenate([jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, M)), x], axis=1)
        x = x + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.norm(x)[:, self.first])


def vit(implementation: str) -> torch.nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=M,
            num_hidden_layers=2,
            num_attention_heads=H,
            intermediate_size=FF,
            image_size=12,
            patch_size=4,
            num_labels=5,
            layer_norm_eps=1e-12,
            attn_implementation=implementation,
        )
    )


VIT_LAYER, VIT_BLOCK = "vit.layers.#.", "blocks.#."
VIT_NAMES = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "positions",
    "vit.embeddings.patch_embeddings.projection": "patches",
    f"{VIT_LAYER}layernorm_before": f"{VIT_BLOCK}norm1",
    f"{VIT_LAYER}attention.q_proj": f"{VIT_BLOCK}attention.query",
    f"{VIT_LAYER}attention.k_proj": f"{VIT_BLOCK}attention.key",
    f"{VIT_LAYER}attention.v_proj": f"{VIT_BLOCK}attention.value",
    f"{VIT_LAYER}attention.o_proj": f"{VIT_BLOCK}attention.out",
    f"{VIT_LAYER}layernorm_after": f"{VIT_BLOCK}norm2",
    f"{VIT_LAYER}mlp.fc1": f"{VIT_BLOCK}feed_forward.linear1",
    f"{VIT_LAYER}mlp.fc2": f"{VIT_BLOCK}feed_forward.linear2",
    "vit.layernorm": "norm",
    "classifier": "classifier",
}
LAYER_NORM = Norm("layer", epsilon=1e-12)
IMAGE = {"pixel_values": torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}


def rms_for_layer_norm(parts: Parts) -> None:
    of("blocks", norm_kind=Norm("rms", epsilon=1e-12))(parts)
    parts.names |= {f"{VIT_LAYER}layernorm_{place}.bias": "" for place in ("before", "after")}


VIT = Port(
    "ViT",
    vit,
    ViT,
    {"blocks": {"norm": "pre", "norm_kind": LAYER_NORM, "activation": "gelu"}, "norm": LAYER_NORM},
    VIT_NAMES,
    IMAGE,
    {name: x.numpy() for name, x in IMAGE.items()},
    (
        Mistake("tanh GELU", of("blocks", activation="gelu_tanh"), r"mlp", ("exact or tanh GELU",)),
        Mistake("SiLU", of("blocks", activation="silu"), r"mlp", ("another activation",)),
        Mistake("epsilon", of("blocks", norm_kind=Norm("layer", epsilon=1e-5)), r"norm", ("layer-norm epsilon",)),
        Mistake("epsilon of the last", whole(norm=Norm("layer", epsilon=1e-3)), r"layernorm", ("layer-norm epsilon",)),
        Mistake("RMS norm", rms_for_layer_norm, r"norm", ("RMS norm or layer norm", "parameters of a norm")),
        Mistake("post-norm", of("blocks", norm="post"), r"layers\.0|norm", ("post-norm for pre-norm",)),
        Mistake("no scale", of("blocks", attention_options={"scale": 1.0}), r"attention", ("missing scale",)),
        Mistake("1 / d", of("blocks", attention_options={"scale": H / M}), r"attention", ("another scale",)),
        Mistake("heads as time", rewired.heads_as_time, r"attention", ("heads and time swapped",)),
        Mistake("heads by feature", rewired.split_by_feature, r"attention", ("order of heads and features",)),
        Mistake("merged by feature", rewired.merged_by_feature, r"attention", ("order of heads and features",)),
        Mistake("squared ReLU", of("blocks", activation=squared_relu), r"mlp", ("another activation",)),
        Mistake(
            "quick GELU", of("blocks", activation=quick_gelu), r"mlp", ("another activation", "exact or tanh GELU")
        ),
        Mistake(
            "scale of the width", of("blocks", attention_options={"scale": M**-0.5}), r"attention", ("another scale",)
        ),
        Mistake("causal", of("blocks", causal=True), r"attention", ("missing causal mask",)),
        Mistake("the last token", whole(first=-1), r"classifier", ("pooling",)),
        Mistake(
            "norms swapped",
            swapped(f"{VIT_LAYER}layernorm_before", f"{VIT_LAYER}layernorm_after"),
            r"layernorm",
            SWAPPED_NORMS,
        ),
        Mistake(
            "query as key",
            swapped(f"{VIT_LAYER}attention.q_proj", f"{VIT_LAYER}attention.k_proj"),
            r"attention",
            ("swapped weights", "query and key swapped"),
        ),
        Mistake(
            "keys as values",
            swapped(f"{VIT_LAYER}attention.k_proj", f"{VIT_LAYER}attention.v_proj"),
            r"[kv]_proj",
            SWAPPED_KEYS,
        ),
    ),
)

# ----------------------------------------------------------------------------------------------------------------------
# T5.


class T5Stack(nnx.Module):
    """Blocks that share one table of biases, and a norm."""

    def __init__(self, blocks: Settings, *, bidirectional: bool, norm: Norm, rngs: nnx.Rngs) -> None:
        self.table = Embed(8, H, rngs=rngs)
        self.blocks = stack(2, blocks, rngs)
        self.norm = norm(M, rngs=rngs)
        self.bidirectional = bidirectional

    def __call__(
        self, x: Any, memory: Any, *, distance: int, shared: bool, bidirectional: bool, use_bias: bool, **masks: Any
    ) -> Any:
        bias = biases.relative(self.table.embedding[...], bidirectional=bidirectional, max_distance=distance)
        for i, block in enumerate(self.blocks):
            x = block(x, memory, bias=bias if use_bias and (shared or i == 0) else None, **masks)
        return self.norm(x)


class T5(nnx.Module):
    """Tokens and tokens so far, to logits of the next."""

    def __init__(
        self,
        encoder: Settings,
        decoder: Settings,
        *,
        norm: Norm,
        distance: int = 16,
        shared: bool = True,
        bidirectional: bool = False,
        use_bias: bool = True,
        output_scale: float = 1.0,
        rngs: nnx.Rngs,
    ) -> None:
        self.shared = Embed(19, M, rngs=rngs)
        self.encoder = T5Stack(encoder, bidirectional=True, norm=norm, rngs=rngs)
        self.decoder = T5Stack(decoder, bidirectional=False, norm=norm, rngs=rngs)
        self.how = {"distance": distance, "shared": shared, "use_bias": use_bias}
        self.bidirectional, self.output_scale = bidirectional, output_scale

    def __call__(self, input_ids: Any, attention_mask: Any, decoder_input_ids: Any) -> Any:
        real = masks.dense((attention_mask != 0)[:, None, None, :])
        memory = self.encoder(self.shared(input_ids), None, mask=real, bidirectional=True, **self.how)
        x = self.shared(decoder_input_ids)
        x = self.decoder(x, memory, memory_mask=real, bidirectional=self.bidirectional, **self.how)
        return self.shared.attend(x * self.output_scale)


def t5(implementation: str) -> torch.nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=19,
            d_model=M,
            d_kv=6,
            d_ff=FF,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=H,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
            scale_decoder_outputs=True,
            attn_implementation=implementation,
        )
    )


def t5_names(side: str, cross: bool) -> dict[str, str]:
    theirs, ours = f"{side}.block.#.layer.", f"{side}.blocks.#."
    parts = {"q": "query", "k": "key", "v": "value", "o": "out"}
    last = 2 if cross else 1
    names = {f"{theirs}0.SelfAttention.{x}": f"{ours}attention.{y}" for x, y in parts.items()}
    names |= {f"{theirs}0.layer_norm": f"{ours}norm1", f"{theirs}{last}.layer_norm": f"{ours}norm{last + 1}"}
    if cross:
        names |= {f"{theirs}1.EncDecAttention.{x}": f"{ours}cross_attention.{y}" for x, y in parts.items()}
        names |= {f"{theirs}1.layer_norm": f"{ours}norm2"}
    return names | {
        f"{theirs}{last}.DenseReluDense.wi": f"{ours}feed_forward.linear1",
        f"{theirs}{last}.DenseReluDense.wo": f"{ours}feed_forward.linear2",
        f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias": f"{side}.table",
        f"{side}.final_layer_norm": f"{side}.norm",
        f"{side}.embed_tokens": "",
    }


T5_NAMES = {
    "shared": "shared",
    "lm_head": "",
    **t5_names("encoder", cross=False),
    **t5_names("decoder", cross=True),
}
RMS = Norm("rms", epsilon=1e-6)
T5_BLOCK: Settings = {
    "norm": "pre",
    "norm_kind": RMS,
    "use_bias": False,
    "feedforward_bias": False,
    "attention_options": {"qkv_features": 24, "scale": 1.0},
}
ACROSS = {"qkv_features": 24, "scale": 1.0}
TEXTS = {
    "input_ids": torch.randint(0, 19, (2, 21), generator=torch.Generator().manual_seed(0)),
    "attention_mask": (torch.arange(21) < torch.tensor([[21], [15]])).long(),
    "decoder_input_ids": torch.randint(0, 19, (2, 9), generator=torch.Generator().manual_seed(1)),
}
SELF = r"SelfAttention"
T5_PORT = Port(
    "T5",
    t5,
    T5,
    {
        "encoder": T5_BLOCK,
        "decoder": {**T5_BLOCK, "causal": True, "cross_attention": True, "cross_attention_options": ACROSS},
        "norm": RMS,
        "output_scale": M**-0.5,
    },
    T5_NAMES,
    TEXTS,
    {name: x.numpy() for name, x in TEXTS.items()},
    (
        Mistake(
            "scale of a head",
            of("encoder", attention_options={"scale": None}),
            SELF,
            ("another scale", "missing scale"),
        ),
        Mistake(
            "scale across",
            of("decoder", cross_attention_options={"scale": None}),
            r"EncDecAttention",
            ("another scale", "missing scale"),
        ),
        Mistake("no biases", whole(use_bias=False), SELF, ("missing bias of the logits",)),
        Mistake(
            "biases of the first layer",
            whole(shared=False),
            r"block\.1.*SelfAttention",
            ("missing bias of the logits",),
        ),
        Mistake("distance", whole(distance=64), SELF, ("buckets of relative positions",)),
        Mistake(
            "bidirectional decoder", whole(bidirectional=True), rf"decoder.*{SELF}", ("buckets of relative positions",)
        ),
        Mistake("not causal", of("decoder", causal=False), rf"decoder.*{SELF}", ("missing causal mask",)),
        Mistake(
            "layer norm",
            of("encoder", norm_kind=Norm("layer", epsilon=1e-6, use_bias=False)),
            r"layer_norm",
            ("RMS norm or layer norm",),
        ),
        Mistake("epsilon", of("encoder", norm_kind=Norm("rms", epsilon=1e-3)), r"layer_norm", ("layer-norm epsilon",)),
        Mistake("GELU", of("encoder", activation="gelu"), r"DenseReluDense", ("another activation",)),
        Mistake(
            "no scale of the output",
            whole(output_scale=1.0),
            r"lm_head|model",
            ("scale of the output's logits", "constant factor"),
        ),
        Mistake("post-norm", of("encoder", norm="post"), r"encoder", ("post-norm for pre-norm",)),
        Mistake("sign of the biases", rewired.subtracted_bias, SELF, ("sign of the bias",)),
        Mistake("biases transposed", rewired.transposed_bias, SELF, ("transposed bias",)),
        Mistake("heads by feature", rewired.split_by_feature, SELF, ("order of heads and features",)),
        Mistake("no padding", argument("attention_mask", np.ones_like), SELF, ("missing mask",)),
        Mistake("padding inverted", argument("attention_mask", lambda x: 1 - x), SELF, ("inverted mask",)),
        Mistake("padding on the left", argument("attention_mask", np.fliplr), SELF, ("padding on the other side",)),
        Mistake(
            "keys as values",
            swapped("encoder.block.#.layer.0.SelfAttention.k", "encoder.block.#.layer.0.SelfAttention.v"),
            SELF,
            SWAPPED_KEYS,
        ),
        Mistake(
            "norms swapped",
            swapped("decoder.block.#.layer.0.layer_norm", "decoder.block.#.layer.1.layer_norm"),
            r"layer_norm",
            SWAPPED_NORMS,
        ),
    ),
)

# ----------------------------------------------------------------------------------------------------------------------
# Whisper.


class Whisper(nnx.Module):
    """Log-mel features ``b mels frames`` and tokens so far, to logits of the next token."""

    def __init__(
        self,
        encoder: Settings,
        decoder: Settings,
        *,
        norm: Norm,
        first: int = 0,
        activation: Any = "exact",
        rngs: nnx.Rngs,
    ) -> None:
        self.conv1 = Conv(6, M, 3, padding=1, rngs=rngs)
        self.conv2 = Conv(M, M, 3, strides=2, padding=1, rngs=rngs)
        self.frames, self.places = Embed(8, M, rngs=rngs), Embed(12, M, rngs=rngs)
        self.tokens = Embed(19, M, padding_idx=0, rngs=rngs)
        self.encoder, self.decoder = stack(2, encoder, rngs), stack(2, decoder, rngs)
        self.encoder_norm, self.decoder_norm = norm(M, rngs=rngs), norm(M, rngs=rngs)
        self.first, self.approximate = first, activation == "tanh"

    def __call__(self, input_features: Any, decoder_input_ids: Any) -> Any:
        x = jnp.swapaxes(input_features, 1, 2)
        for conv in (self.conv1, self.conv2):
            x = jax.nn.gelu(conv(x), approximate=self.approximate)
        x = x + self.frames.embedding[...]
        for block in self.encoder:
            x = block(x)
        memory = self.encoder_norm(x)
        x = self.tokens(decoder_input_ids)
        x = x + self.places.embedding[self.first : self.first + x.shape[1]]
        for block in self.decoder:
            x = block(x, memory)
        return self.tokens.attend(self.decoder_norm(x))


def whisper(implementation: str) -> torch.nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    return WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=19,
            d_model=M,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=H,
            decoder_attention_heads=H,
            encoder_ffn_dim=FF,
            decoder_ffn_dim=FF,
            num_mel_bins=6,
            max_source_positions=8,
            max_target_positions=12,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            attn_implementation=implementation,
        )
    )


def whisper_names(side: str, cross: bool) -> dict[str, str]:
    theirs, ours = f"model.{side}.layers.#.", f"{side}.#."
    parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    names = {f"{theirs}self_attn.{x}": f"{ours}attention.{y}" for x, y in parts.items()}
    if cross:
        names |= {f"{theirs}encoder_attn.{x}": f"{ours}cross_attention.{y}" for x, y in parts.items()}
        names |= {f"{theirs}encoder_attn_layer_norm": f"{ours}norm2"}
    return names | {
        f"{theirs}self_attn_layer_norm": f"{ours}norm1",
        f"{theirs}final_layer_norm": f"{ours}norm{3 if cross else 2}",
        f"{theirs}fc1": f"{ours}feed_forward.linear1",
        f"{theirs}fc2": f"{ours}feed_forward.linear2",
        f"model.{side}.layer_norm": f"{side}_norm",
    }


WHISPER_NAMES = {
    "model.encoder.conv1": "conv1",
    "model.encoder.conv2": "conv2",
    "model.encoder.embed_positions": "frames",
    "model.decoder.embed_positions": "places",
    "model.decoder.embed_tokens": "tokens",
    "proj_out": "",
    **whisper_names("encoder", cross=False),
    **whisper_names("decoder", cross=True),
}
WHISPER_BLOCK: Settings = {
    "norm": "pre",
    "norm_kind": Norm("layer", epsilon=1e-5),
    "activation": "gelu",
    "use_bias": ("query", "value", "out"),
}
SOUND = {
    "input_features": torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    "decoder_input_ids": torch.randint(0, 19, (2, 9), generator=torch.Generator().manual_seed(1)),
}
WHISPER = Port(
    "Whisper",
    whisper,
    Whisper,
    {
        "encoder": WHISPER_BLOCK,
        "decoder": {**WHISPER_BLOCK, "causal": True, "cross_attention": True},
        "norm": Norm("layer", epsilon=1e-5),
    },
    WHISPER_NAMES,
    SOUND,
    {name: x.numpy() for name, x in SOUND.items()},
    (
        Mistake("tanh GELU", of("encoder", activation="gelu_tanh"), r"encoder\.layers\.0", ("exact or tanh GELU",)),
        Mistake("tanh GELU of the stem", whole(activation="tanh"), r"encoder|conv", ("exact or tanh GELU",)),
        Mistake("not causal", of("decoder", causal=False), r"decoder.*self_attn", ("missing causal mask",)),
        Mistake("causal encoder", of("encoder", causal=True), r"encoder.*self_attn", ("missing causal mask",)),
        Mistake("first position", whole(first=1), r"decoder|embed", ("first position",)),
        Mistake(
            "epsilon", of("decoder", norm_kind=Norm("layer", epsilon=1e-3)), r"decoder.*norm", ("layer-norm epsilon",)
        ),
        Mistake("post-norm", of("decoder", norm="post"), r"decoder", ("post-norm for pre-norm",)),
        Mistake("heads as time", rewired.heads_as_time, r"self_attn", ("heads and time swapped",)),
        Mistake("merged by feature", rewired.merged_by_feature, r"self_attn", ("order of heads and features",)),
        Mistake("query as key", rewired.keys_for_queries, r"self_attn", ("query and key swapped",)),
        Mistake(
            "quick GELU",
            of("decoder", activation=quick_gelu),
            r"fc2|layers",
            ("exact or tanh GELU", "another activation"),
        ),
        Mistake("squared ReLU", of("decoder", activation=squared_relu), r"fc2|layers", ("another activation",)),
        Mistake("no scale", of("encoder", attention_options={"scale": 1.0}), r"encoder.*self_attn", ("missing scale",)),
        Mistake(
            "scale across", of("decoder", cross_attention_options={"scale": 1.0}), r"encoder_attn", ("missing scale",)
        ),
        Mistake(
            "norms swapped",
            swapped("model.decoder.layers.#.self_attn_layer_norm", "model.decoder.layers.#.encoder_attn_layer_norm"),
            r"layer_norm",
            SWAPPED_NORMS,
        ),
        Mistake(
            "attentions swapped",
            swapped("model.decoder.layers.#.self_attn.q_proj", "model.decoder.layers.#.encoder_attn.q_proj"),
            r"q_proj",
            ("swapped weights",),
        ),
        Mistake(
            "last norms swapped",
            swapped("model.encoder.layer_norm", "model.decoder.layer_norm"),
            r"layer_norm",
            SWAPPED_NORMS,
        ),
    ),
)

ENCODERS = (VIT, T5_PORT, WHISPER)
