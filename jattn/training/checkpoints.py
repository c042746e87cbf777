"""Where a run of `jattn.training.fit` keeps what it needs to go on: the last two epochs, written by orbax.

Orbax writes into a temporary folder and renames it, so a killed run leaves no half-written checkpoint behind. A
checksum of all numbers tells whether what comes back is what was saved. A run that is killed while it deletes an old
checkpoint leaves a part of it, which is passed over.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

__all__ = ["CheckpointError", "Checkpoints", "SavedArrays", "checksum", "numbered_leaves", "with_leaves"]

SavedArrays = dict[str, dict[str, np.ndarray]]  # by group and name


class CheckpointError(ValueError):
    """A folder's checkpoints cannot be used for this run."""


class Checkpoints:
    """The checkpoints of one run in a folder, which is made if it is not there. Close it in the end.

    Args:
        folder: where they are.
        settings: what must be the same in the run that wrote them, by name.

    Raises:
        CheckpointError: if the folder cannot be written to, or is another program's, where nothing is changed.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        import orbax.checkpoint as ocp  # takes a second, so only where it is needed

        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._args, self._folder, self._settings = ocp.args, folder.absolute(), settings
        try:
            _make_own(self._folder)
        except OSError as error:
            message = f"checkpoints must be a folder that can be written to. Got {folder}: {error}."
            raise CheckpointError(message) from error
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, epoch: int, arrays: SavedArrays, numbers: dict[str, Any]) -> None:
        """Write what there is after ``epoch`` epochs."""
        kept = {group: {name: x for name, x in named.items() if x.size} for group, named in arrays.items()}
        kept = {group: named for group, named in kept.items() if named}  # orbax takes no empty arrays
        about = {"settings": self._settings, "numbers": numbers, "checksum": checksum(kept)}
        args = self._args.Composite(arrays=self._args.StandardSave(kept), about=self._args.JsonSave(about))
        if epoch in self._manager.all_steps():  # a damaged one, which was passed over
            self._manager.delete(epoch)
        self._manager.save(epoch, args=args, force=True)

    def restore(self) -> tuple[SavedArrays, dict[str, Any]] | None:
        """What the last sound checkpoint holds; None if there is none at all. Nothing is deleted.

        Raises:
            CheckpointError: if all are damaged, or were written with other settings.
        """
        epochs = sorted(self._manager.all_steps(), reverse=True)
        for epoch in epochs:
            try:
                args = self._args.Composite(arrays=self._args.StandardRestore(), about=self._args.JsonRestore())
                saved = self._manager.restore(epoch, args=args)
                arrays, about = saved["arrays"], saved["about"]
                if checksum(arrays) != about["checksum"]:
                    raise ValueError("its numbers are not those that were saved")
            except Exception as error:  # whatever a damaged file makes orbax raise
                reason = str(error).split("\n")[0][:200]
                warnings.warn(f"The checkpoint {self._folder / str(epoch)} cannot be read: {reason}.", stacklevel=3)
                continue
            self._check(about["settings"])
            return arrays, about["numbers"]
        if epochs:
            raise CheckpointError(
                f"checkpoints must hold at least one that can be read. Got {len(epochs)} that cannot, in "
                f"{self._folder}. Give another folder to start anew."
            )
        return None

    def close(self) -> None:
        """Let orbax go."""
        self._manager.close()

    def _check(self, settings: dict[str, Any]) -> None:
        differences = [
            _DIFFERENCES.get(name) or f"{name} was {settings.get(name)!r} and is {value!r}"
            for name, value in self._settings.items()
            if settings.get(name) != value
        ]
        if differences:
            raise CheckpointError(
                f"checkpoints must be of this run. Got {self._folder}, of another: {'; '.join(differences)}. Give "
                "another folder to start anew."
            )


_DIFFERENCES = {  # of settings that are checksums
    "data": "train or validation is not as it was",
    "model": "the model is not as it was when the run began (make it anew, as a new process does)",
    "optimizer": "the optimizer's first state is not as it was, from another optimizer or learning rate",
}


def _make_own(folder: Path) -> None:
    """Make the folder and mark it as jattn's; then numbered folders in it may be incomplete, and be deleted."""
    mark = folder / "jattn_checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    orbax = [path for path in sorted(folder.iterdir()) if path.name.isdigit() or ".orbax-checkpoint-tmp" in path.name]
    strange = [path.name for path in orbax if not (mark.is_file() and path.is_dir())]
    if strange:
        raise CheckpointError(
            f"checkpoints must be a folder of jattn's own. Got {folder}, with {', '.join(strange[:5])} of another "
            "program. Give another folder."
        )
    mark.touch()


def numbered_leaves(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree as they can be saved, by number."""
    return {str(i): _to_numpy(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def with_leaves(tree: Any, saved: dict[str, np.ndarray]) -> Any:
    """The tree with other leaves: what `numbered_leaves` gave for one whose leaves had these shapes and dtypes."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [_from_numpy(saved.get(str(i)), leaf) for i, leaf in enumerate(leaves)])


def _to_numpy(x: Any) -> np.ndarray:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:  # other processes have the rest
        x = jax.device_put(x, NamedSharding(x.sharding.mesh, PartitionSpec()))  # type: ignore[attr-defined]
    return np.asarray(jax.random.key_data(x) if _is_key(x) else x)


def _from_numpy(x: np.ndarray | None, leaf: Any) -> Any:
    if x is None:  # it was empty
        return leaf
    return jax.random.wrap_key_data(jnp.array(x), impl=jax.random.key_impl(leaf)) if _is_key(leaf) else jnp.array(x)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def checksum(arrays: SavedArrays) -> str:
    """Equal for equal names, shapes, types and bits."""
    digest = hashlib.sha256()
    for group, named in sorted(arrays.items()):
        for name, x in sorted(named.items()):
            x = np.ascontiguousarray(x)
            digest.update(f"{group} {name} {x.dtype} {x.shape}".encode())
            digest.update(x.tobytes())
    return digest.hexdigest()
