"""Speculative decoding gives what decoding gives: the same tokens, or tokens of the same distribution."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from jattn import decoding, models
from jattn.decoding import processors, room, rounds, speculative
from jattn.nn import Norm, Rotary
from tests.errors import raises

V = 19
PROMPT = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]])
LENS = jnp.array([5, 2, 1])
BLOCK: dict[str, Any] = {"num_heads": 2, "feedforward_features": 16, "norm": "pre"}
ROTARY: dict[str, Any] = {**BLOCK, "norm_kind": "rms", "num_kv_heads": 1, "rotary": Rotary(50.0)}
SIDE: dict[str, Any] = {"layers": [BLOCK], "norm": Norm("layer"), "relative_buckets": 8, "relative_distance": 5}
KINDS: dict[str, Callable[[nnx.Rngs], Any]] = {
    "Mistral's windows, and a block without": lambda rngs: models.TextDecoder(
        V, features=12, layers=[{**ROTARY, "window": 4}, ROTARY], norm=Norm("rms"), rngs=rngs
    ),
    "GPT-2": lambda rngs: models.GPT2(V, max_length=17, features=12, num_heads=2, num_layers=1, rngs=rngs),
    "Llama": lambda rngs: models.Llama(
        V, features=12, num_heads=2, num_kv_heads=1, num_layers=2, feedforward_features=16, rngs=rngs
    ),
    "encoder-decoder": lambda rngs: models.EncoderDecoder(
        V, features=8, encoder=SIDE, decoder=SIDE, tied=False, rngs=rngs
    ),
}
WINDOWS, *OTHERS = KINDS
SEEDS = dict(zip(KINDS, (0, 4, 4, 3), strict=True))  # of models whose continuations differ much


def made(kind: str = WINDOWS, noise: float = 0.0) -> Any:
    """A model; with some noise, one that often agrees with it."""
    model = KINDS[kind](nnx.Rngs(SEEDS[kind]))
    blocks = model.decoder.blocks if hasattr(model, "decoder") else model.blocks
    for block in blocks:
        block.attention.out.kernel[...] *= 20
    graph, parameters = nnx.split(model)
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda x: x + noise * x.std() * rng.standard_normal(x.shape).astype(x.dtype), parameters)
    model = nnx.merge(graph, noisy)
    model.eval()
    return model


def given_to(kind: str) -> dict[str, Any]:
    if kind != "encoder-decoder":
        return {}
    source = jnp.array([[1, 2, 3, 4, 5, 6], [7, 1, 7, 2, 0, 0], [4, 4, 1, 0, 0, 0]])
    return {"source": source, "source_attention_mask": source != 0}


class Bigrams(nnx.Module):
    """One that knows which tokens follow the last one."""

    def __init__(self, logits: Any) -> None:
        self.logits = nnx.Param(jnp.asarray(logits))

    def start(self, batch_size: int, room: int) -> Any:
        return ()

    def step(self, tokens: Any, state: Any, *, valid_lens: Any = None, each: bool = False) -> Any:
        logits = self.logits[tokens]
        return (logits if each else decoding.last_of(logits, valid_lens)), state


class Remembering(Bigrams):
    """One whose state is not made of caches."""

    def start(self, batch_size: int, room: int) -> Any:
        return jnp.zeros((batch_size, 7))


# ----------------------------------------------------------------------------------------------------------------------
# The most probable tokens.


@pytest.mark.core
@pytest.mark.parametrize(
    "kind", ["GPT-2", *(pytest.param(kind, marks=pytest.mark.whole) for kind in (WINDOWS, *OTHERS[1:]))]
)
def test_greedy_is_what_generate_gives(kind: str) -> None:
    """Prompts with padding, texts longer than the window, and examples that end at different times."""
    model, draft = made(kind), made(kind, 0.2)
    options: dict[str, Any] = {"max_new_tokens": 12, "pad": -1, **given_to(kind)}
    said = decoding.generate(model, PROMPT, LENS, **options, eos=0).tokens
    assert min(len(np.unique(row)) for row in said) > 1, "these continuations are too much alike to show anything"
    never = min(set(range(V)) - set(np.asarray(said).flat))
    for eos in (never, int(said[0, 2])):
        expected = decoding.generate(model, PROMPT, LENS, **options, eos=eos)
        found = decoding.speculate(model, draft, PROMPT, LENS, ahead=3, **options, eos=eos)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.lengths, expected.lengths)
        np.testing.assert_allclose(found.log_probabilities, expected.log_probabilities, atol=1e-5)
        if eos == never:
            assert 0 < found.accepted.sum() < found.drafted.sum(), "a draft that is always right or wrong shows less"
        else:
            assert 0 < int(found.lengths[0]) <= 3


@pytest.mark.core
def test_drafts_that_are_always_right_or_wrong() -> None:
    """Of 9 tokens after the first, rounds of 4, 4 and 1 where 3 are drafted: the last token is not worth drafting."""
    table = np.random.default_rng(0).normal(size=(V, V))
    model, wrong = Bigrams(table), Bigrams(np.roll(table, 1, axis=1))
    expected = decoding.generate(model, PROMPT, LENS, max_new_tokens=10)
    for draft, accepted, drafted in ((model, 6, 6), (wrong, 0, 3 * 6 + 2 + 1)):
        found = decoding.speculate(model, draft, PROMPT, LENS, max_new_tokens=10, ahead=3)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        assert found.accepted.tolist() == [accepted] * 3
        assert found.drafted.tolist() == [drafted] * 3


@pytest.mark.core
def test_processors_see_the_tokens_before_each_place() -> None:
    """Those that go by what was said, and by the number of the token; with settings of each example's."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(V, V))
    model, draft = Bigrams(table), Bigrams(table + rng.normal(size=(V, V)))
    rules = (
        processors.repetition_penalty(jnp.array([1.5, 1.0, 3.0])),
        processors.no_repeat_ngrams(2),
        processors.min_new_tokens(jnp.array([7, 2, 9]), eos=4),
        processors.forced({3: 11}),
        processors.top_k(5),
    )
    options: dict[str, Any] = {"max_new_tokens": 12, "eos": 4, "processors": rules}
    expected = decoding.generate(model, PROMPT, LENS, **options)
    found = decoding.speculate(model, draft, PROMPT, LENS, ahead=3, **options)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    free = decoding.generate(model, PROMPT, LENS, **{**options, "processors": ()})
    assert all((free.tokens != found.tokens).any(-1).tolist())
    assert 0 < found.accepted.sum() < found.drafted.sum()


