"""What is exported runs in a process with neither jattn nor Flax, and gives the same numbers."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn
from jattn import biases, decoding, masks, models, nn, portable

pytestmark = pytest.mark.usefixtures("unchecked")  # jaxtyping can't compare symbols

PAGE = Path(__file__).parents[2] / "docs" / "portable_programs.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
ALONE = Path(__file__).with_name("alone.py")

CALL = """
import pathlib
import jax, numpy, safetensors.numpy

program = jax.export.deserialize(pathlib.Path("made/forward.jax").read_bytes())
inputs, file = dict(numpy.load("inputs.npz")), pathlib.Path("made/parameters.safetensors")
if file.exists():
    inputs["parameters"] = safetensors.numpy.load_file(file)
numpy.save("output.npy", program.call(**inputs))
print(*program.platforms)
"""


def run_alone(folder: Path, program: str, *, x64: bool = False) -> str:
    """What a program prints in a process without jattn and Flax, in a folder."""
    (folder / "program.py").write_text(program)
    environment = {**os.environ, "JAX_ENABLE_X64": str(int(x64))}
    command = [sys.executable, str(ALONE), "program.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert not done.returncode, done.stderr
    return done.stdout


def test_nothing_of_jattn_can_be_imported_there(tmp_path):
    program = "try:\n    import {}\nexcept ImportError as error:\n    print(error)\n"
    assert run_alone(tmp_path, program.format("jattn")) == "jattn is not here\n"
    assert run_alone(tmp_path, program.format("flax.nnx")) == "flax is not here\n"


class Case(NamedTuple):
    make: Callable[[], Any]
    arguments: dict[str, str]


def attend(query, key, value, lens, table):
    return jattn.attention(
        *(query, key, value),
        mask=masks.causal() & masks.lengths(lens),
        bias=biases.alibi(4) + biases.relative(table),
        logits_soft_cap=3.0,
    )


def drawn(module: Any) -> Any:
    """In eval mode, with parameters that are none of the initial zeros and ones."""
    rng = np.random.default_rng(0)
    nnx.update(module, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), nnx.state(module)))
    module.eval()
    return module


def llama(**types: Any) -> models.Llama:
    sizes: dict[str, Any] = dict(vocab_size=11, features=8, num_heads=4, num_kv_heads=2, num_layers=2)
    return drawn(models.Llama(**sizes, feedforward_features=12, rngs=nnx.Rngs(0), **types))


HEADS = {"query": "float[b,t,4,8]", "key": "float[b,s,2,8]", "value": "float[b,s,2,6]"}
CASES = {
    "attention": Case(lambda: attend, {**HEADS, "lens": "int32[b]", "table": "float[16,4]"}),
    "block": Case(
        lambda: drawn(nn.TransformerBlock(2, 8, 12, causal=True, param_dtype=float, rngs=nnx.Rngs(0))),
        {"x": "float[b,t,8]"},
    ),
    "Llama": Case(lambda: llama(param_dtype=float), {"tokens": "int32[b,t]"}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_forward(case, x64, tmp_path):
    f = case.make()
    portable.export(f, tmp_path / "made", case.arguments)
    rng, sizes, inputs = np.random.default_rng(1), {"b": 3, "t": 5, "s": 7}, {}
    for name, text in case.arguments.items():
        dtype, shape = text[:-1].split("[")
        shape = [sizes.get(n) or int(n) for n in shape.split(",")]
        inputs[name] = jnp.asarray(rng.integers(1, 6, shape) if dtype == "int32" else rng.normal(size=shape), dtype)
    np.savez(tmp_path / "inputs.npz", **inputs)
    assert run_alone(tmp_path, CALL, x64=True) == "cpu cuda tpu\n"
    output = np.load(tmp_path / "output.npy")
    assert output.dtype == np.float64
    np.testing.assert_allclose(output, f(**inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.whole
def test_the_page(tmp_path, monkeypatch):
    """Its commands run in their order, and the process that serves chooses the tokens of `decoding.generate`."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    prompts, lens = jnp.array([[1, 2, 3], [4, 5, 0]]), jnp.array([3, 2])
    tokens = decoding.generate(names["model"], prompts, lens, max_new_tokens=5).tokens
    assert run_alone(tmp_path, BLOCKS[1]) == f"{tokens.tolist()}\n"
    for block in BLOCKS[2:]:
        if "jax2onnx" not in block or importlib.util.find_spec("jax2onnx"):
            exec(block, names)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"gpt2", "attention", "block", "fixed"}
    assert {path.name for path in Path("fixed").iterdir()} == {"forward.jax", "forward.mlirbc", "manifest.json"}


@pytest.mark.whole
def test_llama_decodes(x64, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = llama(param_dtype=jnp.float64)
    model.export("gpt2", room=9)  # by the name on the page
    prompts, lens = jnp.array([[1, 2, 3], [4, 5, 0]], jnp.int32), jnp.array([3, 2], jnp.int32)
    tokens = decoding.generate(model, prompts, lens, max_new_tokens=5).tokens
    assert len(set(np.asarray(tokens).ravel().tolist())) > 2
    cast = BLOCKS[1].replace("0]])", "0]], jnp.int32)").replace(", 2])", ", 2], jnp.int32)")
    cast = cast.replace("axis=-1)", "axis=-1).astype(jnp.int32)")
    assert run_alone(tmp_path, cast, x64=True) == f"{tokens.tolist()}\n"
