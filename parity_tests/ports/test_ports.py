"""Ports of seven models are equal as they stand, and the port debugger finds what is wrong with them if anything is.

Against `transformers`' own classes, made and called as always, tiny and with random weights.
"""

import functools
import warnings

import jax
import optax
import pytest
import torch
from flax import nnx

pytest.importorskip("transformers", reason="no transformers: ports were not compared with its models")

from jattn.parity import CAUSES, trajectory
from parity_tests.nn import randomised
from parity_tests.ports.port import Port, look_for, table_of
from parity_tests.ports.table import PORTS

PLANTED = [(port, mistake) for port in PORTS.values() for mistake in port.mistakes]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("port", "implementation"),
    [pytest.param(port, name, id=f"{port.name}, {name}") for port in PORTS.values() for name in port.implementations],
)
def test_equal_as_it_stands(port: Port, implementation: str) -> None:
    port.compare(implementation).assert_equal()


@pytest.mark.whole
def test_as_many_are_found_as_is_said() -> None:
    """Of all mistakes: 95 of 100 located, the cause of 95 of 100 named, and none named wrongly."""
    assert len(PLANTED) >= 160
    with warnings.catch_warnings(action="ignore"):
        found = [look_for(*each) for each in PLANTED]
    assert not [one for one in found if one.wrong]
    assert sum(one.located for one in found) >= 0.95 * len(found), [one for one in found if not one.located]
    assert sum(one.named for one in found) >= 0.95 * len(found), [one for one in found if not one.named]


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Mistral", "BLOOM"])
def test_training_is_the_same_for_50_steps(name: str) -> None:
    port, tokens = PORTS[name], torch.randint(0, 19, (2, 3, 9), generator=torch.Generator().manual_seed(1))
    report = trajectory(
        randomised(port.theirs("eager")),
        port.ours(**port.settings, rngs=nnx.Rngs(0)),
        list(tokens.numpy()),
        loss=lambda model, batch, rng: next_token(model(batch), batch),
        torch_loss=lambda model, batch: torch.nn.functional.cross_entropy(
            model(batch).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten()
        ),
        optimizer=optax.adam(1e-2),
        torch_optimizer=functools.partial(torch.optim.Adam, lr=1e-2),
        steps=50,
        rename=table_of(port.names),
    )
    report.assert_equal()
    assert report.steps[-1].torch_loss < 0.5 * report.steps[0].torch_loss


def next_token(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()


def test_expected_causes_are_some_that_there_are() -> None:
    known = {cause.name for cause in CAUSES}
    assert {name for _, mistake in PLANTED for name in mistake.causes} <= known
