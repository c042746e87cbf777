"""PyTorch's side in float64: its own casts to float32, and what it made in float32."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jattn import models, parity
from jattn.parity.sides import Forward, arguments, run_torch, torch_copy
from jattn.parity.widen import float64_throughout, narrow_buffers
from parity_tests.nn import randomised

rng = np.random.default_rng(0)
V = 29
TOKENS = rng.integers(0, V, (2, 11))
x = torch.from_numpy(rng.standard_normal((2, 3)))


# ----------------------------------------------------------------------------------------------------------------------
# Casts.

CASTS = {
    "float()": lambda x: x.float(),
    "to(dtype)": lambda x: x.to(torch.float32),
    "to(dtype=)": lambda x: x.to(dtype=torch.float, copy=True),
    "to(device, dtype)": lambda x: x.to("cpu", torch.float32),
    "to(other)": lambda x: x.to(torch.FloatTensor([1.0])),
    "type": lambda x: x.type(torch.float32),
    "type, by its tensors' name": lambda x: x.type("torch.FloatTensor"),
    "type, by its tensors": lambda x: x.type(torch.FloatTensor),
    "type_as": lambda x: x.type_as(torch.FloatTensor([1.0])),
    "softmax": lambda x: torch.nn.functional.softmax(x, dim=-1, dtype=torch.float32),
    "sum": lambda x: x.sum(-1, dtype=torch.float32),
    "zeros_like": lambda x: torch.zeros_like(x, dtype=torch.float32),
}
MADE = {
    "integers": lambda: torch.arange(3).float(),
    "booleans": lambda: torch.ones(3, dtype=torch.bool).float(),
    "arange": lambda: torch.arange(3, dtype=torch.float),
    "tensor": lambda: torch.tensor(0.1),
    "full": lambda: torch.full((2,), 0.1, dtype=torch.float32),
    "new_zeros": lambda: x.long().new_zeros(2, dtype=torch.float32),
    "a quotient": lambda: torch.arange(3) / 3,
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_casts_to_float32_are_to_float64(cast: Any) -> None:
    found: list[str] = []
    with float64_throughout(lambda: "norm", found):
        assert cast(x).dtype == torch.float64
    assert found == ["norm"]
    assert cast(x).dtype == torch.float32, "afterwards all is as it was"


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_what_is_made_in_float32_is_made_in_float64(make: Any) -> None:
    found: list[str] = []
    with float64_throughout(lambda: "norm", found):
        assert make().dtype == torch.float64
    assert not found, "no digits would have been lost"
    assert make().dtype == torch.float32


def test_what_is_no_cast_to_float32_stays() -> None:
    with float64_throughout():
        assert x.bfloat16().dtype == torch.bfloat16
        assert x.to(torch.int32).dtype == torch.int32
        assert torch.zeros(2, dtype=torch.bool).dtype == torch.bool
        assert x.view(torch.float32).shape == (2, 6), "the bits, read anew"
        assert x.cfloat().dtype == torch.complex128
        assert torch.einsum("ab,ab->a", x, x).dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32


# ----------------------------------------------------------------------------------------------------------------------
# transformers.

SIZES: dict[str, Any] = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 20}
DECODER: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": V}
IDS = {"input_ids": TOKENS}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", DECODER, IDS),
    "Mistral": ("MistralForCausalLM", {**DECODER, "sliding_window": 4}, IDS),
    "Gemma2": ("Gemma2ForCausalLM", {**DECODER, "attn_logit_softcapping": None, "sliding_window": 4}, IDS),
    "Gemma3Text": ("Gemma3ForCausalLM", {**DECODER, "sliding_window": 4}, IDS),
    "Qwen3": ("Qwen3ForCausalLM", DECODER, IDS),
    "GPTNeoX": ("GPTNeoXForCausalLM", {**SIZES, "vocab_size": V}, IDS),
    "T5": (
        "T5ForConditionalGeneration",
        {"vocab_size": V, "d_model": 24, "num_heads": 4, "d_kv": 6, "num_layers": 2, "d_ff": 20},
        {**IDS, "decoder_input_ids": TOKENS[:, :5]},
    ),
    "GPT2": ("GPT2LMHeadModel", {"vocab_size": V, "n_embd": 24, "n_head": 4, "n_layer": 2, "n_positions": 16}, IDS),
    "Bert": ("BertModel", {**SIZES, "vocab_size": V}, IDS),
}


def made(name: str, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="no transformers: its casts were not tried")
    kind, settings, _ = MODELS[name]
    config = getattr(transformers, f"{name}Config")(**{**settings, **options})
    for token in ("bos_token_id", "eos_token_id"):
        setattr(config, token, 0)
    config._attn_implementation = options.get("attn_implementation", "eager")
    torch.manual_seed(0)
    return getattr(transformers, kind)(config).eval()


def run(module: Any, inputs: dict[str, Any]) -> Forward:
    return run_torch(torch_copy(module, "float64"), arguments(inputs), "float64")


@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers_run_in_float64(name: str) -> None:
    """Eager attention casts its softmax and the other doesn't, so that they agree only if no cast is left."""
    inputs = MODELS[name][2]
    eager = made(name)
    sides = [run(eager, inputs)]
    a = sides[0].outputs[0]
    if eager._supports_sdpa:
        sides.append(run(made(name, attn_implementation="sdpa"), inputs))
        np.testing.assert_allclose(a, sides[1].outputs[0], rtol=1e-10, atol=1e-12 * np.abs(a).max())
    with torch.no_grad():
        plain = eager(**{key: torch.from_numpy(value) for key, value in inputs.items()})[0]
    np.testing.assert_allclose(a, plain, rtol=1e-3, atol=1e-5 * np.abs(a).max())
    assert not any("left as they are" in note for side in sides for note in side.notes)


