"""JAX's strict settings, which careful people turn on: by the names that `pytest --setting` takes."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import jax

SETTINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype_promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "enable_checks": lambda: jax.enable_checks(True),
    "check_tracer_leaks": jax.checking_leaks,
    "disable_jit": jax.disable_jit,
}
