"""Names of parameters' axes, rules, and where they put a model; every error."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jattn import models, nn, sharding
from tests import processes
from tests.errors import raises

rngs = nnx.Rngs(0)


def mesh(**axes: int) -> Any:
    return jax.make_mesh((1,) * len(axes), tuple(axes))


def test_attention_s_names() -> None:
    attend = nn.MultiHeadAttention(4, 8, num_kv_heads=2, normalize_qk=True, use_sinks=True, use_bias=True, rngs=rngs)
    assert sharding.axes(attend) == {
        "query.kernel": ("embed", "heads", "head_dim"),
        "query.bias": ("heads", "head_dim"),
        "key.kernel": ("embed", "kv_heads", "head_dim"),
        "key.bias": ("kv_heads", "head_dim"),
        "value.kernel": ("embed", "kv_heads", "head_dim"),
        "value.bias": ("kv_heads", "head_dim"),
        "query_ln.scale": ("head_dim",),
        "key_ln.scale": ("head_dim",),
        "out.kernel": ("heads", "head_dim", "embed"),
        "out.bias": ("embed",),
        "sinks": ("heads",),
    }
    apart = nn.MultiHeadAttention(4, 8, num_kv_heads=2, normalize_qk=True, qk_norm_shared=False, rngs=rngs)
    assert sharding.axes(apart)["key_ln.scale"] == ("kv_heads", "head_dim")


def test_experts_s_names() -> None:
    network = nn.MixtureOfExperts(4, 6, num_experts=3, experts_per_token=1, gated=True, rngs=rngs)
    names = sharding.axes(network)
    assert names["router.kernel"] == ("embed", "experts")
    assert names["gate.kernel"] == names["linear1.kernel"] == ("experts", "embed", "mlp")
    assert (names["linear2.kernel"], names["linear2.bias"]) == (("experts", "mlp", "embed"), ("experts", "embed"))


@pytest.mark.parametrize(
    "made",
    [
        lambda: nn.TransformerBlock(2, 8, 12, cross_attention=True, norm="sandwich", rngs=rngs),
        lambda: nn.torch.Transformer(8, 2, 1, 1, 16, rngs=rngs),
        lambda: nn.torch.MultiheadAttention(8, 2, add_bias_kv=True, rngs=rngs),
        lambda: nn.GRU(4, 6, 2, rngs=rngs),
        lambda: nn.Conv(2, 4, 3, rngs=rngs),
        lambda: nn.AdditiveAttention(4, 3, 5, rngs=rngs),
        lambda: nn.NadarayaWatson(),
        lambda: models.GPT2(20, features=8, num_heads=2, num_layers=1, max_length=6, rngs=rngs),
        lambda: models.Seq2Seq(9, 8, embedding_features=4, hidden_features=4, rngs=rngs),
        lambda: models.DigitsClassifier(rngs=rngs),
        lambda: models.AttentionRegressor(rngs=rngs),
        lambda: models.TransformerRegressor(rngs=rngs),
    ],
)
@pytest.mark.every_case
def test_every_parameter_has_names(made: Any) -> None:
    """As many as it has axes."""
    model = made()
    names = sharding.axes(model)
    assert [path for path, axes in names.items() if axes is None] == []
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        assert len(names[".".join(map(str, path))]) == variable.ndim  # type: ignore[arg-type]


def test_what_is_in_front_is_layers() -> None:
    @nnx.vmap
    def many(rngs: nnx.Rngs) -> nn.FeedForward:
        return nn.FeedForward(4, 6, rngs=rngs)

    assert sharding.axes(many(nnx.Rngs(0).fork(split=3)))["linear1.kernel"] == ("layers", "embed", "mlp")


class Own(nnx.Module):
    """Names some of its axes as Flax does."""

    def __init__(self) -> None:
        self.named = nnx.Param(jnp.zeros((4, 6, 3)), out_sharding=("mlp", "colours"), eager_sharding=False)
        self.other = nnx.Param(jnp.zeros(5))


def test_names_of_one_s_own() -> None:
    model = Own()
    assert sharding.axes(model) == {"named": ("mlp", "colours", None), "other": None}
    assert spec_of(model, AbstractMesh((2,), ("x",)), {"colours": "x"}, "named") == PartitionSpec(None, "x")
    assert spec_of(model, AbstractMesh((2,), ("x",)), {"colours": "x"}, "other") == PartitionSpec()


def spec_of(model: nnx.Module, on: Any, rules: Any, *path: Any) -> PartitionSpec:
    """A spec, on devices that need not be there."""
    found: Any = sharding.specs(model, on, rules)
    for part in path:
        found = found[part]
    return found.get_value().spec


def test_layouts() -> None:
    """The mesh's axes that batches are split over are those that it has."""
    tensor = {"heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
    assert sharding.layout(mesh(data=1), "data") == {"batch": ("data",)}
    assert sharding.layout(mesh(fsdp=1), "fsdp") == {"batch": ("fsdp",), "embed": "fsdp"}
    assert sharding.layout(mesh(tensor=1), "tensor") == {"batch": None, **tensor}
    both = mesh(data=1, fsdp=1, tensor=1)
    assert sharding.layout(both, "fsdp+tensor") == {"batch": ("data", "fsdp"), "embed": "fsdp", **tensor}
    assert sharding.layout(mesh(sequence=1, tensor=1)) == {"batch": None, **tensor, "sequence": "sequence"}


def test_all_attention_divides_the_sequence() -> None:
    """Without the mesh it says so; with it, what has no tokens for each device, too."""
    block = nn.TransformerBlock(num_heads=2, features=4, feedforward_features=6, cross_attention=True, rngs=rngs)
    x = jnp.ones((1, 5, 4))
    expected = block(x, x)
    sharding.divide_sequence(block, "seq")
    assert block.attention.sequence_axis == block.cross_attention.sequence_axis == "seq"
    with raises("sequence_axis must name an axis of the mesh. Got 'seq'; no mesh is set.", "jax.set_mesh"):
        block(x, x)
    with jax.set_mesh(mesh(seq=1)):
        np.testing.assert_allclose(block(x, x), expected, rtol=1e-6)
    sharding.divide_sequence(block, None)
    np.testing.assert_array_equal(block(x, x), expected)


def test_what_does_not_divide_stays_whole() -> None:
    attend = nn.MultiHeadAttention(4, 8, num_kv_heads=2, use_bias=False, rngs=rngs)
    on = AbstractMesh((2, 4), ("fsdp", "tensor"))
    assert spec_of(attend, on, "fsdp+tensor", "query", "kernel") == PartitionSpec("fsdp", "tensor")
    assert spec_of(attend, on, "fsdp+tensor", "key", "kernel") == PartitionSpec("fsdp")
    rules = {"kv_heads": ("fsdp", "tensor"), "heads": ("tensor", "fsdp"), "head_dim": "fsdp"}
    assert spec_of(attend, on, rules, "key", "kernel") == PartitionSpec(None, "fsdp")
    assert spec_of(attend, on, rules, "query", "kernel") == PartitionSpec(None, "tensor", "fsdp")


def test_of_a_model_that_is_not_there() -> None:
    """What it would be, as ``jax.jit(..., out_shardings=...)`` takes it."""
    model = nnx.eval_shape(lambda: nn.FeedForward(4, 6, rngs=nnx.Rngs(0)))
    [spec] = {x.spec for x in jax.tree.leaves(sharding.specs(model, mesh(data=1), "data"))}
    assert spec == PartitionSpec()


def test_shard_is_in_place() -> None:
    model = nn.FeedForward(4, 6, rngs=nnx.Rngs(1))
    expected, on = np.asarray(model.linear1.kernel[...]), mesh(tensor=1)
    sharding.shard(model, on, "tensor")
    np.testing.assert_array_equal(model.linear1.kernel[...], expected)
    assert model.linear1.kernel.sharding == NamedSharding(on, PartitionSpec(None, "tensor"))
    assert sharding.mesh_axes_of("mlp", on, "tensor") == ("tensor",)
    assert sharding.mesh_axes_of("batch", on, {}) == ()


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    model, on = nn.FeedForward(4, 6, rngs=rngs), mesh(fsdp=1)
    with raises("mesh must have the axes fsdp, tensor for the layout 'fsdp+tensor'. Got fsdp, without tensor."):
        sharding.shard(model, on, "fsdp+tensor")
    with raises("rules must be", "'data'", "Got 'zero'"):
        sharding.layout(on, "zero")
    with raises("rules must be of the names that axes have: batch, classes, embed,", "Got 'hidden'", "sharding.axes"):
        sharding.specs(model, on, {"hidden": "fsdp"})
    wrong: Any
    for wrong in ("tensor", 3, ("fsdp", "tensor")):
        with raises(
            "rules must lead to axes of the mesh, fsdp, to tuples of them, or to None. Got", repr(wrong), "mlp"
        ):
            sharding.specs(model, on, {"mlp": wrong})
    with raises("rules must lead to different axes of the mesh. Got ('fsdp', 'fsdp') for 'mlp'."):
        sharding.specs(model, on, {"mlp": ("fsdp", "fsdp")})
    with raises("rules must be one of 'data', 'fsdp', 'tensor', 'sequence',", "or a table", "Got 3."):
        sharding.specs(model, on, 3)  # type: ignore[arg-type]
    with raises("mesh must be a jax.sharding.Mesh, as jax.make_mesh makes. Got 'cpu'."):
        sharding.specs(model, "cpu", "data")  # type: ignore[arg-type]
    with raises("model must be a flax.nnx.Module. Got int."):
        sharding.axes(3)  # type: ignore[arg-type]
    with raises("mesh must be a jax.sharding.Mesh", "Got AbstractMesh"):
        sharding.shard(model, AbstractMesh((1,), ("fsdp",)), "fsdp")  # type: ignore[arg-type]
    with raises("mesh must have no axes but data, fsdp, tensor, sequence, where no rules", "Got model. Name them so"):
        sharding.layout(AbstractMesh((2, 2), ("data", "model")))
    with raises("model must attend by jattn.nn.MultiHeadAttention, which", "Got a model with none.", "sequence_axis"):
        sharding.divide_sequence(model, "seq")
    with raises("model must attend by jattn.nn.MultiHeadAttention, which", "with AdditiveAttention."):
        sharding.divide_sequence(
            nnx.List([nn.MultiHeadAttention(2, 4, rngs=rngs), nn.AdditiveAttention(4, 4, 3, rngs=rngs)]), "seq"
        )
    with raises("sequence_axis must be the name of an axis of the mesh, or None. Got 3."):
        nn.MultiHeadAttention(2, 4, sequence_axis=3, rngs=rngs)
    with raises("axis must be the name of an axis of the mesh, or None. Got ('a', 'b')."):
        sharding.divide_sequence(model, ("a", "b"))  # type: ignore[arg-type]


@pytest.mark.whole
def test_on_eight_devices() -> None:
    """Lookups and tied logits under automatic and explicit axes, and a model with fewer key heads than devices."""
    assert len(processes.lines_of("tests.sharded_models")) == 9
