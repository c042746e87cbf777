"""A tiny configuration of each family that sees images, for `transformers`."""

from functools import partial
from typing import Any

import numpy as np

from parity_tests.models.hugging_face import case
from parity_tests.models.hugging_face.case import Arrays, Case

__all__ = ["CLIPS", "IMAGES", "ROWS", "TEXTS", "made"]

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


def _images_for(settings: dict[str, Any]) -> Arrays:
    height, width = np.broadcast_to(settings["image_size"], 2)
    return {"pixel_values": case.IMAGES[:, :height, :width]}


def _label(name: str, kind: str) -> str:
    return f"CLIP {name}" if kind.startswith("CLIP") else name


ROWS = {
    **{_label(name, of[0]): Case(partial(made, *of), _images_for(of[1])) for name, of in IMAGES.items()},
    **{_label(name, of[0]): Case(partial(made, *of), case.TEXT) for name, of in TEXTS.items()},
    **{name: Case(partial(made, *of), {**case.TEXT, **_images_for(SIZES)}) for name, of in CLIPS.items()},
}
