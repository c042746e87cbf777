"""Each mistake has its error, before anything is written."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jattn
from jattn import models, nn, portable
from tests.errors import raises

pytestmark = pytest.mark.usefixtures("unchecked")


def double(x):
    return 2 * x


def dropping(rate=0.5):
    return nn.TransformerBlock(2, 8, 12, dropout_rate=rate, rngs=nnx.Rngs(0))


class Averaging(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(x)


class Dotted(nnx.Module):
    def __init__(self):
        self.of = nnx.Dict({"a.b": nnx.Param(jnp.ones(2)), "a": nnx.Dict({"b": nnx.Param(jnp.ones(3))})})

    def __call__(self, x):
        return x


X = {"x": "float32[n]"}


def decoder(f=models.GPT2, **options):
    f = f(11, features=8, num_heads=2, num_layers=1, rngs=nnx.Rngs(0), **options)
    f.eval()
    return f


SAME = "f must have parameters and results of different names, with dots between their parts. Got several of "
CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a class": (nn.Linear, {"arguments": X}, "f must be a function of arrays or an nnx.Module. Got the class Linear."),
    "no model": (3, {"arguments": X}, "f must be a function of arrays or an nnx.Module. Got int."),
    "nothing": (double, {}, "arguments must be given for a call of f, or room to decode with it. Got neither."),
    "training": (
        dropping(),
        {"arguments": {"x": "float32[b,t,8]"}},
        "f must be in eval mode. Got a TransformerBlock in training mode, with a Dropout that is on, ",
    ),
    "training statistics": (
        Averaging(),
        {"arguments": {"x": "float32[n,3]"}},
        "f must be in eval mode. Got a Averaging in training mode, with a BatchNorm that is on, norm. Call its eval().",
    ),
    "reserved": (lambda **x: x, {"arguments": {"parameters": "int32[]"}}, "arguments must have other names than param"),
    "reserved by JAX": (
        lambda **x: x,
        {"arguments": {"self": "int32[]"}},
        "arguments must have other names than self, which the call of a loaded program has. Got that name.",
    ),
    "parameters of one name": (Dotted(), {"arguments": X}, SAME + "'of.a.b'. Rename those with dots in a key."),
    "results of one name": (lambda x: {"a.b": x, "a": {"b": 2 * x}}, {"arguments": X}, SAME + "'a.b'."),
    "spec": (
        double,
        {"arguments": {"x": "b t 8"}},
        "arguments must say the dtype and the lengths of an array, such as \"float32[b,t,8]\", or be one. Got 'b t 8' "
        "for x.",
    ),
    "dtype": (double, {"arguments": {"x": "number[n]"}}, "Got 'number[n]' for x."),
    "no array": (double, {"arguments": {"x": 3}}, "Got 3 for x."),
    "lengths": (double, {"arguments": {"x": "int32[n m]"}}, "lengths that jax.export knows. Got (n m) for x."),
    "negative": (double, {"arguments": {"x": "float32[-1]"}}, "lengths that jax.export knows. Got (-1) for x."),
    "text": (double, {"arguments": {"x": "str[n]"}}, "or be one. Got 'str[n]' for x."),
    "objects": (double, {"arguments": {"x": "object[n]"}}, "or be one. Got 'object[n]' for x."),
    "64 bits": (
        double,
        {"arguments": {"x": "float64[n]"}},
        "arguments must have dtypes that JAX has. Got float64 for x, without jax_enable_x64. Turn it on, or describe "
        "float32.",
    ),
    "64 bits of an array": (
        double,
        {"arguments": {"x": jax.ShapeDtypeStruct((3,), "int64")}},
        "Got int64 for x, without jax_enable_x64. Turn it on, or describe int32.",
    ),
    "a list": (double, {"arguments": ["x"]}, "arguments must be a mapping with names for keys. Got ['x']."),
    "sizes": (double, {"arguments": X, "sizes": 3}, "sizes must be a mapping with names for keys. Got 3."),
    "no names": (double, {"arguments": X, "given": "x"}, "given must be a mapping with names for keys. Got 'x'."),
    "one constraint": (
        double,
        {"arguments": X, "constraints": "n <= 3"},
        "constraints must be a sequence of texts, such as ['t <= 64']. Got 'n <= 3'.",
    ),
    "constraint of no letter": (
        double,
        {"arguments": X, "constraints": ["mod(n, 2) == 0", "t <= 3"]},
        "constraints must be of the letters n. Got 't' in 't <= 3'.",
    ),
    "no constraint": (
        double,
        {"arguments": X, "constraints": ["n < 3"]},
        "constraints must be relations that can hold, with one of <=, >= and ==, such as 't <= 64'. Got 'n < 3'.",
    ),
    "constraint and size": (
        double,
        {"arguments": X, "constraints": ["n <= 3"], "sizes": {"n": 5}},
        "constraints must hold for sizes. Got 'n <= 3' with n = 5.",
    ),
    "size of no letter": (double, {"arguments": X, "sizes": {"b": 3}}, "sizes must be of the letters n. Got 'b'."),
    "size": (double, {"arguments": X, "sizes": {"n": 0}}, "the size of n must be an integer in [1, inf)"),
    "a platform": (double, {"arguments": X, "platforms": ["gpu"]}, "one of 'cpu', 'cuda', 'rocm', 'tpu'. Got 'gpu'."),
    "one string": (double, {"arguments": X, "platforms": "cpu"}, "such as ['cpu', 'tpu']. Got 'cpu'."),
    "a number": (double, {"arguments": X, "platforms": 3}, "platforms must be one or several names, ", "Got 3."),
    "no platform": (double, {"arguments": X, "platforms": []}, "such as ['cpu', 'tpu']. Got []."),
    "flag": (double, {"arguments": X, "parameters_inside": 1}, "parameters_inside must be True or False. Got 1."),
    "given": (double, {"arguments": X, "given": X}, "given must be None where nothing is decoded. Got x. Pass room"),
    "room": (dropping(0.0), {"room": 5}, "room must be None for what cannot decode, ", "Got 5 for a TransformerBlock."),
    "more room than positions": (
        decoder(max_length=6),
        {"room": 7},
        "room must be at most max_length = 6, how many positions f has. Got 7.",
    ),
    "longer prompts than room": (
        decoder(max_length=6),
        {"room": 4, "sizes": {"t": 5}},
        "sizes must have prompts that room is for, t of at most 4. Got 5.",
    ),
    "given as the prompt's": (
        decoder(max_length=6),
        {"room": 4, "given": {"tokens": "int32[b]"}},
        "given must have other names than tokens, valid_lens and parameters. Got tokens.",
    ),
    "no room": (dropping(0.0), {"room": 0}, "room must be an integer in [1, inf)"),
}


@pytest.mark.every_case
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_errors(case, tmp_path):
    f, options, *phrases = case
    with raises(*phrases):
        portable.export(f, tmp_path / "made", **options)
    assert not (tmp_path / "made").exists()


def test_an_argument_that_a_function_has_not(tmp_path):
    with raises("double() got an unexpected keyword argument 'y'.", kind=TypeError):
        portable.export(double, tmp_path / "made", {"y": "float32[n]"})


def test_an_argument_that_no_decoding_starts_with(tmp_path):
    with raises("GPT2.start() got an unexpected keyword argument 'source'.", kind=TypeError):
        portable.export(decoder(max_length=6), tmp_path / "made", room=4, given={"source": "int32[b]"})


def test_a_path_that_is_there(tmp_path):
    with raises(f"path must be of a folder to make. Got {tmp_path}, which is there. Remove it, or name another."):
        portable.export(double, tmp_path, X)


def test_without_flatbuffers(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with raises("needs the flatbuffers package", "pip install flatbuffers", kind=ImportError):
        portable.export(double, tmp_path / "made", X)


def test_a_link_to_nothing(tmp_path):
    (tmp_path / "made").symlink_to(tmp_path / "nothing")
    with raises("path must be of a folder to make. Got ", "which is there."):
        portable.export(double, tmp_path / "made", X)


def test_a_path_in_a_file(tmp_path):
    (tmp_path / "file").touch()
    with raises("path must lie in a folder. Got ", f"and {tmp_path / 'file'} is none. Name another."):
        portable.export(double, tmp_path / "file" / "new" / "made", X)


def test_without_safetensors(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "safetensors" else find(name))
    with raises("needs the safetensors package", "or pass parameters_inside=True", kind=ImportError):
        portable.export(dropping(0.0), tmp_path / "made", {"x": "float32[b,t,8]"})
    assert not list(tmp_path.iterdir())


def test_nothing_stays_of_a_folder_after_an_error(tmp_path, monkeypatch):
    def full(*given):
        raise OSError("no space left")

    monkeypatch.setattr("jattn.weights.files.save", full)
    with raises("no space left", kind=OSError):
        portable.export(nn.Linear(3, 2, rngs=nnx.Rngs(0)), tmp_path / "made", {"inputs": "float32[n,3]"})
    assert not list(tmp_path.iterdir())


def test_traced_parameters(tmp_path):
    layer = nn.Linear(3, 2, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)

    def loss(state):
        portable.export(nnx.merge(graph, state), tmp_path / "made", {"inputs": "float32[n,3]"})

    with raises("f must have parameters whose numbers are known. Got traced ones, as within jax.jit or jax.grad."):
        jax.grad(loss)(state)


def test_within_jit(tmp_path):
    def f(y):
        portable.export(lambda x: x + y, tmp_path / "made", X)

    with raises("f must be exported where nothing is traced. Got a call within jax.jit. Export outside of it."):
        jax.jit(f)(jnp.ones(()))


def test_more_tokens_than_positions(tmp_path):
    model = models.GPT2(11, features=8, num_heads=2, num_layers=1, max_length=6, rngs=nnx.Rngs(0))
    model.eval()
    with raises("constraints must hold for sizes. Got 't <= 6' with t = 7."):
        model.export(tmp_path / "made", sizes={"t": 7})
    with raises("must have at most max_length = 6 positions. Got t, a symbol"):
        portable.export(model, tmp_path / "made", {"tokens": "int32[b,t]"})


def test_for_platforms():
    with raises("platforms must be one of 'cpu', 'cuda', 'rocm', 'tpu'. Got 'gpu'."):
        portable.for_platforms("gpu")


@pytest.mark.parametrize(
    ("name", "platforms", "reason"),
    [
        ("cudnn", ["cuda"], "JAX does not save its kernel in a program"),
        ("pallas", ["cpu", "tpu"], "JAX saves a kernel in a program for a TPU alone"),
        ("pallas", ["cuda"], "JAX saves a kernel in a program for a TPU alone"),
    ],
)
def test_a_kernel_that_is_asked_for(name, platforms, reason, tmp_path):
    with raises("implementation must be None or one that honours every argument.", f"Got '{name}': {reason}."):
        portable.export(
            lambda x: jattn.attention(x, x, x, implementation=name),
            tmp_path / "made",
            {"x": jax.ShapeDtypeStruct((1, 16, 2, 8), jnp.bfloat16)},
            platforms=platforms,
        )
