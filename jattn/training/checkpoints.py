"""Where a run of `jattn.training.fit` keeps what it needs to go on: the last two epochs, written by orbax.

Orbax writes into a temporary folder and renames it, so a killed run leaves no half-written checkpoint behind. A
checksum of all numbers tells whether what comes back is what was saved.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Arrays = dict[str, dict[str, np.ndarray]]  # by group and name


class CheckpointError(ValueError):
    """A folder's checkpoints cannot be used for this run."""


class Checkpoints:
    """The checkpoints of one run in a folder, which is made if it is not there. Close it in the end.

    Args:
        folder: where they are.
        settings: what must be the same in the run that wrote them, by name.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        import orbax.checkpoint as ocp  # takes a second, so only where it is needed

        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._args, self._folder, self._settings = ocp.args, folder.absolute(), settings
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except OSError as error:
            message = f"checkpoints must be a folder that can be written to. Got {folder}: {error}."
            raise CheckpointError(message) from error
        strange = [epoch for epoch in self._manager.all_steps() if not (self._folder / str(epoch) / "about").exists()]
        if strange:
            raise CheckpointError(
                f"checkpoints must be a folder of jattn's own. Got {folder}, with checkpoints {strange} of another "
                "program. Give another folder."
            )

    def save(self, epoch: int, arrays: Arrays, numbers: dict[str, Any]) -> None:
        """Write what there is after ``epoch`` epochs."""
        kept = {group: {name: x for name, x in named.items() if x.size} for group, named in arrays.items()}
        kept = {group: named for group, named in kept.items() if named}  # orbax takes no empty arrays
        about = {"settings": self._settings, "numbers": numbers, "checksum": checksum(kept)}
        args = self._args.Composite(arrays=self._args.StandardSave(kept), about=self._args.JsonSave(about))
        if epoch in self._manager.all_steps():  # a damaged one, which was passed over
            self._manager.delete(epoch)
        self._manager.save(epoch, args=args, force=True)

    def restore(self) -> tuple[Arrays, dict[str, Any]] | None:
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
        differ = [name for name, value in self._settings.items() if settings.get(name) != value]
        if differ:
            was = ", ".join(f"{name} = {settings.get(name)!r}" for name in differ)
            now = ", ".join(f"{name} = {self._settings[name]!r}" for name in differ)
            raise CheckpointError(
                f"checkpoints must be of this run. Got a folder written with {was}; now {now}. "
                "Give another folder, or the same arguments."
            )


def to_arrays(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree as they can be saved, by number."""
    return {str(i): _to_numpy(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def with_arrays(tree: Any, saved: dict[str, np.ndarray]) -> Any:
    """The tree with other leaves: what `to_arrays` gave.

    Raises:
        CheckpointError: if it was given another tree.
    """
    leaves = jax.tree.leaves(tree)
    shapes = {name: (x.shape, x.dtype) for name, x in to_arrays(tree).items() if x.size}
    saved_shapes = {name: (x.shape, x.dtype) for name, x in saved.items()}
    if shapes != saved_shapes:
        raise CheckpointError(
            f"checkpoints must be of this model and optimizer. Got a folder with {len(saved_shapes)} arrays where "
            f"there are {len(shapes)} now, or arrays of other shapes or types. Give another folder, or the model and "
            "optimizer of then."
        )
    return jax.tree.unflatten(
        jax.tree.structure(tree), [_from_numpy(saved.get(str(i)), leaf) for i, leaf in enumerate(leaves)]
    )


def _to_numpy(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if _is_key(x) else x)


def _from_numpy(x: np.ndarray | None, leaf: Any) -> Any:
    if x is None:  # it was empty
        return leaf
    return jax.random.wrap_key_data(jnp.array(x), impl=jax.random.key_impl(leaf)) if _is_key(leaf) else jnp.array(x)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def checksum(arrays: Arrays) -> str:
    """Equal for equal names, shapes, types and bits."""
    digest = hashlib.sha256()
    for group, named in sorted(arrays.items()):
        for name, x in sorted(named.items()):
            x = np.ascontiguousarray(x)
            digest.update(f"{group} {name} {x.dtype} {x.shape}".encode())
            digest.update(x.tobytes())
    return digest.hexdigest()