@pytest.mark.core
@pytest.mark.whole
def test_room_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 8 tokens, prompt and all, to 24."""
    model, draft = made(), made(noise=0.2)
    whole = decoding.speculate(model, draft, PROMPT, LENS, max_new_tokens=17, ahead=3)
    monkeypatch.setattr(room, "GROWTH", 3)
    rooms: list[int] = []
    monkeypatch.setattr(speculative, "with_more_room", lambda now, *more: rooms.append(more[0]) or grow(now, *more))
    grow = rounds.with_more_room
    found = decoding.speculate(model, draft, PROMPT, LENS, max_new_tokens=17, ahead=3)
    assert len(rooms) > 1
    for one, expected in zip(found, whole, strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-5)


@pytest.mark.whole
def test_going_on_from_a_state() -> None:
    """The model has read more than the draft, which has then, too."""
    model, draft = made(), made(noise=0.2)
    options: dict[str, Any] = {"max_new_tokens": 6, "return_state": True}
    begun, of_draft = (decoding.generate(one, PROMPT, LENS, **options) for one in (model, draft))
    last = begun.tokens[:, -1:]
    expected = decoding.generate(model, last, max_new_tokens=9, state=begun.state).tokens
    for given in ({}, {"state": of_draft.state}):
        found = decoding.speculate(model, draft, last, max_new_tokens=9, ahead=3, state=begun.state, draft_given=given)
        np.testing.assert_array_equal(found.tokens, expected)


@pytest.mark.whole
def test_jit_and_what_is_compiled() -> None:
    model, draft = made(), made(noise=0.2)
    options: dict[str, Any] = {"max_new_tokens": 5, "ahead": 2}
    first = decoding.speculate(model, draft, PROMPT, LENS, **options)
    compiled = rounds.gone_on._cache_size()
    decoding.speculate(draft, model, PROMPT[::-1], LENS[::-1], **{**options, "max_new_tokens": 6})
    assert rounds.gone_on._cache_size() == compiled, "other prompts, models and limits are data"
    graph, parameters = nnx.split(draft)
    inside = jax.jit(lambda x, p, n: decoding.speculate(model, nnx.merge(graph, x), p, n, **options))
    for one, expected in zip(inside(parameters, PROMPT, LENS), first, strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-5)
    rngs = jax.random.split(jax.random.key(0), 3)
    drawn = decoding.speculate(model, draft, PROMPT, LENS, rng=rngs, **options)
    inside = jax.jit(lambda rng: decoding.speculate(model, draft, PROMPT, LENS, rng=rng, **options))
    np.testing.assert_array_equal(inside(rngs).tokens, drawn.tokens)
    mapped = jax.vmap(lambda rng: decoding.speculate(model, draft, PROMPT, LENS, rng=rng, **options).tokens)
    np.testing.assert_array_equal(mapped(rngs[None])[0], drawn.tokens)
    plain = jax.jit(lambda rng: decoding.generate(model, PROMPT, LENS, rng=rng, max_new_tokens=5))
    np.testing.assert_array_equal(
        plain(rngs).tokens, decoding.generate(model, PROMPT, LENS, rng=rngs, max_new_tokens=5).tokens
    )


# ----------------------------------------------------------------------------------------------------------------------
# Drawn tokens.


@pytest.mark.core
def test_the_rule_by_hand() -> None:
    """Of two tokens: kept and not; both; not, where p and q are alike; one, as the other may not be kept."""
    p = jnp.array([[[0.5, 0.25, 0.25], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]] * 4)
    q = jnp.array([[[0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]] * 4)
    p, q = p.at[2].set(jnp.array([0.75, 0.25, 0.0])), q.at[2].set(jnp.array([0.75, 0.25, 0.0]))
    tokens = jnp.array([[1, 0], [1, 2], [2, 0], [0, 1]])
    uniforms = jnp.array([[0.49, 0.0], [0.0, 0.99], [0.0, 0.0], [0.99, 0.0]])
    found = rounds.judged(p, q, tokens, uniforms, jnp.array([2, 2, 2, 1]))
    assert found.accepted.tolist() == [1, 2, 0, 1]
    np.testing.assert_array_equal(found.rest, [[0, 0.25, 0], [1, 0, 0], [0.75, 0.25, 0], [0, 0.5, 0.5]])
    not_kept = rounds.judged(p[:1], q[:1], tokens[:1], jnp.array([[0.5, 0.0]]), jnp.array([2]))
    assert not_kept.accepted.tolist() == [0]
    np.testing.assert_array_equal(not_kept.rest, [[0.25, 0, 0]])


TABLES = np.random.default_rng(0).normal(size=(2, 3, 3))  # the logits of the model and of the draft


def no_return(logits: Any, transcript: decoding.Transcript) -> Any:
    """Not so likely the token before the last one, so that it matters which are there."""
    before = jnp.take_along_axis(transcript.tokens, transcript.lengths[:, None] - 2, 1)
    return logits - 2 * (jnp.arange(3) == before)


def p_value(count: int, rules: tuple[Any, ...] = ()) -> float:
    """Of the counts of all texts of five tokens, beside their exact probabilities."""
    model, draft = map(Bigrams, TABLES)
    prompt = jnp.tile(jnp.array([[0, 1]]), (count, 1))
    found = decoding.speculate(model, draft, prompt, max_new_tokens=5, ahead=2, rng=jax.random.key(7), processors=rules)
    assert 0.2 < int(found.accepted.sum()) / int(found.drafted.sum()) < 0.8
    expected = []
    for text in itertools.product(range(3), repeat=5):
        probability, said = 1.0, [0, 1]
        for token in text:
            logits = TABLES[0, said[-1]].copy()
            if rules:
                logits[said[-2]] -= 2
            probability *= np.exp(logits[token]) / np.exp(logits).sum()
            said.append(token)
        expected.append(count * probability)
    observed = np.bincount(np.asarray(found.tokens) @ 3 ** np.arange(4, -1, -1), minlength=3**5)
    rare = np.array(expected) < 5
    o, e = (np.append(x[~rare], x[rare].sum()) for x in (observed, np.array(expected)))
    return float(stats.chisquare(o, e * o.sum() / e.sum()).pvalue)


@pytest.mark.parametrize("rules", [(no_return,), ()], ids=["a processor", "none"])
def test_drawn_tokens_have_the_distribution_of_the_model(rules: tuple[Any, ...]) -> None:
    assert p_value(20_000, rules) > 1e-4


@pytest.mark.whole
def test_the_test_of_the_distribution_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn anew from p rather than from p - q; and a processor that sees other tokens than there are."""

    def from_p(*given: Any) -> rounds.Verdict:
        right, p = rule(*given), given[0]
        return right._replace(rest=jax.vmap(lambda row, i: row[i])(p, right.accepted))

    rule = rounds.judged
    assert p_value(20_000, (lambda x, now: no_return(x, now._replace(lengths=now.prompt_lens + 1)),)) < 1e-4
    monkeypatch.setattr(rounds, "judged", from_p)
    assert p_value(20_001) < 1e-4  # another number of examples, to be compiled anew


