"""A tiny configuration of each family that sees images, for `transformers`."""

from typing import Any

__all__ = ["IMAGES", "made"]

SIZES: dict[str, Any] = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 12,
    "patch_size": 4,
    "num_channels": 2,
}
CLASSES = {"id2label": {i: f"class {i}" for i in range(5)}}

# By a name: the model, and its settings.
IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViTModel", {**SIZES, "pooler_output_size": 7, "qkv_bias": False}),
    "ViT, oblong": ("ViTModel", {**SIZES, "image_size": [12, 8], "patch_size": [4, 2], "pooler_act": "relu"}),
    "ViT, classes": ("ViTForImageClassification", {**SIZES, **CLASSES, "hidden_act": "gelu_fast"}),
    "DeiT": ("DeiTModel", SIZES),
    "DeiT, classes": ("DeiTForImageClassification", SIZES),
    "DeiT, taught classes": ("DeiTForImageClassificationWithTeacher", {**SIZES, **CLASSES}),
}


def made(kind: str, settings: dict[str, Any]) -> Any:
    """The model of `transformers`, in the dtype that is PyTorch's default now."""
    import transformers

    cls = getattr(transformers, kind)
    return cls(cls.config_class(**settings, attn_implementation="eager"))
