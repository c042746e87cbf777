"""What every implementation is held to: the numbers of the dense definition, outputs and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jattn import attention
from tests.ingredients import normal


def assert_same(implementation: str, inputs: tuple[jax.Array, jax.Array, jax.Array], **arguments) -> None:
    """Output and gradients of both implementations, the arrays in ``arguments`` that are floating included.

    ``inputs`` are query, key and value, but for those that are among the arguments.
    """
    named = dict(zip(("query", "key", "value"), inputs, strict=True)) | arguments
    leaves, structure = jax.tree.flatten(named)
    learned = {i: x for i, x in enumerate(leaves) if jnp.issubdtype(jnp.result_type(x), jnp.floating) and jnp.ndim(x)}

    @functools.partial(jax.jit, static_argnums=0)
    def run(implementation, learned):
        def of(learned):
            given = jax.tree.unflatten(structure, [learned.get(i, x) for i, x in enumerate(leaves)])
            return attention(**given, implementation=implementation)

        output, pull = jax.vjp(of, learned)
        return output, pull(normal(9, *output.shape))[0]

    (output, gradients), (expected, expected_gradients) = run(implementation, learned), run("dense", learned)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-12)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(named)]
    for i, gradient in gradients.items():
        np.testing.assert_allclose(
            gradient, expected_gradients[i], rtol=0, atol=1e-12 * (1 + np.abs(gradient).max()), err_msg=names[i]
        )
