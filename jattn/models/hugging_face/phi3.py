"""Phi-3: Llama with its projections packed, and LongRoPE."""

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import LLAMA_NORMS, llama_options, llama_table, rms_norm_of
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.rotary import rotary_of
from jattn.models.hugging_face.settings import optional_count_setting, real_setting
from jattn.weights import Table, split

__all__ = ["Phi3"]


def _phi3_options(config: Mapping[str, Any]) -> dict[str, Any]:
    return llama_options(
        config,
        norm_kind=rms_norm_of(config, 1e-5),
        rotary=rotary_of(ChainMap(_older_kinds(config), config), partial=True),  # type: ignore[arg-type]  # which is only read
        residual_dropout_rate=real_setting(config, "resid_pdrop", "[0, 1)", 0.0),
        window=optional_count_setting(config, "sliding_window"),
        padding=32000,
    )


def _older_kinds(config: Mapping[str, Any]) -> dict[str, Any]:
    """LongRoPE by its present name, of files that call it "su" or "yarn"."""
    renamed = {}
    for place in ("rope_scaling", "rope_parameters"):
        if isinstance(given := config.get(place), Mapping):
            kinds = {name: "longrope" for name in ("type", "rope_type") if given.get(name) in ("su", "yarn")}
            renamed[place] = {**given, **kinds}
    return renamed


def _phi3_table(model: Any) -> Table:
    attention = model.blocks[0].attention
    h, k = (projection.kernel.shape[1] for projection in (attention.query, attention.key))
    qkv = [f"blocks.#.attention.{part}" for part in ("query", "key", "value")]
    network = [f"blocks.#.feed_forward.{part}" for part in ("gate", "linear1")]
    packed = [
        split("model.layers.#.self_attn.qkv_proj", qkv, sizes=(h, k, k)),
        split("model.layers.#.mlp.gate_up_proj", network),
    ]
    return llama_table(model, {**_PHI3_LAYER, **LLAMA_NORMS}, packed)


# What is not packed.
_PHI3_LAYER = {"self_attn.o_proj": "attention.out", "mlp.down_proj": "feed_forward.linear2"}


class Phi3(TextDecoder):
    """Phi-3 and Phi-4; the arguments are those of `TextDecoder`.

    Source: Abdin et al., Phi-3 Technical Report, 2024.
    """

    hugging_face = Family(
        table=_phi3_table,
        implemented={
            "model_type": ("phi3",),
            **dict.fromkeys(("attention_bias", "mlp_bias", "lm_head_bias"), (False,)),
            **dict.fromkeys(("full_attn_mod", "interpolate_factor"), (1,)),
        },
        options=_phi3_options,
        without_effect=frozenset({"embd_pdrop"}),
        any_head_features=True,
    )
