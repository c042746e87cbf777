"""What the tests of jattn.nn.torch share: a query ``t b m``, a key ``s b m`` and torch.nn's causal mask."""

import jax.numpy as jnp
import numpy as np

B, T, S, H, M = 2, 5, 7, 3, 12
_normal = np.random.default_rng(0).standard_normal
query, key = jnp.asarray(_normal((T, B, M)), jnp.float32), jnp.asarray(_normal((S, B, M)), jnp.float32)
future = ~jnp.tri(T, S, dtype=bool)
