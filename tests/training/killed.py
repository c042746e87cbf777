"""A training run to be killed: python -m tests.training.killed FOLDER. Prints a digest of its parameters at the end."""

import hashlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jattn.nn.dropout import Dropout
from jattn.training import ReduceLROnPlateau, adam, fit


class Model(nnx.Module):
    """Which token came first? As small as it can be: the run is what is tested, and it compiles in two processes."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embedding, self.output = nnx.Embed(5, 32, rngs=rngs), nnx.Linear(6 * 32, 5, rngs=rngs)
        self.dropout = Dropout(0.1)

    def __call__(self, tokens, rng=None):
        x = self.embedding(tokens).reshape(len(tokens), -1)
        return self.output(self.dropout(x, rng))


OPTIMIZER = adam(0.01)  # one object, and one loss, for all runs of a process, so that only the first compiles


def loss(model, batch, rng):
    tokens, first = batch
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(model(tokens, rng=rng)), first[:, None], -1))


def run(folder: Path | None, epochs: int = 12) -> str:
    """Train with everything that has to be remembered; a digest of parameters and history."""
    tokens = np.random.default_rng(0).integers(1, 5, (50, 6))
    data = (tokens, tokens[:, 0])
    # Half right: what is learnt helps at first, and then makes these worse, so the best parameters are not the last.
    another = (tokens, np.where(np.arange(50) < 20, tokens[:, 0], tokens[::-1, 0]))
    model = Model()
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
