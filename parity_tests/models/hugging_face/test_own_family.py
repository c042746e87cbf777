"""Families that jattn does not have, as docs/models.md says to write them, beside `transformers`."""

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from examples import own_family
from jattn import models, parity
from jattn.nn import Norm
from jattn.weights import Table, convert, rename

V = 29
rng = np.random.default_rng(0)
TOKENS = rng.integers(0, V, (2, 7))


def original(name: str, **sizes: Any) -> Any:
    """A model of transformers with random parameters, so that no scale is one and no bias zero."""
    model = getattr(transformers, name)(getattr(transformers, name).config_class(vocab_size=V, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.from_numpy(0.3 * rng.standard_normal(parameter.shape)))
    return model.eval()


def assert_port(kind: Any, theirs: Any, inputs: tuple[Any, ...]) -> None:
    """It agrees, outputs and gradients, and goes back bit for bit."""
    given = theirs.state_dict()
    ours = kind.from_hugging_face(theirs.config.to_dict(), given)
    names = ("input_ids", "decoder_input_ids")
    of_theirs = dict(zip(names, inputs, strict=False))
    parity.compare(theirs, ours, of_theirs, flax_inputs=inputs, dtypes=("float64",), load=False).assert_equal()
    back = ours.to_hugging_face()
    assert back.keys() == given.keys()
    assert all(torch.equal(back[name], given[name]) for name in given)


@pytest.mark.whole
def test_the_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["own_family"])
    own_family.main()
    assert "Equal: outputs and gradients agree" in capsys.readouterr().out


class MT5(models.T5):
    """The one of docs/models.md."""

    hugging_face = dataclasses.replace(
        models.T5.hugging_face,
        implemented={
            **models.T5.hugging_face.implemented,
            "model_type": ("mt5",),
            "architectures": (None, ["MT5ForConditionalGeneration"]),
        },
        options=lambda config: {**models.T5.hugging_face.options(config), "logits_scale": None},
    )


@pytest.mark.whole
def test_a_subclass_of_a_family() -> None:
    theirs = original("MT5ForConditionalGeneration", d_model=16, d_kv=4, d_ff=20, num_layers=1, num_heads=2)
    assert_port(MT5, theirs, (TOKENS, TOKENS[:, :4]))


def options_in_parallel(config: Any) -> dict[str, Any]:
    """Blocks with one norm for attention and network, and norms of each head, as StableLM has them."""
    norm = Norm("layer", epsilon=config["layer_norm_eps"])
    block = dict(
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        feedforward_features=config["intermediate_size"],
        norm="pre",
        norm_kind=norm,
        parallel=True,
        shared_norm=True,
        activation=models.activation_of(config, "hidden_act", "silu"),
        gated=True,
        use_bias=("query", "key", "value"),
        feedforward_bias=False,
        normalize_qk=dataclasses.replace(norm, use_bias=False),
        attention_options={"qk_norm_shared": False},
        rotary=models.rotary_of(config, partial=True),
    )
    return dict(
        vocab_size=config["vocab_size"],
        features=config["hidden_size"],
        layers=[block] * config["num_hidden_layers"],
        norm=norm,
        tied=False,
    )


def table_in_parallel(model: models.TextDecoder) -> Table:
    """StableLM's norm of a head is a module for each."""
    theirs, ours = "model.layers.#", "blocks.#"
    attention, network = model.blocks[0].attention, {"gate": "gate", "up": "linear1", "down": "linear2"}
    return Table(
        [
            rename("lm_head", "output"),
            rename("model.embed_tokens", "embedding"),
            rename("model.norm", "norm"),
            rename(f"{theirs}.input_layernorm", f"{ours}.norm1"),
            *(rename(f"{theirs}.mlp.{a}_proj", f"{ours}.feed_forward.{b}") for a, b in network.items()),
            *(
                rename(f"{theirs}.self_attn.{name[0]}_proj", f"{ours}.attention.{name}")
                for name in ("query", "key", "value", "out")
            ),
            *(
                convert(
                    [f"{theirs}.self_attn.{name[0]}_layernorm.norms.{i}.weight" for i in range(layer.kernel.shape[1])],
                    f"{ours}.attention.{name}_ln.weight",
                    lambda *heads: np.stack(heads),
                    tuple,
                )
                for name, layer in (("query", attention.query), ("key", attention.key))
            ),
        ]
    )


class StableLM(models.TextDecoder):
    """Of its settings those that this test has."""

    hugging_face = models.Family(
        table=table_in_parallel,
        options=options_in_parallel,
        implemented={
            "model_type": ("stablelm",),
            **{name: (True,) for name in ("use_parallel_residual", "qk_layernorm", "use_qkv_bias")},
            **{name: (0.0,) for name in ("hidden_dropout", "attention_dropout")},
            "tie_word_embeddings": (False,),
        },
        without_effect=frozenset({"max_position_embeddings"}),
    )


@pytest.mark.whole
def test_one_norm_for_both_and_norms_of_each_head() -> None:
    flags = dict(use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=True)
    sizes = dict(
        hidden_size=32, intermediate_size=20, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2
    )
    assert_port(StableLM, original("StableLmForCausalLM", **sizes, **flags), (TOKENS,))
