"""What an implementation is asked for, and what it gives."""

import abc
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jattn._engine.dropout import dropout_keep_at
from jattn._engine.dtypes import at_least_float32
from jattn._engine.platform import Platform
from jattn._engine.pytree import Known, Pytree
from jattn.logits import Logits

__all__ = ["Call", "Divided", "Implementation", "Result"]


class Divided(NamedTuple):
    """That keys are divided over an axis of a mesh, each of whose devices has a part."""

    axis: Any  # its name, or several
    parts: int
    with_queries: bool  # whether they are, too; else each device along the axis has the same


class Call(Pytree):
    """The checked arguments of `jattn.attention`; shapes or specs may be in the place of arrays."""

    logits: Logits
    value: Any  # *b s k e, or None
    dropout_rate: Known = Known(0)
    dropout_rng: Any = None  # a key of jax.random, or its words
    broadcast_dropout: bool = False
    head_gates: Any = None  # h or *b h
    return_weights: bool = False
    return_log_sum_exp: bool = False
    xla_only: bool = False
    matrices: Any = None  # *b h, the number of each head's matrix, where this is a part of a larger call
    # The mesh axes that are to divide queries and keys, in a call that is whole; and those that have, in a part.
    sequence_axes: tuple[str | None, str] | None = None
    divided: Divided | None = None

    def matrix_numbers(self) -> Int[Array, "*#b #h"]:
        """Which matrix of weights each head has, among those of all heads and examples."""
        if self.matrices is not None:
            return self.matrices
        *batch, _, h, _ = self.logits.query.shape
        return jnp.arange(math.prod(batch) * h).reshape(*batch, h)

    def keep(
        self, matrices: Int[Array, "..."], rows: Int[Array, "..."], columns: Int[Array, "..."], *, rolled: bool = False
    ) -> Bool[Array, "..."] | None:
        """What dropout keeps of the weights at these places, which broadcast; None if there is none.

        ``rolled`` as of `threefry2x32`.
        """
        if self.dropout_rate == 0:
            return None
        assert self.dropout_rng is not None
        if self.broadcast_dropout:
            matrices = jnp.zeros_like(matrices)
        at = rows + self.logits.first_query, columns + self.logits.first_key
        return dropout_keep_at(self.dropout_rng, self.dropout_rate, matrices, *at, rolled=rolled)

    @property
    def output_dtype(self) -> Any:
        """Of the output before gates: wide where something is still computed with it."""
        assert self.value is not None
        is_last = self.head_gates is None and not self.return_log_sum_exp
        return self.value.dtype if is_last else at_least_float32(self.value)

    @property
    def is_empty(self) -> bool:
        """Whether an axis has length 0, so that there is nothing to cut into blocks."""
        arrays = (self.logits.query, self.logits.key, *(() if self.value is None else (self.value,)))
        return any(isinstance(n, int) and n == 0 for x in arrays for n in x.shape)


class Result(NamedTuple):
    """An output, and what else was asked for."""

    output: Float[Array, "*b t h e"]
    weights: Float[Array, "*b h t s"] | None = None
    log_sum_exp: Float[Array, "*b t h"] | None = None


class Implementation(abc.ABC):
    """A way to compute a call."""

    name: str

    @abc.abstractmethod
    def refusal(self, call: Call, platform: Platform) -> str | None:
        """What in the call it cannot honour on this platform; None if nothing."""

    @abc.abstractmethod
    def rank(self, call: Call, platform: Platform) -> tuple[int, str]:
        """How it compares with the others that do not refuse, the highest being chosen, and why it would be."""

    @abc.abstractmethod
    def program(self, platform: Platform) -> Any:
        """The same for platforms on which it traces to the same program."""

    @abc.abstractmethod
    def run(self, call: Call, platform: Platform) -> Result:
        """The output before gates, in float32 or wider, or in the call's `output_dtype`."""
