"""Rules over positions: what masks and biases are, and all that follows from the axes that their fields declare.

A rule is a formula of the positions of queries and keys and of its own fields. A field says which axes it has::

    class Causal(Mask):
        offset: int | Array = over("b")

        def formula(self, grid):
            return grid.key <= grid.query + self.offset

From the declaration follow the check of its shape, the part for one example and some heads, a block of it, and how it
lies on a mesh. The formula sees every field with the axes ``*b h t s``, of length 1 where it has none, so it only needs
to broadcast.

Axes: b batch, any number of them · h query head · t query position · s key position · any other letter: the field's
own, which come last.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

from jattn._engine import checks
from jattn._engine.checks import broadcasts_to
from jattn._engine.extents import Extent, slice_along
from jattn._engine.pytree import Pytree

Self = TypeVar("Self", bound="Rule")


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


@dataclasses.dataclass(frozen=True)
class Grid:
    """Queries and keys that a rule is asked about, with the axes ``*b h t s``, of length 1 where nothing differs.

    ``query`` and ``key`` are positions: 0 ... n - 1, or what the caller says they are. ``row`` and ``column`` number
    the queries and keys as they lie in their arrays.
    """

    query: Any  # integers, *b 1 t 1
    key: Any  # *b 1 1 s
    row: Any
    column: Any
    # Numbers known while tracing are NumPy's. A formula of all pairs of many of them is better left to the program.
    in_program: "Callable[[], Grid] | None" = None

    @functools.cached_property
    def first(self) -> Any:
        """The smallest position of a query."""
        return self.query.min(axis=-2, keepdims=True)

    @functools.cached_property
    def last(self) -> Any:
        """The largest position of a query."""
        return self.query.max(axis=-2, keepdims=True)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(over, apart))
class Rule(Pytree):
    """The base of masks and biases: a frozen dataclass whose fields declare their axes with `over`."""

    def formula(self, grid: Grid) -> Any:
        """What the rule says about every query and key of the grid; broadcasts to ``*b h t s``."""
        raise NotImplementedError

    def map_fields(self: Self, f: Callable[[str, str | None, Any], Any]) -> Self:
        """With ``f(name, axes, array)`` in place of each array, also of rules in it; axes are None if undeclared."""
        changed = {}
        for field in dataclasses.fields(self):
            value, axes = getattr(self, field.name), field.metadata.get("axes")
            if field.metadata.get("apart"):
                continue
            if axes is not None and not isinstance(value, int | float | str) and value is not None:
                changed[field.name] = f(field.name, axes, value)
            elif axes is None and field.name in self._flatten()[1][0]:

                def of(x: Any, name: str = field.name) -> Any:
                    return x.map_fields(f) if _is_rule(x) else f(name, None, x)

                changed[field.name] = jax.tree.map(of, value, is_leaf=_is_rule)
        return _replace(self, **changed)

    def as_array(self, t: int, s: int) -> Shaped[Array, "*bh t s"]:
        """The rule as a matrix with one row a query and one column a key.

        Where examples differ it has the axes ``*b h`` in front, where only heads do ``h``.

            >>> from jattn.masks import causal
            >>> print(causal().as_array(4, 4).astype(int))
            [[1 0 0 0]
             [1 1 0 0]
             [1 1 1 0]
             [1 1 1 1]]
        """
        self.check(Shape(None, None, t, s))
        lead = self.lead()
        x = jnp.asarray(self.aligned(lead).formula(grid_of(t, s, ndim=lead + 3)))
        x = jnp.broadcast_to(x, (*x.shape[:-2], t, s))
        return x[0] if lead == 0 and x.ndim == 3 and x.shape[0] == 1 else x

    def check(self, shape: Shape) -> None:
        """Raise ValueError where a field does not fit these axes."""
        for field in dataclasses.fields(self):
            value, axes = getattr(self, field.name), field.metadata.get("axes")
            if axes is not None and value is not None:
                check_axes(self.name_of(field.name), axes, value, shape, field.metadata["remedy"])
            elif axes is None:
                for part in filter(_is_rule, jax.tree.leaves(value, is_leaf=_is_rule)):
                    part.check(shape)

    def check_formula(self, shape: Shape, what: str, dtype: Any) -> None:
        """Raise ValueError where the formula gives something else, for all pairs or for a single one."""
        batch = (1,) * self.lead() if shape.batch is None else shape.batch
        for t, s in ((shape.t, shape.s), (1, 1)):

            def formula(rule: Rule, t: Any = t, s: Any = s) -> Any:
                part = rule.aligned(len(batch)).rows(0, t).columns(0, s)
                return part.formula(grid_of(t, s, ndim=len(batch) + 3))

            result = jax.eval_shape(formula, self)
            full = (*batch, shape.h, t, s)
            known = shape.batch is not None and shape.h is not None
            fits = len(result.shape) >= 2 and (not known or broadcasts_to(result.shape, full))
            if not jnp.issubdtype(result.dtype, dtype) or not fits:
                raise ValueError(
                    f"{type(self).__name__} must return {what} that broadcast to {full}, the axes *b h t s. "
                    f"Got {result.dtype}, shape {result.shape}. {OF_POSITIONS}"
                )

    def name_of(self, field: str) -> str:
        """What the caller knows a field as."""
        return field

    def lead(self) -> int:
        """How many batch axes the fields have, at most."""
        ndims = [0]

        def look(name: str, axes: str | None, x: Any) -> Any:
            if axes is not None and "b" in axes:
                ndims.append(jnp.ndim(x) - (len(axes) - 1))
            return x

        self.map_fields(look)
        return max(ndims)

    def aligned(self: Self, batch: int) -> Self:
        """With the axes ``*b h t s`` in every field, and a field's own ones after them; ``batch`` of them are b."""
        return self.map_fields(lambda name, axes, x: x if axes is None else align(x, axes, batch))

    def rows(self: Self, start: Extent, n: int) -> Self:
        """Of an aligned rule, the part for ``n`` queries from ``start`` on."""
        return self._cut("t", start, n)

    def columns(self: Self, start: Extent, n: int) -> Self:
        """Of an aligned rule, the part for ``n`` keys from ``start`` on."""
        return self._cut("s", start, n)

    def take(self: Self, heads: Any, queries: Any) -> Self:
        """Of an aligned rule, the part for these heads and queries; None stands for all of them."""

        def of(name: str, axes: str | None, x: Any) -> Any:
            if axes is None:
                return x
            for letter, indices in (("h", heads), ("t", queries)):
                axis = axis_of(letter, axes)
                x = x if indices is None or x.shape[axis] == 1 else jnp.take(x, indices, axis=axis)
            return x

        return self.map_fields(of)

    def by_head(self: Self, batch: Sequence[int], k: int, g: int) -> Self:
        """Of an aligned rule, with ``n k g t s`` in place of ``*b h t s``, where n numbers the examples, k heads are
        apart and g are together; what is the same for all of an axis has length 1 there.
        """

        def of(name: str, axes: str | None, x: Any) -> Any:
            if axes is None:
                return x if isinstance(x, int | float) else jnp.asarray(x)[None, None]
            lead, (h, *rest) = x.shape[: len(batch)], x.shape[len(batch) :]
            if any(n != 1 for n in lead):
                x = jnp.broadcast_to(x, (*batch, h, *rest))
            n = -1 if any(n != 1 for n in lead) else 1
            return x.reshape(n, *((1, 1) if h == 1 else (k, g)), *rest)

        return self.map_fields(of)

    def over_blocks(self: Self, start: int, count: int, n: int) -> Self:
        """Of a rule ``g t s``, ``count`` blocks of ``n`` queries from ``start`` on, side by side in a first axis."""

        def of(name: str, axes: str | None, x: Any) -> Any:
            if isinstance(x, int | float):
                return x
            if axes is None or x.shape[axis_of("t", axes)] == 1:
                return x[None]
            x = lax.slice_in_dim(x, start, start + count * n, axis=1)
            return jnp.moveaxis(x.reshape(x.shape[0], count, n, *x.shape[2:]), 1, 0)

        return self.map_fields(of)

    def partition_specs(self: Self, *, batch: int, **mesh_axes: Any) -> Self:
        """How the fields lie on a mesh: ``PartitionSpec``s in their place, for ``jax.shard_map`` or `jax.device_put`.

        Args:
            batch: how many batch axes the logits have.
            mesh_axes: the mesh's axes of ``h``, ``t`` and ``s``, and of the batch axes as ``b``, a tuple with one entry
                for each of them; None, or not given: not sharded.

        Example:

            >>> from jattn.masks import lengths
            >>> lengths(jnp.array([3, 4])).partition_specs(batch=1, b=("data",), h="model").valid_lens
            P('data',)
        """

        def of(name: str, axes: str | None, x: Any) -> PartitionSpec:
            if axes is None:
                return PartitionSpec()
            by_batch = tuple(mesh_axes.get("b", (None,) * batch))
            rest = [letter for letter in axes if letter != "b"][-jnp.ndim(x) :] if jnp.ndim(x) else []
            lead = jnp.ndim(x) - len(rest)
            names = [*by_batch[batch - lead :], *(mesh_axes.get(letter) for letter in rest)]
            return PartitionSpec(*(None if n == 1 else name for n, name in zip(x.shape, names, strict=True)))

        return self.map_fields(of)

    def _cut(self: Self, letter: str, start: Extent, n: int) -> Self:
        def of(name: str, axes: str | None, x: Any) -> Any:
            return x if axes is None else slice_along(x, start, n, axis_of(letter, axes))

        return self.map_fields(of)


