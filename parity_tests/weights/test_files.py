"""PyTorch's own files, read without running them; and safetensors files that either side wrote."""

import os
import pickle
import re
import traceback
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from flax import nnx

from jattn import weights
from jattn.weights.files import load, save, to_numpy

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Every pattern of two bytes, among others, in memory of several layouts."""
    patterns = torch.from_numpy(np.arange(-(2**15), 2**15, dtype=np.int16)).view(dtype)
    x = torch.arange(24).reshape(2, 3, 4).to(dtype)
    return {
        "patterns": patterns,
        "transposed": x.transpose(0, 2),
        "part": x[:, 1],
        "scalar": x[0, 0, 1],
        "empty": x[:0],
    }


def same(arrays: dict[str, np.ndarray], wanted: dict[str, torch.Tensor]) -> None:
    """Names, dtypes, shapes and bits."""
    assert arrays.keys() == wanted.keys()
    for name, tensor in wanted.items():
        array, true = arrays[name], to_numpy(tensor)
        assert (array.dtype, array.shape, array.tobytes()) == (true.dtype, tuple(tensor.shape), true.tobytes())


def refuses(path: Path, message: str) -> None:
    """With one error that gives none of torch's advice to read the file unsafely."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        load(path)
    assert "weights_only` set to `False`" not in "".join(traceback.format_exception(error.value))


# ----------------------------------------------------------------------------------------------------------------------
# Bits.


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(dtype: torch.dtype, suffix: str, zipped: bool, tmp_path: Path) -> None:
    path, given = tmp_path / f"a{suffix}", tensors(dtype)
    torch.save(given, path, _use_new_zipfile_serialization=zipped)
    same(load(path), given)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_safetensors_files_of_either_side(dtype: torch.dtype, tmp_path: Path) -> None:
    given = {name: tensor.contiguous() for name, tensor in tensors(dtype).items()}
    safetensors.torch.save_file(given, tmp_path / "theirs.safetensors")
    same(load(tmp_path / "theirs.safetensors"), given)
    save(tmp_path / "ours.safetensors", tensors(dtype))  # tensors of any layout
    back = safetensors.torch.load_file(tmp_path / "ours.safetensors")
    same({name: to_numpy(tensor) for name, tensor in back.items()}, given)


def test_parameters_and_integers(tmp_path: Path) -> None:
    given = OrderedDict(weight=torch.nn.Parameter(torch.ones(2, 3)), steps=torch.tensor(7))
    torch.save(given, tmp_path / "a.pt")
    same(load(tmp_path / "a.pt"), {"weight": given["weight"].detach(), "steps": given["steps"]})


