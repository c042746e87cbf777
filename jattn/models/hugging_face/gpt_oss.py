"""gpt-oss: sinks, every other layer with a window, and experts whose gates are clipped."""

import dataclasses
from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import (
    LLAMA_ATTENTION,
    LLAMA_NORMS,
    experts_of,
    layers_of,
    llama_options,
    llama_table,
    rms_norm_of,
    windows_by_kind,
)
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.rotary import rotary_of
from jattn.models.hugging_face.settings import count_setting, flag_setting, real_setting
from jattn.nn import Rotary
from jattn.weights import Table, rename, split, transposed, unstack

__all__ = ["ClippedSwish", "GptOss"]


@dataclasses.dataclass(frozen=True)
class ClippedSwish:
    """``gate sigmoid(slope gate) (1 + x)``, of a gate and an x that are clipped."""

    slope: float = 1.702
    limit: float = 7.0

    def __call__(self, gate: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
        gate, x = jnp.minimum(gate, self.limit), jnp.clip(x, -self.limit, self.limit)
        return gate * jax.nn.sigmoid(self.slope * gate) * (1 + x)


def _rotary_of(config: Mapping[str, Any]) -> Rotary:
    """With YaRN where no setting says which positions there are."""
    plain = {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    }
    unsaid = config.get("rope_parameters") is None and not config.get("rope_scaling")
    return rotary_of(ChainMap({"rope_parameters": plain}, config) if unsaid else config, base=150000.0)  # type: ignore[arg-type]


def _gpt_oss_options(config: Mapping[str, Any]) -> dict[str, Any]:
    slope = real_setting(config, "swiglu_alpha", "(-inf, inf)", 1.702)
    n = count_setting(config, "num_hidden_layers")
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(n)]
    return llama_options(
        config,
        norm_kind=rms_norm_of(config, 1e-5),
        head_features=64,
        attention_options={"use_sinks": True},
        layers=layers_of(config, kinds, windows_by_kind(config, 128)),
        gated=ClippedSwish(slope, real_setting(config, "swiglu_limit", "(0, inf)", 7.0)),
        feedforward_bias=True,
        use_bias=flag_setting(config, "attention_bias", True),
        rotary=_rotary_of(config),
        experts={**experts_of(config, per_token=4, number=128), "router_bias": True},
    )


def _gpt_oss_table(model: Any) -> Table:
    """Experts are stacked, and of each the gate's columns lie between the first layer's."""
    layer, network = "model.layers.#.mlp", "blocks.#.feed_forward"
    experts, _, hidden = model.blocks[0].feed_forward.linear1.kernel.shape
    stacked = [
        unstack(f"{layer}.experts.{theirs}{end}", [f"{network}.experts.{i}.{ours}.{kind}" for i in range(experts)])
        for theirs, ours in (("gate_up_proj", "gate_up"), ("down_proj", "linear2"))
        for end, kind in (("", "weight"), ("_bias", "bias"))
    ]
    parts = [f"{network}.experts.#.{part}" for part in ("gate", "linear1")]
    further = [
        *stacked,
        *(transposed(f"{network}.experts.#.{part}", f"{network}.experts.#.{part}") for part in ("gate_up", "linear2")),
        split(f"{network}.experts.#.gate_up", parts, num_heads=hidden),
        rename(f"{layer}.router", f"{network}.router"),
        rename("model.layers.#.self_attn.sinks", "blocks.#.attention.sinks"),
    ]
    return llama_table(model, {**LLAMA_ATTENTION, **LLAMA_NORMS}, further)


class GptOss(TextDecoder):
    """gpt-oss; the arguments are those of `TextDecoder`.

    Source: OpenAI, gpt-oss-120b and gpt-oss-20b Model Card, 2025.
    """

    hugging_face = Family(
        table=_gpt_oss_table,
        implemented={"model_type": ("gpt_oss",), "hidden_act": ("silu",)},
        options=_gpt_oss_options,
        without_effect=frozenset(
            {
                "experts_per_token",  # beside num_experts_per_tok, which is read
                "initial_context_length",
                "output_router_logits",
                "router_aux_loss_coef",
            }
        ),
        any_head_features=True,
    )
