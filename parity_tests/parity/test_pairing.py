"""Which arrays, outputs and modules of one side are which of the other's."""

import dataclasses
from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from jattn import parity
from jattn.parity.arrays import named_leaves
from jattn.parity.pairing import OutputPair, pair_arrays, pair_outputs
from jattn.weights import load_state_dict
from parity_tests.nn import randomised

rng = np.random.default_rng(0)
x, y, z = rng.standard_normal((3, 2, 4))
inputs = rng.standard_normal((2, 5, 12))


# ----------------------------------------------------------------------------------------------------------------------
# Arrays.


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Fields:
    logits: Any
    rest: Any = None


def test_names_of_leaves() -> None:
    for nest, names in [
        (x, [""]),
        ((x, [y]), ["", ""]),
        ({"a": x, "b": None, "c": (y, z)}, ["a", "c.0", "c.1"]),
        ({"a": {"b": x}}, ["a.b"]),
        (Pair(x, Pair(y, None)), ["first", "second.first"]),
        (Fields(x, (y,)), ["logits", "rest"]),
        (OrderedDict(a=x), ["a"]),
        ([{"a": x}], [""]),
    ]:
        assert [name for name, _ in named_leaves(nest)] == names


def test_arrays_are_paired_by_name_then_by_value() -> None:
    assert pair_arrays([x, y], [y, x], ["", ""], ["", ""]) == [(0, 1), (1, 0)]
    assert pair_arrays([x, y], [y, x], ["a", "b"], ["a", "b"]) == [(0, 0), (1, 1)]
    assert pair_arrays([x, y, z], [y, x, z], ["a", "b", ""], ["a", "c", "b"]) == [(0, 0), (1, 2), (2, 1)]
    assert pair_arrays([x, x], [x], ["", ""], [""]) == [(0, 0)], "each once"
    assert pair_arrays([x, x[:1, :2]], [x[:1, :2], x], ["a", "b"], ["a", "b"]) == [(0, 1), (1, 0)], "if it fits"
    assert pair_arrays([x], [z[:, :3]], ["a"], ["a"]) == []


class TorchWithArguments(torch.nn.Module):
    """Attention is given query and key, which the port may swap; what it gives doesn't say which is which."""

    def __init__(self) -> None:
        super().__init__()
        self.product, self.linear = TorchProduct(), torch.nn.Linear(12, 12)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        return self.linear(self.product(query=x, key=memory))


class TorchProduct(torch.nn.Module):
    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return query - 2 * key


class Product(nnx.Module):
    def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
        return query - 2 * key


class WithArguments(nnx.Module):
    def __init__(self) -> None:
        self.product, self.linear = Product(), nnx.Linear(12, 12, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array, memory: jax.Array) -> jax.Array:
        return self.linear(self.product(memory, key=x))


def test_arguments_that_are_swapped() -> None:
    report = parity.compare(
        randomised(TorchWithArguments()), WithArguments(), (inputs, inputs[::-1]), dtypes=("float64",)
    )
    assert report.parting is not None
    assert report.parting.torch_name == ""
    assert report.parting.where == "the input of product"


# ----------------------------------------------------------------------------------------------------------------------
# Outputs.


def test_outputs_are_paired_by_name_or_by_order() -> None:
    assert pair_outputs(["", ""], ["", ""]) == ([OutputPair("output 0", 0, 0), OutputPair("output 1", 1, 1)], [])
    assert pair_outputs(["a", "b"], ["", ""]) == ([OutputPair("output 0", 0, 0), OutputPair("output 1", 1, 1)], [])
    assert pair_outputs(["a", "b"], ["b", "c"]) == (
        [OutputPair("a", 0, None), OutputPair("b", 1, 0), OutputPair("c", None, 1)],
        [],
    )
    assert pair_outputs(["a", "b"], [""]) == ([OutputPair("output 0", 0, 0), OutputPair("output 1", 1, None)], [])
    assert pair_outputs(["loss", "logits"], [""]) == ([OutputPair("logits", 1, 0)], ["loss"])
    assert pair_outputs([""], ["pooled", "last_hidden_state"]) == (
        [OutputPair("last_hidden_state", 0, 1)],
        ["pooled"],
    )


