"""A tiny configuration of each family of encoder-decoders, for `transformers`."""

from functools import partial
from typing import Any

from parity_tests.models.hugging_face.case import SOUND, TARGET, TEXT, Case

__all__ = ["ENCODER_DECODERS", "ROWS", "V", "made"]

V = 29
TOKENS: dict[str, Any] = {
    "vocab_size": V,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
T5: dict[str, Any] = {
    **TOKENS,
    "d_model": 12,
    "d_kv": 5,
    "d_ff": 20,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
}
SIDES: dict[str, Any] = {
    **TOKENS,
    "d_model": 12,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 3,
    "num_hidden_layers": 2,
}
BART: dict[str, Any] = {**SIDES, "max_position_embeddings": 24, "forced_eos_token_id": None}
WHISPER: dict[str, Any] = {
    **SIDES,
    "num_mel_bins": 5,
    "max_source_positions": 9,
    "max_target_positions": 24,
    "begin_suppress_tokens": None,
}

# By a name: the model, and its settings.
ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "T5": ("T5ForConditionalGeneration", T5),
    "T5 1.1": (
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "T5 1.1, tied": (
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-silu", "tie_word_embeddings": False},
    ),
    "BART": ("BartForConditionalGeneration", BART),
    "BART, scaled": ("BartForConditionalGeneration", {**BART, "scale_embedding": True, "activation_function": "relu"}),
    "Whisper": ("WhisperForConditionalGeneration", WHISPER),
    "Whisper, not tied": ("WhisperForConditionalGeneration", {**WHISPER, "tie_word_embeddings": False}),
}


def made(name: str) -> Any:
    """The model of `transformers`, in the dtype that is PyTorch's default now."""
    import torch
    import transformers

    kind, settings = ENCODER_DECODERS[name]
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**settings, attn_implementation="eager"))
    if name == "T5 1.1":  # whose logits `transformers` ties, unless a file has other numbers
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    if hasattr(model, "final_logits_bias"):  # no parameter, so that it is zero where all parameters are random
        model.final_logits_bias.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return model


ROWS = {
    name: Case(partial(made, name), {**(SOUND if kind.startswith("Whisper") else TEXT), **TARGET}, generates=True)
    for name, (kind, _) in ENCODER_DECODERS.items()
}
