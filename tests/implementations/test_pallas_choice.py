"""Where the kernels are chosen, and what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jattn import biases, scores
from jattn._engine.platform import CPU, platforms
from jattn.bound import bind
from jattn.implementations import choice

TPU, GPU = (dataclasses.replace(platforms(alone=True)[name], is_known=True) for name in ("tpu", "cuda"))
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
            "a formula looks up an array, or loops (gather)",
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
            "a formula looks up an array, or loops (slice)",
            {"platform": GPU, "bias": biases.where(lambda q, k, a: a[1] * (q - k), a=jnp.ones(2))},
        ),
        (
            "on a GPU, axes of an array's own have lengths that are powers of 2",
            {"platform": GPU, "bias": biases.relative(jnp.ones((12, 2)), max_distance=20)},
        ),
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
        said = decided(GPU)
        assert said.implementation == "streaming"
        assert "pallas" not in said.refused


def test_64_bits_are_refused():
    with jax.enable_x64(True):
        assert decided().refused["pallas"] == "on a TPU there are no positions in 64 bits, as under jax_enable_x64"
        wide = jax.ShapeDtypeStruct(LONG.shape, jnp.float64)
        assert decided(GPU, wide).refused["pallas"] == "on a GPU it takes float32, bfloat16 and float16"