@pytest.mark.core
@pytest.mark.whole
def test_drawn_tokens_depend_on_nothing_else_in_the_batch() -> None:
    """And where the draft is the model, they are those of generate."""
    model, draft, rngs = made(), made(noise=0.2), jax.random.split(jax.random.key(3), 3)
    options: dict[str, Any] = {"ahead": 3, "processors": (lambda x, _: 2 * x,)}
    found = decoding.speculate(model, draft, PROMPT, LENS, rng=rngs, max_new_tokens=12, **options)
    assert len(np.unique(found.tokens)) > 8
    assert 0 < found.accepted.sum() < found.drafted.sum()
    order = jnp.array([2, 0, 1])
    other = decoding.speculate(model, draft, PROMPT[order], LENS[order], rng=rngs[order], max_new_tokens=12, **options)
    np.testing.assert_array_equal(other.tokens, found.tokens[order])
    alone = decoding.speculate(model, draft, PROMPT[1:2, :2], rng=rngs[1:2], max_new_tokens=12, **options)
    np.testing.assert_array_equal(alone.tokens, found.tokens[1:2])
    itself = decoding.speculate(model, model, PROMPT, LENS, rng=rngs, max_new_tokens=12, **options)
    np.testing.assert_array_equal(itself.accepted, itself.drafted)
    expected = decoding.generate(
        model, PROMPT, LENS, rng=rngs, max_new_tokens=12, processors=options["processors"], eos=(), pad=0
    )
    np.testing.assert_array_equal(itself.tokens, expected.tokens)
    np.testing.assert_allclose(itself.log_probabilities, expected.log_probabilities, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes.


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "phrases"),
    [
        ({"ahead": 0}, ("ahead must be an integer in [1, inf). Got 0.",)),
        ({"ahead": 2.0}, ("ahead must be an integer in [1, inf). Got 2.0.",)),
        ({"max_new_tokens": 0}, ("max_new_tokens must be at least 1", "Got 0")),
        ({"prompt": PROMPT[0]}, ("prompt must have the axes b t", "(5,)")),
        ({"draft": None}, ("draft must take what the model takes. Of it: model must have the methods", "NoneType")),
        ({"draft": Bigrams(TABLES[0])}, ("draft must take what the model takes. Of it: prompt must lie between 0",)),
        (
            {"draft": Bigrams(np.zeros((V + 1, V + 1)))},
            ("draft must have the vocabulary of the model, 19 tokens. Got 20.",),
        ),
        (
            {"draft": Remembering(np.zeros((V, V)))},
            (
                "draft must be able to take tokens back: its state must be made of jattn.Cache, or have a method",
                "rewound(before, n, since). Got float32 of shape (3, 7) in it.",
            ),
        ),
        ({"model": Remembering(np.zeros((V, V)))}, ("model must be able to take tokens back", "shape (3, 7)")),
        ({"rng": 0}, ("rng must be a jax.random.key. Got 0.",)),
        ({"rng": jax.random.split(jax.random.key(0), 2)}, ("one for each of 3 prompts. Got shape (2,)",)),
    ],
)
def test_one_clear_error(wrong: dict[str, Any], phrases: tuple[str, ...]) -> None:
    model = Bigrams(np.zeros((V, V)))
    with raises(*phrases):
        decoding.speculate(**{"model": model, "draft": model, "prompt": PROMPT, "max_new_tokens": 3, **wrong})


@pytest.mark.whole
def test_windows_too_short_for_what_is_drafted() -> None:
    with raises("ahead must be less than the 4 tokens of a window of draft, so that none is lost that is kept. Got 4."):
        decoding.speculate(Bigrams(np.zeros((V, V))), made(), PROMPT, max_new_tokens=3, ahead=4)


def test_what_only_generate_takes() -> None:
    with pytest.raises(TypeError, match=r"Bigrams\.start\(\) got an unexpected keyword argument 'sequences'"):
        decoding.speculate(*map(Bigrams, TABLES), PROMPT % 3, max_new_tokens=3, sequences=2)
