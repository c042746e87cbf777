"""Training, compiled: `fit`, and optimisers and schedules that mean what PyTorch's mean.

The loop is a library of its own size on purpose: parameters, optimiser state and randomness are one pytree, the steps
of an epoch one compiled scan. Optimisers of optax will do; those here differ from them only where PyTorch does.
"""

from jattn.training.checkpoints import CheckpointError as CheckpointError
from jattn.training.loop import fit as fit
from jattn.training.optimizers import adam as adam
from jattn.training.optimizers import adamw as adamw
from jattn.training.optimizers import clip_grad_norm as clip_grad_norm
from jattn.training.optimizers import sgd as sgd
from jattn.training.run import History as History
from jattn.training.run import NonFiniteError as NonFiniteError
from jattn.training.schedules import PlateauState as PlateauState
from jattn.training.schedules import ReduceLROnPlateau as ReduceLROnPlateau
from jattn.training.schedules import cosine_annealing_lr as cosine_annealing_lr
from jattn.training.schedules import exponential_lr as exponential_lr
from jattn.training.schedules import multi_step_lr as multi_step_lr
from jattn.training.schedules import one_cycle_lr as one_cycle_lr
from jattn.training.schedules import one_cycle_momentum as one_cycle_momentum
from jattn.training.schedules import per_epoch as per_epoch
from jattn.training.schedules import step_lr as step_lr
from jattn.training.steps import Loss as Loss
from jattn.training.steps import Metric as Metric
