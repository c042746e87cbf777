"""What counts, and how far it may be apart: where=, tolerance=, and rows that may attend to nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jattn
from jattn import parity
from jattn.parity.arrays import error, kept
from jattn.parity.reach import empty_rows, not_reached
from parity_tests.nn import randomised

rng = np.random.default_rng(0)
x = rng.standard_normal((2, 5, 6))
real = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
ONCE: dict[str, Any] = {"dtypes": ("float64",)}


class TorchCausal(torch.nn.Module):
    """One head; a query with nothing to attend to gets the mean of all values."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        t = x.shape[1]
        allowed = (attention_mask != 0)[:, None] & torch.ones(t, t, dtype=torch.bool).tril()
        logits = (x @ x.mT / 6**0.5).masked_fill(~allowed, torch.finfo(x.dtype).min)
        return logits.softmax(-1) @ self.value(x)


class Causal(nnx.Module):
    """Likewise, and it gets zeros."""

    def __init__(self, factor: float = 1.0) -> None:
        self.value, self.factor = nnx.Linear(6, 6, rngs=nnx.Rngs(0)), factor

    def __call__(self, x: jax.Array, attention_mask: jax.Array) -> jax.Array:
        q, v = x[:, :, None], self.value(x)[:, :, None]
        mask = jattn.masks.causal() & jattn.masks.dense((attention_mask != 0)[:, None, None])
        return self.factor * jattn.attention(q, q, v, mask=mask)[:, :, 0]


def causal(port: nnx.Module, **options: Any) -> parity.Report:
    inputs = {"x": x, "attention_mask": real}
    return parity.compare(randomised(TorchCausal()), port, inputs, **{**ONCE, **options})


def test_rows_that_may_attend_to_nothing_are_named() -> None:
    report = causal(Causal())
    assert not report.equal
    assert "They differ only in rows of queries that attention_mask leaves nothing to attend to: (1, 0), (1, 1)." in (
        report.finding
    )
    assert report.to_dict()["rows"]["attending"][1] == [False, False, True, True, True]
    assert causal(Causal(1.5)).rows is None, "there is more that differs"


def test_where_leaves_them_out() -> None:
    causal(Causal(), where=real != 0).assert_equal()
    report = causal(Causal(1.5), where=real != 0)
    assert report.parting is not None
    assert report.runs[0].outputs[0].error == pytest.approx(0.5)
    report = causal(Causal(), where=np.array([[True], [False]]), gradients=False)
    report.assert_equal()
    assert not causal(Causal(), where=np.array([[False], [True]]), gradients=False).equal


class Shifted(nnx.Module):
    """A layer that is right in the first examples only, as is what follows."""

    def __init__(self) -> None:
        self.linear = nnx.Linear(6, 6, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x) + 10.0 * (jnp.arange(len(x)) > 0)[:, None, None]


def test_where_covers_gradients_and_what_is_in_between() -> None:
    theirs = randomised(torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)))
    port = nnx.Sequential(Shifted(), nnx.Linear(6, 6, rngs=nnx.Rngs(0)))
    rename = {r"^0\.": "layers.0.linear.", r"^1\.": "layers.1."}
    first = np.array([True, False])
    report = parity.compare(theirs, port, (x,), rename=rename, where=first, **ONCE)
    report.assert_equal()
    assert len(report.runs[0].parameter_gradients) == 4
    assert not parity.compare(theirs, port, (x,), rename=rename, gradients=False, **ONCE).equal


def test_errors_within_a_mask() -> None:
    y = x.copy()
    y[1, :2] += 100
    y[0, 0, 0] = 0
    assert error(y, x, where=real != 0) == np.abs(x[0, 0, 0]) / np.abs(np.where(real[..., None], x, 0)).max()
    assert kept(real != 0, (5, 2, 6)) is None
    assert kept(real != 0, (2,)) is None
    assert kept(np.array([[True], [False]]), (2, 3, 1)).tolist() == [[[True]] * 3, [[False]] * 3]


