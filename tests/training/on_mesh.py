"""Training on eight devices: python -m tests.training.on_mesh. Says what is not as on one."""

import math
import re
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.many_layers import Decoder, loss_of
from jattn import models, training
from jattn.training import run, steps

VOCABULARY, EXAMPLES, BATCH = 16, 37, 16
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (EXAMPLES, 7))
MESHES: dict[str, dict[str, int]] = {
    "data, 1": {"data": 1},
    "data, 2": {"data": 2},
    "data, 8": {"data": 8},
    "fsdp, 4": {"fsdp": 4},
    "fsdp, 8": {"data": 2, "fsdp": 4},
    "tensor, 2": {"tensor": 2},
    "tensor, 8": {"data": 4, "tensor": 2},
    "fsdp+tensor, 4": {"fsdp": 2, "tensor": 2},
    "fsdp+tensor, 8": {"fsdp": 4, "tensor": 2},
    "sequence, 6": {"data": 2, "sequence": 3},
    "fsdp+tensor+sequence, 8": {"fsdp": 2, "tensor": 2, "sequence": 2},
}


def mesh_of(axes: dict[str, int]) -> Any:
    return jax.make_mesh(tuple(axes.values()), tuple(axes))


def made(dropout_rate: float = 0.1) -> models.GPT2:
    sizes: dict[str, Any] = dict(features=8, num_heads=2, num_layers=1, max_length=8, param_dtype=jnp.float64)
    return models.GPT2(VOCABULARY, **sizes, dropout_rate=dropout_rate, rngs=nnx.Rngs(0))


def loss(model: Any, batch: Any, rng: Any) -> Any:
    """Of the next token, a mean over those that are not 0, so that examples weigh differently."""
    logits, following = jax.nn.log_softmax(model(batch[:, :-1], rng=rng)), batch[:, 1:]
    each = jnp.take_along_axis(logits, following[..., None], -1)[..., 0]
    return -(each * (following != 0)).sum() / (following != 0).sum()


ADAM = training.adam(1e-2)


def fit(model: Any, **options: Any) -> training.History:
    given: dict[str, Any] = dict(loss=loss, optimizer=ADAM, epochs=17, batch_size=BATCH, progress=False)
    return training.fit(model, TOKENS, **{**given, **options})


def check_losses(name: str, expected: np.ndarray, dropout_rate: float, **options: Any) -> None:
    """As on one device, and the model lies where the layout says."""
    model, mesh = made(dropout_rate), mesh_of(MESHES[name])
    history = fit(model, mesh=mesh, **options)
    np.testing.assert_allclose(history.step_losses, expected, rtol=1e-9, atol=0)
    kernel = model.blocks[0].attention.query.kernel
    split = (mesh.shape.get("fsdp", 1), mesh.shape.get("tensor", 1), 1)
    here = tuple(n // parts for n, parts in zip((8, 2, 4), split, strict=True))
    assert kernel.addressable_shards[0].data.shape == here, kernel.sharding


class Compiled(Exception):
    """A step's program, and no step."""


def program_of(name: str, model: Any, **options: Any) -> Any:
    """The compiled steps."""

    def compiled(state: Any, *arguments: Any) -> Any:
        raise Compiled(steps._run_steps.lower(state.variables, state[1:], *arguments).compile())

    as_it_was: Any = run.run_steps
    setattr(run, "run_steps", compiled)  # noqa: B010
    try:
        fit(model, mesh=mesh_of(MESHES[name]), epochs=1, **options)
    except Compiled as program:
        return program.args[0]
    finally:
        setattr(run, "run_steps", as_it_was)  # noqa: B010
    raise AssertionError("nothing was compiled")


def check_reductions(name: str, accumulate: int) -> None:
    """Each gradient is added up over the devices once, beside the loss, and not in the loop over pieces.

    Without pieces that of the tied table once for each of its uses, and that of the positions for the 6 that are used.
    """
    program = program_of(name, made(), accumulate=accumulate).as_text()
    summed, places = 0, []
    for computation in re.split(r"\n(?=\S)", program):
        for result in re.findall(r"= (.*?) (?:all-reduce|reduce-scatter)\(", computation):
            if shapes := re.findall(r"f64\[([\d,]*)\]", result):
                summed += sum(math.prod(map(int, shape.split(","))) if shape else 1 for shape in shapes)
                places.append(computation)
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(made(), nnx.Param)))
    expected = parameters + 1 if accumulate > 1 else parameters + VOCABULARY * 8 - 2 * 8 + 1
    assert summed == expected, (parameters, summed)
    if accumulate > 1:  # there is a loop within the one over steps
        assert all(" while(" in place for place in places), places


