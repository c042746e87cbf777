"""What is in the folder, what models say that they are called with, and for which platforms programs are made."""

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn
from jattn import masks, models, nn, portable
from jattn._engine import platform
from jattn.portable.plain import plain
from tests.errors import raises

pytestmark = pytest.mark.usefixtures("unchecked")  # jaxtyping can't compare symbols

BLOCK: dict[str, Any] = dict(num_heads=2, feedforward_features=12, norm="pre")
SIDE: dict[str, Any] = dict(layers=[BLOCK], norm=nn.Norm(), max_length=20)
SMALL: dict[str, Any] = dict(features=8, layers=[BLOCK])
TEXT: dict[str, Any] = dict(vocab_size=11, features=8, num_heads=2, num_layers=1)


def listed(path, program="forward", of="arguments"):
    """What the manifest says, without parameters."""
    entries = json.loads((path / "manifest.json").read_text())["programs"][program][of]
    return {x["name"]: (x["dtype"], x["shape"]) for x in entries if not x["name"].startswith("parameters.")}


def program_of(path, name="forward"):
    return jax.export.deserialize((path / f"{name}.jax").read_bytes())


def test_the_folder_of_a_function(tmp_path):
    def f(y, x):
        return {"sum": x + y.sum(), "of": [x, (y, 2 * y)]}

    path = tmp_path / "new" / "made"
    portable.export(f, path, {"y": "bfloat16[n]", "x": "float32[2*n,3]"}, platforms=["tpu", "cpu"])
    assert sorted(file.name for file in path.iterdir()) == ["forward.jax", "forward.mlirbc", "manifest.json"]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["platforms"] == ["tpu", "cpu"]
    assert manifest["jax"] == jax.__version__
    assert listed(path) == {"x": ("float32", ["2*n", 3]), "y": ("bfloat16", ["n"])}
    results = {
        "of.0": ("float32", ["2*n", 3]),
        "of.1.0": ("bfloat16", ["n"]),
        "of.1.1": ("bfloat16", ["n"]),
        "sum": ("float32", ["2*n", 3]),
    }
    assert listed(path, of="results") == results
    exported = program_of(path)
    assert exported.fun_name == "forward"
    assert exported.mlir_module_serialized == (path / "forward.mlirbc").read_bytes()
    out = exported.call(x=jnp.ones((4, 3)), y=jnp.ones(2, jnp.bfloat16))
    assert [*out] == [*results]
    np.testing.assert_array_equal(out["sum"], np.full((4, 3), 3.0))
    np.testing.assert_array_equal(out["of.1.1"], [2, 2])


def test_parameters_inside_or_not(tmp_path):
    layer = nn.Linear(3, 2, rngs=nnx.Rngs(0))
    x = jnp.arange(6.0).reshape(2, 3)
    portable.export(layer, tmp_path / "beside", {"inputs": x})
    portable.export(layer, tmp_path / "inside", {"inputs": x}, parameters_inside=True)
    weights = jattn.weights.files.load(tmp_path / "beside" / "parameters.safetensors")
    assert {name: w.shape for name, w in weights.items()} == {"kernel": (3, 2), "bias": (2,)}
    beside, inside = program_of(tmp_path / "beside"), program_of(tmp_path / "inside")
    np.testing.assert_allclose(inside.call(inputs=x), layer(x), rtol=1e-6)
    np.testing.assert_allclose(beside.call(parameters=weights, inputs=x), layer(x), rtol=1e-6)
    zeros = jax.tree.map(jnp.zeros_like, weights)
    np.testing.assert_array_equal(beside.call(parameters=zeros, inputs=x), np.zeros((2, 2)))


def test_arguments_of_any_name(tmp_path):
    """Also of those that functions within have."""
    names = ["f", "model", "x", "name"]
    portable.export(lambda f, model, x, name: f + 2 * x, tmp_path / "made", dict.fromkeys(names, "float32[n]"))
    inputs = {name: jnp.full(2, i, jnp.float32) for i, name in enumerate(names)}
    np.testing.assert_array_equal(program_of(tmp_path / "made").call(**inputs), [4, 4])


