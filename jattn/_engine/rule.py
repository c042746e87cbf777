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

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

from jattn._engine import checks
from jattn._engine.axes import Shape, align, apart, axis_of, check_axes, over
from jattn._engine.extents import Extent, slice_along
from jattn._engine.grid import Grid, grid_of
from jattn._engine.of_caller import an_array, as_part_of_a_program
from jattn._engine.pytree import Pytree

__all__ = ["OF_POSITIONS", "Rule"]

Self = TypeVar("Self", bound="Rule")

OF_POSITIONS = (
    "What is asked for is a part of all pairs, so compute it from the positions that are given, and give an array with "
    "an entry for each example, head, query or key with its axes, as in "
)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(over, apart))
class Rule(Pytree):
    """The base of masks and biases: a frozen dataclass whose fields declare their axes with `over`."""

    # What a formula of the caller's must return, in words and as a dtype; None: it is not looked at.
    gives: ClassVar[tuple[str, Any] | None] = None

    declared: ClassVar[str] = 'name: Array = over("h").'  # how the axes of an array are said

    @property
    def by_caller(self) -> str | None:
        """What the caller knows the formula as, if it is not jattn's own, and may return anything."""
        own = type(self).__module__.partition(".")[0] == __name__.partition(".")[0]
        return None if own else f"formula of {type(self).__name__}"

    def formula(self, grid: Grid) -> Any:
        """What the rule says about every query and key of the grid; broadcasts to ``*b h t s``."""
        raise NotImplementedError(
            f"{type(self).__name__} must define formula(self, grid), of grid.query and grid.key. Got none."
        )

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
        return self._replace(**changed)

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
        for name, n in (("t", t), ("s", s)):
            if not is_symbolic_dim(n):
                checks.count(name, n)
        self.check(Shape(None, None, t, s))
        lead = self.lead()
        x = jnp.asarray(self.aligned(lead).formula(grid_of(t, s, ndim=lead + 3)))
        x = jnp.broadcast_to(x, (*x.shape[:-2], t, s))
        return x[0] if lead == 0 and x.ndim == 3 and x.shape[0] == 1 else x

    def check(self, shape: Shape) -> None:
        """Raise ValueError where the rule does not fit so many queries and keys, and batch and heads, if known."""
        for field in dataclasses.fields(self):
            value, axes = getattr(self, field.name), field.metadata.get("axes")
            if axes is not None and value is not None:
                check_axes(self.name_of(field.name), axes, value, shape, field.metadata["remedy"])
            elif axes is None:
                for part in filter(_is_rule, jax.tree.leaves(value, is_leaf=_is_rule)):
                    part.check(shape)
        self.check_values(shape)
        if self.gives is not None and self.by_caller is not None:
            self.check_formula(self.by_caller, shape, *self.gives)

    def check_values(self, shape: Shape) -> None:
        """Raise ValueError for numbers that make no sense, where they are known."""

    def check_formula(self, name: str, shape: Shape, what: str, dtype: Any) -> None:
        """Raise ValueError where the formula gives something else, for a single pair or for all of them."""
        batch = (1,) * self.lead() if shape.batch is None else shape.batch

        def formula(rule: Rule, t: Any, s: Any) -> Any:  # of an aligned rule
            part = rule.rows(0, t).columns(0, s)
            with as_part_of_a_program(name), self.fitting(name):
                result = part.formula(grid_of(t, s, ndim=len(batch) + 3))
            return an_array(name, result, what)

        # An `if` fails with JAX's own error for a single pair, with NumPy's for several; shapes say more for all pairs.
        single = jax.eval_shape(lambda rule: formula(rule.aligned(len(batch)), 1, 1), self)
        whole = jax.eval_shape(lambda rule: formula(rule.aligned(len(batch)), shape.t, shape.s), self)
        asked = [(whole, (*batch, shape.h, shape.t, shape.s)), (single, (*batch, shape.h, 1, 1))]
        if any(n not in (0, 1) for n in single.shape[:-2]):  # of examples or heads: those that are asked for?
            aligned = jax.eval_shape(lambda rule: rule.aligned(len(batch)), self)
            part = jax.eval_shape(lambda rule: formula(rule, 1, 1), aligned.of_one(len(batch)))
            asked.append((part, (1,) * (len(batch) + 3)))
        for result, full in asked:
            if not jnp.issubdtype(result.dtype, dtype):
                remedy = "Compare it, as in x != 0." if dtype == jnp.bool_ else "Convert it with .astype(jnp.float32)."
                raise ValueError(f"{name} must return {what}. Got {result.dtype}. {remedy}")
            known = None not in full
            if len(result.shape) < 2 or (known and not checks.broadcasts_to(result.shape, full)):
                raise ValueError(
                    f"{name} must return {what} that broadcast to {full}, the axes *b h t s. "
                    f"Got {result.dtype}, shape {result.shape}. {OF_POSITIONS}{self.declared}"
                )

    @contextlib.contextmanager
    def fitting(self, name: str) -> Iterator[None]:
        """Around a formula of the caller's: an error about shapes says how an array is given its axes."""
        try:
            yield
        except (TypeError, ValueError) as error:
            if "broadcast" not in str(error):
                raise
            raise ValueError(f"{name} must fit its arrays. {OF_POSITIONS}{self.declared} Got: {error}") from error

    def of_one(self: Self, batch: int) -> Self:
        """Of an aligned rule with so many batch axes, the shapes of the part for one example and one head."""

        def of(name: str, axes: str | None, x: Any) -> Any:
            return x if axes is None else jax.ShapeDtypeStruct((*(1,) * (batch + 1), *x.shape[batch + 1 :]), x.dtype)

        return self.map_fields(of)

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

    def in_kernel(self) -> Any:
        """The same rule for a kernel, whose formulas must neither look up an array at an index nor hold one.

        A rule whose formula does gives another, before it is `aligned`.
        """

        def of(x: Any) -> Any:
            return x.in_kernel() if _is_rule(x) else x

        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return self._replace(**{name: jax.tree.map(of, x, is_leaf=_is_rule) for name, x in fields.items()})

    def diagonal(self: Self) -> Self:
        """Of an aligned rule for as many queries as keys, what it is for each key and the query of the same number."""

        def of(name: str, axes: str | None, x: Any) -> Any:
            if axes is None:
                return x
            t, s = axis_of("t", axes), axis_of("s", axes)
            if x.shape[t] == 1 or x.shape[s] == 1:
                return x if x.shape[t] == 1 else jnp.swapaxes(x, t, s)
            return jnp.expand_dims(jnp.moveaxis(jnp.diagonal(x, axis1=t, axis2=s), -1, s), t)

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
                for each of them; None, or not given: not sharded. Where t and s have the same, a field that has both is
                divided by t, and holds all of s.

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
            names = [None if n == 1 else name for n, name in zip(x.shape, names, strict=True)]
            return PartitionSpec(*(None if name in names[:i] else name for i, name in enumerate(names)))

        return self.map_fields(of)

    def _replace(self: Self, **changed: Any) -> Self:
        """With other values in some fields, unchecked, and with the same children as before."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.__dict__.update(changed)
        return new

    def _cut(self: Self, letter: str, start: Extent, n: int) -> Self:
        def of(name: str, axes: str | None, x: Any) -> Any:
            return x if axes is None else slice_along(x, start, n, axis_of(letter, axes))

        return self.map_fields(of)


def _is_rule(x: Any) -> bool:
    return isinstance(x, Rule)
