"""Qwen 2 and 3: Llama with biases to queries, keys and values, or with norms of queries and keys."""

from collections.abc import Mapping
from typing import Any

from jattn._engine import checks
from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import (
    LLAMA_ATTENTION,
    LLAMA_NETWORK,
    LLAMA_NORMS,
    QK_NORMS,
    layers_of,
    llama_options,
    llama_table,
    rms_norm_of,
    windows_by_kind,
)
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.settings import count_setting, flag_setting

__all__ = ["Qwen2", "Qwen3"]

# Where use_sliding_window is False; they are read where it is True.
_SLIDING = frozenset({"sliding_window", "max_window_layers"})


def _qwen2_options(config: Mapping[str, Any], **changed: Any) -> dict[str, Any]:
    return llama_options(config, norm_kind=rms_norm_of(config, 1e-6), layers=_qwen2_layers(config), **changed)


def _qwen2_layers(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    n = count_setting(config, "num_hidden_layers")
    if not flag_setting(config, "use_sliding_window", False):  # then transformers makes no mask for layers with one
        return layers_of(config, ["full_attention"] * n, {"full_attention": {"window": None}})
    first = checks.number("config's max_window_layers", config.get("max_window_layers", 28), integer=True)
    kinds = ["full_attention" if i < first else "sliding_attention" for i in range(n)]
    return layers_of(config, kinds, windows_by_kind(config, 4096))


def _qwen3_options(config: Mapping[str, Any]) -> dict[str, Any]:
    use_bias = flag_setting(config, "attention_bias", False)
    return _qwen2_options(config, head_features=128, normalize_qk=rms_norm_of(config, 1e-6), use_bias=use_bias)


def _qwen3_table(model: Any) -> Any:
    return llama_table(model, {**LLAMA_ATTENTION, **QK_NORMS, **LLAMA_NORMS, **LLAMA_NETWORK})


class Qwen2(TextDecoder):
    """Qwen 2 and 2.5; the arguments are those of `TextDecoder`.

    Source: Yang et al., Qwen2 Technical Report, 2024.
    """

    hugging_face = Family(
        table=llama_table,
        implemented={"model_type": ("qwen2",), "use_mrope": (False,)},
        options=lambda config: _qwen2_options(config, use_bias=("query", "key", "value")),
        without_effect=_SLIDING,
        any_head_features=True,
    )


class Qwen3(TextDecoder):
    """Qwen 3; the arguments are those of `TextDecoder`.

    Source: Yang et al., Qwen3 Technical Report, 2025.
    """

    hugging_face = Family(
        table=_qwen3_table,
        implemented={"model_type": ("qwen3",)},
        options=_qwen3_options,
        without_effect=_SLIDING,
        any_head_features=True,
    )
