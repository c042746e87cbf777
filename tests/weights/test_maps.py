"""Modules of the user's that take part in state dicts, by a table of their own."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import nn
from jattn.weights import (
    Table,
    convert,
    dropped,
    files,
    load_state_dict,
    maps,
    merge,
    register_map,
    rename,
    save,
    split,
    transposed,
)

pytest.importorskip("safetensors", reason="safetensors is not installed: no weights were saved")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = dict(maps._MAPS)
    yield
    maps._MAPS.clear()
    maps._MAPS.update(before)


class Fused(nnx.Module):
    """Heads whose query, key and value are one parameter ``m, h, 3, d``, and a layer after them."""

    def __init__(self, m: int, h: int, d: int, *, rngs: nnx.Rngs) -> None:
        self.num_heads = h
        self.qkv = nnx.Param(jnp.zeros((m, h, 3, d)))
        self.out = nnx.Linear(h * d, m, rngs=rngs)


def table_of(module: Fused) -> Table:
    shape = module.qkv.shape
    return Table(
        [
            merge(("q.weight", "k.weight", "v.weight"), "qkv", num_heads=module.num_heads),
            convert("qkv", "qkv", lambda x: x.T.reshape(shape), lambda x: x.reshape(len(x), -1).T),
            rename("proj", "out"),
        ]
    )


def entries_of(m: int, h: int, d: int, prefix: str = "") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {**{f"{x}.weight": (h * d, m) for x in "qkv"}, "proj.weight": (m, h * d), "proj.bias": (m,)}
    return {f"{prefix}{name}": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def saved(module: nnx.Module, folder: Path) -> dict[str, np.ndarray]:
    save(module, folder / "a.safetensors")
    return files.load(folder / "a.safetensors")


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert (x.dtype, x.shape, x.tobytes()) == (other[name].dtype, other[name].shape, other[name].tobytes()), name


def test_a_module_whose_table_depends_on_it(tmp_path: Path) -> None:
    register_map(Fused, table_of)
    entries = entries_of(4, 2, 3)
    module = load_state_dict(Fused(4, 2, 3, rngs=nnx.Rngs(0)), entries)
    for i, name in enumerate("qkv"):
        by_head = entries[f"{name}.weight"].T.reshape(4, 2, 3)
        np.testing.assert_array_equal(module.qkv[..., i, :], by_head)
    np.testing.assert_array_equal(module.out.kernel[...], entries["proj.weight"].T)
    same(saved(module, tmp_path), entries)


def test_inside_of_others_and_beside_a_table_of_the_model(tmp_path: Path) -> None:
    register_map(Fused, table_of)
    module = nnx.Dict(attention=Fused(4, 2, 3, rngs=nnx.Rngs(0)), norm=nn.LayerNorm(4, rngs=nnx.Rngs(0)))
    entries = {**entries_of(4, 2, 3, "attn."), "ln.weight": np.ones(4, np.float32), "ln.bias": np.ones(4, np.float32)}
    table = Table([rename("attn", "attention"), rename("ln", "norm")])
    load_state_dict(module, entries, rename=table)
    save(module, tmp_path / "b.safetensors", rename=table)
    same(files.load(tmp_path / "b.safetensors"), entries)


def test_errors_have_the_names_of_the_state_dict() -> None:
    register_map(Fused, table_of)
    entries = entries_of(4, 2, 3)
    entries["query.weight"] = entries.pop("q.weight")[:5]
    message = (
        "state_dict must fit this Fused, entry for entry.\n"
        "  unknown: query.weight, shape (5, 4); nearest missing: q.weight\n"
        "  missing: q.weight, shape (6, 4)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_state_dict(Fused(4, 2, 3, rngs=nnx.Rngs(0)), entries)


class Scaled(nnx.Linear):
    """A linear layer of the user's whose kernel lies as PyTorch's does."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.kernel = nnx.Param(self.kernel[...].T)


class Child(Scaled):
    pass


@pytest.mark.parametrize("kind", [Scaled, Child])
def test_a_subclass_has_the_nearest_map(kind: type, tmp_path: Path) -> None:
    register_map(Scaled, Table([rename("weight", "kernel")]))
    entries = {"weight": np.arange(6, dtype=np.float32).reshape(3, 2), "bias": np.ones(3, np.float32)}
    module = load_state_dict(kind(2, 3, rngs=nnx.Rngs(0)), entries)
    np.testing.assert_array_equal(module.kernel[...], entries["weight"])
    same(saved(module, tmp_path), entries)
    register_map(Scaled, Table([transposed("w", "kernel")]))  # and what is said later holds
    assert saved(module, tmp_path).keys() == {"w", "bias"}


def test_a_layer_of_flax_with_running_statistics(tmp_path: Path) -> None:
    module = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"bias, mean, scale, var without one\. .* jattn\.weights\.register_map gives"):
        saved(module, tmp_path)
    lines = [rename("weight", "scale"), rename("running_mean", "mean"), rename("running_var", "var")]
    register_map(nnx.BatchNorm, Table([*lines, dropped("num_batches_tracked", optional=True)]))
    entries = {name: np.full(3, i, np.float32) for i, name in enumerate(("weight", "bias", "running_mean"))}
    entries["running_var"] = np.full(3, 7, np.float32)
    load_state_dict(module, entries)
    assert float(module.var[0]) == 7
    same(saved(module, tmp_path), entries)


def test_a_table_that_does_not_lead_back_and_forth() -> None:
    register_map(Scaled, Table([convert("weight", "kernel", lambda x: x[:2], lambda x: x)]))
    module = Scaled(2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=re.escape("table of Scaled must lead back and forth. Got kernel (2, 2), not")):
        load_state_dict(module, {"weight": np.ones((3, 2), np.float32), "bias": np.ones(3, np.float32)})
    register_map(Scaled, Table([split("weight", ("kernel", "other"))]))
    with pytest.raises(ValueError, match="incomplete: kernel needs other beside it"):
        load_state_dict(module, {})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("kind", "table", "message"),
    [
        (dict, Table([]), "kind must be a subclass of flax.nnx.Module. Got <class 'dict'>."),
        (Scaled, {"weight": "kernel"}, "table must be a jattn.weights.Table, or a function to one. Got dict."),
    ],
)
def test_what_cannot_be_registered(kind: Any, table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        register_map(kind, table)


@pytest.mark.usefixtures("unchecked")
def test_a_function_to_something_else() -> None:
    register_map(Scaled, lambda module: {"weight": "kernel"})  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match=r"^table must lead from a Scaled to a Table\. Got dict\.$"):
        load_state_dict(Scaled(2, 3, rngs=nnx.Rngs(0)), {})
