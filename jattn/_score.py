"""What a score is, which those of `jattn.scores` are made from."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jattn._engine.pytree import Pytree

__all__ = ["Number", "Score", "heads_first", "is_by_pair"]

Number = float | Float[Array, ""]


class Score(Pytree):
    """The base of the scores: widths they accept, what to compute once a token, the pairs of one head.

    A subclass is a frozen dataclass without more ado. As a pytree, a score's integers, strings and functions are
    structure, all else is children. It is compiled once for equal structures, so that all it depends on must be fields.
    """

    argument: ClassVar[str] = "score"
    # Whether a logit depends on its query's and its key's features alone, and not on their positions, their head or on
    # others, so that a part of the logits can be computed by itself. Whoever writes ``__call__`` anew says so anew.
    by_pair: ClassVar[bool] = False
    reaches_all: ClassVar[bool] = False  # whether no key scores minus infinity, short of an overflow
    # Whether zeros may stand for a key that nobody attends to, and have a derivative; otherwise another key does.
    takes_zeros: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__call__" in cls.__dict__:
            cls.by_pair = cls.__dict__.get("by_pair", False)
        if cls.__dict__.keys() & {"__call__", "prepare", "pairs", "as_products"}:
            for name in ("reaches_all", "takes_zeros"):
                setattr(cls, name, cls.__dict__.get(name, False))

    def __call__(self, query: Float[Array, "*b t h c"], key: Float[Array, "*b s h d"]) -> Float[Array, "*b h t s"]:
        """The logits of every query with every key."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, query, key). Got none.")

    def prepare(
        self, query: Float[Array, "*b t h c"], key: Float[Array, "*b s k d"]
    ) -> tuple[Float[Array, "*b t h m"], Float[Array, "*b s k n"], "Score"]:
        """What can be computed once a token: features of query and key, and a score of those with the same logits.

        It may be given a few of the examples and heads at a time.
        """
        return query, key, self

    def pairs(self, query: Float[Array, "t c"], key: Float[Array, "s d"]) -> Float[Array, "t s"]:
        """The logits of one head."""
        return self(query[:, None], key[:, None])[0]

    def as_products(
        self, query: Float[Array, "*b t h c"], key: Float[Array, "*b s k d"]
    ) -> tuple[Float[Array, "*b t h m"], Float[Array, "*b s k m"], Bool[Array, ""]] | None:
        """Features whose dot products are the logits, and whether those keep their digits; None where there are none.

        It is for scores whose `pairs` take much longer than a product of matrices.
        """
        return None

    def check(self, query_width: int, key_width: int) -> None:
        """Raise ValueError where the score cannot compare features of these widths."""
        if query_width != key_width:
            raise ValueError(
                f"key must have the query's width under {type(self).__name__}. Got query width {query_width} "
                f"and key width {key_width}. Project one of them, or use the Additive score."
            )


def is_by_pair(score: Any) -> bool:
    """Whether a part of its logits can be computed by itself."""
    return isinstance(score, Score) and score.by_pair


def heads_first(x: Float[Array, "*b t h d"]) -> Float[Array, "*b h t d"]:
    """Heads before positions, as the logits have them."""
    return jnp.moveaxis(x, -2, -3)