def check_sequence() -> None:
    """Its keys are sent: attention is what is divided."""
    program = program_of("sequence, 6", made()).as_text()
    assert re.search(r"all-to-all|collective-permute", program)


def check_whole_only_where_used() -> None:
    """Of layers that are computed again in the backward pass, no device holds all parameters at a time."""
    layers, m = 8, 256
    decoder = Decoder(VOCABULARY, layers, m, rngs=nnx.Rngs(0))

    def again(model: Any, batch: Any, rng: Any) -> Any:
        return loss_of(model, batch, rng, remat=True)

    parameters = sum(x.nbytes for x in jax.tree.leaves(nnx.state(decoder, nnx.Param)))
    scratch = {
        name: program_of(name, decoder, loss=again).memory_analysis().temp_size_in_bytes
        for name in ("data, 8", "fsdp, 8")
    }
    # What a device has of the parameters and of their two moments, 3 / 8, is part of it.
    assert scratch["fsdp, 8"] < parameters < scratch["data, 8"], (scratch, parameters)


def check_checkpoints() -> None:
    """Written under one layout, read under another, bit for bit, and gone on with."""
    names = (None, "data, 8", "fsdp+tensor, 8")
    for first in names:
        with tempfile.TemporaryDirectory() as folder:
            before = trained(first, folder, epochs=2)
            for second in names:
                after = trained(second, folder, epochs=2)
                jax.tree.map(np.testing.assert_array_equal, after[1], before[1])
                np.testing.assert_array_equal(after[0], before[0])
            third = next(name for name in names if name != first)
            gone_on, _ = trained(third, folder, epochs=3)
            np.testing.assert_allclose(gone_on, trained(None, None, epochs=3)[0], rtol=1e-9, atol=0)


def trained(name: str | None, folder: str | None, epochs: int) -> Any:
    model = made()
    mesh = None if name is None else mesh_of(MESHES[name])
    history = fit(model, mesh=mesh, epochs=epochs, checkpoints=folder)
    return history.step_losses, jax.tree.map(np.asarray, nnx.state(model, nnx.Param))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", True)
    for name, accumulate in (("data, 2", 1), ("data, 2", 4), ("fsdp, 8", 1), ("fsdp, 4", 8)):
        check_reductions(name, accumulate)
        print("reductions", name, accumulate, flush=True)
    check_sequence()
    check_whole_only_where_used()
    print("whole only where used", flush=True)
    check_checkpoints()
    print("checkpoints", flush=True)
    alone = fit(made()).step_losses
    assert len(alone) == 51
    for name in MESHES:
        check_losses(name, alone, 0.1)
        print("losses", name, flush=True)
    alone = fit(made(0.0)).step_losses
    check_losses("fsdp+tensor, 8", alone, 0.0)
    print("losses without dropout", flush=True)
    for name in ("fsdp, 8", "fsdp+tensor, 8"):
        check_losses(name, alone, 0.0, remat="everything_saveable")
        print("losses with remat", name, flush=True)
    alone = fit(made(), accumulate=8).step_losses
    for name in ("data, 8", "fsdp, 4", "fsdp+tensor, 8"):
        check_losses(name, alone, 0.1, accumulate=8)
        print("losses by pieces", name, flush=True)
