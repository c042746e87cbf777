"""Weights in files: names to arrays, with the bits that the file holds. Nothing in a file is ever run.

    x.safetensors             read and written by the safetensors package, without PyTorch
    x.safetensors.index.json  the index of a model in several files, its shards, which lie beside it
    a folder                  the one of these that it holds, as a folder of Hugging Face's does
    x.pt .pth .bin .ckpt      PyTorch's own, read by ``torch.load(weights_only=True)``

Whatever is wrong with a file is one ValueError that names it.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["load", "save", "to_arrays", "to_numpy", "to_tensor"]

BFLOAT16 = np.dtype(jnp.bfloat16)  # NumPy knows it, PyTorch's numpy() does not
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
NUMPY_DTYPES = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64", "C64")
SHOWN = 10  # names in one error

FilePath = str | os.PathLike[str]


def load(path: FilePath) -> dict[str, np.ndarray]:
    """The arrays of a file, by name, each in the dtype that the file gives it.

    Args:
        path: a safetensors file, the index of a sharded one, a folder that holds either, or a file of ``torch.save``
            with a dict of tensors: alone, or as the only one in a dict that holds no other tensors (a checkpoint with
            a ``state_dict`` beside its epoch and optimizer).

    Raises:
        ValueError: if there is no such file, or it is of another kind, damaged, at odds with its index, or would run
            code. The error names the file.
        ImportError: if the package that reads such a file is not installed.

    Example:

        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> save(f"{folder}/model.safetensors", {"weight": np.ones((2, 3), np.float32)})
        >>> load(folder)["weight"].shape
        (2, 3)
    """
    path = Path(path)
    if path.is_dir():
        path = _only_model(path)
    if not path.exists():
        raise ValueError(f"path must be a file or a folder that is there. Got {path}, which is not.")
    return _load_shards(path) if path.name.endswith(".index.json") else _load_file(path)


def save(path: FilePath, entries: Mapping[str, Any], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays to a safetensors file.

    Args:
        path: where to; its name ends in ``.safetensors``. A file that is there is replaced.
        entries: names to arrays (PyTorch's, NumPy's or JAX's).
        metadata: text to keep with them.

    Raises:
        ValueError: if the name or a dtype is not one that safetensors has, the folder is not there, or path is one.
        ImportError: if safetensors is not installed.

    Example:

        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "weights.safetensors"
        >>> save(path, {"weight": jnp.ones((2, 3), jnp.bfloat16)})
        >>> load(path)["weight"].dtype
        dtype(bfloat16)
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, the kind of file that is written. Got {path}.")
    if not path.parent.is_dir():
        raise ValueError(f"path must be in a folder that is there. Got {path}. Make {path.parent} first.")
    if path.is_dir():
        raise ValueError(f"path must be a file's, one to make or to replace. Got {path}, a folder.")
    safetensors = _safetensors(path)
    # In rows: safetensors writes an array's memory as it lies, and a transposed one would come back scrambled.
    rows = {name: np.asarray(array, order="C") for name, array in to_arrays("entries", entries).items()}
    try:
        safetensors.numpy.save_file(rows, path, metadata=None if metadata is None else dict(metadata))
    except (safetensors.SafetensorError, TypeError) as error:
        raise ValueError(f"entries must be what a safetensors file can hold. Got, for {path}: {error}.") from error


def to_arrays(subject: str, entries: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Each entry as a NumPy array with the same bits.

    Raises:
        ValueError: for ``subject``, if entries are not arrays, or not of a kind that NumPy has.
    """
    arrays, problems = {}, []
    for name, entry in entries.items():
        try:
            arrays[name] = to_numpy(entry)
        except (TypeError, ValueError, RuntimeError) as error:
            problems.append(f"{name}: {str(error).splitlines()[0]}")
    if problems:
        raise ValueError(f"{subject} must hold dense arrays of dtypes that NumPy has. Got {_several(problems)}.")
    return arrays


def to_numpy(tensor: Any) -> np.ndarray:
    """A PyTorch tensor, or anything like an array, as a NumPy array with the same bits, bfloat16 included."""
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(BFLOAT16)
    return tensor.numpy()


def to_tensor(array: Any) -> "torch.Tensor":
    """An array as a PyTorch tensor of its own with the same bits, bfloat16 included."""
    import torch

    array = np.array(array, order="C")  # a copy, and in the order that safetensors asks for
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


# ----------------------------------------------------------------------------------------------------------------------
# One file.


