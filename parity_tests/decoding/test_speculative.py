"""Speculative decoding beside `transformers`, and beside torch_ref's, which reads every text anew."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jattn import decoding, models
from jattn.decoding import rounds
from jattn.parity.widen import float64_throughout
from parity_tests.models.hugging_face.decoders import V, made
from parity_tests.models.hugging_face.generation import make_sure_of_itself
from torch_ref.decoding import speculative

pytest.importorskip("transformers", reason="no transformers: decoding was not compared with its own")

PROMPT = np.random.default_rng(0).integers(0, V, (3, 6))
LENS = np.array([6, 4, 1])
N, AHEAD = 13, 3


class Shifted(nnx.Module):
    """One that says the token after that which another model says, so that it is always wrong."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def start(self, batch_size: int, room: int) -> Any:
        return self.model.start(batch_size, room)

    def step(self, tokens: Any, state: Any, *, valid_lens: Any = None, each: bool = False) -> Any:
        logits, state = self.model.step(tokens, state, valid_lens=valid_lens, each=each)
        return jnp.roll(logits, 1, axis=-1), state


def logits_of(hf: Any) -> speculative.Model:
    return lambda tokens: hf(torch.tensor([tokens])).logits[0]


def pair(name: str = "GPT-2") -> tuple[Any, Any]:
    """A model of `transformers`, and another one that often agrees with it."""
    one, other = made(name), made(name)
    for hf in (one, other):
        make_sure_of_itself(hf, 3)
    generator = torch.Generator().manual_seed(0)
    for parameter in other.parameters():
        parameter.data += 0.2 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator)
    return one.eval(), other.eval()


def ours(hf: Any) -> Any:
    kind = getattr(models, {"GPT2LMHeadModel": "GPT2", "MistralForCausalLM": "Mistral"}[type(hf).__name__])
    return kind.from_hugging_face(hf.config.to_dict(), hf.state_dict())


class FromJax:
    """The numbers that jattn draws for an example."""

    def __init__(self, rng: Any) -> None:
        self.rng, self.judge = rng, jax.random.fold_in(rng, rounds.JUDGE)

    def token(self, weights: torch.Tensor, number: int) -> int:
        return self._drawn(self.rng, weights, number)

    def uniform(self, number: int) -> torch.Tensor:
        return torch.tensor(jax.random.uniform(jax.random.fold_in(self.judge, 2 * number), dtype=jnp.float64).item())

    def replacement(self, weights: torch.Tensor, number: int) -> int:
        return self._drawn(self.judge, weights, 2 * number + 1)

    def _drawn(self, rng: Any, weights: torch.Tensor, number: int) -> int:
        return int(jax.random.categorical(jax.random.fold_in(rng, number), jnp.log(jnp.asarray(weights.numpy()))))