class TorchFields(torch.nn.Module):
    """As those of Hugging Face: a dictionary with attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> Any:
        transformers = pytest.importorskip("transformers", reason="no transformers: its outputs were not compared")
        kind = transformers.modeling_outputs.BaseModelOutputWithPooling
        y = self.linear(x)
        return kind(pooler_output=y.mean(1), last_hidden_state=y)


class Given(nnx.Module):
    def __init__(self, give: Any) -> None:
        self.linear, self.give = nnx.Linear(12, 3, rngs=nnx.Rngs(0)), give

    def __call__(self, x: jax.Array) -> Any:
        return self.give(self.linear(x))


def fields(give: Any, **options: Any) -> parity.Report:
    return parity.compare(randomised(TorchFields()), Given(give), (inputs,), **options)


def test_one_of_the_fields_of_hugging_face() -> None:
    report = fields(lambda y: y)
    report.assert_equal()
    assert [entry.name for entry in report.runs[0].outputs] == ["last_hidden_state"]
    assert (
        "of the outputs only last_hidden_state is compared, as one side gives nothing else: not pooler_output."
        in report.notes
    )


def test_fields_by_name() -> None:
    report = fields(lambda y: {"pooler_output": y.mean(1), "last_hidden_state": y})
    report.assert_equal()
    assert [entry.name for entry in report.runs[0].outputs] == ["last_hidden_state", "pooler_output"]
    assert not fields(lambda y: {"pooler_output": y.max(1), "last_hidden_state": y}, gradients=False).equal


@pytest.mark.parametrize("output", ["pooler_output", lambda y: y if hasattr(y, "ndim") else y["pooler_output"]])
def test_a_selected_output(output: Any) -> None:
    report = fields(lambda y: y.mean(1), output=output, dtypes=("float64",))
    report.assert_equal()
    (entry,) = report.runs[0].outputs
    assert entry.shape == (2, 3)
    assert fields(lambda y: Pair(y, Fields(y)), output=lambda y: y[0], dtypes=("float64",)).equal
    assert not fields(lambda y: y.max(1), output=output, dtypes=("float64",)).equal


def test_wrong_use_of_output_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"output .+ Got 'lost', and PyTorch's module gives the fields last_hidden_st"):
        fields(lambda y: y, output="lost")
    with pytest.raises(ValueError, match=r"output .+ Got 'pooler_output', and the port gives a tuple\."):
        fields(lambda y: (y, y), output="pooler_output")
    with pytest.raises(ValueError, match=r"output must be the name of a field or a function\. Got 3\."):
        fields(lambda y: y, output=3)


# ----------------------------------------------------------------------------------------------------------------------
# Modules.


class TorchInner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(12, 12), torch.nn.LayerNorm(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class TorchOuter(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.wrapped = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wrapped(x)


class Inner(nnx.Module):
    def __init__(self, epsilon: float) -> None:
        self.first = nnx.Linear(12, 12, rngs=nnx.Rngs(0))
        self.second = nnx.LayerNorm(12, epsilon=epsilon, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.first(x))


@pytest.mark.parametrize("wrappers", [1, 2])
def test_the_prefix_of_a_wrapper_is_left_out(wrappers: int) -> None:
    theirs = randomised(TorchInner())
    for _ in range(wrappers):
        theirs = TorchOuter(theirs)
    report = parity.compare(theirs, Inner(1e-3), (inputs,), dtypes=("float64",))
    assert report.parting is not None
    assert (report.parting.torch_name, report.parting.flax_name) == ("wrapped." * wrappers + "second", "second")
    assert {entry.name for entry in report.runs[0].parameter_gradients} == {
        f"{module}.{name}" for module in ("first", "second") for name in ("weight", "bias")
    }
    parity.compare(theirs, Inner(1e-5), (inputs,), dtypes=("float64",)).assert_equal()


class Renamed(nnx.Module):
    """The same under other names."""

    def __init__(self, inner: Inner) -> None:
        self.linear, self.norm = inner.first, inner.second

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.linear(x))


def test_gradients_of_modules_that_are_found_by_their_numbers() -> None:
    theirs = randomised(TorchInner()).float()
    port = Renamed(load_state_dict(Inner(1e-5), theirs.state_dict()))
    report = parity.compare(theirs, port, (inputs,), load=False, dtypes=("float64",))
    report.assert_equal()
    names = {entry.name for entry in report.runs[0].parameter_gradients}
    assert names == {"linear.weight", "linear.bias", "norm.weight", "norm.bias"}
    assert not any("gradient" in note for note in report.notes)


class TorchTwoNorms(torch.nn.Module):
    """Norms as they are initialised, of which the numbers don't tell which is which, at different depths."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TorchOuter(torch.nn.LayerNorm(12))
        self.linear, self.last = torch.nn.Linear(12, 12), torch.nn.LayerNorm(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.linear(self.inner(x)))


class TwoNorms(nnx.Module):
    def __init__(self, linear: nnx.Module) -> None:
        norms = [nnx.LayerNorm(12, epsilon=1e-5, rngs=nnx.Rngs(0)) for _ in range(2)]
        self.norm1, self.dense, self.norm2 = norms[0], linear, norms[1]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm2(self.dense(self.norm1(x)))


def test_modules_of_the_same_numbers_are_found_as_they_are_executed() -> None:
    theirs = TorchTwoNorms()
    port = TwoNorms(load_state_dict(nnx.Linear(12, 12, rngs=nnx.Rngs(0)), theirs.linear.state_dict()))
    parity.compare(theirs, port, (inputs,), load=False, dtypes=("float64",)).assert_equal()


class TorchTurned(torch.nn.Module):
    """As Conv1D of Hugging Face's GPT-2, whose weight is the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(torch.randn(12, 12)), torch.nn.Parameter(torch.randn(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


def test_a_weight_that_the_port_has_transposed() -> None:
    theirs, port = TorchTurned(), nnx.Linear(12, 12, rngs=nnx.Rngs(0))
    load_state_dict(port, {"weight": theirs.weight.detach().T.contiguous(), "bias": theirs.bias.detach()})
    report = parity.compare(theirs, port, (inputs,), load=False, dtypes=("float64",))
    report.assert_equal()
    assert len(report.runs[0].parameter_gradients) == 2
    assert not any("weights" in note for note in report.notes)


def test_the_gradient_of_a_padding_token() -> None:
    theirs, port = torch.nn.Embedding(5, 4, padding_idx=2), nnx.Embed(5, 4, rngs=nnx.Rngs(0))
    report = parity.compare(theirs, port, (np.array([[0, 2, 2, 4]]),), dtypes=("float64",))
    assert not report.equal
    assert "the gradient of weight differs in row 2 alone, which is PyTorch's padding_idx and gets none there." in (
        report.notes
    )
