"""Where a run of `jattn.training.fit` lies: `Placement` on one device, which changes nothing, or `OnMesh`.

All that a mesh means to fit is asked of this one value. Under `OnMesh` the arrays are global, the axes automatic: a
step is the one of a single device, and XLA splits it. Only the sum over the pieces of a batch is manual, as XLA would
add up the gradients of each piece over the devices.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from jattn import sharding
from jattn._engine.dtypes import widest
from jattn._engine.mesh_axes import axis_names, spec_of

__all__ = ["OnMesh", "Placement", "on", "placement_of"]

Policy = Callable[..., Any]  # of `jax.checkpoint`
Piece = Callable[[Any, Any, Any], Any]  # of shared arrays, parameters and a piece: a nest of numbers to be added up


@dataclasses.dataclass(frozen=True)
class Placement:
    """One device: everything stays as it is."""

    def data(self, data: PyTree) -> PyTree:
        """The data, put where each step finds them."""
        return data

    def put(self, tree: PyTree) -> PyTree:
        """Variables, or what an optimiser keeps of them, put where they lie between steps."""
        return tree

    def kept(self, tree: PyTree) -> PyTree:
        """The same within a compiled step."""
        return tree

    def epoch(self, data: PyTree, order: Int[Array, "n b"]) -> tuple[PyTree, PyTree]:
        """The data, and what a step picks its batch with: the indices; or none, and the batches themselves."""
        return data, order

    def batch(self, batch: PyTree) -> PyTree:
        """A batch, split; whole where it does not divide."""
        return batch

    @contextlib.contextmanager
    def running(self, model: nnx.Module, wrt: Any) -> Iterator[None]:
        """Around a call of the model: its parameters are whole where it computes with them."""
        yield

    def keeping(self, policy: Policy) -> Policy:
        """What the backward pass keeps, by a policy, without parameters that were made whole."""
        return policy

    def sum_of(self, piece: Piece, shared: PyTree, parameters: PyTree, pieces: PyTree) -> PyTree:
        """``piece(shared, parameters, x)``, gradients of the parameters within, added up over the pieces x, in float32
        or wider."""

        def add(total: PyTree, more: PyTree) -> PyTree:
            return jax.tree.map(lambda x, y: x + y.astype(x.dtype), total, more)

        shape = jax.eval_shape(lambda: piece(shared, parameters, jax.tree.map(lambda x: x[0], pieces)))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, widest(x, jnp.float32)), shape)
        return jax.lax.scan(lambda total, x: (add(total, piece(shared, parameters, x)), None), zeros, pieces)[0]


@dataclasses.dataclass(frozen=True)
class OnMesh(Placement):
    """Parameters and what is kept of them by rules; batches over some axes of the mesh.

    The data lie whole on each device; where there are several processes, outside, and each reads the examples that its
    own devices need.
    """

    mesh: Mesh
    over: tuple[str, ...]  # the axes that batches are split over
    specs: tuple[tuple[Any, tuple[int, ...], PartitionSpec], ...]  # of the model's variables: path, shape, spec
    sequence: str | None = None  # the axis that divides what attention sees

    def data(self, data: PyTree) -> PyTree:
        return data if self.mesh.is_multi_process else jax.device_put(data, self._split())

    def epoch(self, data: PyTree, order: Int[Array, "n b"]) -> tuple[PyTree, PyTree]:
        if not self.mesh.is_multi_process:
            return data, order
        numbers = np.asarray(order)
        split = self._split(None, self._over(numbers.shape[1]))

        def batches(x: np.ndarray) -> Array:
            def of_a_device(at: Any) -> np.ndarray:
                return x[numbers[at[:2]]]

            return jax.make_array_from_callback((*numbers.shape, *x.shape[1:]), split, of_a_device)

        return None, jax.tree.map(batches, data)

    def put(self, tree: PyTree) -> PyTree:
        return jax.device_put(tree, self._shardings(tree))

    def kept(self, tree: PyTree) -> PyTree:
        return jax.lax.with_sharding_constraint(tree, self._shardings(tree))

    def batch(self, batch: PyTree) -> PyTree:
        n = len(jax.tree.leaves(batch)[0])
        return jax.lax.with_sharding_constraint(batch, self._split(self._over(n)))

    @contextlib.contextmanager
    def running(self, model: nnx.Module, wrt: Any) -> Iterator[None]:
        divided: Any = contextlib.nullcontext()
        if self.sequence is not None:
            sharding.divide_sequence(model, self.sequence)
            divided = jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)
        with divided, contextlib.ExitStack() as stack:
            state = nnx.state(model, wrt)
            for variable, split, whole in zip(
                jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable)),
                jax.tree.leaves(self._shardings(state)),
                jax.tree.leaves(self._shardings(state, self._not_over)),
                strict=True,
            ):
                if split != whole:
                    stack.enter_context(_gathered(variable, whole))
            yield

    def keeping(self, policy: Policy) -> Policy:
        return functools.partial(_unless_whole, policy)

    def sum_of(self, piece: Piece, shared: PyTree, parameters: PyTree, pieces: PyTree) -> PyTree:
        if not self.over:
            return super().sum_of(piece, shared, parameters, pieces)

        def of_own_pieces(shared: PyTree, parameters: PyTree, pieces: PyTree) -> PyTree:
            return jax.lax.psum(Placement.sum_of(self, piece, shared, parameters, pieces), self.over)

        whole = PartitionSpec()
        run = jax.shard_map(
            of_own_pieces,
            mesh=self.mesh,
            axis_names=set(self.over),
            in_specs=(whole, whole, PartitionSpec(self.over)),
            out_specs=whole,
            check_vma=False,  # the model is written for one device
        )
        whole_parameters = jax.lax.with_sharding_constraint(parameters, self._shardings(parameters, self._not_over))
        return run(shared, whole_parameters, pieces)

    @property
    def shards(self) -> int:
        """In how many a batch is split."""
        return math.prod(self.mesh.shape[name] for name in self.over)

    def _not_over(self, name: str) -> bool:
        return name not in self.over

    def _over(self, n: int) -> tuple[str, ...]:
        """The axes that a batch of n is split over."""
        return self.over if n % self.shards == 0 else ()

    def _split(self, *axes: tuple[str, ...] | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*(over or None for over in axes)))

    def _shardings(self, tree: PyTree, taken: Callable[[str], bool] = lambda _: True) -> PyTree:
        """Of a leaf whose path ends in a variable's, and that has its shape, that variable's, of the mesh's axes taken.

        What an optimiser keeps for each parameter is a nest like the parameters'.
        """

        def sharding_of(path: Any, x: Any) -> NamedSharding:
            for i in range(len(path)):
                shape, spec = self._by_path.get(path[i:], (None, None))
                if shape == x.shape and spec is not None:
                    return NamedSharding(self.mesh, _of_axes(spec, taken))
            return NamedSharding(self.mesh, PartitionSpec())

        return jax.tree.map_with_path(sharding_of, tree)

    @functools.cached_property
    def _by_path(self) -> dict[Any, tuple[tuple[int, ...], PartitionSpec]]:
        return {path: (shape, spec) for path, shape, spec in self.specs}


def on(mesh: Mesh | None) -> Any:
    """Around all of a run: where the caller has set a mesh, this one in its place."""
    is_set = not jax.sharding.get_abstract_mesh().empty
    return jax.set_mesh(_automatic(mesh)) if is_set and mesh is not None else contextlib.nullcontext()


def _automatic(mesh: Mesh) -> Mesh:
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def placement_of(model: nnx.Module, mesh: Mesh | None, rules: Any) -> Placement:
    """Where a run with this model lies, if there is a mesh by these rules."""
    if mesh is None:
        return Placement()
    mesh = _automatic(mesh)
    shapes = jax.tree.leaves_with_path(nnx.state(model))
    specs = jax.tree.leaves(sharding.specs(model, mesh, rules))
    by_path = tuple((path, x.shape, y.spec) for (path, x), y in zip(shapes, specs, strict=True))
    sequence = sharding.mesh_axes_of("sequence", mesh, rules)
    if len(sequence) > 1:
        raise ValueError(f"rules must lead from 'sequence' to one axis of the mesh. Got {sequence}.")
    return OnMesh(mesh, sharding.mesh_axes_of("batch", mesh, rules), by_path, *sequence)


_WHOLE = (
    "jattn_whole"  # of a variable's metadata: the mesh, and how its value lies there where the model computes with it
)


@contextlib.contextmanager
def _gathered(variable: nnx.Variable[Any], whole: NamedSharding) -> Iterator[None]:
    """The variable gives what it holds so divided; a layer's, where a scan goes over a stack of layers."""
    kind: Any = type(variable)
    variable.set_metadata(_WHOLE, (whole.mesh, (*whole.spec, *(None,) * (variable.ndim - len(whole.spec)))))
    object.__setattr__(variable, "__class__", _gathering(kind))
    try:
        yield
    finally:
        object.__setattr__(variable, "__class__", kind)
        variable.del_metadata(_WHOLE)


@functools.cache
def _gathering(kind: type[nnx.Variable[Any]]) -> type[nnx.Variable[Any]]:
    """Variables of a kind whose values come together when they are asked for."""

    class Gathering(kind):  # type: ignore[misc,valid-type]
        def get_value(self, **options: Any) -> Any:
            value, (mesh, axes) = super().get_value(**options), self.get_metadata(_WHOLE)
            if value.shape != self.get_raw_value().shape:  # some of its rows
                return value
            last = PartitionSpec(*axes[len(axes) - value.ndim :])
            return jax.lax.with_sharding_constraint(value, NamedSharding(mesh, last))

    return Gathering


def _unless_whole(policy: Policy, primitive: Any, *types: Any, **parameters: Any) -> Any:
    """What the policy keeps, but no parameter that came together: kept, all would be whole on each device at a time."""
    return primitive.name != "sharding_constraint" and policy(primitive, *types, **parameters)


def _of_axes(spec: PartitionSpec, taken: Callable[[str], bool]) -> PartitionSpec:
    """The spec without the mesh's other axes."""
    return spec_of([tuple(filter(taken, axis_names(part))) for part in spec])
