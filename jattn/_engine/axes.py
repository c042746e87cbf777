"""Arrays that declare their axes by letters: how they lie beside one another, and whether they fit.

Axes: b batch, any number of them, first · h query head · t query position · s key position · any other letter: the
array's own, which come last once it is aligned.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jattn._engine.checks import broadcasts_to

__all__ = ["Shape", "align", "apart", "axis_in", "axis_of", "check_axes", "over"]


def over(axes: str, *, remedy: str = "", **options: Any) -> Any:
    """A field whose array has these axes, in this order, such as ``over("bt")``.

    b is for the examples (any number of batch axes; it comes first), h for heads, t for queries, s for keys; any other
    letter is the field's own. The formula sees the field with the axes ``*b h t s``, and its own ones after them. An
    axis of length 1 stands for all positions of it, and so does one that is missing on the left. A Python number has
    none. A field that is declared otherwise reaches the formula as it is.

    ``remedy`` is what to do about a wrong shape, and ends the error; options are those of `dataclasses.field`.
    """
    if not axes or len(set(axes)) != len(axes) or "b" in axes[1:]:
        raise ValueError(f'axes must be different letters, "b" first if it is among them. Got {axes!r}.')
    return dataclasses.field(metadata={"axes": axes, "remedy": remedy}, **options)


def apart() -> Any:
    """A field that `Rule.map_fields` leaves as it is, such as features, which have a layout of their own."""
    return dataclasses.field(metadata={"apart": True})


class Shape(NamedTuple):
    """The lengths of the axes; None where it isn't known."""

    batch: Any  # a tuple, one for each batch axis
    h: Any
    t: Any
    s: Any
    columns: Any = None  # all keys, where s are a device's part of them

    @property
    def all_keys(self) -> Any:
        return self.s if self.columns is None else self.columns


def align(x: Any, axes: str, batch: int) -> Array:
    """With the axes ``*b h t s``, of length 1 where x has none, and its own ones after them."""
    letters = [letter for letter in axes if letter != "b"]
    own = [letter for letter in letters if letter not in "hts"]
    x = jnp.asarray(x)
    missing = max(len(letters) - x.ndim, 0)  # on the left
    lead = x.ndim - (len(letters) - missing)
    x = x.reshape((1,) * (batch - lead) + x.shape[:lead] + (1,) * missing + x.shape[lead:])
    order = [batch + letters.index(letter) for letter in (*"hts", *own) if letter in letters]
    x = x.transpose(*range(batch), *order)
    absent = tuple(batch + i for i, letter in enumerate("hts") if letter not in letters)
    return jnp.expand_dims(x, absent)


def axis_of(letter: str, axes: str) -> int:
    """Where h, t or s lies in an aligned field, counted from the end."""
    own = sum(other not in "bhts" for other in axes)
    return "hts".index(letter) - 3 - own


def axis_in(letter: str, axes: str | None, x: Any, length: int | None = None) -> int | None:
    """Where an axis other than b lies in a field as it was given, counted from the end; None if it has none, or none of
    that length."""
    letters = (axes or "").removeprefix("b")
    place = letters.find(letter) - len(letters)
    if letter not in letters or -place > jnp.ndim(x) or length not in (None, x.shape[place]):
        return None
    return place


def check_axes(name: str, axes: str, x: Any, shape: Shape, remedy: str = "") -> None:
    """Raise ValueError where an array that has ``axes`` does not fit; the batch and the heads may be unknown."""
    given, letters = jnp.shape(x), axes.removeprefix("b")
    unknown = {letter for letter, n in (("b", shape.batch), ("h", shape.h)) if n is None}
    own = len(given) - len(letters)  # where the letters' axes begin
    s = shape.s
    if shape.columns is not None and "t" in axes and "s" in axes and (i := letters.index("s") + own) >= 0:
        s = shape.columns if given[i] == shape.columns else s  # all keys, for a device's part of the queries
    lengths = {"h": shape.h, "t": shape.t, "s": s}
    full: list[Any] = []
    compared: list[int] = []
    spelled: list[str] = []
    for i, letter in enumerate(letters):
        there = i + own >= 0
        if letter in unknown or letter not in lengths:
            continue
        full.append(lengths[letter])
        spelled.append(letter)
        compared += [given[i + own]] if there else []
    if "b" not in axes or "b" not in unknown:
        compared = [*given[: max(own, 0)], *compared]
    if "b" in axes and "b" not in unknown:
        full, spelled = [*shape.batch, *full], ["*b", *spelled]
    if not broadcasts_to(tuple(compared), tuple(full)):
        raise ValueError(
            f"{name} must broadcast to {tuple(full)}, the axes {' '.join(spelled)}. Got shape {given}."
            f"{' ' + remedy if remedy else ''}"
        )
