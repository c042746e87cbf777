"""Training, compiled: `fit`, and optimisers and schedules that mean what PyTorch's mean.

The loop is a library of its own size on purpose: parameters, optimiser state and randomness are one pytree, the steps
of an epoch one compiled scan. Optimisers of optax will do; those here differ from them only where PyTorch does.
"""

from jattn.training.checkpoints import CheckpointError
from jattn.training.loop import fit
from jattn.training.optimizers import adam, adamw, clip_grad_norm, sgd
from jattn.training.run import History, NonFiniteError
from jattn.training.schedules import (
    PlateauState,
    ReduceLROnPlateau,
    cosine_annealing_lr,
    exponential_lr,
    multi_step_lr,
    one_cycle_lr,
    one_cycle_momentum,
    per_epoch,
    step_lr,
)
from jattn.training.steps import Loss, Metric

__all__ = [
    "CheckpointError",
    "History",
    "Loss",
    "Metric",
    "NonFiniteError",
    "PlateauState",
    "ReduceLROnPlateau",
    "adam",
    "adamw",
    "clip_grad_norm",
    "cosine_annealing_lr",
    "exponential_lr",
    "fit",
    "multi_step_lr",
    "one_cycle_lr",
    "one_cycle_momentum",
    "per_epoch",
    "sgd",
    "step_lr",
]