def test_names_that_end_as_those_within_a_variable():
    """Flax's "value" within a variable is left out, and no other."""
    of = {"value": nnx.Param(jnp.ones(1)), "x": (nnx.Param(jnp.ones(2)), {"value": jnp.ones(3)})}
    assert list(plain(of)) == ["value", "x.0", "x.1.value"]


def test_sizes_and_an_unneeded_argument(tmp_path):
    def f(x, y):
        return x

    portable.export(f, tmp_path / "made", {"x": "int32[b, t, 2*t]", "y": "float32[t]"}, sizes={"t": 3})
    assert listed(tmp_path / "made") == {"x": ("int32", ["b", 3, 6]), "y": ("float32", [3])}
    text = program_of(tmp_path / "made").mlir_module()
    assert "%arg2: tensor<3xf32>" in text  # after the platform's number, as the manifest has it


def test_what_draws_random_numbers_stays_inside(tmp_path):
    layer = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    layer.eval()
    portable.export(layer, tmp_path / "made", {"inputs": "float32[n]"})
    np.testing.assert_array_equal(program_of(tmp_path / "made").call(inputs=jnp.ones(3)), np.ones(3))


B_T, B_S = ["b", "t"], ["b", "s"]
READ = {"tokens": B_T, "attention_mask": B_T}
TARGET = {"target": B_T, "target_attention_mask": B_T}
MODELS = {
    "GPT2": (lambda rngs: models.GPT2(**TEXT, max_length=64, rngs=rngs), READ),
    "Bert": (
        lambda rngs: models.Bert(**TEXT, feedforward_features=12, max_length=64, rngs=rngs),
        READ | {"token_types": B_T},
    ),
    "with a head": (
        lambda rngs: models.EncoderWithHead(
            models.Bert(**TEXT, feedforward_features=12, max_length=64, rngs=rngs),
            models.EncoderHead(8, 3, pooling="first", rngs=rngs),
        ),
        READ | {"token_types": B_T},
    ),
    "text and text": (
        lambda rngs: models.EncoderDecoder(11, features=8, encoder=SIDE, decoder=SIDE, rngs=rngs),
        TARGET | {"source": B_S, "attention_mask": B_S},
    ),
    "sound and text": (
        lambda rngs: models.EncoderDecoder(11, features=8, mel_bins=4, encoder=SIDE, decoder=SIDE, rngs=rngs),
        TARGET | {"source": ["b", 4, 40]},
    ),
    "images": (
        lambda rngs: models.VisionEncoder(**SMALL, image_size=(8, 12), patch_size=4, output_features=5, rngs=rngs),
        {"images": ["b", 8, 12, 3]},
    ),
    "CLIP": (
        lambda rngs: models.CLIP(
            text=dict(**SMALL, vocab_size=11, max_length=7),
            vision=dict(**SMALL, image_size=8, patch_size=4),
            features=6,
            rngs=rngs,
        ),
        {"tokens": ["n", "t"], "attention_mask": ["n", "t"], "images": ["i", 8, 8, 3]},
    ),
    "Seq2Seq": (
        lambda rngs: models.Seq2Seq(11, 11, rngs=rngs),
        {"source": B_S, "source_valid_lens": ["b"], "target": B_T},
    ),
    "RecallClassifier": (lambda rngs: models.RecallClassifier(11, 8, 2, rngs=rngs), {"tokens": B_T}),
    "AttentionRegressor": (lambda rngs: models.AttentionRegressor(8, rngs=rngs), {"x": B_T}),
    "TransformerRegressor": (lambda rngs: models.TransformerRegressor(9, 8, 2, rngs=rngs), {"x": B_T}),
    "DigitsClassifier": (
        lambda rngs: models.DigitsClassifier(features=8, num_layers=1, rngs=rngs),
        {"images": ["b", 8, 8]},
    ),
}


