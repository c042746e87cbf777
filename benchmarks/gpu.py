"""Attention with its gradients on an NVIDIA GPU: what is chosen, jattn's kernel, and XLA, held to one another first.

    python -m benchmarks gpu [--cases NAME ...] [--lengths N ...] [--columns NAME ...] [--rounds 7] [--json FILE]

The cases are those of ``python -m benchmarks targets``, for 1,024 and 4,096 tokens, and Nadaraya-Watson regression on
10,000 points: about ten minutes on an H200, most of them for compiling. XLA is jax.nn's attention by XLA where it has
words for the case, else the formula, matrix and all. It runs on whatever JAX finds; on a CPU the kernel's column is
Pallas' interpreter, so there it only shows that it works.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import kernel_regression, targets
from benchmarks.comparison import (
    OURS,
    TOLERANCE,
    Column,
    Row,
    at_least_one,
    best_of,
    jitted,
    parser_of,
    run,
    with_gradients,
)
from jattn import attention

GOALS = {1024: 1.0, 4096: 0.5}  # the best of jattn's to XLA, at most
OF_TF32 = 1e-2  # in float32 a GPU's products have the 10 bits of TF32, with whatever computes them


def cases(length: int) -> dict[str, targets.Case]:
    """Those of `targets` that have no length in their name, each at this length."""
    found = targets.cases(length)
    for name in ("full", "causal"):
        found[name] = dataclasses.replace(found[f"{name} 4,096"], t=length)
    return {name: case for name, case in found.items() if not re.search(r"\d,\d{3}", name)}


class Work(NamedTuple):
    """A case at a length."""

    name: str
    length: int

    @property
    def case(self) -> targets.Case:
        return cases(self.length)[self.name]

    def column(self, attend: Callable[..., Any], given: dict[str, Any]) -> Column:
        """Outputs, and gradients of queries, keys, values and of what the case learns."""
        structs = self.case.arrays()
        keys = jax.random.split(jax.random.key(0), len(structs) + 1)
        arrays = [jax.random.normal(key, x.shape, x.dtype) for key, x in zip(keys, structs, strict=False)]
        leaves, structure = jax.tree.flatten(given)
        learned = [
            i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)
        ]

        def f(*arguments: Any) -> Any:
            values = dict(zip(learned, arguments[len(arrays) :], strict=True))
            named = jax.tree.unflatten(structure, [values.get(i, x) for i, x in enumerate(leaves)])
            return attend(*arguments[: len(arrays)], **named)

        arguments = [*arrays, *(leaves[i] for i in learned)]
        cotangent = jax.random.normal(keys[-1], structs[0].shape, structs[0].dtype)
        return jitted(with_gradients(f, len(arguments)), cotangent, *arguments)


def _by(implementation: Any) -> Callable[[Work], Column]:
    def column(work: Work) -> Column:
        return work.column(functools.partial(attention, implementation=implementation), work.case.arguments())

    return column


def _by_xla(work: Work) -> Column:
    if work.case.xla is None:
        return _by("dense")(work)
    return work.column(functools.partial(jax.nn.dot_product_attention, implementation="xla", **work.case.xla), {})


COLUMNS = {"XLA": _by_xla, OURS: _by(None), "kernel": _by("pallas")}


def main(arguments: list[str]) -> None:
    names = list(cases(4096))
    parser = parser_of("gpu", __doc__, COLUMNS)
    parser.add_argument("--cases", nargs="+", choices=names, default=names, help="of these only")
    parser.add_argument("--lengths", nargs="+", type=at_least_one, default=list(GOALS), metavar="N", help="tokens")
    options = parser.parse_args(arguments)
    works = (
        ({"case": name, "tokens": length}, work := Work(name, length), _tolerance(work.case.dtype))
        for name in options.cases
        for length in options.lengths
    )
    rows = run("attention with its gradients", works, COLUMNS, options)
    for row in rows:
        print(verdict(row))
    if options.cases == names:
        kernel_regression.main(["--columns", OURS, "naive JAX"])


def _tolerance(dtype: Any) -> float:
    return OF_TF32 if dtype == jnp.float32 else TOLERANCE["bfloat16"]


def verdict(row: Row) -> str:
    """Whether the better of jattn's columns is as fast beside XLA as it is to be."""
    label = f"{row['case']}, {row['tokens']:,} tokens"
    ours = [name for name in (OURS, "kernel") if name in row["seconds"]]
    if "XLA" not in row["seconds"] or not ours or row["tokens"] not in GOALS:
        return f"{label}: nothing to compare"
    fastest = min(ours, key=lambda name: best_of(row, name))
    ratio, goal = best_of(row, fastest) / best_of(row, "XLA"), GOALS[row["tokens"]]
    said = "met" if ratio <= goal else "missed"
    return f"{label}: {fastest} takes {ratio:.2f} of XLA's time; the goal, {goal}, is {said}"
