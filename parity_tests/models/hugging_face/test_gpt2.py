"""GPT-2 against torch_ref, and against Hugging Face's `transformers` on the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flax import nnx

import torch_ref.models
from jattn import models
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.models.hugging_face.comparison import assert_loads_and_dumps, logits_and_weights
from parity_tests.models.hugging_face.generation import LENS, TOKENS, V, assert_continues_alike
from parity_tests.nn import blank, both, call_for_weights, randomised

SIZES: dict[str, Any] = {"max_length": 20, "features": 12, "num_heads": 3, "num_layers": 2}
THEIRS: dict[str, Any] = {"n_positions": 20, "n_embd": 12, "n_head": 3, "n_layer": 2}
PADDED: dict[str, Any] = {"tokens": TOKENS, "valid_lens": LENS}


def made(**options: Any) -> Any:
    transformers = pytest.importorskip(
        "transformers", reason="no transformers: GPT-2 was not compared with Hugging Face's"
    )
    config = transformers.GPT2Config(
        **THEIRS, **options, vocab_size=V, bos_token_id=0, eos_token_id=0, attn_implementation="eager"
    )
    return randomised(transformers.GPT2LMHeadModel(config))


def under_their_names(twin: torch_ref.models.GPT2) -> dict[str, torch.Tensor]:
    """The parameters as Hugging Face has them: query, key and value in one, and ``(in, out)``."""
    named = {
        "transformer.wte": twin.embedding,
        "transformer.wpe": twin.positions.embedding,
        "transformer.ln_f": twin.norm,
    }
    parameters = {}
    for i, block in enumerate(twin.blocks):
        layer, attend, feed = f"transformer.h.{i}.", block.attention, block.feed_forward
        named |= {f"{layer}ln_1": block.norm1, f"{layer}ln_2": block.norm2}
        fused = [attend.query, attend.key, attend.value]
        for name, linears in (
            ("attn.c_attn", fused),
            ("attn.c_proj", [attend.out]),
            ("mlp.c_fc", [feed.linear1]),
            ("mlp.c_proj", [feed.linear2]),
        ):
            parameters[f"{layer}{name}.weight"] = torch.cat([linear.weight for linear in linears]).T
            parameters[f"{layer}{name}.bias"] = torch.cat([linear.bias for linear in linears])
    return parameters | {f"{name}.{p}": x for name, module in named.items() for p, x in module.named_parameters()}


def test_gpt2(parity: Parity) -> None:
    modules = both(models.GPT2, V, **SIZES, feedforward_features=20, norm_epsilon=1e-3)
    parity("GPT2", call_for_weights, call_for_weights, {}, PADDED, **modules)


@pytest.mark.parametrize(
    ("inputs", "dtypes"),
    [(PADDED, DTYPES[:2]), ({**PADDED, "valid_lens": None}, ("float64",))],
    ids=["padded", "whole"],
)
def test_hugging_face(parity: Parity, inputs: dict[str, Any], dtypes: tuple[str, ...]) -> None:
    hf = made()

    def theirs(twin: torch_ref.models.GPT2, **inputs: Any) -> Any:
        return logits_and_weights(hf, under_their_names(twin), **inputs)

    module = blank(lambda: models.GPT2(V, **SIZES, rngs=nnx.Rngs(0)))
    twin = randomised(torch_ref.models.GPT2(V, **SIZES))
    parity("GPT2, transformers", call_for_weights, theirs, {}, inputs, module=module, torch_module=twin, dtypes=dtypes)


def test_weights_from_and_to_hugging_face(tmp_path: Path) -> None:
    assert_loads_and_dumps(models.GPT2, made(n_inner=20, layer_norm_epsilon=1e-3), tmp_path)


def test_greedy_continuation() -> None:
    assert_continues_alike(models.GPT2, made())