@pytest.mark.parametrize(("make", "expected"), MODELS.values(), ids=MODELS)
def test_models(make, expected, tmp_path):
    """Every model exports itself, for any batch and length that it takes; numbers are those of `test_export`."""
    model = make(nnx.Rngs(0))
    model.eval()
    model.export(tmp_path / "made")
    assert {name: shape for name, (_, shape) in listed(tmp_path / "made").items()} == expected


def test_every_model_says_what_it_is_called_with():
    classes = [x for name in models.__all__ if isinstance(x := getattr(models, name), type)]
    whole = [x for x in classes if issubclass(x, nnx.Module) and x not in (models.EncoderHead, models.Projection)]
    assert len(whole) > 40
    assert all(x.inputs is not portable.Exportable.inputs for x in whole)


@pytest.mark.whole
@pytest.mark.parametrize("name", ["text and text", "sound and text", "Seq2Seq"])
def test_what_has_a_source_decodes(name, tmp_path):
    model = MODELS[name][0](nnx.Rngs(0))
    model.eval()
    model.export(tmp_path / "made", room=7)
    weights = jattn.weights.files.load(tmp_path / "made" / "parameters.safetensors")
    rng = np.random.default_rng(0)
    source = jnp.asarray(rng.normal(size=(2, 4, 40)) if "sound" in name else rng.integers(1, 11, (2, 6)))
    source = source.astype(jnp.float32 if "sound" in name else jnp.int32)
    given = {"source": source}
    if name == "text and text":
        given["source_attention_mask"] = jnp.array([[1] * 6, [1] * 4 + [0] * 2], jnp.int32)
    elif name == "Seq2Seq":
        given["source_valid_lens"] = jnp.array([6, 4], jnp.int32)
    tokens, lens = jnp.array([[1, 2, 3], [4, 0, 0]], jnp.int32), jnp.array([3, 1], jnp.int32)
    expected = jattn.decoding.generate(model, tokens, lens, max_new_tokens=3, **given)
    prefill, step = program_of(tmp_path / "made", "prefill"), program_of(tmp_path / "made", "step")
    after, chosen = prefill.call(parameters=weights, tokens=tokens, valid_lens=lens, **given), []
    for _ in range(3):
        chosen.append(jnp.argmax(after["logits"], axis=-1).astype(jnp.int32))
        after = step.call(parameters=weights, tokens=chosen[-1], state=after["state"])
    np.testing.assert_array_equal(jnp.stack(chosen, axis=1), expected.tokens)


@pytest.mark.whole
def test_rings_decode(tmp_path):
    """Prompts of any length where windows are shorter than they."""
    block = dict(num_heads=2, feedforward_features=12, norm="pre", rotary=nn.Rotary())
    model = models.TextDecoder(11, features=8, layers=[{**block, "window": 3}, block], rngs=nnx.Rngs(0))
    model.eval()
    model.export(tmp_path / "made", room=9, platforms=["cpu"])
    assert listed(tmp_path / "made", "step")["state.0.keys"] == ("float32", ["b", 2, 3, 4])
    manifest = json.loads((tmp_path / "made" / "manifest.json").read_text())
    assert manifest["room"] == 9
    known = {name: program["constraints"] for name, program in manifest["programs"].items()}
    assert known == {"forward": [], "prefill": ["t <= 9"], "step": []}
    weights = jattn.weights.files.load(tmp_path / "made" / "parameters.safetensors")
    prefill, step = program_of(tmp_path / "made", "prefill"), program_of(tmp_path / "made", "step")
    with raises("Error refining shapes"):
        jax.jit(prefill.call)(parameters=weights, tokens=jnp.ones((2, 10), int), valid_lens=jnp.array([10, 10]))
    rows, lens = jnp.array([[1, 2, 3, 4, 5, 6, 3, 4], [7, 8, 9, 10, 5, 6, 0, 0]], jnp.int32), jnp.array([6, 4])
    prompts = jnp.where(jnp.arange(6) < lens[:, None], rows[:, :6], 0)
    after, every = prefill.call(parameters=weights, tokens=prompts, valid_lens=lens.astype(jnp.int32)), model(rows)
    for i in range(3):
        np.testing.assert_allclose(after["logits"], every[jnp.arange(2), lens + i - 1], atol=1e-5)
        if i < 2:
            chosen = rows[jnp.arange(2), lens + i]
            after = step.call(parameters=weights, tokens=chosen, state=after["state"])


