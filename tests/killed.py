"""A training run to be killed: python -m tests.killed FOLDER. Prints a digest of its parameters at the end."""

import hashlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jattn.models import RecallClassifier
from jattn.training import ReduceLROnPlateau, adam, fit

OPTIMIZER = adam(0.03)  # one object, and one loss, for all runs of a process, so that only the first compiles


def loss(model, batch, rng):
    tokens, first = batch
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(model(tokens, rng=rng)), first[:, None], -1))


def run(folder: Path | None, epochs: int = 12) -> str:
    """Train with everything that has to be remembered; a digest of parameters and history."""
    tokens = np.random.default_rng(0).integers(1, 5, (50, 6))
    data = (tokens, tokens[:, 0])
    another = (tokens, tokens[::-1, 0])  # learning makes these worse, so the best parameters are not the last
    model = RecallClassifier(5, 8, 2, max_length=6, rngs=nnx.Rngs(0))
    history = fit(
        model,
        data,
        another,
        loss=loss,
        optimizer=OPTIMIZER,
        epochs=epochs,
        batch_size=16,
        clip_norm=0.5,
        plateau=ReduceLROnPlateau(factor=0.5, patience=0),
        patience=8,
        checkpoints=folder,
        progress=False,
    )
    digest = hashlib.sha256()
    for x in (*jax.tree.leaves(nnx.state(model)), history.step_losses, history.learning_rates, history.losses):
        digest.update(np.asarray(x).tobytes())
    return f"{digest.hexdigest()} {history.best_epoch} {len(history.losses)}"


if __name__ == "__main__":
    print(run(Path(sys.argv[1])))
