"""Where the kernels are chosen, and what they refuse."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import pytest

from jattn import attention, biases, masks, scores
from jattn._engine import platform as _platform
from jattn._engine.platform import CPU, platforms
from jattn.bound import bind
from jattn.implementations import chips, choice

TPU = dataclasses.replace(platforms(alone=True)["tpu"], is_known=True)
GPU = dataclasses.replace(platforms(alone=True)["cuda"], is_known=True, capability=9.0)
LONG = jax.ShapeDtypeStruct((2, 1024, 2, 64), jnp.bfloat16)


HELD = jnp.ones(3)


def decided(platform=TPU, like=LONG, **arguments):
    said = []
    jax.eval_shape(lambda x: said.append(choice.decide(bind(x, x, x, **arguments).call, None, platform)), like)
    return said[0]


def test_it_is_chosen_on_a_tpu():
    with jax.enable_x64(False):
        assert decided().implementation == "pallas"
        assert decided(like=jax.ShapeDtypeStruct((2, 8, 2, 64), jnp.bfloat16)).implementation == "dense"
        assert decided(CPU).implementation == "streaming"


@pytest.mark.parametrize(
    ("reason", "given"),
    [
        ("its kernels are for TPUs and NVIDIA's GPUs", {"platform": platforms(alone=True)["rocm"]}),
        (
            "which device it is for must be known: a TPU that is here, or in the mesh that is set",
            {"platform": platforms(alone=True)["tpu"]},
        ),
        (
            "which device it is for must be known: a GPU that is here, or in the mesh that is set",
            {"platform": platforms(alone=True)["cuda"]},
        ),
        ("a kernel can't be divided among devices by XLA", {"platform": dataclasses.replace(TPU, devices=4)}),
        (
            "a formula asks for what the compiler of its kernels does not know (gather)",
            {"bias": biases.where(lambda q, k, table: table[abs(q - k)], table=jnp.ones(1024))},
        ),
        (
            "a formula holds an array; give it by its name, as an argument of the formula",
            {"bias": biases.where(lambda q, k: HELD[0] * (q - k))},
        ),
        (
            "on a TPU it takes at most 512 features",
            {"like": jax.ShapeDtypeStruct((1, 1024, 1, 1024), jnp.bfloat16)},
        ),
        ("on a TPU it takes float32 and bfloat16", {"like": jax.ShapeDtypeStruct(LONG.shape, jnp.float16)}),
        (
            "its score is the dot product, or one that is a dot product of features",
            {"score": scores.Epanechnikov()},
        ),
        (
            "on a GPU it takes at most 256 features",
            {"platform": GPU, "like": jax.ShapeDtypeStruct((1, 1024, 1, 512), jnp.bfloat16)},
        ),
        (
            "a formula asks for what the compiler of its kernels does not know (slice)",
            {"platform": GPU, "bias": biases.where(lambda q, k, a: a[1] * (q - k), a=jnp.ones(2))},
        ),
        (
            "on a GPU all axes that a formula's arrays have beside b h t s must be powers of 2 long",
            {"platform": GPU, "bias": biases.relative(jnp.ones((12, 2)), max_distance=20)},
        ),
        (
            "on a GPU all axes that a formula's arrays have beside b h t s must be powers of 2 long",
            {"platform": GPU, "bias": biases.where(lambda q, k: 0.1 * ((q - k)[..., None] == jnp.arange(3)).sum(-1))},
        ),
        (
            "a formula asks for what the compiler of its kernels does not know (erf)",
            {"platform": GPU, "bias": biases.where(lambda q, k: jax.scipy.special.erf(0.1 * (q - k)))},
        ),
        (
            "on a GPU formulas of more than 500 operations would compile for minutes",
            {"platform": GPU, "bias": biases.relative(jnp.ones((64, 2)), max_distance=200)},
        ),
        ("it needs an NVIDIA GPU, Ampere or newer", {"platform": dataclasses.replace(GPU, capability=7.5)}),
    ],
)
def test_what_it_refuses(reason, given):
    with jax.enable_x64(False):
        said = decided(**given)
    assert said.refused["pallas"] == reason
    assert said.implementation == "streaming"


def test_it_is_not_chosen_on_a_gpu_unless_asked_for():
    """Before it was measured on one."""
    with jax.enable_x64(False):
        for bias in (biases.alibi(2), biases.relative(jnp.ones((32, 2)))):
            said = decided(GPU, bias=bias)
            assert said.implementation == "streaming"
            assert "pallas" not in said.refused


@pytest.mark.parametrize(("platform", "call"), [("tpu", "tpu_custom_call"), ("cuda", "__gpu$xla.gpu.triton")])
def test_a_known_device_has_its_own_kernel(platform, call, monkeypatch):
    """As it is asked for by name, where a program is traced for all platforms."""
    if platform == "cuda" and jax.__version_info__ >= (0, 11):
        pytest.skip("newer versions lower it beside a GPU alone")
    monkeypatch.setattr(_platform, "_is_here", lambda name: name == platform)
    monkeypatch.setattr(_platform, "capability_here", lambda: 9.0)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    jax.clear_caches()
    with jax.enable_x64(False):
        f = jax.jit(lambda x: attention(x, x, x, mask=masks.causal(), implementation="pallas"))
        text = f.trace(LONG).lower(lowering_platforms=(platform,)).as_text()
    jax.clear_caches()
    assert call in text


@pytest.mark.parametrize(
    ("kind", "name", "capability"),
    [
        ("TPU v5 lite", "tpu", 0.0),
        ("NVIDIA H100 80GB HBM3", "cuda", 9.0),
        ("NVIDIA A100-SXM4-80GB", "cuda", 8.0),
        ("NVIDIA L40S", "cuda", 8.9),
        ("Tesla T4", "cuda", 0.0),
        ("cpu", "", 0.0),
        ("", "", 0.0),
    ],
)
def test_devices_by_their_kind(kind, name, capability, monkeypatch):
    monkeypatch.setattr(_platform, "_kind_of_mesh", lambda: kind)
    assert _platform._of_mesh() == name
    assert platforms(alone=True)["cuda"].capability == capability


@pytest.mark.parametrize(
    ("dtype", "width", "pairs", "capability", "tile"),
    [
        (jnp.bfloat16, 128, 0, 9.0, (128, 64)),
        (jnp.float32, 128, 0, 9.0, (64, 32)),
        (jnp.float32, 96, 0, 9.0, (64, 32)),
        (jnp.bfloat16, 256, 0, 9.0, (64, 32)),
        (jnp.float32, 512, 0, 9.0, (16, 16)),
        (jnp.bfloat16, 128, 2, 9.0, (64, 64)),
        (jnp.bfloat16, 128, 0, 8.9, (64, 32)),
    ],
)
def test_tiles_of_a_gpu_fit_its_memory(dtype, width, pairs, capability, tile):
    """Smaller where features are wide, where there are float32 arrays for each pair, and on other GPUs."""
    x = jnp.zeros((1, 4, 1, width), dtype)
    bias = functools.reduce(operator.add, [biases.dense(jnp.zeros((1, 300, 300)))] * pairs) if pairs else None
    rules = bind(jnp.zeros((1, 300, 1, 8)), jnp.zeros((1, 300, 1, 8)), bias=bias).call.logits.aligned(1)
    platform = dataclasses.replace(GPU, capability=capability)
    assert chips.tile_of_gpu(4096, 4096, [x, x, x], rules, platform) == tile


def test_64_bits_are_refused():
    with jax.enable_x64(True):
        assert decided().refused["pallas"] == "on a TPU there are no positions in 64 bits, as under jax_enable_x64"
        wide = jax.ShapeDtypeStruct(LONG.shape, jnp.float64)
        assert decided(GPU, wide).refused["pallas"] == "on a GPU it takes float32, bfloat16 and float16"
