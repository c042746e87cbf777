"""A tiny configuration of each family that sees images, for `transformers`."""

from typing import Any

__all__ = ["CLIPS", "IMAGES", "TEXTS", "made"]

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
    "CLIP's": ("CLIPVisionModel", SIZES),
    "CLIP's, projected": ("CLIPVisionModelWithProjection", {**SIZES, "projection_dim": 6}),
}

TEXT: dict[str, Any] = {
    "vocab_size": 17,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 9,
    "projection_dim": 6,
    "bos_token_id": 1,
    "eos_token_id": 13,
}
TEXTS = {
    "states": ("CLIPTextModel", TEXT),
    "projected": ("CLIPTextModelWithProjection", TEXT),
    "older end of text": ("CLIPTextModelWithProjection", {**TEXT, "eos_token_id": 2, "hidden_act": "gelu"}),
}
TOWERS = {"text_config": TEXT, "vision_config": SIZES, "projection_dim": 7}
CLIPS = {
    "CLIP": ("CLIPModel", TOWERS),
    "CLIP, older": ("CLIPModel", {**TOWERS, "text_config": {**TEXT, "eos_token_id": 2}}),
}


def made(kind: str, settings: dict[str, Any]) -> Any:
    """The model of `transformers`, in the dtype that is PyTorch's default now."""
    import transformers

    cls = getattr(transformers, kind)
    return cls(cls.config_class(**settings, attn_implementation="eager"))
