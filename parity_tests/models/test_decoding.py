"""Greedy and beam search against torch_ref, and against all targets there are."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import torch_ref.models
from jattn import models
from jattn.weights import load_state_dict, to_numpy
from parity_tests.nn import blank, randomised

LENS = np.array([7, 3, 1])
BOS, EOS = 1, 2


def pair(seed: int, v: int, **options: Any) -> tuple[models.Seq2Seq, torch_ref.models.Seq2Seq]:
    """The two models, with the same weights, large enough that targets differ much in probability."""
    sizes: dict[str, Any] = {"embedding_features": 4, "hidden_features": 6, **options}
    theirs = randomised(torch_ref.models.Seq2Seq(10, v, **sizes), seed)
    torch.nn.init.normal_(theirs.decoder.output.weight, std=2.0, generator=torch.Generator().manual_seed(seed))
    ours = blank(lambda: models.Seq2Seq(10, v, **sizes, rngs=nnx.Rngs(0)))
    return load_state_dict(ours, theirs.state_dict()), theirs


def sources(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 10, (3, 7))


def in_jax(*arrays: np.ndarray | None) -> list[jax.Array | None]:
    return [None if x is None else jnp.asarray(x) for x in arrays]


def in_torch(*arrays: np.ndarray | None) -> list[torch.Tensor | None]:
    return [None if x is None else torch.from_numpy(x) for x in arrays]


def assert_same(ours: Any, theirs: Any) -> None:
    """The same tokens and lengths, and numbers apart by rounding."""
    for name, a, b in zip(theirs._fields, ours, theirs, strict=True):
        if name == "beams":
            assert_same(a, b)
        elif name in ("tokens", "lengths"):
            np.testing.assert_array_equal(a, to_numpy(b), err_msg=name)
        else:
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, to_numpy(b), rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("valid_lens", [None, LENS], ids=["whole sources", "valid lengths"])
@pytest.mark.parametrize("seed", range(4))
def test_greedy(seed: int, valid_lens: np.ndarray | None) -> None:
    options: dict[str, Any] = {"bos": BOS, "eos": EOS, "max_length": 9, "pad": 3}
    with jax.enable_x64(True), torch.no_grad():
        ours, theirs = pair(seed, 5, num_layers=1 + seed % 2, score=("additive", "dot")[seed // 2])
        found = models.greedy(ours, *in_jax(sources(seed), valid_lens), **options)
        assert_same(found, torch_ref.models.greedy(theirs, *in_torch(sources(seed), valid_lens), **options))


@pytest.mark.parametrize("valid_lens", [None, LENS], ids=["whole sources", "valid lengths"])
@pytest.mark.parametrize(("beam_size", "length_penalty"), [(1, 0.0), (2, 0.0), (4, 0.0), (2, 1.0), (4, 0.6)])
def test_beam_search(beam_size: int, length_penalty: float, valid_lens: np.ndarray | None) -> None:
    search: dict[str, Any] = {"bos": BOS, "eos": EOS, "max_length": 9, "beam_size": beam_size}
    with jax.enable_x64(True), torch.no_grad():
        for seed in range(2):
            options = {**search, "length_penalty": length_penalty, "pad": (None, 0)[seed % 2]}
            ours, theirs = pair(seed, 6, num_layers=2)
            found = models.beam_search(ours, *in_jax(sources(seed), valid_lens), **options)
            assert_same(found, torch_ref.models.beam_search(theirs, *in_torch(sources(seed), valid_lens), **options))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all(length_penalty: float) -> None:
    """Of 121 targets over 4 tokens, ended or 4 tokens long, each scored by the reference's teacher forcing."""
    targets = [t for n in range(1, 5) for t in itertools.product(range(4), repeat=n) if whole(t)]
    assert len(targets) == 121
    with jax.enable_x64(True), torch.no_grad():
        for seed in range(3):
            ours, theirs = pair(seed, 4, num_layers=1)
            search: dict[str, Any] = {"bos": BOS, "eos": EOS, "max_length": 4, "beam_size": 123}
            found = models.beam_search(ours, *in_jax(sources(seed), LENS), **search, length_penalty=length_penalty)
            for i in range(3):
                log_probability = [forced(theirs, sources(seed)[i, : LENS[i]], t) for t in targets]
                score = log_probability / np.array([len(t) for t in targets]) ** length_penalty
                order = np.argsort(-score)
                assert tuple(found.tokens[i, : int(found.lengths[i])].tolist()) == targets[order[0]]
                np.testing.assert_allclose(
                    found.beams.log_probability[i, :121], np.array(log_probability)[order], rtol=1e-10
                )
            assert bool(jnp.all(found.beams.log_probability[:, 121:] == -jnp.inf))


def whole(target: tuple[int, ...]) -> bool:
    """Whether a search of four tokens can end here."""
    return EOS not in target[:-1] and (target[-1] == EOS or len(target) == 4)


def forced(model: torch_ref.models.Seq2Seq, source: np.ndarray, target: tuple[int, ...]) -> float:
    """The log-probability of a target, fed in as a whole."""
    fed = torch.tensor([[BOS, *target[:-1]]])
    logits = model(torch.from_numpy(source)[None], fed)
    return float(logits.log_softmax(-1)[0, range(len(target)), target].sum())
