"""What `jattn.training.fit` is told beside its model and its data, as one value."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optax
from jax.sharding import Mesh

from jattn import sharding
from jattn._engine import checks
from jattn.training import arguments
from jattn.training.optimizers import clip_grad_norm
from jattn.training.schedules import ReduceLROnPlateau
from jattn.training.steps import Loss, Metric

__all__ = ["Settings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `fit`, which says what they mean; first as they are given, then `checked`."""

    loss: Loss
    optimizer: optax.GradientTransformation
    epochs: int
    batch_size: int
    seed: int
    shuffle: bool
    drop_last: bool
    metrics: Mapping[str, Metric] | None
    clip_norm: float | None
    plateau: ReduceLROnPlateau | None
    patience: int | None
    nonfinite: str
    wrt: Any
    checkpoints: str | Path | None
    progress: bool
    mesh: Mesh | None
    rules: str | sharding.Rules | None
    accumulate: int
    remat: str | None

    def checked(self, n: int, *, validates: bool) -> "Settings":
        """The same for ``n`` examples, found to be what they must be.

        No metrics are then an empty dict, the optimiser clips, and wrt is a predicate.
        """
        epochs = checks.number("epochs", self.epochs, "[1, inf)", integer=True)
        batch_size = checks.number("batch_size", self.batch_size, "[1, inf)", integer=True)
        seed = checks.number("seed", self.seed, "[0, 4294967296)", integer=True)  # JAX would cut off what is above
        for name in ("shuffle", "drop_last", "progress"):
            checks.flag(name, getattr(self, name))
        if self.drop_last and batch_size > n:
            raise ValueError(f"batch_size must be at most the {n} examples when drop_last=True. Got {batch_size}.")
        metrics = {} if self.metrics is None else self.metrics
        arguments.functions(self.loss, metrics, self.optimizer)
        optimizer, clip_norm, patience = self.optimizer, self.clip_norm, self.patience
        if clip_norm is not None:
            clip_norm = float(checks.number("clip_norm", clip_norm, "(0, inf)"))
            optimizer = _clipped(optimizer, clip_norm)
        if patience is not None:
            patience = checks.number("patience", patience, "[1, inf)", integer=True)
        if not validates and (patience is not None or metrics):
            raise ValueError("validation must be given when patience or metrics are. Got None.")
        if not isinstance(self.plateau, ReduceLROnPlateau | None):
            raise ValueError(f"plateau must be a ReduceLROnPlateau. Got {self.plateau!r:.80}.")
        rules = _rules(self.mesh, self.rules)
        accumulate = checks.number("accumulate", self.accumulate, "[1, inf)", integer=True)
        _check_batch(batch_size, accumulate, self.mesh, rules)
        if self.remat is not None:
            checks.one_of("remat", self.remat, _POLICIES)
        checks.one_of("nonfinite", self.nonfinite, ("raise", "skip"))
        if self.checkpoints is not None and (not isinstance(self.checkpoints, str | Path) or self.checkpoints == ""):
            raise ValueError(f"checkpoints must be the path of a folder. Got {self.checkpoints!r:.80}.")
        return dataclasses.replace(
            self,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            metrics=metrics,
            optimizer=optimizer,
            clip_norm=clip_norm,
            patience=patience,
            wrt=arguments.predicate(self.wrt),
            rules=rules,
            accumulate=accumulate,
        )

    def kept(self) -> dict[str, Any]:
        """What must be the same when a run goes on from a checkpoint, in JSON's types."""
        return {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": bool(self.shuffle),
            "drop_last": bool(self.drop_last),
            "clip_norm": self.clip_norm,
            "plateau": repr(self.plateau),
            "patience": self.patience,
            "nonfinite": self.nonfinite,
            "metrics": list(self.metrics or ()),
            "accumulate": self.accumulate,
        }


_POLICIES = (  # of jax.checkpoint_policies, those that take no arguments
    "everything_saveable",
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
)


def _rules(mesh: Mesh | None, rules: Any) -> Any:
    """The rules for the mesh, by default those that its axes' names ask for."""
    if mesh is None:
        if rules is not None:
            raise ValueError(f"rules must be None without a mesh. Got {rules!r:.80}. Pass mesh=jax.make_mesh(...).")
        return None
    sharding.check_mesh(mesh, Mesh)
    return sharding.layout(mesh) if rules is None else rules


def _check_batch(batch_size: int, accumulate: int, mesh: Mesh | None, rules: Any) -> None:
    """Raise ValueError unless a batch can be split over the devices, and into pieces."""
    over = () if mesh is None else sharding.mesh_axes_of("batch", mesh, rules)
    shards = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in over)
    if batch_size % shards:
        raise ValueError(
            f"batch_size must be a multiple of {shards}, as the mesh's {', '.join(over)} split a batch into so many "
            f"parts. Got {batch_size}."
        )
    checks.divides("accumulate", accumulate, "batch_size", batch_size)
    if accumulate > 1 and mesh is not None and sharding.mesh_axes_of("sequence", mesh, rules):
        raise ValueError(f"accumulate must be 1 where the rules divide the sequence. Got {accumulate}.")
    if accumulate > 1 and accumulate % shards:
        raise ValueError(
            f"accumulate must be 1, or a multiple of {shards}, as the mesh's {', '.join(over)} share the pieces of a "
            f"batch among so many. Got {accumulate}."
        )


@functools.lru_cache(maxsize=64)
def _clipped(optimizer: optax.GradientTransformation, clip_norm: float) -> optax.GradientTransformation:
    """One object for equal arguments, so that a second run compiles nothing."""
    return optax.chain(clip_grad_norm(clip_norm), optimizer)
