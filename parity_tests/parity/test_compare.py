"""The port debugger: right ports are found equal, planted bugs at their place and by their name."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jattn import models, nn, parity
from jattn.weights import load_state_dict, to_numpy
from parity_tests.nn import blank, counterpart, randomised
from parity_tests.parity.ports import LENGTH, TOKENS, Encoder, TorchEncoder

rng = np.random.default_rng(0)
tokens = rng.integers(0, TOKENS, (2, LENGTH))
valid = np.arange(LENGTH) < np.array([[LENGTH], [3]])
x = rng.standard_normal((2, 5, 12))
memory = rng.standard_normal((2, 7, 12))
images = rng.standard_normal((2, 4, 4))
BLOCK = {"num_heads": 3, "features": 12, "feedforward_features": 24}  # the models' sizes: what has run, is compiled


# ----------------------------------------------------------------------------------------------------------------------
# Right ports.

RIGHT: dict[str, tuple[type[nnx.Module], dict[str, Any], Any]] = {
    "pre-norm block, causal, with lengths": (
        nn.TransformerBlock,
        {**BLOCK, "norm": "pre", "causal": True},
        {"x": x, "valid_lens": np.array([4, 2])},
    ),
    "decoder block": (nn.TransformerBlock, {**BLOCK, "cross_attention": True}, {"x": x, "memory": memory}),
    "grouped heads, weights": (
        nn.MultiHeadAttention,
        {"num_heads": 4, "in_features": 12, "num_kv_heads": 2},
        {"query": x, "return_weights": True},
    ),
    "gru": (nn.GRU, {"in_features": 12, "hidden_features": 6, "num_layers": 2}, (x,)),
    "recall": (
        models.RecallClassifier,
        {"vocab_size": 5, "features": 12, "num_heads": 3, "max_length": 5},
        (rng.integers(0, 5, (2, 5)),),
    ),
    "digits": (
        models.DigitsClassifier,
        {"image_size": 4, "features": 12, "num_heads": 3, "num_layers": 1},
        (images,),
    ),
    "translation": (
        models.Seq2Seq,
        {"source_vocab_size": 6, "target_vocab_size": 7, "num_layers": 1},
        (rng.integers(0, 6, (2, 4)), rng.integers(0, 7, (2, 3)), np.array([4, 2])),
    ),
}


@pytest.mark.parametrize("case", RIGHT.values(), ids=RIGHT.keys())
def test_right_ports_are_equal(case: tuple[type[nnx.Module], dict[str, Any], Any]) -> None:
    kind, options, inputs = case
    report = parity.compare(
        randomised(counterpart(kind)(**options)), blank(lambda: kind(**options, rngs=nnx.Rngs(0))), inputs
    )
    report.assert_equal()
    assert [run.dtype for run in report.runs] == ["float64", "float32"]
    assert all(run.parameter_gradients for run in report.runs)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_the_port_without_a_bug_is_equal(pre_norm: bool) -> None:
    options: Any = dict(pre_norm=pre_norm, weights=True)
    report = parity.compare(randomised(TorchEncoder(**options)), Encoder(**options), (tokens, valid))
    report.assert_equal()
    assert not report.only_in_torch
    assert not report.only_in_flax


# ----------------------------------------------------------------------------------------------------------------------
# Planted bugs: bug, options, block, where it is, what it is.

ATTENTION, FEED_FORWARD = "blocks.{}.attention", "blocks.{}.feed_forward"
BUGS: list[tuple[str, dict[str, Any], int, str, str | None]] = [
    ("epsilon", {}, 0, "blocks.{}.norm1", "layer-norm epsilon"),
    ("last epsilon", {}, 0, "norm", "layer-norm epsilon"),
    ("rms norm", {}, 1, "blocks.{}.norm1", "RMS norm or layer norm"),
    ("unbiased variance", {}, 0, "blocks.{}.norm1", "unbiased variance"),
    ("missing bias", {}, 1, "blocks.{}.attention.value", "missing bias"),
    ("transposed kernel", {}, 0, "blocks.{}.attention.out", "transposed kernel"),
    ("bfloat16", {}, 0, "blocks.{}.attention.value", "low precision"),
    ("cast", {}, 0, "blocks.{}.attention.value", "low precision"),
    ("other heads", {}, 1, ATTENTION, "number of heads"),
    ("tanh", {}, 1, FEED_FORWARD, "exact or tanh GELU"),
    ("silu", {}, 0, FEED_FORWARD, "another activation"),
    ("relu", {"pre_norm": False}, 0, FEED_FORWARD, "another activation"),
    ("missing embedding scale", {}, 0, "", "embedding scale"),
    ("post for pre", {}, 0, "blocks.{}", "post-norm for pre-norm"),
    ("pre for post", {"pre_norm": False}, 1, "blocks.{}", "pre-norm for post-norm"),
    ("missing residual", {}, 0, "blocks.{}", "missing residual"),
    ("missing residual", {"pre_norm": False}, 1, "blocks.{}", "missing residual"),
    ("missing last residual", {}, 0, "blocks.{}", "missing residual"),
    ("missing last norm", {}, 0, "", "module left out"),
    ("missing scale", {}, 0, ATTENTION, "missing scale"),
    ("inverted mask", {"causal": False}, 0, ATTENTION, "inverted mask"),
    ("inverted causal mask", {}, 0, ATTENTION, "inverted mask"),
    ("missing mask", {}, 1, ATTENTION, "missing mask"),
    ("missing causal mask", {}, 0, ATTENTION, "missing causal mask"),
    ("infinite numbers", {}, 0, FEED_FORWARD, None),
    ("late causal mask", {}, 0, ATTENTION, "causal mask off by one"),
    ("softmax over queries", {"causal": False}, 0, ATTENTION, "softmax over the wrong axis"),
    ("softmax over heads", {"causal": False}, 0, ATTENTION, "softmax over the wrong axis"),
    ("swapped query and key", {}, 1, ATTENTION, "query and key swapped"),
    ("reshaped to heads", {}, 0, ATTENTION, "heads and time swapped"),
    ("heads not transposed back", {}, 0, ATTENTION, "heads and time swapped"),
    ("interleaved heads", {}, 0, ATTENTION, "order of heads and features"),
    ("averaged weights", {"weights": True}, 1, ATTENTION, "weights averaged over heads"),
    ("dropped weights", {"weights": True}, 1, ATTENTION, "dropped out"),
    ("reversed positions", {}, 0, "", None),
    ("attends to x", {}, 0, "blocks.{}", "module left out"),
]


@pytest.mark.parametrize(("bug", "options", "at", "place", "cause"), BUGS, ids=[f"{b[0]}-{b[2]}" for b in BUGS])
def test_a_planted_bug_is_found_and_named(
    bug: str, options: dict[str, Any], at: int, place: str, cause: str | None
) -> None:
    port = Encoder(bug, at, **options)
    torch_module = randomised(TorchEncoder(**options))
    report = parity.compare(torch_module, port, (tokens, valid), gradients=False, dtypes=("float64",))
    assert report.parting is not None
    assert (report.parting.torch_name, report.parting.flax_name) == (place.format(at), place.format(at))
    assert all(step.error <= step.limit for step in report.parting.before)
    diagnosis = report.parting.diagnosis
    assert (diagnosis.cause if diagnosis else None) == cause
    assert ("No known cause" in report.finding) == (cause is None)


def test_rows_with_nothing_to_attend_to() -> None:
    nothing = valid & np.array([[True], [False]])
    port = Encoder("mean of empty rows", 2, causal=False)
    report = parity.compare(randomised(TorchEncoder(causal=False)), port, (tokens, nothing), gradients=False)
    assert "blocks.0.attention: " in report.finding
    assert "Cause: rows with nothing to attend to" in report.finding


def test_a_wrong_gradient_is_found_where_outputs_agree() -> None:
    report = parity.compare(randomised(TorchEncoder()), Encoder("stopped gradient", 1), (tokens, valid))
    assert report.parting is None
    assert "The outputs agree in float64, the parameter gradients don't" in report.finding
    assert "stop_gradient" in report.finding
    assert "blocks.1.feed_forward.linear1.bias" in report.finding


def test_lost_digits_show_in_float32_only() -> None:
    class FastNorm(nnx.LayerNorm):
        """Far from zero, the difference of squares is rounding."""

    torch_module = randomised(torch.nn.LayerNorm(12))
    report = parity.compare(torch_module, FastNorm(12, epsilon=1e-5, rngs=nnx.Rngs(0)), (300 + x,))
    assert [run.equal for run in report.runs] == [True, False]
    assert "In float64 they agree" in report.finding
    assert "__call__" not in vars(FastNorm), "what was inherited still is"


@pytest.mark.parametrize("swap", [False, True])
def test_weights_that_the_port_has_already(swap: bool) -> None:
    """Other names, nothing in common but the numbers, and one of PyTorch's own layers with its packed projection."""
    theirs = randomised(torch.nn.TransformerEncoderLayer(12, 3, 24, dropout=0.0, batch_first=True, activation="gelu"))
    port = nn.TransformerBlock(**BLOCK, activation="gelu", rngs=nnx.Rngs(0))
    tensors = {name: to_numpy(p).astype(np.float32) for name, p in theirs.float().named_parameters()}
    for kind in ("weight", "bias"):
        packed = np.split(tensors.pop(f"self_attn.in_proj_{kind}"), 3)
        names = ("key", "query", "value") if swap else ("query", "key", "value")
        tensors |= {f"attention.{name}.{kind}": a for name, a in zip(names, packed, strict=True)}
        tensors[f"attention.out.{kind}"] = tensors.pop(f"self_attn.out_proj.{kind}")
        for linear in ("linear1", "linear2"):
            tensors[f"feed_forward.{linear}.{kind}"] = tensors.pop(f"{linear}.{kind}")
    load_state_dict(port, tensors)
    report = parity.compare(theirs, port, (x,), load=False)
    assert report.equal != swap
    assert any("only one side has them" in note for note in report.notes)
    if swap:
        assert report.parting is not None
        assert (report.parting.torch_name, report.parting.flax_name) == ("self_attn", "attention")
        assert report.parting.diagnosis is not None
        assert report.parting.diagnosis.cause == "query and key swapped"


