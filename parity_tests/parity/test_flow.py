"""Differences that what follows makes up for: they are told, and the search goes on."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jattn import parity
from jattn.parity.arrays import aligned, error
from parity_tests.nn import randomised

rng = np.random.default_rng(0)
V, M, T = 11, 12, 5
tokens = rng.integers(0, V, (2, T))
images = rng.standard_normal((2, 4, 6))
EPSILON = 1e-2  # of the port's norm: the mistake that there is to find


class TorchModel(torch.nn.Module):
    """Embeddings and positions, a linear layer, a norm and logits."""

    def __init__(self, embedding: torch.nn.Module | None = None, tied: bool = False) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(V, M) if embedding is None else embedding
        self.positions = TorchPositions()
        self.linear, self.norm, self.head = torch.nn.Linear(M, M), torch.nn.LayerNorm(M), torch.nn.Linear(M, V, False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        x = self.linear(x + self.positions(x))
        return self.head(self.norm(x))


class TorchPositions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(T, M))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[: x.shape[1]]


class Positions(nnx.Module):
    def __init__(self, repeated: bool, wrong: bool) -> None:
        self.table, self.repeated, self.wrong = nnx.Param(jnp.zeros((T, M))), repeated, wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        table = self.table[: x.shape[1]] * jnp.where(jnp.arange(len(x)) == 1, 1 + self.wrong, 1)[:, None, None]
        return table if self.repeated or self.wrong else table[0]


class Model(nnx.Module):
    def __init__(
        self,
        embedding: nnx.Module | None = None,
        *,
        scaled: bool = False,
        repeated: bool = False,
        wrong_positions: bool = False,
        epsilon: float = EPSILON,
        tied: bool = False,
    ) -> None:
        rngs = nnx.Rngs(0)
        self.embedding: Any = nnx.Embed(V, M, rngs=rngs) if embedding is None else embedding
        self.positions = Positions(repeated, wrong_positions)
        self.linear, self.norm = nnx.Linear(M, M, rngs=rngs), nnx.LayerNorm(M, epsilon=epsilon, rngs=rngs)
        self.head = None if tied else nnx.Linear(M, V, use_bias=False, rngs=rngs)
        self.scaled = scaled

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embedding(x) * (math.sqrt(M) if self.scaled else 1)
        x = self.norm(self.linear(x + self.positions(x)))
        return self.embedding.attend(x) if self.head is None else self.head(x)


def load(port: Model, theirs: torch.nn.Module) -> Model:
    """By hand, as a parameter of a module of one's own has no map."""
    numbers = {name: jnp.asarray(p.detach().numpy()) for name, p in theirs.float().named_parameters()}
    port.positions.table[...] = numbers["positions.table"]
    port.linear.kernel[...], port.linear.bias[...] = numbers["linear.weight"].T, numbers["linear.bias"]
    port.norm.scale[...], port.norm.bias[...] = numbers["norm.weight"], numbers["norm.bias"]
    if port.head is not None:
        port.head.kernel[...] = numbers["head.weight"].T
    if isinstance(port.embedding, nnx.Embed):
        port.embedding.embedding[...] = numbers["embedding.weight"]
    else:
        port.embedding.kernel[...] = numbers["embedding.weight"].reshape(M, -1).T
    return port


def compared(theirs: torch.nn.Module, port: Model, x: np.ndarray, **options: Any) -> parity.Report:
    theirs = randomised(theirs).float()
    return parity.compare(theirs, load(port, theirs), (x,), load=False, dtypes=("float64",), **options)


class ScaledEmbedding(torch.nn.Embedding):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * math.sqrt(M)


