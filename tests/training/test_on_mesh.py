"""`fit` on a mesh, by pieces, and with less kept for the backward pass; the rest needs eight devices: on_mesh.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jattn import nn, training
from jattn.training.placement import placement_of
from tests import processes
from tests.errors import raises

X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
ADAM = training.adam(1e-2)


def mesh(**axes: int) -> Any:
    return jax.make_mesh((1,) * len(axes), tuple(axes))


def squares(model: Any, batch: Any, rng: Any) -> Any:
    return ((model(batch, rng=rng) - batch) ** 2).mean()


def fit(dropout_rate: float = 0.0, **options: Any) -> tuple[np.ndarray, Any]:
    model = nn.FeedForward(4, 6, dropout_rate=dropout_rate, rngs=nnx.Rngs(0))
    given: dict[str, Any] = dict(loss=squares, optimizer=ADAM, epochs=3, batch_size=8, progress=False)
    return training.fit(model, X, X[:5], **{**given, **options}).step_losses, model


def test_one_device_as_a_mesh() -> None:
    """The model lies there afterwards, also where the mesh's axes are explicit outside."""
    expected, _ = fit(0.2)
    losses, model = fit(0.2, mesh=mesh(fsdp=1, tensor=1), plateau=training.ReduceLROnPlateau(), patience=2)
    for is_set in (mesh(fsdp=1, tensor=1), mesh(other=1)):
        with jax.set_mesh(is_set):
            within, _ = fit(0.2, mesh=mesh(fsdp=1, tensor=1))
        np.testing.assert_allclose(within, expected, rtol=1e-6)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    lies = NamedSharding(mesh(fsdp=1, tensor=1), PartitionSpec("fsdp", "tensor"))
    assert set(model.linear1.kernel.sharding.mesh.axis_names) == {"fsdp", "tensor"}
    assert model.linear1.kernel.sharding.is_equivalent_to(lies, 2)


def test_what_the_optimizer_keeps_lies_with_its_parameter() -> None:
    model = nn.FeedForward(4, 6, rngs=nnx.Rngs(0))
    place = placement_of(model, mesh(fsdp=1, tensor=1), "fsdp+tensor")
    state = place.put(training.adam(1e-3).init(nnx.state(model)))
    specs = {jax.tree_util.keystr(path): x.sharding.spec for path, x in jax.tree.leaves_with_path(state)}
    kernels = [spec for path, spec in specs.items() if "linear1" in path and "kernel" in path]
    assert kernels == [PartitionSpec("fsdp", "tensor")] * 2  # both moments
    assert all(spec == PartitionSpec() for path, spec in specs.items() if "linear" not in path)


class Doubled(nnx.Param):
    """Its value is twice what it holds."""

    def get_value(self, **options: Any) -> Any:
        return 2 * super().get_value(**options)


class Scaled(nnx.Module):
    """A product with a parameter that gives another value than it holds."""

    def __init__(self) -> None:
        self.kernel = Doubled(jnp.ones((4, 4)), out_sharding=("embed", "mlp"), eager_sharding=False)

    def __call__(self, x: Any, rng: Any) -> Any:
        return x @ self.kernel[...]


def test_variables_of_the_models_own_kind() -> None:
    given: dict[str, Any] = dict(loss=squares, optimizer=ADAM, epochs=1, batch_size=4, progress=False)
    model = Scaled()
    on: dict[str, Any] = dict(mesh=mesh(fsdp=1), rules="fsdp", wrt=lambda path, x: type(x) is Doubled)
    losses = training.fit(model, X, **given, **on).step_losses
    np.testing.assert_allclose(losses, training.fit(Scaled(), X, **given).step_losses, rtol=1e-6)
    assert type(model.kernel) is Doubled


class Named(nnx.Module):
    """A product whose axes have names of its own."""

    def __init__(self) -> None:
        self.kernel = nnx.Param(jnp.ones((4, 4)), out_sharding=("width", "inner"), eager_sharding=False)

    def __call__(self, x: Any, rng: Any) -> Any:
        return x @ self.kernel[...]


