"""`jattn.training.fit`: what it does, and what it keeps."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.errors import LiveError

from jattn import training
from jattn.nn.dropout import Dropout

rng = np.random.default_rng(0)
X = rng.standard_normal((22, 3)).astype(np.float32)
Y = X @ np.float32([1.0, -2.0, 0.5]) + 1
SGD = training.sgd(0.1)  # one object, as each compiles anew


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
    options = dict(loss=squared_error, optimizer=SGD, epochs=3, batch_size=8, progress=False)
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


def test_a_gradient_alone_is_blamed() -> None:
    with pytest.raises(training.NonFiniteError, match=r"Got a gradient that is not, of loss 4\.2, at step 0"):
        fit(Linear(), loss=lambda m, batch, rng: 4.2 + jnp.sqrt(jnp.sum(0 * m(batch[0]))))


def test_debug_nans_finds_none_of_ours() -> None:
    with jax.debug_nans(True):
        history = fit(Linear(), (X, Y), (X, Y), optimizer=optax.adam(1e-2))  # does not tell its rate
    assert np.isnan(history.learning_rates).all()


def test_validation_losses_that_are_never_numbers_leave_the_last_parameters() -> None:
    model, last = Linear(), Linear()
    history = fit(model, (X, Y), (X, np.full_like(Y, np.nan)), patience=3, epochs=5)
    assert history.stopped_early
    assert history.best_epoch == 2
    fit(last)
    assert bits(model) == bits(last)


@pytest.mark.parametrize(("where", "call"), [("loss", 8), ("loss", 9), ("metric", 8)])
def test_an_error_leaves_what_was_learnt(where: str, call: int) -> None:
    """An interrupt in the third epoch, from within a step, the last and smaller one, or the validation after it."""
    model, until_then = Linear(), Linear()
    calls = []

    def interrupted(x):
        calls.append(0)
        if len(calls) == call:
            raise KeyboardInterrupt
        return np.float32(0)

    def noticed(model, batch, rng=None):
        return jax.pure_callback(interrupted, jax.ShapeDtypeStruct((), jnp.float32), batch[0])

    def loss(model, batch, rng):
        return squared_error(model, batch, rng) + jax.lax.stop_gradient(noticed(model, batch))

    # Three steps an epoch, or three batches of validation data: both calls are in the third.
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


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_of_few_digits(dtype: Any) -> None:
    """The rate keeps its own, also when a plateau lowers it by less than those of the parameters can tell."""
    plateau = training.ReduceLROnPlateau(factor=0.999, patience=0, eps=0.0)
    narrow = nnx.Linear(3, 1, param_dtype=dtype, rngs=nnx.Rngs(0))
    options: dict[str, Any] = dict(loss=lambda m, batch, rng: jnp.mean((m(batch[0])[:, 0] - batch[1]) ** 2))
    history = fit(narrow, (X, Y), (X, -Y), optimizer=training.sgd(0.01), plateau=plateau, **options)
    np.testing.assert_array_equal(history.learning_rates[[0, -1]], np.float32([0.01, 0.01 * 0.999]))
    fit(narrow, optimizer=training.sgd(0.01, training.one_cycle_momentum(20), nesterov=True), **options)
    assert narrow.kernel.dtype == dtype


def test_a_plateau_beside_a_scheduled_momentum() -> None:
    optimizer = training.adam(1e-3, b1=training.one_cycle_momentum(100))
    fit(Linear(), (X, Y), (X, -Y), optimizer=optimizer, plateau=training.ReduceLROnPlateau())


def test_optimizers_that_ask_for_the_loss() -> None:
    assert np.isfinite(fit(Linear(), optimizer=optax.polyak_sgd()).losses).all()


@pytest.mark.usefixtures("unchecked")
def test_numbers_and_data_of_other_kinds() -> None:
    """Scalars of JAX, integers that int32 can hold, and whatever NumPy takes."""

    class Frame:
        def __array__(self, *args: Any, **options: Any) -> np.ndarray:
            return X

    model, plain = Linear(), Linear()
    fit(model, (Frame(), np.round(Y).astype(np.int64)), clip_norm=jnp.float32(1))
    fit(plain, (X, np.round(Y)), clip_norm=1.0)
    assert bits(model) == bits(plain)
    for milestones in (np.array([1, 3, 3]), (1, 3, 3)):
        assert float(training.multi_step_lr(1.0, milestones, 0.5)(4)) == 0.125


def test_a_history_can_be_compared() -> None:
    history = fit(Linear())
    assert history == history
    assert history != copy.deepcopy(history)


def test_the_progress_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A metric's name is no markup, and where another display is live there is no bar."""

    def another_is_live(self: Any, live: Any) -> None:
        raise LiveError("Only one live display may be active at once")

    metrics = {"m[/5]": lambda model, batch: 0.25}
    fit(Linear(), (X, Y), (X, Y), metrics=metrics, progress=True)
    assert "m[/5] 0.25" in capsys.readouterr().out
    monkeypatch.setattr("rich.console.Console.set_live", another_is_live)
    fit(Linear(), (X, Y), (X, Y), metrics=metrics, progress=True)
    assert "m[/5]" not in capsys.readouterr().out


@pytest.mark.parametrize("step_size", [30, 41, 47, 55, 98])
def test_steps_are_not_late(step_size: int) -> None:
    """XLA's quotient of floats falls short at 41 / 41, in float32."""
    rates = jax.jit(jax.vmap(training.step_lr(1.0, step_size, 0.5)))(jnp.arange(4 * step_size))
    np.testing.assert_array_equal(rates, 0.5 ** (np.arange(4 * step_size) // step_size))


@pytest.mark.parametrize("make", [training.adam, training.adamw])
def test_the_first_steps_of_adam_have_all_digits(make: Any) -> None:
    """Of a gradient of 1 each step is the learning rate: ``1 - 0.999`` in float32 would have three digits right."""
    optimizer = make(1.0, weight_decay=0.0)
    parameters = {"x": jnp.zeros((), jnp.float32)}
    state = optimizer.init(parameters)
    for _ in range(3):
        updates, state = optimizer.update({"x": jnp.ones((), jnp.float32)}, state, parameters)
        assert float(updates["x"]) == pytest.approx(-1.0, rel=5e-7)