def test_a_module_that_insists_on_float32() -> None:
    """It says so, and goes on with its own casts."""

    class Upcast(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            upcast = x.float().softmax(-1)
            if upcast.dtype != torch.float32:
                raise RuntimeError("Error with upcasting")
            return upcast.to(x.dtype)

    side = run(Upcast(), {"x": x})
    assert side.notes == ["PyTorch's own casts to float32 were left as they are, as float64 gave: Error with upcasting"]
    assert 1e-10 < np.abs(side.outputs[0] - x.softmax(-1).numpy()).max() < 1e-6


@functools.cache
def llama() -> Any:
    return made("Llama", rms_norm_eps=1e-3)


def ported(**options: Any) -> models.Llama:
    return models.Llama.from_hugging_face({**llama().config.to_dict(), **options}, llama().state_dict())


def test_a_right_port_of_llama_is_equal() -> None:
    report = parity.compare(llama(), ported(), (TOKENS,), load=False)
    report.assert_equal()
    assert report.runs[0].outputs[0].limit == 1e-10
    (note,) = [note for note in report.notes if "casts" in note]
    assert note == (
        "PyTorch's own casts to float32 were to float64 in the float64 run: model.rotary_emb, "
        "model.layers.0.input_layernorm, model.layers.0.self_attn and 5 more."
    )


def test_a_wrong_rotary_base_is_found_in_attention() -> None:
    port = ported(rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    report = parity.compare(llama(), port, (TOKENS,), load=False, dtypes=("float64",))
    assert report.parting is not None
    assert (report.parting.torch_name, report.parting.flax_name) == ("model.layers.0.self_attn", "blocks.0.attention")
    assert report.parting.where == "the input of o_proj, after v_proj"
    assert report.parting.limit == 1e-10
    assert not any("made in float32" in note for note in report.notes)


SCALED: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.5},
    "dynamic": {"factor": 2.0},
    "longrope": {
        "short_factor": [1.0, 1.5, 2.0],
        "long_factor": [2.0, 4.0, 8.0],
        "factor": 4.0,
        "original_max_position_embeddings": 5,
    },
}


@pytest.mark.every_case
@pytest.mark.parametrize("kind", SCALED)
def test_scaled_rotary_positions(kind: str) -> None:
    """Their frequencies are made in the middle of a run."""
    rope = {"rope_type": kind, "rope_theta": 50.0, **SCALED[kind]}
    hf = made("Llama", rope_parameters=rope, max_position_embeddings=5 if kind == "dynamic" else 64)
    port = models.Llama.from_hugging_face(hf.config.to_dict(), hf.state_dict())
    parity.compare(hf, port, (TOKENS,), load=False).assert_equal()


def test_frequencies_that_were_altered_stay_so() -> None:
    hf = made("Llama")
    hf.model.rotary_emb.inv_freq *= 1.01
    copied = torch_copy(hf, "float64").model.rotary_emb
    assert torch.equal(copied.inv_freq, hf.model.rotary_emb.inv_freq.double())
    assert not torch.equal(copied.original_inv_freq, hf.model.rotary_emb.original_inv_freq.double())


def test_frequencies_are_not_rounded_to_bfloat16() -> None:
    hf = made("Llama")
    assert torch.equal(torch_copy(hf, "bfloat16").model.rotary_emb.inv_freq, hf.model.rotary_emb.inv_freq)


