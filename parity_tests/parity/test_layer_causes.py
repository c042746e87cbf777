"""Mistakes in norms, gated sublayers, blocks and embeddings are named, and none is named wrongly."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional as F

from jattn import parity
from parity_tests.nn import randomised
from parity_tests.parity.test_attention_causes import causes

B, T, M, N = 2, 5, 8, 12
rng = np.random.default_rng(0)
x = rng.standard_normal((B, T, M))


def compared(theirs: torch.nn.Module, ours: nnx.Module, inputs: Any, **options: Any) -> parity.Report:
    return parity.compare(randomised(theirs), ours, inputs, gradients=False, dtypes=("float64",), **options)


# ----------------------------------------------------------------------------------------------------------------------
# Norms.


class TorchNorm(torch.nn.Module):
    """With every setting that there is."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(M))
        self.bias = torch.nn.Parameter(torch.zeros(M))
        self.s = settings

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = self.s
        y = x - x.mean(-1, keepdim=True) if s.get("centered", True) else x
        square = (y**2).sum(-1, keepdim=True) / (x.shape[-1] - s.get("less", 0))
        epsilon = s.get("epsilon", 1e-5)
        y = y / (square.sqrt() + epsilon if s.get("outside") else (square + epsilon).sqrt())
        return y * (self.weight + s.get("plus_one", 0)) + self.bias


class Norm(nnx.LayerNorm):
    def __init__(self, **settings: Any) -> None:
        super().__init__(M, rngs=nnx.Rngs(0))
        self.s = settings

    def __call__(self, x: jax.Array) -> jax.Array:
        s = self.s
        y = x - x.mean(-1, keepdims=True) if s.get("centered", True) else x
        if s.get("together"):
            y = x.reshape(*x.shape[:-2], -1)
            y = (y - y.mean(-1, keepdims=True)).reshape(*x.shape[:-2], -1)
        square = (y**2).sum(-1, keepdims=True) / (y.shape[-1] - s.get("less", 0))
        epsilon = s.get("epsilon", 1e-5)
        y = y / (jnp.sqrt(square) + epsilon if s.get("outside") else jnp.sqrt(square + epsilon))
        y = y.reshape(x.shape)
        y = y * (self.scale[...] + s.get("plus_one", 0)) if s.get("scaled", True) else y
        return y + self.bias[...] if s.get("shifted", True) else y


NORMS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({}, {"epsilon": 1e-6}, ["layer-norm epsilon"]),
    ({"centered": False}, {"epsilon": 1e-12}, ["layer-norm epsilon"]),
    ({"plus_one": 1}, {"epsilon": 1e-3}, ["layer-norm epsilon"]),
    ({}, {"plus_one": 1}, ["norm times 1 + weight"]),
    ({"centered": False, "plus_one": 1}, {"plus_one": 0}, ["norm times 1 + weight"]),
    ({}, {"centered": False}, ["RMS norm or layer norm"]),
    ({"centered": False, "plus_one": 1}, {"centered": True}, ["RMS norm or layer norm"]),
    ({}, {"less": 1}, ["unbiased variance"]),
    ({"epsilon": 1e-2}, {"outside": True}, ["place of epsilon"]),
    ({"epsilon": 1e-6, "less": 1, "outside": True}, {"less": 0}, ["unbiased variance"]),
    ({}, {"scaled": False}, ["parameters of a norm"]),
    ({"centered": False}, {"shifted": False}, ["parameters of a norm"]),
    ({}, {"together": True}, ["width of a norm"]),
    ({"centered": True}, {"centered": False, "epsilon": 1e-3}, ["RMS norm or layer norm", "layer-norm epsilon"]),
]


@pytest.mark.parametrize(("theirs", "ours", "named"), NORMS, ids=str)
def test_a_mistake_in_a_norm_is_named(theirs: dict[str, Any], ours: dict[str, Any], named: list[str]) -> None:
    heads = rng.standard_normal((B, T, 3, M))
    report = compared(TorchNorm(**theirs), Norm(**{**theirs, **ours}), (heads,))
    assert sorted(causes(report)) == sorted(named)