def test_weights_loaded_under_the_wrong_name() -> None:
    theirs = randomised(TorchEncoder())
    tensors = theirs.state_dict()
    mixed = {**tensors, "blocks.0.attention.key.weight": tensors["blocks.0.attention.query.weight"]}
    port = load_state_dict(Encoder(), {name: tensor.float() for name, tensor in mixed.items()})
    report = parity.compare(theirs.float(), port, (tokens, valid), load=False, gradients=False)
    assert report.parting is not None
    assert report.parting.torch_name == "blocks.0.attention.key"
    assert report.parting.diagnosis is not None
    assert report.parting.diagnosis.cause == "swapped weights"


# ----------------------------------------------------------------------------------------------------------------------
# Which module is which.


class Twice(nnx.Module):
    """A layer that is called twice, with a mistake in between."""

    def __init__(self, factor: float) -> None:
        self.layer, self.factor = nnx.Linear(12, 12, rngs=nnx.Rngs(0)), factor

    def __call__(self, x: jax.Array) -> tuple[jax.Array, None, jax.Array]:
        y = self.layer(x)
        return self.layer(self.factor * y), None, y


class TorchTwice(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = torch.nn.Linear(12, 12), torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor]:
        y = self.unused(self.layer(x))
        return self.layer(y), None, y


