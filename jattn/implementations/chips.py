"""What the compilers and the memory of TPUs and NVIDIA GPUs allow of a kernel."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array

from jattn._engine.axes import axis_of
from jattn._engine.platform import Platform
from jattn.implementations.call import Call
from jattn.logits import Logits

__all__ = ["CHIPS", "formula_refusal", "power_of_2", "tile_of_gpu"]

ROWS_OF_GPU, WIDTH_OF_GPU = 128, 64  # of a tile, at most, and as long as they fit
_LEAST_OF_GPU = 16  # of each side of a product of Triton's
_NARROW = 256  # bytes of a head's features, as of 128 in bfloat16
_SHARED_MEMORY = {8.0: 166_912, 9.0: 232_448, 10.0: 232_448}  # bytes that a program has, by capability
_SHARED_BY_ALL = 101_376  # of any other
_MOST_OPERATIONS = 500  # operations of formulas on a GPU: T5's 32 buckets are 350, and compile for 24 s; 64 for minutes


@dataclasses.dataclass(frozen=True)
class _Chip:
    """What a kind of device takes."""

    words: str
    dtypes: tuple[str, ...]
    widest: int  # features of which tiles fit its own memory
    unable: Callable[[set[str]], set[str]]  # which primitives of a formula its compiler does not lower

    @property
    def dtypes_in_words(self) -> str:
        return f"{', '.join(self.dtypes[:-1])} and {self.dtypes[-1]}"


# What formulas are made of: all that Triton lowers, and what Mosaic does not.
_BY_TRITON = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh broadcast_in_dim cbrt ceil clamp
    convert_element_type cos cosh custom_jvp_call div eq exp exp2 expm1 floor ge gt integer_pow iota is_finite jit
    le log log1p logistic lt max min mul ne neg not or pjit pow reduce_max reduce_min reduce_sum rem reshape rsqrt
    select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square squeeze stop_gradient
    sub tan tanh transpose xor
"""
_NOT_BY_MOSAIC = frozenset(
    ("gather", "scatter", "scatter-add", "sort", "dynamic_slice", "scan", "while", "cumsum", "random_bits", "top_k")
)
CHIPS = {
    "tpu": _Chip("a TPU", ("float32", "bfloat16"), 512, lambda names: names & _NOT_BY_MOSAIC),
    "cuda": _Chip("a GPU", ("float32", "bfloat16", "float16"), 256, lambda names: names.difference(_BY_TRITON.split())),
}


def formula_refusal(call: Call, platform: str) -> str | None:
    """What in the formulas of a call's rules a kernel cannot do; None if nothing."""
    logits = dataclasses.replace(call.logits, query=None, key=None, score=None, sinks=None).in_kernel()
    batch, h, t, s, _ = call.logits.shape

    def formulas(logits: Logits) -> Array:
        rules = logits.aligned(len(batch))
        return rules.after_score(jnp.zeros((*batch, h, t, s), jnp.float32), rules.grid(t, s, ndim=len(batch) + 3))

    traced = jax.make_jaxpr(formulas)(logits)
    if traced.consts:
        return "a formula holds an array; give it by its name, as an argument of the formula"
    if platform not in CHIPS:
        return None
    equations = list(_equations(traced.jaxpr))
    if found := sorted(CHIPS[platform].unable({equation.primitive.name for equation in equations})):
        return f"a formula asks for what the compiler of its kernels does not know ({', '.join(found)})"
    if platform == "cuda" and len(equations) > _MOST_OPERATIONS:
        return f"on a GPU formulas of more than {_MOST_OPERATIONS} operations would compile for minutes"
    if platform == "cuda" and _uneven(logits, equations, {*batch, h, t, s}):
        return "on a GPU all axes that a formula's arrays have beside b h t s must be powers of 2 long"
    return None


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for one in value if isinstance(value, tuple | list) else [value]:
                if isinstance(one, Jaxpr | ClosedJaxpr):
                    yield from _equations(getattr(one, "jaxpr", one))


def _uneven(logits: Logits, equations: Sequence[Any], known: set[int]) -> bool:
    """Whether a tile would hold an array whose size is no power of 2, as none of Triton's may be."""
    lengths: list[int] = []

    def look(name: str, axes: str | None, x: Any) -> Any:
        own = 0 if axes is None else sum(letter not in "bhts" for letter in axes)
        lengths.extend(jnp.shape(x) if axes is None else jnp.shape(x)[jnp.ndim(x) - own :])
        return x

    logits.aligned(logits.lead()).map_fields(look)
    made = {n for equation in equations for x in equation.outvars for n in getattr(x.aval, "shape", ())}
    return any(n & (n - 1) for n in {*lengths, *(made - known)})


def tile_of_gpu(t: int, s: int, features: Sequence[Array], rules: Logits, platform: Platform) -> tuple[int, int]:
    """Rows and keys of a tile that fits the memory that a program has.

    The kernel of the keys' gradients needs most: the features of two blocks of queries and what there is for each pair,
    each twice, as the next is on its way; those of one block of keys; two arrays of the tile.
    """
    of_query, of_key, of_value = (x.shape[-1] * x.dtype.itemsize for x in features)
    widest = max(x.dtype.itemsize for x in features)
    of_pair: list[int] = []

    def look(name: str, axes: str | None, x: Any) -> Any:
        if axes is not None and all(x.shape[axis_of(letter, axes)] != 1 for letter in "ts"):
            of_pair.append(math.prod(x.shape[x.ndim + axis_of("s", axes) + 1 :]) * x.dtype.itemsize)
        return x

    rules.map_fields(look)

    def needed(rows: int, width: int) -> int:
        pairs = rows * width
        coming = 2 * (rows * (of_query + of_value) + pairs * sum(of_pair))
        return coming + width * (of_key + of_value) + 2 * pairs * widest

    # Of wide features the sums of all would not fit its registers.
    parts = 1 if max(of_query, of_key, of_value) <= _NARROW else 2
    rows, width = min(ROWS_OF_GPU // parts, power_of_2(t)), min(WIDTH_OF_GPU // parts, power_of_2(s))
    room = 0.9 * _SHARED_MEMORY.get(platform.capability, _SHARED_BY_ALL)
    while needed(rows, width) > room and max(rows, width) > _LEAST_OF_GPU:
        if rows >= 2 * width or width == _LEAST_OF_GPU:
            rows //= 2
        else:
            width //= 2
    return rows, width


def power_of_2(n: int) -> int:
    """The least that is as large, and large enough for a product of Triton's."""
    return max(_LEAST_OF_GPU, 1 << (n - 1).bit_length())
