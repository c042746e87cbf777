"""What `jattn.training.fit` is told beside its model and its data, as one value."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optax

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
        }


@functools.lru_cache(maxsize=64)
def _clipped(optimizer: optax.GradientTransformation, clip_norm: float) -> optax.GradientTransformation:
    """One object for equal arguments, so that a second run compiles nothing."""
    return optax.chain(clip_grad_norm(clip_norm), optimizer)