def _load_file(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _load_torch(path)
    kinds = ", ".join((".safetensors", ".index.json", *TORCH_SUFFIXES))
    raise ValueError(f"path must end in one of {kinds}. Got {path}.")


def _safetensors(path: Path) -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(f"{path} needs the safetensors package: pip install safetensors") from error
    return safetensors


def _load_safetensors(path: Path) -> dict[str, np.ndarray]:
    safetensors = _safetensors(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            names = file.keys()
            dtypes = {name: file.get_slice(name).get_dtype() for name in names}
            if alien := [f"{name} in {dtype}" for name, dtype in dtypes.items() if dtype not in NUMPY_DTYPES]:
                raise ValueError(f"{path} must hold dtypes that NumPy has. Got {_several(alien)}.")
            return {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise ValueError(f"{path} must be a whole safetensors file. Got {size} bytes: {error}.") from error


def _load_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{path} needs PyTorch: pip install torch. A safetensors file doesn't.") from error
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if version < (2, 6):  # before, a file could run code in spite of weights_only
        raise ValueError(f"{path} must be read by PyTorch 2.6 or later, to be safe. Got PyTorch {torch.__version__}.")
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever a damaged file makes torch raise
        raise ValueError(
            f"{path} must be a whole file of torch.save that holds tensors alone. Got {_reason(error)}, and nothing "
            "of it was run. What to save is module.state_dict(), not module."
        ) from None  # since torch's own message tells how to run it
    return to_arrays(str(path), _tensors(path, content))


def _reason(error: Exception) -> str:
    """What torch found, without its advice to load the file unsafely."""
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"a pickle that calls for {found[1]}"
    if found := re.search(r"Unsupported operand \d+", text):
        return f"something else ({found[0]})"
    return f"{type(error).__name__}: {text.partition('. ')[0][:200]}".rstrip(":. ")


def _tensors(path: Path, content: Any) -> Mapping[str, Any]:
    """The dict of tensors in what a file holds."""
    from torch import Tensor

    def are_tensors(x: Any) -> bool:
        return isinstance(x, Mapping) and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in x.items())

    if are_tensors(content):
        return content
    got = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        inner = [x for x in content.values() if x and are_tensors(x)]
        if len(inner) == 1 and not any(isinstance(x, Tensor) for x in content.values()):
            return inner[0]
        facts = (f"{len(x)} tensors" if are_tensors(x) else type(x).__name__ for x in content.values())
        got = _several([f"{name!r} ({fact})" for name, fact in zip(content, facts, strict=True)])
    raise ValueError(
        f"{path} must hold one dict of tensors, and no tensors beside it. Got {got}. "
        "Read it with torch.load(path, weights_only=True), and give the dict that you mean."
    )


# ----------------------------------------------------------------------------------------------------------------------
# Several files.


def _only_model(folder: Path) -> Path:
    """The file or index in a folder: under Hugging Face's name, or else the only index, or else the only file."""
    named = [folder / name for name in ("model.safetensors", "model.safetensors.index.json")]
    for found in (
        [path for path in named if path.exists()],
        sorted(folder.glob("*.safetensors.index.json")),
        sorted(folder.glob("*.safetensors")),
    ):
        if len(found) == 1:
            return found[0]
        if found:
            names = _several([path.name for path in found])
            raise ValueError(f"{folder} must hold one model. Got {names}. Give the path of one.")
    held = sorted(path.name for path in folder.iterdir())
    own = [name for name in held if name.endswith(TORCH_SUFFIXES)]
    remedy = f" Pass {own[0]} itself: to load_state_dict, or by weights.files.load to from_hugging_face." if own else ""
    raise ValueError(f"{folder} must hold a safetensors file. Got {_several(held) or 'an empty folder'}.{remedy}")


def _load_shards(index: Path) -> dict[str, np.ndarray]:
    """The arrays of all shards, found to be just those that the index names."""
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        shards = sorted({str(shard) for shard in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} must be JSON with a weight_map of names to files. Got {error!r}.") from error
    if outside := [shard for shard in shards if Path(shard).name != shard]:
        raise ValueError(f"{index} must name files beside itself. Got {_several(outside)}.")
    if gone := [shard for shard in shards if not (index.parent / shard).exists()]:
        raise ValueError(f"{index} must name files that are there. Got {_several(gone)}, which are not.")

    arrays: dict[str, np.ndarray] = {}
    problems = []
    for shard in shards:
        held = _load_file(index.parent / shard)
        named = {name for name, file in weight_map.items() if file == shard}
        problems += [f"{name}, which is not in {shard}" for name in sorted(named - held.keys())]
        problems += [
            f"{name} in {shard}, which the index has {f'in {weight_map[name]}' if name in weight_map else 'nowhere'}"
            for name in sorted(held.keys() - named)
        ]
        arrays.update({name: array for name, array in held.items() if name in named})
    if problems:
        raise ValueError(f"{index} must name each tensor of its shards, in the one it is in. Got {_several(problems)}.")
    return arrays


def _several(items: list[str]) -> str:
    rest = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + rest
