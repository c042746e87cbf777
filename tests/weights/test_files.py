"""Weights in files, without PyTorch: every bit comes back, and whatever is wrong with a file is named."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import weights
from jattn.weights.files import load, save

safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed: no files were read")

FLOATS = ("bfloat16", "float16", "float32", "float64")
Entries = dict[str, np.ndarray]


def some(*names: str) -> Entries:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((2, 3)).astype(np.float32) for name in names}


def same(one: Entries, other: Entries) -> None:
    """Names, dtypes, shapes and bits."""
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
        assert one[name].tobytes() == other[name].tobytes()


def refuses(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        load(path)


# ----------------------------------------------------------------------------------------------------------------------
# Bits.


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_bit_comes_back(dtype: str, tmp_path: Path) -> None:
    width = np.dtype(jnp.dtype(dtype)).itemsize
    entries = {
        "random bits": np.random.default_rng(0).bytes(60 * width),
        "every pattern of two bytes": np.arange(2**16, dtype=np.uint16).tobytes(),
    }
    given = {name: np.frombuffer(bits, jnp.dtype(dtype)).reshape(4, -1) for name, bits in entries.items()}
    save(tmp_path / "a.safetensors", given)
    same(load(tmp_path / "a.safetensors"), given)


@pytest.mark.parametrize("dtype", FLOATS)
def test_arrays_of_any_layout(dtype: str, tmp_path: Path) -> None:
    x = np.arange(24).reshape(2, 3, 4).astype(jnp.dtype(dtype))
    given = {
        "transposed": x.T,
        "every other": x[:, ::2, ::-1],
        "scalar": x[0, 0, 0],
        "empty": x[:0],
        "read only": np.broadcast_to(x[0, 0], (3, 4)),
    }
    save(tmp_path / "a.safetensors", given)
    same(load(str(tmp_path / "a.safetensors")), {name: np.array(a, order="C") for name, a in given.items()})


def test_what_was_read_does_not_hang_on_the_file(tmp_path: Path) -> None:
    path, given = tmp_path / "a.safetensors", some("a")
    save(path, given)
    loaded = load(path)
    path.write_bytes(bytes(path.stat().st_size))
    same(loaded, given)


def test_metadata(tmp_path: Path) -> None:
    from safetensors import safe_open

    save(tmp_path / "a.safetensors", some("a"), metadata={"of": "mine"})
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        assert file.metadata() == {"of": "mine"}


def test_no_torch_is_needed(tmp_path: Path) -> None:
    """A module there and back, in bfloat16, where importing torch fails."""
    program = f"""
import sys
sys.modules["torch"] = None
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jattn import nn, weights

def module(seed):
    return nn.TransformerBlock(2, 4, 6, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(seed))

def leaves(module):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(nnx.state(module, nnx.Param))]

one, other = module(0), module(1)
weights.save(one, {str(tmp_path / "a.safetensors")!r})
assert leaves(other) != leaves(one)
weights.load_state_dict(other, {str(tmp_path / "a.safetensors")!r})
assert leaves(other) == leaves(one)
assert {{x.dtype for x in jax.tree.leaves(nnx.state(other, nnx.Param))}} == {{jnp.dtype(jnp.bfloat16)}}
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


# ----------------------------------------------------------------------------------------------------------------------
# Several files, and folders.


def write_shards(folder: Path, shards: dict[str, Entries], weight_map: dict[str, str] | None = None) -> Path:
    for shard, entries in shards.items():
        save(folder / shard, entries)
    weight_map = weight_map or {name: shard for shard, entries in shards.items() for name in entries}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_shards(tmp_path: Path) -> None:
    entries = some("a", "b", "c")
    index = write_shards(
        tmp_path, {"1.safetensors": {"a": entries["a"], "c": entries["c"]}, "2.safetensors": {"b": entries["b"]}}
    )
    same(load(index), entries)
    same(load(tmp_path), entries)


