"""`jattn.training.fit`: what it does, what it keeps, and what it says to mistakes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jattn import training
from jattn.nn.dropout import Dropout
from tests.killed import run as run_to_be_killed

rng = np.random.default_rng(0)
X = rng.standard_normal((22, 3)).astype(np.float32)
Y = X @ np.float32([1.0, -2.0, 0.5]) + 1


class Linear(nnx.Module):
    """A model with dropout, so that randomness matters."""

    def __init__(self, rate: float = 0.0) -> None:
        self.linear = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
        self.dropout = Dropout(rate)

    def __call__(self, x, rng=None):
        return self.linear(self.dropout(jnp.asarray(x), rng))[..., 0]


def squared_error(model, batch, rng):
    x, y = batch
    return jnp.mean((model(x, rng=rng) - y) ** 2)


def fit(model, train=(X, Y), validation=None, **changes: Any) -> training.History:
    options = dict(loss=squared_error, optimizer=training.sgd(0.1), epochs=3, batch_size=8, progress=False)
    return training.fit(model, train, validation, **{**options, **changes})


def bits(model: nnx.Module) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(nnx.state(model))]


# ----------------------------------------------------------------------------------------------------------------------
# What it does.


@pytest.mark.parametrize(
    ("drop_last", "batches"),
    [(False, [slice(0, 8), slice(8, 16), slice(16, 22)]), (True, [slice(0, 8), slice(8, 16)])],
)
def test_the_steps_are_those_of_a_loop_by_hand(drop_last: bool, batches: list[slice]) -> None:
    model, by_hand = Linear(), Linear()
    history = fit(model, shuffle=False, drop_last=drop_last, epochs=2)
    losses = []
    for batch in batches * 2:
        value, gradients = nnx.value_and_grad(squared_error)(by_hand, (X[batch], Y[batch]), None)
        nnx.update(by_hand, jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(by_hand, nnx.Param), gradients))
        losses.append(float(value))
    np.testing.assert_allclose(history.step_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(model.linear.kernel[...], by_hand.linear.kernel[...], rtol=1e-5)
    sizes = [batch.stop - batch.start for batch in batches]
    means = [np.average(epoch, weights=sizes) for epoch in np.reshape(losses, (2, -1))]
    np.testing.assert_allclose(history.losses, means, rtol=1e-5)
    np.testing.assert_allclose(history.learning_rates, 0.1, rtol=1e-6)


def test_the_seed_decides_order_and_dropout() -> None:
    models = [Linear(0.5) for _ in range(4)]
    for model, options in zip(
        models, [{"seed": 1}, {"seed": 1}, {"seed": 2}, {"seed": 1, "shuffle": False}], strict=True
    ):
        fit(model, **options)
    assert bits(models[0]) == bits(models[1])
    assert bits(models[0]) != bits(models[2])
    assert bits(models[0]) != bits(models[3])


def test_every_example_is_seen_once_an_epoch() -> None:
    """The model adds up what it is shown: one weight for each example."""
    examples = np.eye(22, dtype=np.float32)
    model = nnx.Linear(22, 1, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    for batch_size in (8, 22, 30):
        before = np.asarray(model.kernel[...])
        fit(
            model,
            examples,
            loss=lambda m, x, rng: -m(x).sum(),
            optimizer=training.sgd(1.0),
            epochs=1,
            batch_size=batch_size,
        )
        np.testing.assert_array_equal(model.kernel[...] - before, 1)


def test_validation_is_the_mean_over_all_examples_in_eval_mode() -> None:
    model = Linear(0.5)

    def offset(model, batch):
        return jnp.mean(model(batch[0]) - batch[1])

    history = fit(model, (X, Y), (X[:13], Y[:13]), metrics={"offset": offset})
    difference = model(X[:13]) - Y[:13]  # the model is left in eval mode
    np.testing.assert_allclose(history.validation_losses[-1], jnp.mean(difference**2), rtol=1e-5)
    np.testing.assert_allclose(history.metrics["offset"][-1], jnp.mean(difference), rtol=1e-4)
    assert history.validation_losses.shape == history.metrics["offset"].shape == (3,)


def test_early_stopping_restores_the_best() -> None:
    model = Linear()
    # The validation data want the opposite of the training data, so every step makes it worse.
    history = fit(model, (X, Y), (X, -Y), epochs=50, patience=4)
    assert history.stopped_early
    assert history.best_epoch == int(np.argmin(history.validation_losses))
    assert len(history.losses) == history.best_epoch + 1 + 4
    np.testing.assert_allclose(squared_error(model, (X, -Y), None), history.validation_losses.min(), rtol=1e-5)


def test_a_plateau_lowers_the_rate() -> None:
    plateau = training.ReduceLROnPlateau(factor=0.5, patience=1, min_lr=0.02)
    history = fit(Linear(), (X, Y), (X, -Y), epochs=12, plateau=plateau)
    rate, state, rates = float(np.float32(0.1)), training.PlateauState(), []
    for loss in history.validation_losses:
        rates += [rate] * 3
        rate, state = plateau.update(rate, loss, state)
    np.testing.assert_allclose(history.learning_rates, rates, rtol=1e-6)
    assert rates[-1] == 0.02


def test_gradients_are_clipped() -> None:
    model, before = Linear(), Linear()
    fit(model, (X, 1000 * Y), epochs=1, batch_size=22, clip_norm=0.5, optimizer=training.sgd(1.0))
    moved = jax.tree.map(jnp.subtract, nnx.state(model), nnx.state(before))
    np.testing.assert_allclose(optax.tree.norm(moved), 0.5, rtol=1e-5)


def test_flax_modules_with_state_of_their_own() -> None:
    """Batch statistics and a stateful rng, which leaks tracers from a loop written by hand."""

    class Stateful(nnx.Module):
        def __init__(self) -> None:
            self.norm = nnx.BatchNorm(3, momentum=0.5, rngs=nnx.Rngs(0))
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))
            self.linear = nnx.Linear(3, 1, rngs=nnx.Rngs(0))

        def __call__(self, x, rng=None):
            return self.linear(self.dropout(self.norm(x)))[..., 0]

    model = Stateful()
    fit(model, (X + 5, Y), epochs=20)
    np.testing.assert_allclose(model.norm.mean[...], (X + 5).mean(0), atol=0.5)
    assert int(model.dropout.rngs.count[...]) == 20 * 3
    assert model.dropout.deterministic
    assert model.norm.use_running_average


def test_only_what_wrt_selects_is_trained() -> None:
    model, before = Linear(), Linear()
    fit(model, wrt=[nnx.All(nnx.Param, nnx.PathContains("bias"))])
    np.testing.assert_array_equal(model.linear.kernel[...], before.linear.kernel[...])
    assert model.linear.bias[0] != before.linear.bias[0]


def test_nested_data_and_optax_optimizers() -> None:
    model = Linear()
    history = fit(
        model,
        {"in": X, "out": {"y": Y}},
        loss=lambda m, batch, rng: jnp.mean((m(batch["in"]) - batch["out"]["y"]) ** 2),
        optimizer=optax.lion(1e-2),
    )
    assert history.losses[-1] < history.losses[0]
    assert np.isnan(history.learning_rates).all()  # optax.lion does not tell


def test_nothing_is_compiled_twice() -> None:
    """The loss is a Python function, called only while it is traced."""
    calls = []

    def counted(model, batch, rng):
        calls.append(0)
        return squared_error(model, batch, rng)

    options: dict[str, Any] = dict(loss=counted, optimizer=training.adam(0.1), clip_norm=1.0)
    fit(Linear(), (X, Y), (X, Y), **options)
    before = len(calls)
    fit(Linear(), (X, Y), (X, Y), seed=3, epochs=5, **options)
    assert len(calls) == before


# ----------------------------------------------------------------------------------------------------------------------
# What it keeps.


def divergent(model, batch, rng):
    """Infinite on a batch with a poisoned example."""
    x, y = batch
    return jnp.mean((model(x) - y) ** 2) + jnp.where(jnp.any(y > 1e5), jnp.inf, 0.0)


POISONED = np.where(np.arange(22) == 12, 1e6, Y).astype(np.float32)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model, until_then = Linear(), Linear()
    with pytest.raises(training.NonFiniteError, match=r"Got loss inf at step 1, in epoch 0 .*clip_norm.*skip") as error:
        fit(model, (X, POISONED), loss=divergent, shuffle=False)
    assert isinstance(error.value, FloatingPointError)
    fit(until_then, (X[:8], Y[:8]), shuffle=False, epochs=1)
    assert bits(model) == bits(until_then)


def test_or_the_step_is_skipped() -> None:
    model = Linear()
    history = fit(model, (X, POISONED), loss=divergent, shuffle=False, nonfinite="skip")
    assert history.skipped_steps == [1, 4, 7]
    assert np.isfinite(history.losses).all()
    assert np.isfinite(model.linear.kernel[...]).all()
    assert np.isinf(history.step_losses[[1, 4, 7]]).all()


def test_a_gradient_that_is_not_finite_stops_the_run() -> None:
    model = Linear()
    before = bits(model)
    with pytest.raises(training.NonFiniteError, match=r"at step 0"):
        fit(model, loss=lambda m, batch, rng: jnp.sqrt(jnp.sum(0 * m(batch[0]))))
    assert bits(model) == before


def test_with_patience_the_best_parameters_survive() -> None:
    model = Linear()
    history: dict[str, Any] = dict(optimizer=training.sgd(training.multi_step_lr(0.1, [6], 1e30)), patience=50)
    with pytest.raises(training.NonFiniteError, match="The model has the best parameters so far"):
        fit(model, (X, Y), (X, Y), epochs=20, **history)
    assert float(squared_error(model, (X, Y), None)) < 1


def test_validation_losses_that_are_never_numbers_leave_the_last_parameters() -> None:
    model, last = Linear(), Linear()
    history = fit(model, (X, Y), (X, np.full_like(Y, np.nan)), patience=3, epochs=5)
    assert history.stopped_early
    assert history.best_epoch == 2
    fit(last)
    assert bits(model) == bits(last)


@pytest.mark.parametrize("where", ["loss", "metric"])
def test_an_error_leaves_what_was_learnt(where: str) -> None:
    """An interrupt in the third epoch, from within a step or from within the validation after it."""
    model, until_then = Linear(), Linear()
    calls = []

    def interrupted(x):
        calls.append(0)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return np.float32(0)

    def noticed(model, batch, rng=None):
        return jax.pure_callback(interrupted, jax.ShapeDtypeStruct((), jnp.float32), batch[0])

    def loss(model, batch, rng):
        return squared_error(model, batch, rng) + jax.lax.stop_gradient(noticed(model, batch))

    # Three steps an epoch, or three batches of validation data: the eighth call is in the third.
    changes = {"loss": loss} if where == "loss" else {"metrics": {"m": noticed}}
    with pytest.raises(BaseException, match="KeyboardInterrupt"):
        fit(model, (X, Y), None if where == "loss" else (X, Y), epochs=9, **changes)
    fit(until_then, epochs=2 if where == "loss" else 3)
    assert bits(model) == bits(until_then)


def test_numbers_keep_their_digits() -> None:
    """Also those that are integers, Python's, or bfloat16."""
    metrics = {
        "losses": lambda model, batch: jnp.int32(3003),
        "loss": lambda model, batch: 0.123456,
        "low": lambda model, batch: jnp.bfloat16(0.5),
    }
    history = fit(Linear(), (X, Y), (X, Y), metrics=metrics)
    assert {name: round(float(x[-1]), 6) for name, x in history.metrics.items()} == {
        "losses": 3003,
        "loss": 0.123456,
        "low": 0.5,
    }
    assert len(history.losses) == 3