OF_POSITIONS = (
    "What is asked for is a part of all pairs, so compute it from the positions that are given, and give an array with "
    'an entry for each example, head, query or key with its axes, as in name=("h", array).'
)


class FunctionRule(Rule):
    """A rule that is a function of the caller's, with arrays that are given to it by name."""

    function: Callable[..., Any]
    arrays: dict[str, Any]
    axes: tuple[tuple[str, str | None], ...]  # of each array, by name

    def call(self, *positions: Any) -> Any:
        return self.function(*positions, **self.arrays)

    @staticmethod
    def of_rank(result: Any, grid: Grid) -> Any:
        """What the function returned, a single number as one for all."""
        return jnp.asarray(result).reshape((1,) * grid.row.ndim) if np.ndim(result) == 0 else result

    def map_fields(self: Any, f: Callable[[str, str | None, Any], Any]) -> Any:
        return _replace(self, arrays={name: f(name, axes, self.arrays[name]) for name, axes in self.axes})

    def check(self, shape: Shape) -> None:
        for name, axes in self.axes:
            if axes is not None:
                check_axes(name, axes, self.arrays[name], shape)
        super().check(shape)


def function_and_arrays(
    f: Any, positions: tuple[str, ...], arrays: dict[str, Any]
) -> tuple[Any, dict[str, Any], tuple[tuple[str, str | None], ...]]:
    """A function of the caller's, its arrays, and the axes of each that is given as a pair ``(axes, array)``."""
    wanted = f"a function of {', '.join((*positions, *arrays))}"
    if not callable(f) or isinstance(f, type):
        raise ValueError(f"f must be {wanted}. Got {f!r}.")
    try:
        signature = inspect.signature(f)
    except ValueError:  # some functions have none that can be seen
        signature = None
    try:
        if signature is not None:
            signature.bind(*positions, **arrays)
    except TypeError as error:
        raise ValueError(f"f must be {wanted}. Got a function of {signature}: {error}.") from error
    axes: dict[str, str | None] = {}
    for array, x in arrays.items():
        axes[array] = x[0] if isinstance(x, tuple) else None
        if isinstance(x, tuple) and (
            len(x) != 2 or not isinstance(x[0], str) or not x[0] or x[0] != "".join(a for a in "bhts" if a in x[0])
        ):
            raise ValueError(
                f'{array} must be an array, or a pair of axes, in the order of "bhts", and an array. Got {x!r:.80}.'
            )
    given = {name: checks.array(name, x[1] if isinstance(x, tuple) else x) for name, x in arrays.items()}
    return f, given, tuple(axes.items())


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


