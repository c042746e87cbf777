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
_FUNCTIONS = {"floordiv", "max", "min", "mod"}  # of jax.export, between lengths


class Letters(NamedTuple):
    """What is known of letters."""

    sizes: Mapping[str, int]
    constraints: Sequence[str]

    def check(self, *arguments: Mapping[str, Described]) -> None:
        """Raise ValueError unless sizes are lengths of letters in these, and constraints relate them."""
        letters = sorted({letter for one in arguments for letter in _letters(one)})
        for letter, n in self.sizes.items():
            if letter not in letters:
                raise ValueError(f"sizes must be of the letters {', '.join(letters) or '(none)'}. Got {letter!r}.")
            checks.positive_integers(**{f"the size of {letter}": n})
        for text in _checked_constraints(self.constraints):
            unknown = sorted(_letters_in(text) - set(letters))
            if unknown:
                raise ValueError(
                    f"constraints must be of the letters {', '.join(letters) or '(none)'}. Got {unknown[0]!r} "
                    f"in {text!r}."
                )
            if not _is_possible(self._with_sizes(text)):
                own = ", ".join(
                    f"{letter} = {self.sizes[letter]}" for letter in sorted(_letters_in(text) & {*self.sizes})
                )
                raise ValueError(f"constraints must hold for sizes. Got {text!r} with {own}.")

    def known(self, arguments: Mapping[str, Any]) -> list[str]:
        """The constraints of those letters in these arguments that are open."""
        used = _letters(arguments) - self.sizes.keys()
        texts = dict.fromkeys(map(self._with_sizes, self.constraints))
        return [text for text in texts if used >= _letters_in(text) != set()]

    def shapes(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a program, or dicts of them; a letter is one length in all."""
        scope = jax.export.SymbolicScope(self.known(arguments))

        def shape(name: str, x: Any) -> Any:
            if isinstance(x, Mapping):
                return {one: shape(f"{name}.{one}", y) for one, y in x.items()}
            dtype, text = _text(name, x)
            try:
                lengths = jax.export.symbolic_shape(self._with_sizes(text), scope=scope)
                if not all(map(checks.is_length, lengths)):
                    raise ValueError("a negative number")
            except ValueError as error:
                raise ValueError(
                    f"arguments must have lengths that jax.export knows. Got {text} for {name}."
                ) from error
            return jax.ShapeDtypeStruct(lengths, dtype)

        return {name: shape(name, x) for name, x in arguments.items()}

    def _with_sizes(self, text: str) -> str:
        return _LETTER.sub(lambda found: str(self.sizes.get(found[0], found[0])), text)


def written(shape: Iterable[Any]) -> list[int | str]:
    """The lengths of an array, a symbol as text."""
    return [n if isinstance(n, int) else str(n) for n in shape]


def _letters(arguments: Mapping[str, Any]) -> set[str]:
    each = (_letters(x) if isinstance(x, Mapping) else _letters_in(_text(n, x)[1]) for n, x in arguments.items())
    return {letter for letters in each for letter in letters}


def _letters_in(text: str) -> set[str]:
    return {*_LETTER.findall(text)} - _FUNCTIONS


def _checked_constraints(constraints: Any) -> Sequence[str]:
    fits = isinstance(constraints, Sequence) and not isinstance(constraints, str)
    if not fits or not all(isinstance(text, str) for text in constraints):
        raise ValueError(f"constraints must be a sequence of texts, such as ['t <= 64']. Got {constraints!r:.80}.")
    for text in constraints:
        if not _is_possible(text):
            raise ValueError(
                "constraints must be relations that can hold, with one of <=, >= and ==, such as 't <= 64'. "
                f"Got {text!r}."
            )
    return constraints


def _is_possible(constraint: str) -> bool:
    """Whether it can be read, and holds for some lengths as far as is known."""
    try:
        jax.export.SymbolicScope([constraint])
    except ValueError:
        return False
    return True


def _text(name: str, x: Any) -> tuple[Any, str]:
    """The dtype of an argument, and its lengths with commas between."""
    if isinstance(x, str):
        found = re.fullmatch(r"\s*(\w+)\s*\[(.*)\]\s*", x)
        try:
            dtype = jnp.dtype(found[1]) if found else None
        except TypeError:
            dtype = None
        if found and dtype is not None and _holds_numbers(dtype):
            if any(character.isdigit() for character in found[1]):  # "float" and "int" are JAX's own, of either width
                _check_width(name, dtype)
            return jax.dtypes.canonicalize_dtype(dtype), f"({found[2]})"
    elif hasattr(x, "shape") and hasattr(x, "dtype"):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.extended)
        if is_key or _holds_numbers(x.dtype):
            if not is_key:
                _check_width(name, x.dtype)
            return x.dtype, f"({', '.join(map(str, x.shape))})"
    raise ValueError(
        'arguments must say the dtype and the lengths of an array, such as "float32[b,t,8]", or be one. '
        f"Got {x!r:.80} for {name}."
    )


def _holds_numbers(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_)


def _check_width(name: str, dtype: Any) -> None:
    """Raise ValueError if JAX would make it narrower, as it does of 64 bits by default."""
    narrower = jax.dtypes.canonicalize_dtype(dtype)
    if narrower != dtype:
        raise ValueError(
            f"arguments must have dtypes that JAX has. Got {dtype} for {name}, without jax_enable_x64. Turn it on, or "
            f"describe {narrower}."
        )
