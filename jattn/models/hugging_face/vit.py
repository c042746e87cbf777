"""ViT and DeiT: vision transformers, bare or with classifiers."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.activations import activation_of
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.settings import (
    count_setting,
    flag_setting,
    heads_of,
    labels_of,
    optional_count_setting,
    real_setting,
)
from jattn.models.hugging_face.vision import VisionEncoder
from jattn.nn import Norm
from jattn.weights import Table, convert, prefixed, rename

__all__ = ["DeiT", "ViT"]


def _vit_options(config: Mapping[str, Any]) -> dict[str, Any]:
    norm = Norm("layer", epsilon=real_setting(config, "layer_norm_eps", "[0, inf)", 1e-12))
    dropout_rate = real_setting(config, "hidden_dropout_prob", "[0, 1)", 0.0)
    features = count_setting(config, "hidden_size")
    block = dict(
        norm="pre",
        norm_kind=norm,
        feedforward_features=count_setting(config, "intermediate_size"),
        activation=activation_of(config, "hidden_act", "gelu"),
        use_bias=True if flag_setting(config, "qkv_bias", True) else ("out",),
        residual_dropout_rate=dropout_rate,
        attention_dropout_rate=real_setting(config, "attention_probs_dropout_prob", "[0, 1)", 0.0),
        **heads_of(config, grouped=False),
    )
    kind = _architecture(config)
    pooler_features = optional_count_setting(config, "pooler_output_size") or features
    pooler_activation = activation_of(config, "pooler_act", "tanh")
    return dict(
        image_size=config.get("image_size", 224),
        patch_size=config.get("patch_size", 16),
        features=features,
        layers=[block] * count_setting(config, "num_hidden_layers"),
        channels=optional_count_setting(config, "num_channels", 3),
        special_tokens=2 if kind.startswith("DeiT") else 1,
        norm=norm,
        pooler_features=pooler_features if kind.endswith("Model") else None,
        pooler_activation=pooler_activation,
        output_features=labels_of(config) if "Classification" in kind else None,
        num_outputs=2 if kind.endswith("Teacher") else 1,
        dropout_rate=dropout_rate,
    )


def _architecture(config: Mapping[str, Any]) -> str:
    bare = {"vit": "ViTModel", "deit": "DeiTModel"}
    return (config.get("architectures") or [bare[config.get("model_type", "vit")]])[0]


# From the names within a layer that transformers 5 has in memory to those that it, as all before it, has in files.
_NEWER = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_VIT_LAYER = {
    "layernorm_before": "norm1",
    "attention.attention": "attention",
    "attention.output.dense": "attention.out",
    "layernorm_after": "norm2",
    "intermediate.dense": "feed_forward.linear1",
    "output.dense": "feed_forward.linear2",
}


def _vit_table(model: VisionEncoder) -> Table:
    """From a model with classifiers, whose other names have a prefix, or from a bare one, with its pooler if any."""
    distilled = model.special_tokens == 2
    classifiers = ["cls_classifier", "distillation_classifier"] if len(model.outputs) == 2 else ["classifier"]
    whole = [prefixed("deit." if distilled else "vit.", but=classifiers)] if model.outputs else []
    layer, block = "encoder.layer.#", "blocks.#"
    return Table(
        [
            *whole,
            rename("layers.#", layer, optional=True, back=False),
            *(rename(f"{layer}.{new}", f"{layer}.{old}", optional=True, back=False) for new, old in _NEWER.items()),
            *(rename(name, f"outputs.{i}") for i, name in enumerate(classifiers) if model.outputs),
            *([] if model.pooler is None else [rename("pooler.dense", "pooler")]),
            rename("embeddings.patch_embeddings.projection", "patches"),
            _squeezed("embeddings.cls_token", "class_token", 2),
            *([_squeezed("embeddings.distillation_token", "distillation_token", 2)] if distilled else []),
            _squeezed("embeddings.position_embeddings", "positions.embedding.weight", 1),
            *(rename(f"{layer}.{theirs}", f"{block}.{ours}") for theirs, ours in _VIT_LAYER.items()),
            rename("layernorm", "norm"),
        ]
    )


def _squeezed(theirs: str, ours: str, n: int) -> Any:
    """An entry without its first n axes, which have one place."""
    return convert(theirs, ours, lambda x: x.reshape(x.shape[n:]), lambda x: x.reshape((1,) * n + x.shape))


def _vit_family(kind: str, name: str, *further: str) -> Family:
    architectures = [f"{name}Model", f"{name}ForImageClassification", *further]
    return Family(
        table=_vit_table,
        implemented={
            "model_type": (kind,),
            "architectures": (None, *([one] for one in architectures)),
        },
        options=_vit_options,
        without_effect=frozenset({"encoder_stride", "num_labels", "tie_word_embeddings"}),
        any_head_features=True,
        optional_parts={"pooler": r"^pooler\."},
    )


class ViT(VisionEncoder):
    """ViT, bare or with a classifier, as ``architectures`` says; the arguments are those of `VisionEncoder`.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, 2021.
    """

    hugging_face = _vit_family("vit", "ViT")


class DeiT(VisionEncoder):
    """DeiT with its distillation token, bare, with a classifier, or with one on either special token.

    The arguments are those of `VisionEncoder`.

    Source: Touvron et al., Training Data-Efficient Image Transformers & Distillation through Attention, 2021.
    """

    hugging_face = _vit_family("deit", "DeiT", "DeiTForImageClassificationWithTeacher")