def check_axes(name: str, axes: str, x: Any, shape: Shape, remedy: str = "") -> None:
    """Raise ValueError where an array that has ``axes`` does not fit; the batch and the heads may be unknown."""
    given, letters = jnp.shape(x), axes.removeprefix("b")
    unknown = {letter for letter, n in (("b", shape.batch), ("h", shape.h)) if n is None}
    lengths = {"h": shape.h, "t": shape.t, "s": shape.s}
    own = len(given) - len(letters)  # where the letters' axes begin
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


def grid_of(
    t: int,
    s: int,
    *,
    start: Extent = 0,
    first: Extent = 0,
    ndim: int = 3,
    query: Array | None = None,
    key: Array | None = None,
    arange: Callable[[int], Any] = jnp.arange,
) -> Grid:
    """t queries from ``start`` on and s keys from ``first`` on, at these aligned positions or at their own numbers.

    ``ndim`` is the number of axes ``*b h t s``.
    """
    lead = (1,) * (ndim - 2)
    row = start + arange(t).reshape(*lead, t, 1)
    column = first + arange(s).reshape(*lead, 1, s)
    return Grid(row if query is None else query, column if key is None else key, row, column)


def known_arange(n: int) -> np.ndarray:
    """``jnp.arange(n)``, not traced under ``jit``."""
    return np.arange(n, dtype=jnp.arange(0).dtype)


def _is_rule(x: Any) -> bool:
    return isinstance(x, Rule)


def _replace(rule: Self, **changed: Any) -> Self:
    """With other values in some fields, unchecked, and with the same children as before."""
    new = object.__new__(type(rule))
    new.__dict__.update(rule.__dict__)
    new.__dict__.update(changed)
    return new