def assert_same(found: decoding.Speculated, expected: list[speculative.Said]) -> None:
    for i, said in enumerate(expected):
        n = int(found.lengths[i])
        assert found.tokens[i, :n].tolist() == said.tokens
        assert found.tokens[i, n:].tolist() == [0] * (N - n)
        assert (int(found.accepted[i]), int(found.drafted[i])) == (said.accepted, said.drafted)


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["another model", "the model", "always wrong"])
def test_greedy(kind: str) -> None:
    """Token for token what ``generate`` gives, and as many drafted ones among them as torch_ref has."""
    with float64_throughout(), jax.enable_x64(True), torch.no_grad():
        hf, other = pair()
        model, reads = ours(hf), logits_of(hf)
        draft, drafts = {
            "another model": lambda: (ours(other), logits_of(other)),
            "the model": lambda: (model, reads),
            "always wrong": lambda: (Shifted(model), lambda tokens: reads(tokens).roll(1, -1)),
        }[kind]()

        def theirs(**options: Any) -> list[list[int]]:
            options = {"do_sample": False, "max_new_tokens": N, "eos_token_id": None, "pad_token_id": 0, **options}
            prompts = [torch.from_numpy(row[:n])[None] for row, n in zip(PROMPT, LENS, strict=True)]
            return [
                hf.generate(x, attention_mask=torch.ones_like(x), **options)[0, x.shape[1] :].tolist() for x in prompts
            ]

        free = theirs()
        assert len(np.unique(free)) > 4
        for eos in ((), (free[0][4], free[1][6])) if kind == "another model" else ((),):
            found = decoding.speculate(
                model, draft, jnp.asarray(PROMPT), jnp.asarray(LENS), max_new_tokens=N, ahead=AHEAD, eos=eos, pad=0
            )
            options: dict[str, Any] = {"max_new_tokens": N, "ahead": AHEAD, "eos": eos}
            prompts = [row[:n].tolist() for row, n in zip(PROMPT, LENS, strict=True)]
            assert_same(found, [speculative.speculate(reads, drafts, prompt, **options) for prompt in prompts])
            for row, n, expected in zip(found.tokens, found.lengths, theirs(eos_token_id=eos or None), strict=True):
                assert row[:n].tolist() == expected
            assert int(found.lengths.min()) < N if eos else int(found.lengths.min()) == N
        kept, drafted = int(found.accepted.sum()), int(found.drafted.sum())
        assert {"another model": 0 < kept < drafted, "the model": kept == drafted, "always wrong": kept == 0}[kind]


@pytest.mark.whole
@pytest.mark.parametrize("name", ["Mistral", "GPT-2"])
def test_drawn(name: str) -> None:
    """The same numbers drawn, the same tokens; Mistral's window is 4."""
    with float64_throughout(), jax.enable_x64(True), torch.no_grad():
        hf, other = pair(name)
        rngs = jax.random.split(jax.random.key(5), 3)
        prompt, lens, options = jnp.asarray(PROMPT), jnp.asarray(LENS), {"max_new_tokens": N, "ahead": AHEAD}
        cooler = (lambda logits, _: logits / 2,)
        found = decoding.speculate(
            ours(hf), ours(other), prompt, lens, rng=rngs, processors=cooler, eos=(), pad=0, **options
        )
        assert len(np.unique(found.tokens)) > 6
        assert 0.1 < int(found.accepted.sum()) / int(found.drafted.sum()) < 0.9
        model, draft = (lambda tokens, hf=hf: logits_of(hf)(tokens) / 2 for hf in (hf, other))
        expected = [
            speculative.speculate(model, draft, row[:n].tolist(), draws=FromJax(rng), **options)
            for row, n, rng in zip(PROMPT, LENS, rngs, strict=True)
        ]
        assert_same(found, expected)


def test_the_rule() -> None:
    """Bit for bit, also where p and q are alike or zero, and a number lies just at the border."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), (60, 4)), rng.dirichlet(np.ones(5), (60, 3))
    q[::3] = p[::3, :-1]
    p[1::5, :, 2], q[1::7, :, 3] = 0, 0
    tokens, uniforms = rng.integers(0, 5, (60, 3)), rng.uniform(size=(60, 3))
    at = np.take_along_axis(p[:, :-1], tokens[..., None], -1), np.take_along_axis(q, tokens[..., None], -1)
    border = np.divide(*at, out=np.zeros_like(at[0]), where=at[1] > 0)[..., 0]
    uniforms[::4] = np.where(border < 1, border, uniforms)[::4]
    with jax.enable_x64(True):
        found = rounds.judged(*map(jnp.asarray, (p, q, tokens, uniforms)), jnp.full(60, 3))
    of_torch = [torch.from_numpy(x) for x in (p, q)]
    expected = [
        speculative.judged(of_torch[0][i], of_torch[1][i], tokens[i].tolist(), list(torch.from_numpy(uniforms[i])))
        for i in range(60)
    ]
    np.testing.assert_array_equal(found.accepted, [n for n, _ in expected])
    assert set(found.accepted.tolist()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(found.rest, np.stack([weights.numpy() for _, weights in expected]))