def test_all_that_fits_is_in_the_finding() -> None:
    heads = rng.standard_normal((B, T, 3, M))
    finding = compared(TorchNorm(), Norm(centered=False, epsilon=1e-3), (heads,)).finding
    assert "Cause: layer-norm epsilon. It has epsilon 0.001 in the port, 1e-05 in PyTorch." in finding
    assert "Also fits: RMS norm or layer norm. It is an RMS norm in the port, a layer norm in PyTorch." in finding


# ----------------------------------------------------------------------------------------------------------------------
# Gated sublayers.


@dataclasses.dataclass(frozen=True)
class Gate:
    kind: str = "silu"
    packed: str = ""  # "halves" or "neighbours"
    limit: float | None = None
    offset: float = 0.0
    swapped: bool = False
    gated: bool = True
    called: bool = True  # whether the last projection is a module


TORCH_KINDS: dict[str, Any] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": lambda y: F.gelu(y, approximate="tanh"),
    "quick": lambda y: y * torch.sigmoid(1.702 * y),
    "relu": F.relu,
    "square": lambda y: F.relu(y) ** 2,
    "none": lambda y: y,
}
KINDS: dict[str, Any] = {
    "silu": jax.nn.silu,
    "gelu": lambda y: jax.nn.gelu(y, approximate=False),
    "tanh": jax.nn.gelu,
    "quick": lambda y: y * jax.nn.sigmoid(1.702 * y),
    "relu": jax.nn.relu,
    "square": lambda y: jax.nn.relu(y) ** 2,
    "none": lambda y: y,
}