def attend(x):
    return jattn.attention(x, x, x, mask=masks.causal())


def operations(text: str) -> list[str]:
    """Products, loops and kernels of a program, with their shapes."""
    lines = re.findall(r"stablehlo\.(?:dot_general|while|custom_call)\b.*", text)
    return [re.sub(r"%\w+|#loc\d+|loc\(.*\)", "", line) for line in lines]


@pytest.fixture
def beside_a_tpu(monkeypatch):
    """As in a process that has one."""
    monkeypatch.setattr(platform, "_is_here", lambda name: name == "tpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    jax.clear_caches()
    yield
    jax.clear_caches()


def test_only_a_program_for_tpus_alone_holds_their_kernel(beside_a_tpu, tmp_path):
    shapes = {"x": "float32[2,512,2,128]"}
    for platforms, has_kernel in ((["tpu"], True), (["cpu", "cuda", "tpu"], False), (["cpu"], False)):
        path = tmp_path / "-".join(platforms)
        portable.export(attend, path, shapes, platforms=platforms)
        assert ("tpu_custom_call" in program_of(path).mlir_module()) == has_kernel
    x = jax.ShapeDtypeStruct((2, 512, 2, 128), jnp.float32)
    with portable.for_platforms("cpu", "tpu"):
        text = jax.export.export(jax.jit(attend), platforms=["cpu", "tpu"])(x).mlir_module()
    assert "tpu_custom_call" not in text
    text = jax.export.export(jax.jit(attend), platforms=["tpu"])(x).mlir_module()  # and outside as before
    assert "tpu_custom_call" in text


def test_the_same_program_beside_many_devices(monkeypatch):
    def text() -> str:
        jax.clear_caches()
        with portable.for_platforms("cpu", "tpu"):
            x = jax.ShapeDtypeStruct((2, 600, 2, 16), jnp.float32)
            return jax.export.export(jax.jit(attend), platforms=["cpu", "tpu"])(x).mlir_module()

    here = text()
    monkeypatch.setattr(platform, "_device_count", lambda name: 8)
    assert operations(text()) == operations(here)


def test_arrays_on_a_cpu_have_its_program(beside_a_tpu, monkeypatch):
    """Whatever the default is, also where the kernel of a TPU is traced beside it."""
    x = jax.device_put(np.ones((1, 1024, 2, 128), np.float32), jax.devices("cpu")[0])
    beside = operations(jax.jit(attend).lower(x).as_text())
    assert beside
    text = jax.export.export(jax.jit(attend), platforms=["tpu"])(x).mlir_module()
    assert "tpu_custom_call" in text  # it had the choice
    assert jattn.explain(x, x, x).implementation == "streaming"
    monkeypatch.undo()
    jax.clear_caches()
    assert beside == operations(jax.jit(attend).lower(x).as_text())


@pytest.mark.whole
def test_arrays_on_a_cpu_are_computed_on_it(beside_a_tpu, monkeypatch):
    cpu = jax.devices("cpu")[0]
    x = jax.device_put(np.random.default_rng(0).normal(size=(1, 512, 2, 128)).astype(np.float32), cpu)
    output = attend(x)
    assert output.devices() == {cpu}
    monkeypatch.undo()
    jax.clear_caches()
    np.testing.assert_array_equal(output, attend(x))


@pytest.mark.skipif(jax.default_backend() == "cpu", reason="there is no accelerator")
def test_arrays_on_a_cpu_beside_an_accelerator():
    cpu = jax.devices("cpu")[0]
    x = jax.device_put(np.random.default_rng(0).normal(size=(1, 1024, 2, 16)), cpu)
    assert attend(x).devices() == {cpu}
    with jax.default_device(cpu):
        np.testing.assert_array_equal(attend(x), attend(jnp.asarray(np.asarray(x))))