def test_an_index_at_odds_with_its_shards(tmp_path: Path) -> None:
    shards = {"1.safetensors": some("a", "b"), "2.safetensors": some("b", "c", "d")}
    weight_map = {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors", "e": "2.safetensors"}
    index = write_shards(tmp_path, shards, weight_map)
    refuses(
        index,
        f"{index} must name each tensor of its shards, in the one it is in. Got c, which is not in 1.safetensors, "
        "b in 1.safetensors, which the index has in 2.safetensors, e, which is not in 2.safetensors, "
        "c in 2.safetensors, which the index has in 1.safetensors, d in 2.safetensors, which the index has nowhere.",
    )


def test_an_index_of_what_is_not_there(tmp_path: Path) -> None:
    index = write_shards(tmp_path, {"1.safetensors": some("a")}, {"a": "1.safetensors", "b": "2.safetensors"})
    refuses(index, f"{index} must name files that are there. Got 2.safetensors, which are not.")


@pytest.mark.parametrize("shard", ["../a.safetensors", "/etc/a.safetensors"])
def test_an_index_stays_in_its_folder(shard: str, tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", some("a"))
    (tmp_path / "inner").mkdir()
    index = write_shards(tmp_path / "inner", {}, {"a": shard})
    refuses(index, f"{index} must name files beside itself. Got {shard}.")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": ["a"]}', "\x00\xff"])
def test_an_index_that_is_none(text: str, tmp_path: Path) -> None:
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(text)
    refuses(index, f"{index} must be JSON with a weight_map of names to files. Got ")


def test_folders(tmp_path: Path) -> None:
    refuses(tmp_path, f"{tmp_path} must hold a safetensors file. Got an empty folder.")
    (tmp_path / "config.json").touch()
    refuses(tmp_path, f"{tmp_path} must hold a safetensors file. Got config.json.")
    (tmp_path / "pytorch_model.bin").touch()
    refuses(
        tmp_path,
        f"{tmp_path} must hold a safetensors file. Got config.json, pytorch_model.bin. "
        "Pass pytorch_model.bin itself: to load_state_dict, or by weights.files.load to from_hugging_face.",
    )
    save(tmp_path / "one.safetensors", some("one"))
    same(load(tmp_path), some("one"))
    save(tmp_path / "two.safetensors", some("two"))
    refuses(
        tmp_path,
        f"{tmp_path} must hold one model. Got one.safetensors, two.safetensors. Give the path of one.",
    )
    save(tmp_path / "model.safetensors", some("model"))  # Hugging Face's name
    same(load(tmp_path), some("model"))
    write_shards(tmp_path, {"1.safetensors": some("a")})
    refuses(tmp_path, f"{tmp_path} must hold one model. Got model.safetensors, model.safetensors.index.json.")


# ----------------------------------------------------------------------------------------------------------------------
# Errors.


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    refuses(path, f"path must be a file or a folder that is there. Got {path}, which is not.")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.touch()
    refuses(path, f"path must end in one of .safetensors, .index.json, .pt, .pth, .bin, .ckpt. Got {path}.")


def halved(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


@pytest.mark.parametrize(
    "damage", [halved, lambda whole: b"", lambda whole: whole[:-1], lambda whole: whole + b"x", lambda whole: b"x" * 99]
)
def test_a_damaged_file(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, some("a", "b"))
    path.write_bytes(damage(path.read_bytes()))
    refuses(path, f"{path} must be a whole safetensors file. Got {path.stat().st_size} bytes: ")


def test_dtypes_that_numpy_lacks(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"xx")
    refuses(path, f"{path} must hold dtypes that NumPy has. Got a in F8_E4M3.")


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.mkdir()
    with pytest.raises(ValueError, match=re.escape(f"path must be a file's, one to make or to replace. Got {path}, a")):
        save(path, some("a"))


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("a.pt", {}, "path must end in .safetensors, the kind of file that is written. Got "),
        ("no/a.safetensors", {}, "path must be in a folder that is there. Got "),
        ("a.safetensors", {"a": np.ones(2, complex)}, "entries must be what a safetensors file can hold. Got, for "),
        ("a.safetensors", {"a": "text"}, "entries must be what a safetensors file can hold. Got, for "),
    ],
)
def test_what_cannot_be_written(name: str, entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        save(tmp_path / name, entries)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("missing", ["safetensors", "torch"])
def test_a_package_that_is_not_there(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / {"safetensors": "a.safetensors", "torch": "a.pt"}[missing]
    path.touch()
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "safetensors.numpy", raising=False)
    with pytest.raises(ImportError, match=f"^{re.escape(str(path))} needs .*pip install {missing}"):
        load(path)


# ----------------------------------------------------------------------------------------------------------------------
# Modules from files.


def linear(seed: int, dtype: Any = jnp.float32) -> nnx.Linear:
    return nnx.Linear(3, 2, param_dtype=dtype, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(seed))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", [str, Path])
def test_a_module_there_and_back(dtype: str, kind: type, tmp_path: Path) -> None:
    with jax.enable_x64(dtype == "float64"):
        module, path = linear(0, dtype), kind(tmp_path / "a.safetensors")
        weights.save(module, path)
        back = weights.load_state_dict(linear(1), path)
        same(load(path), {"weight": np.asarray(module.kernel[...]).T, "bias": np.asarray(module.bias[...])})
        same(*({k: np.asarray(v[...]) for k, v in (("kernel", m.kernel), ("bias", m.bias))} for m in (module, back)))
        weights.save(back, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, some("weight"))
    message = f"{path} must fit this Linear, entry for entry.\n  missing: bias, shape (2,)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        weights.load_state_dict(linear(0), path)


def test_float64_in_a_file_needs_x64(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, {"weight": np.ones((2, 3)), "bias": np.ones(2)})
    with pytest.raises(ValueError, match="float64: weight would lose digits"):
        weights.load_state_dict(linear(0), path)


def test_no_state_dict_at_all(unchecked: None) -> None:
    message = "state_dict must be a mapping of names to tensors, or a path. Got Linear."
    with pytest.raises(ValueError, match=re.escape(message)):
        weights.load_state_dict(linear(0), linear(1))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "call", [weights.state_dict, lambda module: weights.load_state_dict(module, {})], ids=["out", "in"]
)
def test_no_module_at_all(call: Callable[[Any], Any]) -> None:
    class Other:
        """Not Flax's: PyTorch's, say, with the arguments the wrong way round."""

    with pytest.raises(ValueError, match=r"^module must be a flax\.nnx\.Module\. Got Other\.$"):
        call(Other())
