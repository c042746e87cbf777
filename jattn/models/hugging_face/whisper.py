"""Whisper: from the log-mel features of speech to text."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.bart import bart_layers, bart_lines
from jattn.models.hugging_face.decoder_settings import output_line
from jattn.models.hugging_face.encoder_decoder import EncoderDecoder
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.settings import count_setting, flag_setting, padding_of, real_setting
from jattn.nn import Norm
from jattn.weights import Table, rename

__all__ = ["Whisper"]


def _whisper_options(config: Mapping[str, Any]) -> dict[str, Any]:
    block = dict(norm="pre", use_bias=("query", "value", "out"))
    side = dict(norm=Norm("layer", epsilon=1e-5), dropout_rate=real_setting(config, "dropout", "[0, 1)", 0.0))
    return dict(
        vocab_size=count_setting(config, "vocab_size"),
        features=count_setting(config, "d_model"),
        encoder={
            **side,
            "layers": bart_layers(config, "encoder", dropout=0.0, **block),
            "max_length": count_setting(config, "max_source_positions"),
            "fixed_positions": True,
        },
        decoder={
            **side,
            "layers": bart_layers(config, "decoder", dropout=0.0, **block),
            "max_length": count_setting(config, "max_target_positions"),
        },
        mel_bins=count_setting(config, "num_mel_bins"),
        padding_idx=padding_of(config, 50256),
        tied=flag_setting(config, "tie_word_embeddings", True),
    )


def _whisper_table(model: Any) -> Table:
    tokens, sides = "model.decoder.embed_tokens", ("encoder", "decoder")
    return Table(
        [
            output_line(model, "proj_out", tokens),
            rename(tokens, "embedding"),
            *(rename(f"model.encoder.{name}", f"source_embedding.{name}") for name in ("conv1", "conv2")),
            *(line for side in sides for line in bart_lines(side)),
            *(rename(f"model.{side}.layer_norm", f"{side}.norm") for side in sides),
        ]
    )


class Whisper(EncoderDecoder):
    """Whisper, whose source is `jattn.models.log_mel` of speech; the arguments are those of `EncoderDecoder`.

    It was trained on 30 seconds, filled up with silence; `transformers` takes no others.

    Source: Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, 2023.
    """

    hugging_face = Family(
        table=_whisper_table,
        implemented={
            "model_type": ("whisper",),
            "architectures": (None, ["WhisperForConditionalGeneration"]),
            "apply_spec_augment": (False,),
            "is_encoder_decoder": (True,),
            "encoder_layerdrop": (0.0,),
            "decoder_layerdrop": (0.0,),
        },
        options=_whisper_options,
        without_effect=frozenset(
            {
                "alignment_heads",
                "classifier_proj_size",
                "forced_decoder_ids",
                "init_std",
                "lang_to_id",
                "median_filter_width",
                "scale_embedding",  # which Whisper's code reads, and does nothing with
                "use_weighted_layer_sum",
                *(f"mask_{axis}_{of}" for axis in ("time", "feature") for of in ("length", "min_masks", "prob")),
            }
        ),
    )