@pytest.mark.parametrize("tolerance", [1e-3, {"float64": 1e-3}])
def test_tolerance(tolerance: Any) -> None:
    linear = randomised(torch.nn.Linear(6, 6))
    port = nnx.Sequential(nnx.Linear(6, 6, rngs=nnx.Rngs(0)), lambda y: y * 1.0001)
    options = {**ONCE, "rename": {"^": "layers.0."}, "gradients": False}
    report = parity.compare(linear, port, (x,), tolerance=tolerance, **options)
    report.assert_equal()
    assert report.runs[0].outputs[0].limit == 1e-3
    assert not parity.compare(linear, port, (x,), tolerance=1e-5, **options).equal
    assert not parity.compare(linear, port, (x,), tolerance={"float32": 1e-3}, **options).equal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": real}, r"where must be a boolean array.+ Got shape \(2, 5\) in int64\. Compare it with 0\."),
        ({"where": True}, "where must be a boolean array.+ Got bool"),
        ({"where": real > 1}, "where must be True somewhere"),
        ({"where": real[:, :4] != 0}, r"where must fit the leading axes of an output.+ Got shape \(2, 4\)"),
        ({"tolerance": -1.0}, "tolerance must"),
        ({"tolerance": {"float8": 1.0}}, "tolerance must be by dtype.+ Got 'float8'"),
    ],
)
def test_wrong_use_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        causal(Causal(), **options)


# ----------------------------------------------------------------------------------------------------------------------
# What the inputs don't reach.


class TorchWindowed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 6)
        self.layer.sliding_window = 64
        self.layer.another = 64

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.layer(x)


WINDOW = "the sliding_window of 64 (layer) was not reached by 5 tokens. Give more than 64, or both sides a smaller one."
NO_MASK = "without attention_mask, padding and masks were not compared. Give one that hides something."
IDLE = "attention_mask hides nothing or all, so that masks were not compared. Give one that hides some."


def test_windows_and_masks_that_are_not_reached() -> None:
    module = TorchWindowed()
    assert not_reached(module, ((x,), {})) == [WINDOW, NO_MASK]
    assert not_reached(module, ((x, np.ones((2, 5), int)), {})) == [WINDOW, IDLE]
    assert not_reached(module, ((), {"x": x, "attention_mask": real})) == [WINDOW]
    module.layer.sliding_window = 4
    assert not_reached(module, ((x, real), {})) == []
    report = parity.compare(randomised(TorchWindowed()).layer, nnx.Linear(6, 6, rngs=nnx.Rngs(0)), (x,), **ONCE)
    report.assert_equal()
    assert WINDOW.replace("(layer)", "(the module itself)") in report.notes


def test_settings_of_transformers_that_are_not_reached() -> None:
    transformers = pytest.importorskip("transformers", reason="no transformers: its settings were not read")
    sizes: dict[str, Any] = {"hidden_size": 12, "num_attention_heads": 2, "num_hidden_layers": 2}
    sizes |= {"num_key_value_heads": 1, "intermediate_size": 8, "vocab_size": 9}
    ids = {"input_ids": np.zeros((2, 11), int), "attention_mask": np.tri(2, 11, 5, dtype=int)}
    mistral = transformers.MistralForCausalLM(transformers.MistralConfig(**sizes, sliding_window=64))
    (note,) = not_reached(mistral, ((), ids))
    assert note.startswith("the sliding_window of 64 (config) was not reached by 11 tokens.")
    rope = {"rope_type": "longrope", "rope_theta": 50.0, "original_max_position_embeddings": 16, "factor": 2.0}
    rope |= {"short_factor": [1.0] * 3, "long_factor": [2.0] * 3}
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, rope_parameters=rope))
    assert not_reached(llama, ((), ids)) == [
        "longrope rotary positions are others beyond 16 tokens, which 11 did not reach. Give more, or both sides a "
        "smaller original_max_position_embeddings."
    ]
    positions = {"position_ids": np.arange(10, 21)[None]}
    assert not_reached(llama, ((), {**ids, **positions})) == []


def test_masks_that_leave_rows_empty() -> None:
    module = TorchCausal()
    ((name, rows),) = empty_rows(module, ((x, real), {}))
    assert name == "attention_mask"
    assert np.argwhere(~rows).tolist() == [[1, 0], [1, 1]]
    assert list(empty_rows(module, ((x, real[:, ::-1]), {}))) == [], "padding at the end leaves no query empty"
    assert list(empty_rows(module, ((real, x), {}))) == [], "what is no mask"
    by_pair = np.tri(5, dtype=int)[None, None] * real[:, None, None]
    ((_, rows),) = empty_rows(module, ((x, by_pair), {}))
    assert np.argwhere(~rows).tolist() == [[1, 0], [1, 1]]
