"""Sequence to sequence against torch_ref: teacher forcing, and decoding step by step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import models
from parity_tests.compare import DTYPES
from parity_tests.conftest import Parity
from parity_tests.nn import both, call_for_weights

rng = np.random.default_rng(0)
source = rng.integers(0, 10, (3, 7))
target = rng.integers(0, 9, (3, 5))
tokens = {"source": source, "target": target}
SIZES: dict[str, Any] = {"source_vocab_size": 10, "target_vocab_size": 9, "embedding_features": 4, "hidden_features": 6}


@pytest.mark.parametrize(
    ("options", "valid_lens", "dtypes"),
    [
        ({"num_layers": 1}, [7, 3, 5], DTYPES),
        ({"num_layers": 2, "score": "dot"}, None, ("float64",)),
        ({"num_layers": 1, "score": "dot"}, [7, 0, 5], ("float64",)),
    ],
    ids=["additive", "dot, two layers", "dot, nothing to read"],
)
def test_seq2seq(
    parity: Parity, options: dict[str, Any], valid_lens: list[int] | None, dtypes: tuple[str, ...]
) -> None:
    fixed = tokens if valid_lens is None else {**tokens, "source_valid_lens": np.array(valid_lens)}
    modules = both(models.Seq2Seq, **SIZES, **options)
    parity("Seq2Seq", call_for_weights, call_for_weights, {}, fixed, **modules, dtypes=dtypes)


def test_steps_by_hand(parity: Parity) -> None:
    """As a search for the best translation takes them; the reference sees the whole target at once."""

    def steps(module: models.Seq2Seq, source: jax.Array, target: jax.Array, source_valid_lens: jax.Array) -> Any:
        state = module.encoder(source, source_valid_lens)
        logits, weights = [], []
        for token in target.T:
            step_logits, state, step_weights = module.decoder.step(token, state)
            logits.append(step_logits)
            weights.append(step_weights)
        return jnp.stack(logits, axis=1), jnp.stack(weights, axis=1)

    fixed = {"source": source, "target": target[:, :3], "source_valid_lens": np.array([7, 3, 5])}
    modules = both(models.Seq2Seq, **SIZES, num_layers=1)
    parity("Seq2Seq, step by step", steps, call_for_weights, {}, fixed, **modules, dtypes=("float64",))
