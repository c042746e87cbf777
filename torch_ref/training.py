"""A training loop as it is written in PyTorch."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]
Loss = Callable[[nn.Module, Batch], Tensor]


class History(NamedTuple):
    """What happened."""

    step_losses: list[float]
    learning_rates: list[float]
    validation_losses: list[float]
    best_epoch: int  # -1 if no validation loss was a number


def fit(
    model: nn.Module,
    train: Batch,
    validation: Batch | None = None,
    *,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batch_size: int,
    clip_norm: float | None = None,
    step_scheduler: Any = None,
    epoch_scheduler: Any = None,
    plateau: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None,
    patience: int | None = None,
) -> History:
    """Batches in their order; schedulers after each step or epoch; early stopping that restores the best parameters."""
    losses, rates, validation_losses = [], [], []
    best, best_epoch, best_parameters = math.inf, -1, None
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for batch in zip(*(x.split(batch_size) for x in train), strict=True):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            value = loss(model, batch)
            value.backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            if step_scheduler is not None:
                step_scheduler.step()
            losses.append(value.item())
            total += value.item() * len(batch[0])
        if epoch_scheduler is not None:
            epoch_scheduler.step()

        watched = total / len(train[0])
        if validation is not None:
            watched = _evaluate(model, validation, loss, batch_size)
            validation_losses.append(watched)
            if watched < best:
                best, best_epoch = watched, epoch
                best_parameters = {name: x.clone() for name, x in model.state_dict().items()}
        if plateau is not None:
            plateau.step(watched)
        if validation is not None and patience is not None and epoch - best_epoch >= patience:
            break
    if patience is not None and best_parameters is not None:
        model.load_state_dict(best_parameters)
    model.eval()
    return History(losses, rates, validation_losses, best_epoch)


@torch.no_grad()
def _evaluate(model: nn.Module, data: Batch, loss: Loss, batch_size: int) -> float:
    """The mean loss over the examples."""
    model.eval()
    batches = zip(*(x.split(batch_size) for x in data), strict=True)
    return sum(loss(model, batch).item() * len(batch[0]) for batch in batches) / len(data[0])
