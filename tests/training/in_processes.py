"""Training in several processes, for `tests.processes.run`: prints the losses, and a checksum of the parameters."""

import json
import sys
from typing import Any

import jax
from flax import nnx

from jattn.training.checkpoints import checksum, numbered_leaves
from tests import processes
from tests.training.on_mesh import TOKENS, fit, made, mesh_of


def main(layout: str, options: str) -> None:
    processes.join()
    jax.config.update("jax_enable_x64", True)
    given: dict[str, Any] = json.loads(options)
    model = made()
    history = fit(model, validation=TOKENS[:9], mesh=mesh_of(json.loads(layout)), **given)
    losses = [*history.step_losses, *history.validation_losses]
    print(json.dumps([losses, checksum({"parameters": numbered_leaves(nnx.state(model, nnx.Param))})]))


if __name__ == "__main__":
    main(*sys.argv[1:])
