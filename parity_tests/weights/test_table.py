"""Tables against what transformers does with fused weights; and a port compared and trained through one."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jattn import attention, parity
from jattn.weights import (
    Table,
    load_state_dict,
    part,
    prefixed,
    rename,
    split,
    state_dict,
    tied,
    to_numpy,
    transposed,
    zeros,
)
from parity_tests.nn import randomised

QKV = ("query", "key", "value")
M, H, K, D = 12, 6, 2, 4  # width, heads, key heads, and a head's features where they are not M / H

# ----------------------------------------------------------------------------------------------------------------------
# Fused query, key and value.


def attention_of(family: str, kind: str, **settings: Any) -> torch.nn.Module:
    """An attention layer of transformers."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: none of its layers was cut"
    )
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=M, num_attention_heads=H, attn_implementation="eager", **settings
    )
    return randomised(getattr(module, f"{kind}Attention")(config, layer_idx=0)).double().eval()


def parts_by_attending(layer: torch.nn.Module, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What a layer attends with, ``b h t d``, with rotary positions that turn nothing."""
    caught: list[torch.Tensor] = []

    def attend(layer: Any, query: Any, key: Any, value: Any, *args: Any, **options: Any) -> Any:
        caught.extend((query, key, value))
        return torch.zeros(*x.shape[:2], query.shape[1] * query.shape[-1], dtype=x.dtype), None

    monkeypatch.setattr(importlib.import_module(type(layer).__module__), "eager_attention_forward", attend)
    d = int(getattr(layer, "head_size", 0) or getattr(layer, "head_dim", 0))
    turn = torch.ones(1, x.shape[1], d, dtype=x.dtype)
    layer(x, attention_mask=None, position_embeddings=(turn, torch.zeros_like(turn)))
    return caught


FUSED: dict[str, tuple[Callable[[], torch.nn.Module], str, dict[str, Any]]] = {
    "GPT-NeoX": (lambda: attention_of("gpt_neox", "GPTNeoX"), "query_key_value", {"num_heads": H}),
    "Phi-3": (
        lambda: attention_of("phi3", "Phi3", num_key_value_heads=K, head_dim=D, pad_token_id=0),
        "qkv_proj",
        {"sizes": (H, K, K)},
    ),
    "BLOOM": (lambda: attention_of("bloom", "Bloom"), "query_key_value", {"num_heads": H}),
    "Falcon": (
        lambda: attention_of("falcon", "Falcon", num_kv_heads=K, new_decoder_architecture=True),
        "query_key_value",
        {"sizes": (H // K, 1, 1), "num_heads": K},
    ),
    "Falcon, one key": (
        lambda: attention_of("falcon", "Falcon", multi_query=True, new_decoder_architecture=False),
        "query_key_value",
        {"sizes": (H, 1, 1)},
    ),
}


@pytest.mark.parametrize("family", FUSED)
def test_fused_weights_are_cut_as_transformers_cuts_them(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each feature alone, the parts are the columns of their matrices, bit for bit; and back."""
    make, name, options = FUSED[family]
    layer = make()
    x = torch.eye(M, dtype=torch.float64)[None]
    if hasattr(layer, "_split_heads"):  # Falcon repeats its keys for the heads of a group
        theirs = [part.transpose(1, 2) for part in layer._split_heads(getattr(layer, name)(x))]
        repeats = [1, theirs[1].shape[1] // layer.num_kv_heads if layer.new_decoder_architecture else 1]
        theirs = [theirs[0], *[part[:, :: repeats[1]] for part in theirs[1:]]]
    elif hasattr(layer, "_reshape"):
        theirs = layer._reshape(getattr(layer, name)(x))
    else:
        theirs = parts_by_attending(layer, x, monkeypatch)

    entries = {n: t for n, t in layer.state_dict().items() if n.startswith(name)}
    table = Table([split(name, QKV, **options)])
    ours = table.load(entries)
    for ours_name, their in zip(QKV, theirs, strict=True):
        bias = ours.get(f"{ours_name}.bias", np.zeros(()))
        expected = their[0].transpose(0, 1).flatten(1).detach().numpy()  # t, h d
        np.testing.assert_array_equal(ours[f"{ours_name}.weight"].T + bias, expected)
    back = table.dump(ours)
    assert back.keys() == entries.keys()
    for entry in entries:
        assert back[entry].tobytes() == to_numpy(entries[entry]).tobytes()


# ----------------------------------------------------------------------------------------------------------------------
# A port whose original names and keeps everything otherwise.

V, LENGTH = 9, 5


class Theirs(torch.nn.Module):
    """Positions from 2 on, a fused query and value by head, a key without a bias, (in, out), and a tied output."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Module()
        self.model.wte, self.model.wpe = torch.nn.Embedding(V, M), torch.nn.Embedding(LENGTH + 2, M)
        self.model.qv, self.model.k = torch.nn.Linear(M, 2 * M), torch.nn.Linear(M, M, bias=False)
        self.model.fc_weight = torch.nn.Parameter(torch.empty(M, M))
        self.lm_head = torch.nn.Linear(M, V, bias=False)
        self.lm_head.weight = self.model.wte.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.model.wte(tokens) + self.model.wpe(torch.arange(2, tokens.shape[1] + 2))
        query, value = self.model.qv(x).unflatten(-1, (H, 2, -1)).transpose(1, 2).unbind(-2)
        key = self.model.k(x).unflatten(-1, (H, -1)).transpose(1, 2)
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)
        return self.lm_head(torch.tanh(attended @ self.model.fc_weight))


class Port(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embedding, self.positions = nnx.Embed(V, M, rngs=rngs), nnx.Embed(LENGTH, M, rngs=rngs)
        self.query, self.key, self.value = (nnx.Linear(M, M, rngs=rngs) for _ in range(3))
        self.out = nnx.Linear(M, M, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embedding(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        query, key, value = (layer(x).reshape(*x.shape[:2], H, -1) for layer in (self.query, self.key, self.value))
        attended = attention(query, key, value).reshape(x.shape)
        return self.embedding.attend(jnp.tanh(self.out(attended)))


TABLE = Table(
    [
        tied("lm_head.weight", "model.wte.weight"),
        prefixed("model."),
        rename("wte", "embedding"),
        part("wpe", "positions", slice(2, None), fill=0),
        split("qv", ("query", "value"), num_heads=H),
        rename("k", "key"),
        zeros("key.bias"),
        transposed("fc_weight", "out.weight"),
    ]
)
tokens = np.random.default_rng(0).integers(0, V, (2, LENGTH))


def theirs() -> Theirs:
    return randomised(Theirs())


def test_a_port_compared_through_a_table() -> None:
    report = parity.compare(theirs(), Port(), (tokens,), rename=TABLE)
    report.assert_equal()
    gradients = {entry.name for entry in report.runs[0].parameter_gradients}
    assert gradients == {
        "embedding.weight",
        "positions.weight",
        *[f"{layer}.{kind}" for layer in ("query", "value") for kind in ("weight", "bias")],
        "key.weight",
        "out.weight",
    }


def test_where_a_port_parts_is_found_through_a_table() -> None:
    port = Port()
    with jax.enable_x64(True):
        load_state_dict(port, theirs().double().state_dict(), rename=TABLE)
        port.out.kernel[...] *= 2
        report = parity.compare(theirs().double(), port, (tokens,), rename=TABLE, load=False, dtypes=("float64",))
    assert "the port's weights are not PyTorch's: out.weight." in report.notes
    assert not report.equal


def test_a_port_trained_through_a_table() -> None:
    """Momentum too; the key's bias has no gradient, and its twin has none at all."""
    report = parity.trajectory(
        theirs(),
        Port(),
        [tokens],
        loss=lambda port, batch, rng: (port(batch) ** 2).mean(),
        torch_loss=lambda module, batch: (module(batch) ** 2).mean(),
        optimizer=optax.sgd(0.1, momentum=0.9),
        torch_optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        steps=3,
        rename=TABLE,
    )
    report.assert_equal()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_port_there_and_back(dtype: torch.dtype) -> None:
    """All but the positions that no token has, into PyTorch's module again."""
    original = theirs().to(dtype)
    with torch.no_grad():
        original.model.wpe.weight[:2] = 0
    given = original.state_dict()
    with jax.enable_x64(dtype == torch.float64):
        back = state_dict(load_state_dict(Port(), given, rename=TABLE), rename=TABLE)
    assert back.keys() == given.keys()
    for name, tensor in given.items():
        assert back[name].dtype == dtype
        assert torch.equal(back[name], tensor), name
    Theirs().to(dtype).load_state_dict(back, strict=True)
