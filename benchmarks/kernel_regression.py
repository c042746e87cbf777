"""Nadaraya-Watson regression beside PyKeOps, and beside PyTorch and JAX as one writes it.

    python -m benchmarks kernel_regression [--sizes N ...] [--features D ...] [--columns NAME ...] [--passes PASS ...]
        [--rounds 7] [--limit GiB] [--json FILE]

N queries and N keys of D features in float32, scalar values, a Gaussian kernel; backward to the bandwidth and the
values. PyKeOps compiles its formulas before it is measured, which takes a minute the first time on a machine.
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
    """A data set and its bandwidth."""

    n: int
    d: int
    backward: bool

    def points(self) -> list[np.ndarray]:
        """Queries and keys, ``n d``."""
        rng = np.random.default_rng(self.d)
        return [rng.standard_normal((self.n, self.d), np.float32) for _ in range(2)]

    def differentiated(self) -> list[np.ndarray]:
        """The bandwidth, for which some tens of keys and more weigh something, and the values ``n``."""
        rng = np.random.default_rng(self.n)
        return [np.float32(0.3 * self.d**0.5) * np.ones((), np.float32), rng.standard_normal(self.n, np.float32)]

    def cotangent(self) -> np.ndarray:
        return np.random.default_rng(0).standard_normal(self.n, np.float32)

    @property
    def matrix(self) -> int:
        """Bytes of all weights."""
        return 4 * self.n**2


def _jax_column(f: Callable[..., jax.Array], work: Work) -> Column:
    arguments = [jnp.asarray(x) for x in (*work.differentiated(), *work.points())]
    if work.backward:
        return jitted(with_gradients(f, 2), jnp.asarray(work.cotangent()), *arguments)
    return jitted(lambda *arguments: (f(*arguments),), *arguments)


def _torch_column(attend: Callable[..., Any], work: Work, scratch: int = 0) -> Column:
    """attend(bandwidth, value, query, key)."""
    import torch

    query, key = (torch.tensor(x) for x in work.points())
    return torch_column(
        lambda bandwidth, value: attend(bandwidth, value, query, key),
        work.differentiated(),
        work.cotangent() if work.backward else None,
        scratch=scratch,
    )


def ours(work: Work) -> Column:
    def f(bandwidth: Any, value: Any, query: Any, key: Any) -> Any:
        return jattn.nadaraya_watson(query, key, value, bandwidth=bandwidth)

    return _jax_column(f, work)


def pykeops(work: Work) -> Column:
    """Its own softmax, which subtracts the largest logit."""
    from pykeops.torch import LazyTensor

    def attend(bandwidth: Any, value: Any, query: Any, key: Any) -> Any:
        x, y = LazyTensor((query / bandwidth)[:, None, :]), LazyTensor((key / bandwidth)[None, :, :])
        logits = -((x - y) ** 2).sum(-1) / 2
        return logits.sumsoftmaxweight(LazyTensor(value[None, :, None]), axis=1)[:, 0]

    return _torch_column(attend, work)


def torch_naive(work: Work) -> Column:
    """`torch.cdist`, in its direct form, as its product of matrices loses too many digits."""
    import torch

    def attend(bandwidth: Any, value: Any, query: Any, key: Any) -> Any:
        distance = torch.cdist(query, key, compute_mode="donot_use_mm_for_euclid_dist") / bandwidth
        return (-distance.square() / 2).softmax(-1) @ value

    return _torch_column(attend, work, scratch=(7 if work.backward else 4) * work.matrix)


def jax_naive(work: Work) -> Column:
    """The differences by broadcasting, which XLA fuses into the sum over the features."""

    def f(bandwidth: Any, value: Any, query: Any, key: Any) -> Any:
        logits = -(((query[:, None] - key) / bandwidth) ** 2).sum(-1) / 2
        return jax.nn.softmax(logits) @ value

    return _jax_column(f, work)


COLUMNS: dict[str, Callable[[Work], Column]] = {
    "jattn": ours,
    "PyKeOps": pykeops,
    "naive PyTorch": torch_naive,
    "naive JAX": jax_naive,
}


def main(arguments: list[str]) -> None:
    parser = parser_of("kernel_regression", __doc__, COLUMNS)
    parser.add_argument("--sizes", nargs="+", type=at_least_one, default=[10_000], metavar="N", help="how many of each")
    parser.add_argument("--features", nargs="+", type=at_least_one, default=[1, 3, 16], metavar="D", help="of a point")
    options = parser.parse_args(arguments)
    works = (
        ({"N": n, "D": d, "pass": which}, Work(n, d, backward=which == PASSES[1]), TOLERANCE["float32"])
        for n in options.sizes
        for d in options.features
        for which in options.passes
    )
    run("Nadaraya-Watson regression, float32", works, COLUMNS, options)
