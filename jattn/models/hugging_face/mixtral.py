"""Mixtral: Mistral with a mixture of experts."""

from collections.abc import Mapping
from typing import Any

from jattn.models.hugging_face.decoder import TextDecoder
from jattn.models.hugging_face.decoder_settings import (
    LLAMA_ATTENTION,
    LLAMA_NORMS,
    experts_of,
    llama_options,
    llama_table,
    rms_norm_of,
)
from jattn.models.hugging_face.family import Family
from jattn.models.hugging_face.rotary import rotary_of
from jattn.models.hugging_face.settings import optional_count_setting
from jattn.weights import Table, rename, split, unstack

__all__ = ["Mixtral"]


def _mixtral_options(config: Mapping[str, Any]) -> dict[str, Any]:
    return llama_options(
        config,
        norm_kind=rms_norm_of(config, 1e-5),
        rotary=rotary_of(config, base=1e6),
        experts=experts_of(config, per_token=2, number=8),
        window=optional_count_setting(config, "sliding_window"),
    )


def _mixtral_table(model: Any) -> Table:
    """In a file each expert has its own entries; in memory they are stacked, gate and first layer in one."""
    layer, network = "model.layers.#.block_sparse_moe", "blocks.#.feed_forward"
    experts = range(model.blocks[0].feed_forward.linear1.kernel.shape[0])
    in_memory = {"gate_up_proj": "gate_up", "down_proj": "w2"}
    of_expert = {"w1": "gate", "w2": "linear2", "w3": "linear1"}
    further = [
        rename("model.layers.#.mlp", layer, optional=True, back=False),
        *(
            unstack(
                f"{layer}.experts.{theirs}",
                [f"{layer}.experts.{i}.{part}.weight" for i in experts],
                optional=True,
                back=False,
            )
            for theirs, part in in_memory.items()
        ),
        split(
            f"{layer}.experts.#.gate_up", [f"{layer}.experts.#.{w}" for w in ("w1", "w3")], optional=True, back=False
        ),
        rename(f"{layer}.gate", f"{network}.router"),
        *(rename(f"{layer}.experts.#.{w}", f"{network}.experts.#.{ours}") for w, ours in of_expert.items()),
    ]
    return llama_table(model, {**LLAMA_ATTENTION, **LLAMA_NORMS}, further)


class Mixtral(TextDecoder):
    """Mixtral; the arguments are those of `TextDecoder`.

    Source: Jiang et al., Mixtral of Experts, 2024.
    """

    hugging_face = Family(
        table=_mixtral_table,
        implemented={
            "model_type": ("mixtral",),
            "router_jitter_noise": (0.0,),
        },
        options=_mixtral_options,
        without_effect=frozenset({"output_router_logits", "router_aux_loss_coef"}),
        any_head_features=True,
    )
