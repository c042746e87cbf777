"""The folder of a model's programs."""

import importlib.util
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jattn.portable.plain import array_names
from jattn.portable.shapes import written
from jattn.weights import files

__all__ = ["check_parameters_can_be_saved", "checked_path", "write"]


def checked_path(path: str | Path) -> Path:
    """The path of a folder that can be made; raises before anything is computed."""
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise ValueError(f"path must be of a folder to make. Got {path}, which is there. Remove it, or name another.")
    nearest = next(folder for folder in path.absolute().parents if folder.exists() or folder.is_symlink())
    if not nearest.is_dir():
        raise ValueError(f"path must lie in a folder. Got {path}, and {nearest} is none. Name another.")
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError(f"{path} needs the flatbuffers package, which jax.export saves with: pip install flatbuffers")
    return path


def check_parameters_can_be_saved(path: Path) -> None:
    """Raise ImportError unless safetensors is there, for a file of parameters."""
    if importlib.util.find_spec("safetensors") is None:
        raise ImportError(
            f"{path} needs the safetensors package, which saves parameters: pip install safetensors, or pass "
            "parameters_inside=True"
        )


def write(
    path: Path,
    exported: Mapping[str, jax.export.Exported],
    constraints: Mapping[str, Sequence[str]],
    parameters: Mapping[str, Any],
    room: int | None,
) -> None:
    """A file for JAX and one of StableHLO for each program, the parameters, and what is called how."""
    contents = {f"{name}.jax": bytes(program.serialize()) for name, program in exported.items()}
    contents |= {f"{name}.mlirbc": program.mlir_module_serialized for name, program in exported.items()}
    contents["manifest.json"] = json.dumps(_manifest(exported, constraints, room), indent=1).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as beside:
        whole = Path(beside) / path.name  # of the usual rights, which a temporary folder has not
        whole.mkdir()
        for name, content in contents.items():
            (whole / name).write_bytes(content)
        if parameters:
            files.save(whole / "parameters.safetensors", parameters)
        whole.rename(path)


def _manifest(
    exported: Mapping[str, jax.export.Exported], constraints: Mapping[str, Sequence[str]], room: int | None
) -> dict[str, Any]:
    first = next(iter(exported.values()))
    return {
        "jax": jax.__version__,
        "platforms": list(first.platforms),
        "room": room,
        "programs": {
            name: {
                "constraints": list(constraints[name]),
                "arguments": _array_entries(jax.tree.unflatten(program.in_tree, program.in_avals)[1]),
                "results": _array_entries(jax.tree.unflatten(program.out_tree, program.out_avals)),
            }
            for name, program in exported.items()
        },
    }


def _array_entries(arrays: Any) -> list[dict[str, Any]]:
    """In the order in which a program has them."""
    return [
        {"name": name, "dtype": str(x.dtype), "shape": written(x.shape)}
        for name, x in zip(array_names(arrays), jax.tree.leaves(arrays), strict=True)
    ]