def test_shards_of_hugging_face(tmp_path: Path) -> None:
    """What `save_pretrained` writes in several files, and the same in PyTorch's."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: its shards were not read")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=10
    )
    model = transformers.BertModel(config)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    same(load(tmp_path), model.state_dict())


# ----------------------------------------------------------------------------------------------------------------------
# Nothing is run.


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "zip": lambda content, path: torch.save(content, path),
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle, protocol 2": lambda content, path: path.write_bytes(pickle.dumps(content, 2)),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content)),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("forced", ["0", "1"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_code_is_not_run(
    write: Callable[[Any, Path], None], forced: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the environment asks PyTorch to trust all files."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    path, marker = tmp_path / "a.pt", tmp_path / "it ran"
    write({"weight": torch.ones(2, 3), "payload": Payload(marker)}, path)
    refuses(path, f"{path} must be a whole file of torch.save that holds tensors alone. Got ")
    module = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="nothing of it was run"):
        weights.load_state_dict(module, path)
    assert not marker.exists()

    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # so it would have


def test_what_the_code_would_have_been(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"payload": Payload(tmp_path / "it ran")}, path)
    refuses(
        path,
        f"{path} must be a whole file of torch.save that holds tensors alone. Got a pickle that calls for "
        f"{os.system.__module__}.system, and nothing of it was run. What to save is module.state_dict(), not module.",
    )
    torch.save(torch.nn.Linear(2, 3), path)
    refuses(
        path,
        f"{path} must be a whole file of torch.save that holds tensors alone. Got a pickle that calls for "
        "torch.nn.modules.linear.Linear, and nothing of it was run.",
    )


def test_an_unsafe_version_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    torch.save({"weight": torch.ones(1)}, path)
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    refuses(path, f"{path} must be read by PyTorch 2.6 or later, to be safe. Got PyTorch 2.5.1+cpu.")


# ----------------------------------------------------------------------------------------------------------------------
# What a torch file holds.


@pytest.mark.parametrize("name", ["state_dict", "model", "anything"])
def test_the_only_state_dict_in_a_checkpoint(name: str, tmp_path: Path) -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    checkpoint = {"epoch": 3, name: tensors(), "optimizer": optimizer.state_dict(), "hyper_parameters": {"lr": 0.1}}
    torch.save(checkpoint, tmp_path / "a.ckpt")
    same(load(tmp_path / "a.ckpt"), tensors())


ONE = {"weight": torch.ones(1)}
REST = ". Read it with torch.load(path, weights_only=True), and give the dict that you mean."


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({"model": ONE, "ema": ONE, "epoch": 3}, "'model' (1 tensors), 'ema' (1 tensors), 'epoch' (int)"),
        ({"model": ONE, "scale": torch.ones(1)}, "'model' (1 tensors), 'scale' (Tensor)"),
        ({**ONE, "_extra_state": None}, "'weight' (Tensor), '_extra_state' (NoneType)"),
        ({"a": {"b": ONE}}, "'a' (dict)"),
        ({0: torch.ones(1)}, "0 (Tensor)"),
        ({str(i): i for i in range(12)}, ", ".join(f"'{i}' (int)" for i in range(10)) + " and 2 more"),
        ([torch.ones(1)], "a list"),
        (torch.ones(1), "a Tensor"),
    ],
)
def test_no_one_dict_of_tensors(content: Any, got: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(content, path)
    refuses(path, f"{path} must hold one dict of tensors, and no tensors beside it. Got {got}{REST}")


@pytest.mark.parametrize("tensor", [torch.eye(3).to_sparse(), torch.ones(3).to(torch.float8_e4m3fn)])
def test_tensors_that_numpy_lacks(tensor: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({**ONE, "other": tensor}, path)
    refuses(path, f"{path} must hold dense arrays of dtypes that NumPy has. Got other: ")
    with pytest.raises(ValueError, match=r"^state_dict must hold dense arrays of dtypes that NumPy has\. Got weight: "):
        weights.load_state_dict(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), {"weight": tensor})


def halved(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("damage", [halved, lambda whole: b"", lambda whole: whole[:-1], lambda whole: b"x" * 99])
def test_a_damaged_file(damage: Callable[[bytes], bytes], zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(tensors(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(damage(path.read_bytes()))
    refuses(path, f"{path} must be a whole file of torch.save that holds tensors alone. Got ")


# ----------------------------------------------------------------------------------------------------------------------
# A module through a file.


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_torch_module_through_files(dtype: torch.dtype, tmp_path: Path) -> None:
    """From a file of torch.save into jattn, from there into safetensors, and back into PyTorch: the same output."""
    theirs, other = (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).to(dtype) for _ in range(2))
    torch.nn.init.normal_(theirs[1].weight)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    ours = nnx.List([nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.LayerNorm(4, rngs=nnx.Rngs(0))])
    with jax.enable_x64(dtype == torch.float64):
        weights.load_state_dict(ours, tmp_path / "theirs.pt")
        weights.save(ours, tmp_path / "ours.safetensors")
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "ours.safetensors"), strict=True)
    x = torch.randn(2, 3, dtype=dtype)
    assert torch.equal(other(x), theirs(x))
    same(load(tmp_path / "ours.safetensors"), theirs.state_dict())