def test_training_in_float64() -> None:
    def loss(model: Any, batch: Any, rng: Any) -> Any:
        return (model(batch) ** 2).mean()

    def torch_loss(model: Any, batch: Any) -> Any:
        return (model(batch).logits.float() ** 2).mean()

    report = parity.trajectory(
        llama(),
        ported(),
        [TOKENS],
        loss=loss,
        torch_loss=torch_loss,
        optimizer=optax.sgd(0.1),
        torch_optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        steps=1,
        load=False,
        rename=models.Llama.hugging_face.table(ported()),
    )
    report.assert_equal()


# ----------------------------------------------------------------------------------------------------------------------
# Buffers that nothing says how to make again.


class TorchSines(torch.nn.Module):
    """Sines and cosines that were computed in float32, and what is no such table."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = torch.nn.Embedding(V, 12), torch.nn.Linear(12, 12)
        angles = torch.arange(16.0)[:, None] / 100 ** (torch.arange(0, 12, 2.0) / 12)
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], -1), persistent=False)
        self.register_buffer("minimum", torch.tensor(torch.finfo(torch.float32).min), persistent=False)
        self.register_buffer("ids", torch.arange(16.0) / 4, persistent=False)
        self.root = math.sqrt(12)
        self.register_buffer("scale", torch.tensor(self.root), persistent=False)
        self.plain = torch.tensor([0.5])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.linear(self.embedding(tokens) * self.scale + self.table[: tokens.shape[1]]) * self.plain


class Sines(nnx.Module):
    def __init__(self, base: float = 100.0, bias: bool = True) -> None:
        self.embedding = nnx.Embed(V, 12, rngs=nnx.Rngs(0))
        self.linear = nnx.Linear(12, 12, rngs=nnx.Rngs(0))
        self.base, self.bias = base, bias

    def __call__(self, tokens: jax.Array) -> jax.Array:
        angles = jnp.arange(tokens.shape[1])[:, None] / self.base ** (jnp.arange(0, 12, 2) / 12)
        table = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
        return self.linear(self.embedding(tokens) * math.sqrt(12) + table) * 0.5


def test_a_table_of_float32_is_not_held_against_the_port() -> None:
    theirs = randomised(TorchSines().float()).float()
    assert narrow_buffers(theirs) == ["table", "scale"]
    report = parity.compare(theirs, Sines(), (TOKENS,))
    report.assert_equal()
    (entry,) = report.runs[0].outputs
    assert 1e-10 < entry.error < entry.limit < 1e-5
    assert any(note.startswith("table, scale on PyTorch's side were made in float32") for note in report.notes)


def test_a_mistake_is_found_beside_a_table_of_float32() -> None:
    report = parity.compare(randomised(TorchSines()).float(), Sines(100.1), (TOKENS,), dtypes=("float64",))
    assert report.parting is not None
    assert report.parting.where == "the input of linear, after embedding"
    assert report.parting.limit == 1e-10


class TorchNormedSines(TorchSines):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(12)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(tokens))


class NormedSines(Sines):
    """With the very table of PyTorch's side, or its own."""

    def __init__(self, theirs: TorchSines | None, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.norm = nnx.LayerNorm(12, epsilon=epsilon, rngs=nnx.Rngs(0))
        self.table = None if theirs is None else nnx.Variable(theirs.table.numpy())

    def __call__(self, tokens: jax.Array) -> jax.Array:
        if self.table is None:
            return self.norm(super().__call__(tokens))
        x = self.embedding(tokens)
        x = x * math.sqrt(12) + self.table[...].astype(x.dtype)[: tokens.shape[1]]
        return self.norm(self.linear(x) * 0.5)


def test_a_port_that_has_the_very_numbers_of_a_table_gets_no_allowance_for_it() -> None:
    theirs = randomised(TorchNormedSines().float()).float()
    parity.compare(theirs, NormedSines(theirs), (TOKENS,), dtypes=("float64",)).assert_equal()
    own = parity.compare(theirs, NormedSines(None), (TOKENS,), dtypes=("float64",))
    own.assert_equal()
    report = parity.compare(theirs, NormedSines(theirs, epsilon=1.1e-5), (TOKENS,), dtypes=("float64",))
    assert report.parting is not None
    assert (report.parting.torch_name, report.parting.limit) == ("norm", 1e-10)
    assert report.parting.error < own.runs[0].outputs[0].limit  # as large as the rounding of the table may make it
    assert report.parting.diagnosis is not None
    assert report.parting.diagnosis.cause == "layer-norm epsilon"
    loose = parity.compare(theirs, NormedSines(None, epsilon=1e-3), (TOKENS,), dtypes=("float64",))
    assert loose.parting is not None
    assert loose.parting.diagnosis is not None
    assert loose.parting.diagnosis.cause == "layer-norm epsilon"