def test_a_module_that_is_called_twice() -> None:
    report = parity.compare(randomised(TorchTwice()), Twice(3.0), (x,))
    assert report.parting is not None
    assert report.parting.where == "the input of layer (call 2), after layer"
    assert [(step.torch_name, step.number) for step in report.parting.before] == [("layer", 0)]
    assert report.parting.diagnosis is not None
    assert (
        report.parting.diagnosis.found == "In the port, the input of layer (call 2), after layer is 3 times PyTorch's."
    )
    assert report.only_in_torch == ["unused"]
    assert parity.compare(randomised(TorchTwice()), Twice(1.0), (x,)).equal


class Stack(nnx.Module):
    """Four layers under names of its own."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.Linear(12, 12, rngs=rngs), nnx.LayerNorm(12, epsilon=1e-5, rngs=rngs)
        self.third, self.fourth = nnx.Linear(12, 12, rngs=rngs), nnx.LayerNorm(12, epsilon=1e-3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fourth(self.third(self.second(self.first(x))))


def torch_stack() -> torch.nn.Module:
    layers = [torch.nn.Linear(12, 12), torch.nn.LayerNorm(12), torch.nn.Linear(12, 12), torch.nn.LayerNorm(12)]
    return torch.nn.Sequential(*layers).float()


RENAME = {r"^0\.": "first.", r"^1\.": "second.", r"^2\.": "third.", r"^3\.": "fourth."}


def test_modules_are_found_by_renaming() -> None:
    report = parity.compare(torch_stack(), Stack(), (x,), rename=RENAME)
    assert report.parting is not None
    assert (report.parting.torch_name, report.parting.flax_name) == ("3", "fourth")
    assert "3 has epsilon 0.001 in the port, 1e-05 in PyTorch." in report.finding
    assert any("of 4 parameters are equal (1.weight, 1.bias, 3.weight and 1 more)" in note for note in report.notes)


@pytest.mark.parametrize("names", [None, {"0": "first", "2": "third"}])
def test_modules_are_found_by_their_numbers_or_their_order(names: dict[str, str] | None) -> None:
    theirs = torch_stack()
    port = load_state_dict(Stack(), theirs.state_dict(), rename=RENAME)
    port.third.kernel[...] = port.third.kernel[...] + 1
    report = parity.compare(theirs, port, (x,), load=False, names=names, gradients=False)
    assert report.parting is not None
    assert (report.parting.torch_name, report.parting.flax_name) == ("2", "third")
    assert [step.flax_name for step in report.parting.before] == ["first", "second"]
    renamed = parity.compare(theirs, port, (x,), load=False, rename=RENAME, gradients=False)
    assert "the port's weights are not PyTorch's: third.weight." in renamed.notes


def test_an_entry_that_is_dropped_is_not_compared() -> None:
    theirs = randomised(TorchTwice())
    theirs.register_parameter("old", torch.nn.Parameter(torch.ones(3, dtype=torch.float64)))
    parity.compare(theirs, Twice(1.0), (x,), rename={"^old$": None}).assert_equal()


# ----------------------------------------------------------------------------------------------------------------------
# What it leaves behind, and what it gives.


def test_the_modules_are_left_as_they_were() -> None:
    torch_module, port = TorchEncoder().float().train(), Encoder("tanh")
    port.train()
    theirs = {name: p.detach().clone() for name, p in torch_module.named_parameters()}
    ours = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(port)))
    calls = {type(m): type(m).__call__ for _, m in nnx.iter_modules(port) if callable(m)}
    parity.compare(torch_module, port, (tokens, valid))
    assert torch_module.training
    for name, p in torch_module.named_parameters():
        assert p.dtype == torch.float32
        assert p.requires_grad
        assert p.grad is None
        assert torch.equal(p, theirs[name])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in torch_module.modules())
    assert all(cls.__call__ is call for cls, call in calls.items())
    after = nnx.to_pure_dict(nnx.state(port))
    jax.tree.map(np.testing.assert_array_equal, ours, jax.tree.map(np.asarray, after))
    assert not jax.config.jax_enable_x64


def test_the_modules_are_left_as_they_were_after_an_error() -> None:
    class Broken(nnx.Module):
        def __init__(self) -> None:
            self.linear = nnx.Linear(12, 12, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.linear(x) @ jnp.ones((5, 5))

    call, linear = Broken.__call__, torch.nn.Linear(12, 12)
    with pytest.raises(ValueError, match=r"inputs must be what both modules take\. Got TypeError from the port"):
        parity.compare(linear, Broken(), (x,), rename={"^": "linear."})
    assert Broken.__call__ is call
    assert "__call__" in vars(nnx.Linear)
    assert nnx.Linear.__call__.__qualname__ == "Linear.__call__"


def test_json_and_table() -> None:
    report = parity.compare(randomised(TorchEncoder()), Encoder("tanh", 1), (tokens, valid))
    back = json.loads(report.to_json())
    assert back == json.loads(json.dumps(report.to_dict()))
    assert back["equal"] is False
    assert back["parting"]["torch_name"] == "blocks.1.feed_forward"
    assert back["parting"]["diagnosis"]["cause"] == "exact or tanh GELU"
    assert [run["dtype"] for run in back["runs"]] == ["float64", "float32"]
    assert back["runs"][0]["outputs"][0]["error"] == report.runs[0].outputs[0].error
    shown = str(report)
    assert "blocks.1.feed_forward" in shown
    assert "PARTS" in shown
    with pytest.raises(AssertionError) as raised:
        report.assert_equal()
    assert str(raised.value) == report.finding
    assert len(str(raised.value)) < 600


def test_an_output_of_one_side_only() -> None:
    class Two(nnx.Linear):
        def __call__(self, x: jax.Array) -> Any:
            return super().__call__(x), x

    report = parity.compare(torch.nn.Linear(12, 3), Two(12, 3, rngs=nnx.Rngs(0)), (x,))
    assert report.finding == "output 1, only of the port (2, 5, 12) is off by inf, 1e-10 allowed."


def test_json_has_no_number_that_json_lacks() -> None:
    report = parity.compare(torch.nn.Linear(12, 12), nnx.Linear(12, 12, rngs=nnx.Rngs(0)), (np.full((1, 12), np.inf),))
    json.loads(report.to_json(), parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


def test_wrong_use_is_an_error() -> None:
    linear, port = torch.nn.Linear(12, 3), nnx.Linear(12, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"torch_module must be a torch\.nn\.Module\. Got Linear"):
        parity.compare(port, port, (x,))
    with pytest.raises(ValueError, match=r"flax_module must be a flax\.nnx\.Module\. Got Linear"):
        parity.compare(linear, linear, (x,))
    with pytest.raises(ValueError, match="Got RuntimeError from PyTorch's module"):
        parity.compare(linear, port, (x[..., :5],))
    with pytest.raises(ValueError, match="inputs must be an array"):
        parity.compare(linear, port, 3.0)
    with pytest.raises(ValueError, match="dtypes must be some of"):
        parity.compare(linear, port, (x,), dtypes=("int8",))
    with pytest.raises(ValueError, match=r"dtypes .+ Got the string 'float64'\. Write \('float64',\)\."):
        parity.compare(linear, port, (x,), dtypes="float64")
    with pytest.raises(ValueError, match=r"^inputs must hold no NaN"):
        parity.compare(linear, port, (np.where(x > 0, x, np.nan),))
    strangers = r"names must .+ Got 'lost', which is none of PyTorch's\. 'gone', which is none of the port's\."
    with pytest.raises(ValueError, match=strangers):
        parity.compare(linear, port, (x,), names={"lost": "gone"})
    with pytest.raises(ValueError, match="unknown: bias"):
        parity.compare(linear, nnx.Linear(12, 3, use_bias=False, rngs=nnx.Rngs(0)), (x,))
