"""Generation by a model whose heads lie in several processes, for `tests.processes.run`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType

from jattn import models, sharding
from jattn.decoding import beam_search, generate
from tests import processes

PROMPTS = np.random.default_rng(0).integers(0, 16, (2, 5))


def main() -> None:
    """Every process has the prompts, a part of the model, and all of the answer."""
    processes.join()
    sizes: dict[str, Any] = dict(
        features=8, num_heads=4, num_layers=2, feedforward_features=12, param_dtype=jnp.float64
    )
    jax.config.update("jax_enable_x64", True)
    model = models.Llama(16, **sizes, rngs=nnx.Rngs(0))
    model.eval()

    def answers() -> list[np.ndarray]:
        drawn = generate(model, PROMPTS, max_new_tokens=6, rng=jax.random.key(0))
        greedy = generate(model, PROMPTS, max_new_tokens=6)
        return [np.asarray(x.tokens) for x in (greedy, drawn, beam_search(model, PROMPTS, beams=3, max_new_tokens=6))]

    expected = answers()
    mesh = jax.make_mesh((jax.device_count(),), ("tensor",), axis_types=(AxisType.Auto,))
    sharding.shard(model, mesh, "tensor")
    for x, y in zip(answers(), expected, strict=True):
        np.testing.assert_array_equal(x, y)
    print("as alone")


if __name__ == "__main__":
    main()