def test_names_of_the_models_own() -> None:
    model = Named()
    rules = {"batch": "devices", "inner": "devices"}
    given: dict[str, Any] = dict(loss=squares, optimizer=ADAM, epochs=1, batch_size=4, progress=False)
    training.fit(model, X, **given, mesh=mesh(devices=1), rules=rules)
    assert model.kernel.sharding.spec == PartitionSpec(None, "devices")


def test_pieces() -> None:
    """Of a mean over examples, the mean of the pieces' means is that of the batch; a last batch of 5 is one piece."""
    expected, _ = fit(batch_size=15)
    losses, _ = fit(batch_size=15, accumulate=3)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_each_piece_has_an_rng_of_its_own() -> None:
    seen = []

    def loss(model: Any, batch: Any, rng: Any) -> Any:
        return model.linear2.bias[...].sum() * 0 + jax.random.uniform(rng)

    def of(accumulate: int) -> float:
        return float(fit(loss=loss, batch_size=4, epochs=1, accumulate=accumulate)[0][0])

    rng = jax.random.fold_in(jax.random.key(0), 0)
    seen = [float(jax.random.uniform(jax.random.fold_in(rng, i))) for i in range(2)]
    assert of(1) == pytest.approx(float(jax.random.uniform(rng)))
    assert of(2) == pytest.approx(np.mean(seen))


@pytest.mark.parametrize("remat", ["dots_with_no_batch_dims_saveable", "nothing_saveable"])
def test_what_is_computed_again_is_the_same(remat: str) -> None:
    expected, _ = fit(0.2)
    np.testing.assert_allclose(fit(0.2, remat=remat)[0], expected, rtol=1e-6)


class Counts(nnx.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        self.scale = nnx.Param(jnp.ones(()))
        self.calls = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x: Any, rng: Any) -> Any:
        self.calls[...] += 1
        return x * self.scale[...]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.every_case
@pytest.mark.parametrize(
    ("options", "phrases"),
    [
        ({"accumulate": 0}, ["accumulate must be an integer in [1, inf). Got 0"]),
        ({"accumulate": 3}, ["accumulate must be a positive divisor of batch_size, 8. Got 3."]),
        ({"rules": "data"}, ["rules must be None without a mesh. Got 'data'. Pass mesh"]),
        ({"mesh": "cpu"}, ["mesh must be a jax.sharding.Mesh, as jax.make_mesh makes. Got 'cpu'."]),
        (
            {"mesh": mesh(data=1), "rules": "tensor"},
            ["mesh must have the axes tensor for the layout 'tensor'. Got data"],
        ),
        ({"mesh": mesh(data=1), "rules": {"mlp": "x"}}, ["rules must lead to axes of the mesh, data,", "Got 'x' for"]),
        ({"mesh": mesh(data=1), "rules": {"width": "data"}}, ["rules must be of the names that axes have", "'width'"]),
        (
            {"mesh": mesh(sequence=1), "rules": "sequence", "accumulate": 2},
            ["accumulate must be 1 where the rules divide the sequence. Got 2."],
        ),
        (
            {"mesh": mesh(a=1, b=1), "rules": {"sequence": ("a", "b")}},
            ["rules must lead from 'sequence' to one axis of the mesh. Got ('a', 'b')."],
        ),
        ({"mesh": mesh(sequence=1), "rules": "sequence"}, ["model must attend by jattn.nn.MultiHeadAttention"]),
        ({"mesh": AbstractMesh((1,), ("data",))}, ["mesh must be a jax.sharding.Mesh", "Got AbstractMesh"]),
        ({"remat": "all"}, ["remat must be", "'dots_saveable'", "Got 'all'"]),
    ],
)
def test_errors(options: dict[str, Any], phrases: list[str]) -> None:
    with raises(*phrases):
        fit(**options)


def test_pieces_of_a_model_that_changes_itself() -> None:
    with raises(
        "accumulate must be 1 for a model that changes its own state while training. Got calls, which changes."
    ):
        training.fit(Counts(), X, loss=squares, optimizer=ADAM, epochs=1, batch_size=4, accumulate=2, progress=False)


@pytest.mark.whole
def test_on_eight_devices() -> None:
    """Losses as on one device under each layout, one reduction a step, checkpoints from one layout to another."""
    assert len(processes.lines_of("tests.training.on_mesh")) == 23
