"""What programs are called with: arrays whose lengths are numbers, or letters where any will do."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jattn._engine import checks

__all__ = ["Described", "Letters", "written"]

Described = str | jax.ShapeDtypeStruct | jax.Array

_LETTER = re.compile(r"[^\W\d]\w*")


class Letters(NamedTuple):
    """What is known of letters."""

    sizes: Mapping[str, int]
    constraints: Sequence[str]

    def check(self, *arguments: Mapping[str, Described]) -> None:
        """Raise ValueError unless sizes are lengths of letters in these."""
        letters = sorted({letter for one in arguments for letter in _letters(one)})
        for letter, n in self.sizes.items():
            if letter not in letters:
                raise ValueError(f"sizes must be of the letters {', '.join(letters) or '(none)'}. Got {letter!r}.")
            checks.positive_integers(**{f"the size of {letter}": n})

    def shapes(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a program, or dicts of them; a letter is one length in all."""
        used = _letters(arguments) - self.sizes.keys()
        known = [self._with_sizes(text) for text in self.constraints]
        scope = jax.export.SymbolicScope([text for text in known if used >= set(_LETTER.findall(text)) != set()])

        def shape(name: str, x: Any) -> Any:
            if isinstance(x, Mapping):
                return {one: shape(f"{name}.{one}", y) for one, y in x.items()}
            dtype, text = _text(name, x)
            try:
                return jax.ShapeDtypeStruct(jax.export.symbolic_shape(self._with_sizes(text), scope=scope), dtype)
            except ValueError as error:
                raise ValueError(
                    f"arguments must have lengths that jax.export knows. Got {text} for {name}."
                ) from error

        return {name: shape(name, x) for name, x in arguments.items()}

    def _with_sizes(self, text: str) -> str:
        return _LETTER.sub(lambda found: str(self.sizes.get(found[0], found[0])), text)


def written(shape: Iterable[Any]) -> list[int | str]:
    """The lengths of an array, a symbol as text."""
    return [n if isinstance(n, int) else str(n) for n in shape]


def _letters(arguments: Mapping[str, Any]) -> set[str]:
    each = (_letters(x) if isinstance(x, Mapping) else _LETTER.findall(_text(n, x)[1]) for n, x in arguments.items())
    return {letter for letters in each for letter in letters}


def _text(name: str, x: Any) -> tuple[Any, str]:
    """The dtype of an argument, and its lengths with commas between."""
    if isinstance(x, str):
        found = re.fullmatch(r"\s*(\w+)\s*\[(.*)\]\s*", x)
        try:
            dtype = jnp.dtype(found[1]) if found else None
        except TypeError:
            dtype = None
        if found and dtype is not None:
            return jax.dtypes.canonicalize_dtype(dtype), f"({found[2]})"
    elif hasattr(x, "shape") and hasattr(x, "dtype"):
        return x.dtype, f"({', '.join(map(str, x.shape))})"
    raise ValueError(
        'arguments must say the dtype and the lengths of an array, such as "float32[b,t,8]", or be one. '
        f"Got {x!r:.80} for {name}."
    )