class TorchPatches(torch.nn.Conv2d):
    """Two patches of four by three, laid out as a convolution gives them, and by the model in a row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[:, None])


class TorchVision(TorchModel):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x).flatten(2).mT
        x = self.linear(x + self.positions(x))
        return self.head(self.norm(x))


class Patches(nnx.Module):
    def __init__(self) -> None:
        self.kernel = nnx.Param(jnp.zeros((12, M)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x.reshape(len(x), 4, 2, 3).transpose(0, 2, 1, 3).reshape(len(x), 2, 12) @ self.kernel[...]


def assert_parts_in_the_norm(report: parity.Report) -> None:
    assert report.parting is not None
    assert (report.parting.torch_name, report.parting.flax_name) == ("norm", "norm")
    assert report.parting.diagnosis is not None
    assert report.parting.diagnosis.cause == "layer-norm epsilon"
    assert all(step.error <= step.limit for step in report.parting.before)


def test_an_embedding_that_is_scaled_elsewhere() -> None:
    report = compared(TorchModel(ScaledEmbedding(V, M)), Model(scaled=True), tokens)
    assert_parts_in_the_norm(report)
    assert report.parting is not None
    assert [step.torch_name for step in report.parting.healed] == ["embedding"]
    assert "Differs, but what follows agrees: embedding\n" in str(report)
    compared(TorchModel(ScaledEmbedding(V, M)), Model(scaled=True, epsilon=1e-5), tokens).assert_equal()


def test_an_embedding_that_is_not_scaled() -> None:
    report = compared(TorchModel(ScaledEmbedding(V, M)), Model(), tokens)
    assert report.parting is not None
    assert (report.parting.torch_name, report.parting.healed) == ("embedding", [])


@pytest.mark.parametrize("repeated", [False, True])
def test_positions_for_all_examples_or_for_each(repeated: bool) -> None:
    report = compared(TorchModel(), Model(repeated=repeated), tokens)
    assert_parts_in_the_norm(report)
    assert report.parting is not None
    assert report.parting.healed == []
    assert [step.torch_name for step in report.parting.before] == ["embedding", "positions", "linear"]


def test_positions_that_differ_in_one_example() -> None:
    report = compared(TorchModel(), Model(wrong_positions=True), tokens)
    assert report.parting is not None
    assert report.parting.torch_name == "positions"


def test_patches_that_are_flattened_earlier() -> None:
    theirs = TorchVision(TorchPatches(1, M, (4, 3), (4, 3), bias=False))
    report = compared(theirs, Model(Patches()), images)
    assert_parts_in_the_norm(report)
    assert report.parting is not None
    assert [step.torch_name for step in report.parting.healed] == ["embedding"]


def test_a_head_that_is_tied_to_the_embedding() -> None:
    report = compared(TorchModel(tied=True), Model(tied=True), tokens)
    assert_parts_in_the_norm(report)
    assert report.only_in_torch == ["head"]


class TorchTables(torch.nn.Module):
    """A module that no gradient flows through."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.arange(1.0, 1.0 + M), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale / 4


class Tables(nnx.Module):
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.factor * jnp.arange(1.0, 1.0 + M) / 4


class TorchScaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables, self.norm = TorchTables(), torch.nn.LayerNorm(M)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x * self.tables(x))


class Scaled(nnx.Module):
    def __init__(self, factor: float, before: float) -> None:
        self.tables, self.norm = Tables(factor), nnx.LayerNorm(M, epsilon=EPSILON, rngs=nnx.Rngs(0))
        self.before = before

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(x * self.tables(x) * self.before)


def test_a_module_that_no_gradient_flows_through() -> None:
    """It is taken for the first difference, as nothing says that it is none."""
    x = rng.standard_normal((2, M))
    report = parity.compare(TorchScaled(), Scaled(2.0, 1.0), (x,), dtypes=("float64",))
    assert report.parting is not None
    assert report.parting.torch_name == "tables"
    report = parity.compare(TorchScaled(), Scaled(2.0, 0.5), (x,), dtypes=("float64",), ignore=["tables"])
    assert report.parting is not None
    assert (report.parting.torch_name, report.only_in_torch) == ("norm", [])


def test_ignored_modules() -> None:
    for ignore in (["embedding"], ["emb*"]):
        report = compared(TorchModel(ScaledEmbedding(V, M)), Model(), tokens, ignore=ignore)
        assert report.parting is not None
        assert report.parting.torch_name == ""
        assert report.parting.where == "the input of linear, after positions"
    with pytest.raises(ValueError, match=r"ignore must name submodules .+ Got 'embeding', .+ nearest is 'embedding'\."):
        compared(TorchModel(), Model(), tokens, ignore=["embeding"])
    with pytest.raises(ValueError, match=r"ignore must be a sequence .+ Write \['embedding'\]"):
        compared(TorchModel(), Model(), tokens, ignore="embedding")


def test_broadcast_layouts() -> None:
    x = rng.standard_normal((2, 3, 4))
    same = np.broadcast_to(x[:1], x.shape)
    assert error(x[0], same) == error(x[:1], same) == error(same, x[:1]) == error(same, x[0]) == 0
    assert error(x, x[:1]) == error(x[:1], x) * np.abs(x).max() / np.abs(x[0]).max() > 0
    assert aligned(x, np.zeros((5, 3, 4))) is None
    assert aligned(x[0, 0], x) is None, "one vector is no layout of many"