class TorchMLP(torch.nn.Module):
    def __init__(self, s: Gate) -> None:
        super().__init__()
        self.s = s
        self.limit = s.limit
        if s.packed:
            self.gate_up_proj = torch.nn.Linear(M, 2 * N)
        else:
            self.gate_proj, self.up_proj = torch.nn.Linear(M, N), torch.nn.Linear(M, N)
        self.down_proj = torch.nn.Linear(N, M)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = self.s
        if s.packed:
            y = self.gate_up_proj(x)
            gate, up = (y[..., ::2], y[..., 1::2]) if s.packed == "neighbours" else y.chunk(2, -1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        if s.limit is not None:
            gate, up = gate.clamp(max=s.limit), up.clamp(-s.limit, s.limit)
        y = TORCH_KINDS[s.kind](gate)
        y = y * (up + s.offset) if s.gated else y
        return self.down_proj(y) if s.called else F.linear(y, self.down_proj.weight, self.down_proj.bias)


class MLP(nnx.Module):
    def __init__(self, s: Gate, of: Gate) -> None:
        rngs = nnx.Rngs(0)
        if of.packed:
            self.gate_up_proj = nnx.Linear(M, 2 * N, rngs=rngs)
        else:
            self.gate_proj, self.up_proj = (nnx.Linear(M, N, rngs=rngs) for _ in range(2))
        self.down_proj = nnx.Linear(N, M, rngs=rngs)
        self.s = s

    def __call__(self, x: jax.Array) -> jax.Array:
        s = self.s
        if s.packed:
            y = self.gate_up_proj(x)
            gate, up = (y[..., ::2], y[..., 1::2]) if s.packed == "neighbours" else jnp.split(y, 2, -1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        if s.swapped:
            gate, up = up, gate
        if s.limit is not None:
            gate, up = jnp.minimum(gate, s.limit), jnp.clip(up, -s.limit, s.limit)
        y = KINDS[s.kind](gate)
        return self.down_proj(y * (up + s.offset) if s.gated else y)


GATES: list[tuple[Gate, dict[str, Any], list[str]]] = [
    (Gate(), {"kind": "gelu"}, ["another activation"]),
    (Gate("gelu"), {"kind": "tanh"}, ["exact or tanh GELU"]),
    (Gate("tanh", "halves"), {"kind": "gelu"}, ["exact or tanh GELU"]),
    (Gate("quick", gated=False), {"kind": "gelu"}, ["exact or tanh GELU"]),
    (Gate("quick"), {"kind": "silu"}, ["another activation"]),
    (Gate("square", gated=False), {"kind": "relu"}, ["another activation"]),
    (Gate("square", "halves"), {"kind": "relu"}, ["another activation"]),
    (Gate(called=False), {"kind": "relu"}, ["another activation"]),
    (Gate(), {"kind": "none"}, ["another activation"]),
    (Gate(), {"swapped": True}, ["gate and up projection swapped"]),
    (Gate("tanh", called=False), {"swapped": True}, ["gate and up projection swapped"]),
    (Gate("gelu", "halves"), {"swapped": True}, ["gate and up projection swapped"]),
    (Gate(packed="neighbours"), {"swapped": True}, ["gate and up projection swapped"]),
    (Gate(packed="halves"), {"packed": "neighbours"}, ["halves of a packed gate"]),
    (Gate("quick", "neighbours", 0.5, 1.0), {"packed": "halves"}, ["halves of a packed gate"]),
    (Gate("quick", "neighbours", 0.5, 1.0), {"limit": None}, ["clamped gate"]),
    (Gate("quick", "neighbours", 0.5, 1.0), {"offset": 0.0}, ["clamped gate"]),
    (Gate(), {"gated": False}, ["missing gate"]),
    (Gate("none"), {"kind": "silu"}, ["another activation"]),
]


@pytest.mark.parametrize(("theirs", "ours", "named"), GATES, ids=str)
def test_a_mistake_in_a_gated_sublayer_is_named(theirs: Gate, ours: dict[str, Any], named: list[str]) -> None:
    report = compared(TorchMLP(theirs), MLP(dataclasses.replace(theirs, **ours), theirs), (x,))
    assert causes(report) == named


# ----------------------------------------------------------------------------------------------------------------------
# Blocks. The sublayers are linear maps, or mix what they are given with a memory.


class TorchMix(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.m = torch.nn.Linear(M, M), torch.nn.Linear(M, M)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.q(x)) + self.m(memory).mean(1, keepdim=True)


class Mix(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.q, self.m = nnx.Linear(M, M, rngs=rngs), nnx.Linear(M, M, rngs=rngs)

    def __call__(self, x: jax.Array, memory: jax.Array) -> jax.Array:
        return jnp.tanh(self.q(x)) + self.m(memory).mean(1, keepdims=True)


class TorchDecoderBlock(torch.nn.Module):
    def __init__(self, wiring: str, factor: float = 1.0) -> None:
        super().__init__()
        self.attend, self.cross, self.feed = TorchMix(), TorchMix(), torch.nn.Linear(M, M)
        self.norm1, self.norm2, self.norm3, self.norm4 = (torch.nn.LayerNorm(M) for _ in range(4))
        self.wiring, self.residual_multiplier = wiring, factor

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        c = self.residual_multiplier
        if self.wiring == "pre":
            y = self.norm1(x)
            x = x + c * self.attend(y, y)
            x = x + c * self.cross(self.norm2(x), memory)
            return self.norm4(x + c * self.feed(self.norm3(x)))
        if self.wiring == "post":
            x = self.norm1(x + c * self.attend(x, x))
            x = self.norm2(x + c * self.cross(x, memory))
            return self.norm3(x + c * self.feed(x))
        if self.wiring == "both":
            y = self.norm1(x)
            x = x + self.norm2(self.attend(y, y))
            return x + self.norm4(self.feed(self.norm3(x)))
        x = x + self.norm1(self.attend(x, x))  # the output alone
        return x + self.norm2(self.feed(x))


class DecoderBlock(nnx.Module):
    def __init__(self, wiring: str, mistake: str = "", factor: float = 1.0) -> None:
        rngs = nnx.Rngs(0)
        self.attend, self.cross, self.feed = Mix(rngs), Mix(rngs), nnx.Linear(M, M, rngs=rngs)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nnx.LayerNorm(M, epsilon=1e-5, rngs=rngs) for _ in range(4))
        self.wiring, self.mistake, self.factor = wiring, mistake, factor

    def __call__(self, x: jax.Array, memory: jax.Array) -> jax.Array:
        c, bug = self.factor, self.mistake
        one, two, three, four = self.norm1, self.norm2, self.norm3, self.norm4
        if bug == "1 and 2":
            one, two = two, one
        if bug == "2 and 3":
            two, three = three, two
        if bug == "normed memory":
            memory = self.norm4(memory)
        if self.wiring == "pre":
            if bug == "cross first":
                x = x + c * self.cross(two(x), memory)
                y = one(x)
                x = x + c * self.attend(y, y)
                return four(x + c * self.feed(three(x)))
            y = one(x)
            x = x + c * self.attend(y, y)
            y = x if bug == "missing norm" else two(x)
            x = self.cross(y, memory) if bug == "no residual" else x + c * self.cross(y, memory)
            return four(x + c * self.feed(three(x)))
        if self.wiring == "post":
            x = x + c * self.attend(x, x)
            x = x if bug == "missing norm" else one(x)
            if bug == "cross last":
                x = two(x + c * self.feed(x))
                return three(x + c * self.cross(x, memory))
            x = two(self.cross(x, memory) if bug == "no residual" else x + c * self.cross(x, memory))
            if bug == "output alone":
                return x + three(self.feed(x))
            return three(x + c * self.feed(x))
        if self.wiring == "both":
            y = one(x)
            y = self.attend(y, y)
            x = x + y if bug == "missing norm" else two(x + y) if bug == "sum" else x + two(y)
            y = self.feed(three(x))
            return x + four(y)
        x = one(x + self.attend(x, x)) if bug == "sum" else x + one(self.attend(x, x))
        return x + two(self.feed(x))


BLOCKS: list[tuple[str, str, str, list[str]]] = [
    ("pre", "post", "", ["post-norm for pre-norm"]),
    ("post", "pre", "", ["pre-norm for post-norm"]),
    ("pre", "pre", "1 and 2", ["swapped norms"]),
    ("pre", "pre", "2 and 3", ["swapped norms"]),
    ("post", "post", "1 and 2", ["swapped norms"]),
    ("post", "post", "2 and 3", ["swapped norms"]),
    ("both", "both", "1 and 2", ["swapped norms"]),
    ("both", "both", "2 and 3", ["swapped norms"]),
    ("pre", "pre", "normed memory", ["a norm too many"]),
    ("post", "post", "normed memory", ["a norm too many"]),
    ("pre", "pre", "cross first", ["order of sublayers"]),
    ("post", "post", "cross last", []),
    ("pre", "pre", "missing norm", ["module left out"]),
    ("post", "post", "missing norm", ["module left out"]),
    ("both", "both", "missing norm", ["module left out"]),
    ("pre", "pre", "no residual", ["missing residual"]),
    ("post", "post", "no residual", ["missing residual"]),
    ("post", "post", "output alone", ["norm of the output for norm of the sum"]),
    ("both", "both", "sum", ["norm of the sum for norm of the output"]),
    ("output", "output", "sum", ["norm of the sum for norm of the output"]),
]


@pytest.mark.parametrize(("theirs", "ours", "mistake", "named"), BLOCKS)
def test_a_mistake_in_the_wiring_of_a_block_is_named(theirs: str, ours: str, mistake: str, named: list[str]) -> None:
    memory = rng.standard_normal((B, 4, M))
    report = compared(TorchDecoderBlock(theirs), DecoderBlock(ours, mistake), (x, memory))
    assert causes(report) == named


@pytest.mark.parametrize("wiring", ["pre", "post"])
def test_the_factor_of_a_residual_is_named(wiring: str) -> None:
    memory = rng.standard_normal((B, 4, M))
    report = compared(TorchDecoderBlock(wiring, 0.22), DecoderBlock(wiring), (x, memory))
    assert causes(report) == ["factor of a residual"]


@pytest.mark.parametrize("wiring", ["pre", "post", "both", "output"])
def test_a_block_without_a_mistake_is_equal(wiring: str) -> None:
    compared(TorchDecoderBlock(wiring), DecoderBlock(wiring), (x, rng.standard_normal((B, 4, M)))).assert_equal()


# ----------------------------------------------------------------------------------------------------------------------
# Embeddings.

V, LONGEST = 11, 9
TOKENS = np.array([[3, 4, 5, 6, 7], [1, 1, 8, 9, 2]])
REAL = (TOKENS != 1).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Embedded:
    scale: float = 1.0
    positions: str = "called"  # "table", "interleaved" or "side by side"
    first: int = 0
    counted: str = "all"  # "mask", "padding 1" or "roberta"
    types: bool = False
    tied: bool = False
    head: float = 1.0
    cap: float | None = None
    without: str = ""


def ids_of(s: Embedded, real: Any, np_: Any) -> Any:
    count = np_.cumsum(real, -1)
    if s.counted == "mask":
        return np_.where(count > 0, count - 1, 0) + s.first
    if s.counted == "padding 1":
        return np_.where(real > 0, count - 1 + s.first, 1)
    if s.counted == "roberta":
        return count * real + 1
    return np_.arange(T)[None] + s.first + 0 * real


def waves(s: Embedded) -> np.ndarray:
    angles = (np.arange(T) + s.first)[:, None] * 10000.0 ** -(np.arange(0, M, 2) / M)
    return np.stack([np.sin(angles), np.cos(angles)], -1 if s.positions == "interleaved" else -2).reshape(T, M)


class TorchLanguageModel(torch.nn.Module):
    def __init__(self, s: Embedded) -> None:
        super().__init__()
        self.wte = torch.nn.Embedding(V, M)
        if s.positions == "called":
            self.wpe = torch.nn.Embedding(LONGEST, M)
        if s.positions == "table":
            self.position_embedding = torch.nn.Parameter(torch.ones(LONGEST, M))
        if s.types:
            self.type_embedding = torch.nn.Embedding(2, M)
        self.layer, self.norm = torch.nn.Linear(M, M), torch.nn.LayerNorm(M)
        self.lm_head = torch.nn.Linear(M, V, bias=False)
        self.s, self.logit_scale, self.final_logit_softcapping = s, s.head, s.cap

    def forward(self, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        s = self.s
        x = self.wte(tokens) * s.scale
        if s.positions == "called":
            x = x + self.wpe(ids_of(s, real, torch))
        elif s.positions == "table":
            x = x + self.position_embedding[:T]
        else:
            x = x + torch.as_tensor(waves(s), dtype=x.dtype)
        if s.types:
            x = x + self.type_embedding(torch.zeros_like(tokens))
        x = self.norm(self.layer(x)) * s.head
        x = x @ self.wte.weight.T if s.tied else self.lm_head(x)
        return s.cap * torch.tanh(x / s.cap) if s.cap else x


class LanguageModel(nnx.Module):
    def __init__(self, s: Embedded, of: Embedded) -> None:
        rngs = nnx.Rngs(0)
        self.wte = nnx.Embed(V, M, rngs=rngs)
        if of.positions == "called":
            self.wpe = nnx.Embed(LONGEST, M, rngs=rngs)
        if of.positions == "table":
            self.position_embedding = nnx.Param(jnp.ones((LONGEST, M)))
        if of.types:
            self.type_embedding = nnx.Embed(2, M, rngs=rngs)
        self.layer, self.norm = nnx.Linear(M, M, rngs=rngs), nnx.LayerNorm(M, epsilon=1e-5, rngs=rngs)
        self.lm_head = nnx.Linear(M, V, use_bias=False, rngs=rngs)
        self.s = s

    def __call__(self, tokens: jax.Array, real: jax.Array) -> jax.Array:
        s = self.s
        x = self.wte(tokens) * s.scale
        if s.without == "positions":
            x = x
        elif s.positions == "called":
            x = x + self.wpe(ids_of(s, real, jnp))
        elif s.positions == "table":
            x = x + self.position_embedding[...][s.first : s.first + T]
        else:
            x = x + jnp.asarray(waves(s))
        if s.types:
            x = x + self.type_embedding(jnp.zeros_like(tokens))
        x = self.norm(self.layer(x)) * s.head
        x = x @ self.wte.embedding[...].T if s.tied else self.lm_head(x)
        return s.cap * jnp.tanh(x / s.cap) if s.cap else x


ROOT = math.sqrt(M)
EMBEDDINGS: list[tuple[Embedded, dict[str, Any], list[str]]] = [
    (Embedded(ROOT), {"scale": 1.0}, ["embedding scale"]),
    (Embedded(), {"scale": ROOT}, ["embedding scale"]),
    (Embedded(ROOT, "interleaved"), {"scale": 1.0}, ["embedding scale"]),
    (Embedded(ROOT, "table", types=True), {"scale": 1.0}, ["embedding scale"]),
    (Embedded(first=2), {"first": 0}, ["first position"]),
    (Embedded(), {"first": 1}, ["first position"]),
    (Embedded(positions="table"), {"first": 2}, ["first position"]),
    (Embedded(positions="side by side"), {"first": 1}, ["first position"]),
    (Embedded(counted="mask"), {"counted": "all"}, ["positions under padding"]),
    (Embedded(counted="padding 1"), {"counted": "all"}, ["positions under padding"]),
    (Embedded(counted="roberta"), {"counted": "all"}, ["positions under padding"]),
    (Embedded(counted="roberta"), {"counted": "mask"}, ["positions under padding"]),
    (Embedded(), {"counted": "mask"}, ["positions under padding"]),
    (Embedded(positions="interleaved"), {"positions": "side by side"}, ["order of sinusoids"]),
    (Embedded(ROOT, "side by side"), {"positions": "interleaved"}, ["order of sinusoids"]),
    (Embedded(positions="table"), {"without": "positions"}, ["missing embedding"]),
    (Embedded(types=True), {"types": False}, ["missing embedding"]),
    (Embedded(head=M**-0.5), {"head": 1.0}, ["scale of the output's logits"]),
    (Embedded(head=0.0625), {"head": 1.0}, ["scale of the output's logits"]),
    (Embedded(cap=2.0), {"cap": None}, ["soft cap of the output's logits"]),
    (Embedded(), {"cap": 30.0}, ["soft cap of the output's logits"]),
]


@pytest.mark.parametrize(("theirs", "ours", "named"), EMBEDDINGS, ids=str)
def test_a_mistake_in_embeddings_is_named(theirs: Embedded, ours: dict[str, Any], named: list[str]) -> None:
    report = compared(
        TorchLanguageModel(theirs), LanguageModel(dataclasses.replace(theirs, **ours), theirs), (TOKENS, REAL)
    )
    assert causes(report) == named


class EmbeddingsForHead(nnx.Linear):
    """A last layer that computes with the embeddings."""

    table: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.table.T


def test_a_head_that_is_tied_in_the_port_only() -> None:
    theirs = randomised(TorchLanguageModel(Embedded()))
    port = LanguageModel(Embedded(), Embedded())
    port.lm_head = EmbeddingsForHead(M, V, use_bias=False, rngs=nnx.Rngs(0))
    port.lm_head.table = theirs.wte.weight.detach().numpy()
    report = parity.compare(theirs, port, (TOKENS, REAL), gradients=False, dtypes=("float64",))
    assert causes(report) == ["tied embeddings"]
