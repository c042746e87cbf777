"""Qwen 2 and 3: Llama with biases to queries, keys and values, or with norms of queries and keys."""

from collections.abc import Mapping
from typing import Any

from jattn._engine import checks
from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import (
    LLAMA_LAYER,
    activation_of,
    gated_block,
    heads_of,
    llama_like,
    llama_table,
    windows_of,
)
from jattn.models.hugging_face.family import Family, count_setting, flag_setting, real_setting
from jattn.models.hugging_face.rotary import rotary_of
from jattn.nn import Norm

__all__ = ["Qwen2", "Qwen3"]

# Where use_sliding_window is False; they are read where it is True.
_SLIDING = frozenset({"sliding_window", "max_window_layers"})


def _qwen2_options(config: Mapping[str, Any], *, head_features: int | None = None, **changed: Any) -> dict[str, Any]:
    norm = Norm("rms", epsilon=real_setting(config, "rms_norm_eps", "[0, inf)", 1e-6))
    options = dict(
        norm_kind=norm, activation=activation_of(config, "hidden_act", "silu"), rotary=rotary_of(config), **changed
    )
    block = gated_block(config, **options, **heads_of(config, head_features=head_features))
    layers = [{**block, "window": window} for window in _qwen2_windows(config)]
    return llama_like(config, norm=norm, layers=layers)


def _qwen2_windows(config: Mapping[str, Any]) -> list[int | None]:
    n = count_setting(config, "num_hidden_layers")
    if not flag_setting(config, "use_sliding_window", False):
        if set(kinds := config.get("layer_types") or ()) - {"full_attention"}:  # of which transformers makes no mask
            raise ValueError(
                "config's layer_types must have full_attention alone, as there is no window without "
                f"use_sliding_window. Got {list(kinds)}."
            )
        return [None] * n
    first = checks.number("config's max_window_layers", config.get("max_window_layers", 28), integer=True)
    return windows_of(config, ["full_attention" if i < first else "sliding_attention" for i in range(n)], window=4096)


def _qwen3_options(config: Mapping[str, Any]) -> dict[str, Any]:
    epsilon = real_setting(config, "rms_norm_eps", "[0, inf)", 1e-6)
    use_bias = flag_setting(config, "attention_bias", False)
    return _qwen2_options(config, head_features=128, normalize_qk=Norm("rms", epsilon=epsilon), use_bias=use_bias)


def _qwen3_table(model: Any) -> Any:
    norms = {"self_attn.q_norm": "attention.query_ln", "self_attn.k_norm": "attention.key_ln"}
    return llama_table(model, {**LLAMA_LAYER, **norms})


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
