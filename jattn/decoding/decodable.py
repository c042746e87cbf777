"""What a model must be able to do so that anything here can decode with it, and what is done to its state.

b example · t new token · v vocabulary
"""

from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jattn.cache import Cache

__all__ = ["Decodable", "check_rewindable", "grown", "last_of", "placed", "reordered", "repeated", "rewound"]

S = TypeVar("S")


@runtime_checkable
class Decodable(Protocol):
    """A model that reads tokens and says what may follow, and keeps what it read in a state that the caller carries.

    A state is a pytree of arrays, the first axis of each of which is that of the examples; a `jattn.Cache` in it grows
    as decoding goes on. Every decoder and encoder-decoder of `jattn.models` is one. A model of your own
    needs two methods:

    Example (a model that knows which tokens follow the last one):

        >>> from flax import nnx
        >>> from jattn import decoding
        >>> class Bigrams(nnx.Module):
        ...     def __init__(self, logits):
        ...         self.logits = nnx.Param(logits)
        ...     def start(self, batch_size, room):
        ...         return ()
        ...     def step(self, tokens, state, *, valid_lens=None, each=False):
        ...         logits = self.logits[tokens]
        ...         return (logits if each else decoding.last_of(logits, valid_lens)), state
        >>> count_up = Bigrams(jnp.roll(jnp.eye(10), 1, axis=1))
        >>> decoding.generate(count_up, jnp.array([[3], [7]]), max_new_tokens=4, eos=9).tokens
        Array([[4, 5, 6, 7],
               [8, 9, 9, 9]], dtype=int32)
    """

    # With `*_` type checkers take a start that names what it is given, or is given nothing.
    def start(self, batch_size: int, room: int, *_: Any, **given: Any) -> Any:
        """The state before the first token.

        Args:
            batch_size: b.
            room: how many tokens it must be able to keep.
            given: what the model knows beside them, such as ``source=`` of an encoder-decoder.
        """
        ...

    def step(
        self, tokens: Int[Array, "b t"], state: Any, *, valid_lens: Int[Array, "b"] | None = None, each: bool = False
    ) -> tuple[Float[Array, "b v"] | Float[Array, "b t v"], Any]:
        """Read further tokens: the logits of what follows, and the state after them.

        Args:
            tokens: ``b t``, a prompt at first, then mostly one at a time.
            state: from `start` or `step`.
            valid_lens: how many of each example's are real; what follows them leaves no trace. All by default.
            each: the logits after every token, ``b t v``, rather than after each example's last real one, ``b v``.
        """
        ...


def last_of(x: Float[Array, "b t c"], valid_lens: Int[Array, "b"] | None) -> Float[Array, "b c"]:
    """Of each example the entry of its last real token."""
    if valid_lens is None:
        return x[:, -1]
    return jnp.take_along_axis(x, jnp.maximum(valid_lens - 1, 0)[:, None, None], axis=1)[:, 0]


def grown(state: S, room: int) -> S:
    """With room for so many tokens at least in each cache; those of windows stay as they are."""

    def larger(x: Any) -> Any:
        return x.grown(max(room, x.room)) if isinstance(x, Cache) and not x.ring else x

    return jax.tree.map(larger, state, is_leaf=lambda x: isinstance(x, Cache))


def rewound(state: S, before: S, n: Int[Array, "b"], since: int) -> S:
    """As it was n tokens of each example after ``before``, since when so many came at most, to take back the others.

    So it is with caches. A state that has other arrays says by a method of this name, of ``before``, n and since, what
    becomes of them; such as nothing, where they are the same at each step.
    """
    check_rewindable("model", state)
    return jax.tree.map(lambda x, earlier: x.rewound(earlier, n, since), state, before, is_leaf=_says_how)


def check_rewindable(name: str, state: Any) -> None:
    """Raise ValueError if tokens can't be taken back from a state of the model of this name."""
    for x in jax.tree.leaves(state, is_leaf=_says_how):
        if not _says_how(x):
            raise ValueError(
                f"{name} must be able to take tokens back: its state must be made of jattn.Cache, or have a method "
                f"rewound(before, n, since). Got {jnp.result_type(x)} of shape {jnp.shape(x)} in it."
            )


def _says_how(x: Any) -> bool:
    return hasattr(x, "rewound")


def repeated(state: S, k: int) -> S:
    """With every example k times."""
    return jax.tree.map(lambda x: jnp.repeat(x, k, axis=0), state)


def reordered(state: S, examples: Int[Array, "b"]) -> S:
    """With these in place of the examples, by number, each a continuation of the same prompt.

    What all of them have in common need not be moved: a state that has some says so by a method of this name.
    """

    def moved(x: Any) -> Any:
        return x.reordered(examples) if hasattr(x, "reordered") else jnp.take(x, examples, axis=0)

    return jax.tree.map(moved, state, is_leaf=lambda x: hasattr(x, "reordered"))


def placed(state: S, slot: Int[Array, ""] | int, other: S) -> S:
    """With the only example of ``other`` in place of one."""
    return jax.tree.map(lambda x, new: jnp.asarray(x).at[slot].set(new[0]), state, other)
