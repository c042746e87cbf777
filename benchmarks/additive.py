"""Additive attention beside PyTorch and JAX as one writes it: the tanh of all pairs, by broadcasting.

    python -m benchmarks additive [--lengths T ...] [--columns NAME ...] [--passes PASS ...] [--width 128] [--batch 1]
        [--rounds 7] [--limit GiB] [--json FILE]

T queries on T keys in float32; queries, keys, values and the hidden layer of one width; backward to all six arguments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jattn
from benchmarks.comparison import (
    PASSES,
    TOLERANCE,
    Column,
    at_least_one,
    jitted,
    parser_of,
    run,
    torch_column,
    with_gradients,
)


class Work(NamedTuple):
    """Sequences of one length."""

    batch: int
    t: int
    width: int
    backward: bool

    def arrays(self) -> list[np.ndarray]:
        """Query, key, value, w_query, w_key, w_value, and the cotangent of the output."""
        rng = np.random.default_rng(self.t)
        sequence, square = (self.batch, self.t, self.width), (self.width, self.width)
        shapes = [sequence, sequence, sequence, square, square, (self.width,), sequence]
        return [
            rng.standard_normal(shape, np.float32) / (1 if len(shape) == 3 else shape[0] ** 0.5) for shape in shapes
        ]

    @property
    def pairs(self) -> int:
        """Bytes of the hidden layer of all pairs."""
        return 4 * self.batch * self.t**2 * self.width


def _jax_column(f: Callable[..., jax.Array], work: Work) -> Column:
    *inputs, cotangent = (jnp.asarray(x, jnp.float32) for x in work.arrays())
    if work.backward:
        return jitted(with_gradients(f, len(inputs)), cotangent, *inputs)
    return jitted(lambda *arguments: (f(*arguments),), *inputs)


def jax_naive(work: Work) -> Column:
    def f(query: Any, key: Any, value: Any, w_query: Any, w_key: Any, w_value: Any) -> Any:
        hidden = jnp.tanh((query @ w_query)[:, :, None] + (key @ w_key)[:, None])
        return jax.nn.softmax(hidden @ w_value) @ value

    return _jax_column(f, work)


def torch_naive(work: Work) -> Column:
    def f(query: Any, key: Any, value: Any, w_query: Any, w_key: Any, w_value: Any) -> Any:
        hidden = ((query @ w_query)[:, :, None] + (key @ w_key)[:, None]).tanh()
        return (hidden @ w_value).softmax(-1) @ value

    *inputs, cotangent = work.arrays()
    return torch_column(
        f, inputs, cotangent if work.backward else None, scratch=(3 if work.backward else 2) * work.pairs
    )


COLUMNS: dict[str, Callable[[Work], Column]] = {
    "jattn": lambda work: _jax_column(jattn.additive_attention, work),
    "PyTorch": torch_naive,
    "naive JAX": jax_naive,
}


def main(arguments: list[str]) -> None:
    parser = parser_of("additive", __doc__, COLUMNS)
    parser.add_argument(
        "--lengths", nargs="+", type=at_least_one, default=[128, 256, 512], metavar="T", help="how many tokens"
    )
    parser.add_argument("--width", type=at_least_one, default=128, help="of queries, keys, values and the hidden layer")
    parser.add_argument("--batch", type=at_least_one, default=1, help="how many sequences")
    options = parser.parse_args(arguments)
    works = (
        (
            {"T": t, "pass": which},
            Work(options.batch, t, options.width, backward=which == PASSES[1]),
            TOLERANCE["float32"],
        )
        for t in options.lengths
        for which in options.passes
    )
    run(f"additive attention, float32, width {options.width}, batch {options.batch}", works, COLUMNS, options)