@pytest.mark.usefixtures("unchecked")
def test_rates_that_are_integers_or_numpy() -> None:
    plateau = training.ReduceLROnPlateau(factor=0.5, patience=0)
    history = fit(Linear(), (X, Y), (X, -Y), optimizer=training.sgd(1), plateau=plateau)
    assert 0 < history.learning_rates[-1] < 1
    assert fit(Linear(), optimizer=training.adam(np.float32(0.5))).learning_rates[-1] == 0.5


def test_a_plateau_beside_a_scheduled_momentum() -> None:
    optimizer = training.adam(1e-3, b1=training.one_cycle_momentum(100))
    fit(Linear(), (X, Y), (X, -Y), optimizer=optimizer, plateau=training.ReduceLROnPlateau())


def test_optimizers_that_ask_for_the_loss() -> None:
    assert np.isfinite(fit(Linear(), optimizer=optax.polyak_sgd()).losses).all()


@pytest.mark.parametrize("step_size", [30, 41, 47, 55, 98])
def test_steps_are_not_late(step_size: int) -> None:
    """XLA's quotient of floats falls short at 41 / 41, in float32."""
    rates = jax.jit(jax.vmap(training.step_lr(1.0, step_size, 0.5)))(jnp.arange(4 * step_size))
    np.testing.assert_array_equal(rates, 0.5 ** (np.arange(4 * step_size) // step_size))


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL after the second and after the sixth epoch at the earliest, wherever the run is then."""
    command = [sys.executable, "-m", "tests.killed", str(tmp_path / "killed")]
    for epoch in (2, 6):
        process = subprocess.Popen(command)
        while process.poll() is None and not any(int(path.name) >= epoch for path in saved(tmp_path / "killed")):
            time.sleep(0.001)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == run_to_be_killed(None)


def saved(folder: Path) -> list[Path]:
    """The finished checkpoints."""
    return [path for path in folder.glob("*") if path.name.isdigit()]


def test_damaged_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    whole = run_to_be_killed(None, epochs=6)
    run_to_be_killed(folder, epochs=5)
    assert sorted(os.listdir(folder)) == ["4", "5"]
    damage(folder / "5")
    with pytest.warns(UserWarning, match=r"run.5 cannot be read"):
        assert run_to_be_killed(folder, epochs=6) == whole
    assert sorted(os.listdir(folder)) == ["5", "6"]
    damage(folder / "5")
    damage(folder / "6")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(training.CheckpointError, match=r"at least one that can be read. Got 2 .* another folder"),
    ):
        run_to_be_killed(folder, epochs=6)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_checkpoints_of_another_program_are_left_alone(tmp_path: Path) -> None:
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(tmp_path)
    manager.save(3, args=ocp.args.StandardSave({"x": X}))
    manager.wait_until_finished()
    with pytest.raises(training.CheckpointError, match=r"a folder of jattn's own. Got .*\[3\] of another program"):
        fit(Linear(), checkpoints=tmp_path)
    np.testing.assert_array_equal(manager.restore(3, args=ocp.args.StandardRestore())["x"], X)


def damage(checkpoint: Path) -> None:
    """Flip one bit in the middle of the largest file."""
    file = max((file for file in checkpoint.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    model, again = Linear(), Linear()
    history = fit(model, checkpoints=tmp_path)
    repeated = fit(again, checkpoints=tmp_path)
    assert bits(model) == bits(again)
    np.testing.assert_array_equal(history.step_losses, repeated.step_losses)
    longer = fit(Linear(), checkpoints=tmp_path, epochs=5)
    np.testing.assert_array_equal(longer.losses, fit(Linear(), epochs=5).losses)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4, "seed": np.int64(1)}, "written with batch_size = 8, seed = 0; now batch_size = 4, seed = 1"),
        ({"optimizer": training.adam(0.1)}, "initial parameters and optimizer = "),
        ({"optimizer": training.sgd(0.2)}, "initial parameters and optimizer = "),
        ({"train": (X, Y + 1)}, "data = "),
        ({"validation": (X, Y), "patience": 2}, "patience = None, data = .*; now patience = 2, data = "),
        ({"epochs": 2}, "epochs must be at least the 3 of the checkpoint. Got 2"),
    ],
)
def test_checkpoints_of_another_run_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    fit(Linear(), checkpoints=tmp_path)
    with pytest.raises(training.CheckpointError, match=message):
        fit(Linear(), changes.pop("train", (X, Y)), changes.pop("validation", None), checkpoints=tmp_path, **changes)


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes.


def sowing(model, batch, rng):
    model.sow(nnx.Intermediate, "seen", batch[0])
    return squared_error(model, batch, rng)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 3}, r"model must be a flax.nnx.Module. Got int"),
        ({"train": (X, Y[:5])}, r"train must be arrays whose first axis counts the same .* \[\(22, 3\), \(5,\)\]"),
        ({"train": (X[:0], Y[:0])}, "train must be arrays .* at least one"),
        ({"train": (X, 3.0)}, "train must be arrays"),
        ({"train": (X, ["a"] * 22)}, "train must be an array. Got str"),
        ({"validation": X}, "validation must be a nest like train's .* Got"),
        ({"epochs": 0}, "epochs must be an integer of at least 1. Got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer of at least 1. Got 2.5"),
        ({"batch_size": 23, "drop_last": True}, "batch_size must be at most the 22 examples when drop_last=True"),
        ({"seed": -1}, "seed must be an integer of at least 0. Got -1"),
        ({"patience": 3}, "validation must be given when patience or metrics are"),
        ({"nonfinite": "ignore"}, "nonfinite must be one of 'raise', 'skip'. Got 'ignore'"),
        ({"optimizer": 1e-3}, "optimizer must be an optax GradientTransformation. Got 0.001"),
        ({"clip_norm": 0.0}, "max_norm must be above 0. Got 0.0"),
        ({"wrt": nnx.BatchStat}, "wrt must select some of the model's variables"),
        ({"loss": lambda m, batch, rng: (m(batch[0]) - batch[1]) ** 2}, r"loss must return one number.* shape \(8,\)"),
        ({"loss": lambda m, batch, rng: None}, "loss must return one number.* Got NoneType"),
        ({"loss": sowing}, "loss must not add variables to the model, as sow does"),
        (
            {"plateau": training.ReduceLROnPlateau(), "optimizer": optax.adam(1e-3)},
            "optimizer must keep its learning rate in its state when plateau is given",
        ),
        (
            {"plateau": training.ReduceLROnPlateau(), "optimizer": training.adam(training.step_lr(1e-3, 10))},
            "optimizer must have a number as its learning rate when plateau is given. Got a schedule",
        ),
    ],
    ids=lambda x: ", ".join(x) if isinstance(x, dict) else "",
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    arguments = {"model": Linear(), **changes}
    with pytest.raises(ValueError, match=message):
        fit(arguments.pop("model"), arguments.pop("train", (X, Y)), arguments.pop("validation", None), **arguments)


def test_mistakes_of_parts() -> None:
    with pytest.raises(ValueError, match=r"factor must lie in \(0, 1\). Got 2.0"):
        training.ReduceLROnPlateau(factor=2.0)
    with pytest.raises(ValueError, match="pct_start must leave a step before the top"):
        training.one_cycle_lr(1.0, 10, pct_start=0.1)
