"""Tokens after a prompt: the same whatever stands beside them, and however much room there is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import decoding, models, nn
from jattn.decoding import loop, room
from tests.errors import raises
from tests.models.hugging_face.test_gpt2_and_llama import LENS, PROMPT, V, made


class Bigrams(nnx.Module):
    """A model that looks at the last token alone; its state is how many it has read."""

    def __init__(self, logits: jax.Array) -> None:
        self.logits = nnx.Param(logits)

    def start(self, batch_size: int, room: int) -> jax.Array:
        return jnp.zeros(batch_size, int)

    def step(self, tokens: Any, state: Any, *, valid_lens: Any = None, each: bool = False) -> Any:
        logits = self.logits[...][tokens]
        read = tokens.shape[1] if valid_lens is None else valid_lens
        return (logits if each else decoding.last_of(logits, valid_lens)), state + read


def drawn(seed: int = 0, v: int = 7) -> Bigrams:
    return Bigrams(jax.random.normal(jax.random.key(seed), (v, v)))


def windowed() -> models.TextDecoder:
    """A model whose cache is a ring of four tokens."""
    block = dict(num_heads=2, feedforward_features=16, norm="pre", rotary=nn.Rotary())
    model = models.TextDecoder(V, features=8, layers=[{**block, "window": 4}], rngs=nnx.Rngs(0))
    model.blocks[0].attention.out.kernel[...] *= 20
    model.eval()
    return model


@pytest.mark.core
def test_a_table_says_what_follows() -> None:
    model = drawn()
    follows = np.asarray(model.logits[...]).argmax(-1)
    found = decoding.generate(
        model, jnp.array([[0, 3], [5, 1]]), jnp.array([2, 1]), max_new_tokens=4, return_state=True
    )
    for row, last in zip(found.tokens.tolist(), (3, 5), strict=True):
        expected = [last := int(follows[last]) for _ in range(4)]
        assert row == expected
    assert found.state.tolist() == [2 + 3, 1 + 3]  # all but the last token


@pytest.mark.core
def test_log_probabilities_are_the_models_own() -> None:
    model = made("gpt2")
    found = decoding.generate(model, PROMPT, max_new_tokens=4, processors=[lambda x, _: 2 * x])
    text = jnp.concatenate([PROMPT, found.tokens], 1)
    known = jax.nn.log_softmax(model(text))[:, 4:-1]
    expected = jnp.take_along_axis(known, found.tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.log_probabilities, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.core
def test_padding_may_stand_anywhere() -> None:
    model = made("llama")
    expected = decoding.generate(model, PROMPT, LENS, max_new_tokens=4)
    pieces = jnp.array([[3, 1, 4, 1, 5, 0], [0, 9, 0, 0, 2, 0], [0, 0, 0, 0, 0, 5]])
    mask = jnp.array([[1, 1, 1, 1, 1, 0], [0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]])
    found = decoding.generate(model, pieces, prompt_attention_mask=mask, max_new_tokens=4)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


@pytest.mark.core
def test_an_example_draws_the_same_in_any_batch() -> None:
    model, rngs = drawn(), jax.random.split(jax.random.key(1), 3)
    prompt = jnp.array([[1], [1], [4]])
    together = decoding.generate(model, prompt, max_new_tokens=12, rng=rngs)
    assert together.tokens[0].tolist() != together.tokens[1].tolist()
    for i in (0, 2):
        alone = decoding.generate(model, prompt[i : i + 1], max_new_tokens=12, rng=rngs[i : i + 1])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
    fewer = decoding.generate(model, prompt, max_new_tokens=12, rng=jax.random.key(2))
    np.testing.assert_array_equal(
        decoding.generate(model, prompt[:2], max_new_tokens=5, rng=jax.random.key(2)).tokens, fewer.tokens[:2, :5]
    )


@pytest.mark.core
def test_several_sequences_of_a_prompt() -> None:
    found = decoding.generate(
        drawn(), jnp.array([[1], [4]]), max_new_tokens=9, rng=jax.random.key(0), sequences=3, eos=2, pad=-1
    )
    assert found.tokens.shape == (2, 3, 9)
    assert found.lengths.shape == (2, 3)
    assert len({tuple(row) for row in found.tokens.reshape(6, 9).tolist()}) > 3
    greedy = decoding.generate(drawn(), jnp.array([[1], [4]]), max_new_tokens=3, sequences=2)
    np.testing.assert_array_equal(greedy.tokens[:, 0], greedy.tokens[:, 1])


def test_what_is_drawn_has_the_distribution() -> None:
    """Chi-square of 20,000 first tokens and of the second after them, 7 and 49 cells."""
    model = drawn(3)
    n = 20_000
    found = decoding.generate(model, jnp.full((n, 1), 2), max_new_tokens=2, rng=jax.random.key(5))
    first = jax.nn.softmax(model.logits[...][2])
    both = first[:, None] * jax.nn.softmax(model.logits[...], -1)
    counts = np.zeros((7, 7))
    np.add.at(counts, tuple(np.asarray(found.tokens).T), 1)
    for seen, expected, limit in ((counts.sum(1), n * first, 27.9), (counts, n * both, 93.2)):  # p = 1e-4 of 6 and 48
        assert float(np.sum((seen - expected) ** 2 / expected)) < limit
    assert float(np.sum((counts.sum(1) - n / 7) ** 2 / (n / 7))) > 1000  # another distribution would be seen


@pytest.mark.core
@pytest.mark.parametrize("kind", ["gpt2", "window"])
def test_growing_caches_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = windowed() if kind == "window" else made("gpt2", max_length=64)
    options: dict[str, Any] = {"max_new_tokens": 24, "return_state": True}
    expected = decoding.generate(model, PROMPT, LENS, **options)
    monkeypatch.setattr(room, "GROWTH", 5)
    found = decoding.generate(model, PROMPT, LENS, **options)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert len(np.unique(found.tokens)) > 4
    if kind == "window":
        assert found.state[0].room == 4


@pytest.mark.core
def test_a_stream_gives_the_same_and_may_be_left() -> None:
    model = made("llama")
    whole = decoding.generate(model, PROMPT, LENS, max_new_tokens=8, eos=4)
    stream = decoding.stream(model, PROMPT, LENS, max_new_tokens=8, eos=4)
    with raises("generated must be asked for after the first token"):
        stream.generated()
    np.testing.assert_array_equal(np.stack(list(stream), 1), whole.tokens[:, : int(whole.lengths.max())])
    np.testing.assert_array_equal(stream.generated().tokens, whole.tokens)

    left = decoding.stream(model, PROMPT, LENS, max_new_tokens=8)
    said = [next(left) for _ in range(3)]
    np.testing.assert_array_equal(left.generated().lengths, [3, 3, 3])
    gone_on = decoding.generate(model, jnp.asarray(said[-1])[:, None], max_new_tokens=5, state=left.state)
    free = decoding.generate(model, PROMPT, LENS, max_new_tokens=8)
    np.testing.assert_array_equal(gone_on.tokens, free.tokens[:, 3:])
    np.testing.assert_array_equal(np.stack([*said, *left], 1), free.tokens)  # and the stream itself goes on


@pytest.mark.core
def test_a_string_ends_an_example() -> None:
    model = drawn(v=20)
    free = decoding.generate(model, jnp.array([[0], [5]]), max_new_tokens=9)
    letters = [chr(97 + i) for i in range(20)]
    text = "".join(letters[i] for i in free.tokens[0].tolist())
    stop = text[2:4]
    found = decoding.generate(
        model,
        jnp.array([[0], [5]]),
        max_new_tokens=9,
        pad=-1,
        stop=["nowhere", stop],
        decode=lambda tokens: "".join(letters[i] for i in tokens),
    )
    n = text.index(stop) + 2
    assert int(found.lengths[0]) == n
    assert found.tokens[0].tolist() == free.tokens[0, :n].tolist() + [-1] * (9 - n)


def scaled(factor: Any, logits: Any, _: Any) -> Any:
    return factor * logits


def test_nothing_compiles_for_another_prompt_limit_or_number() -> None:
    model = made("gpt2", max_length=64)

    prompts = {t: jnp.asarray(np.full((2, t), 3)) for t in (25, 27)}

    def run(t: int, n: int, factor: float, eos: Any) -> Any:
        options: dict[str, Any] = dict(processors=[jax.tree_util.Partial(scaled, factor)], rng=jax.random.key(t))
        return decoding.generate(model, prompts[t], max_new_tokens=n, eos=eos, **options)

    run(25, 15, 1.0, 2)
    counted: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, _, **__: counted.append(name))
    compiled = [f._cache_size() for f in (loop.begin, loop.advance)]
    run(27, 15, 2.0, 5)
    assert [f._cache_size() for f in (loop.begin, loop.advance)] == compiled
    assert not [name for name in counted if "backend_compile" in name]


def test_a_model_that_is_a_pytree() -> None:
    @jax.tree_util.register_pytree_node_class
    class Table:
        def __init__(self, logits: Any) -> None:
            self.logits = logits

        def start(self, batch_size: int, room: int) -> tuple[()]:
            return ()

        def step(self, tokens: Any, state: Any, *, valid_lens: Any = None, each: bool = False) -> Any:
            return decoding.last_of(self.logits[tokens], valid_lens), state

        def tree_flatten(self) -> Any:
            return (self.logits,), None

        @classmethod
        def tree_unflatten(cls, _: Any, children: Any) -> Any:
            return cls(*children)

    found = decoding.generate(Table(jnp.roll(jnp.eye(9), 2, 1)), jnp.array([[1, 0]]), max_new_tokens=3)
    assert found.tokens.tolist() == [[2, 4, 6]]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "phrases"),
    [
        ({"model": len}, ("model must have the methods start and step", "Got builtin_function")),
        ({"prompt": jnp.ones((2, 0), int)}, ("prompt must have the axes b t, none of them empty", "(2, 0)")),
        ({"prompt": jnp.full((2, 3), 7)}, ("prompt must lie between 0 and 6", "Got 7")),
        ({"prompt_valid_lens": jnp.array([1, 2]), "prompt_attention_mask": jnp.ones((2, 3))}, ("Got both",)),
        (
            {"prompt_attention_mask": jnp.ones((2, 2))},
            ("prompt_attention_mask must have", "(2, 3)", "(2, 2)"),
        ),
        ({"prompt_attention_mask": jnp.array([[1, 1, 1], [0, 0, 0]])}, ("must be 1 at least once", "one without")),
        ({"eos": [1, 7]}, ("eos must be an integer in [0, 7)", "Got 7")),
        ({"processors": [3]}, ("processors must be functions of logits and transcript", "Got 3")),
        (
            {"processors": decoding.processors.top_k(3)},
            ("processors must be a list of functions. Got", "Write [...] around it."),
        ),
        ({"processors": [lambda logits: logits]}, ("each of processors must be a function of logits, transcript",)),
        ({"rng": 3}, ("rng must be a jax.random.key", "Got 3")),
        (
            {"rng": jax.random.split(jax.random.key(0), 3)},
            ("rng must be one key, or one for each of 2", "(3,)"),
        ),
        ({"sequences": 0}, ("sequences must be", "Got 0")),
        ({"stop": [""]}, ("stop must be strings that are not empty", "''")),
        ({"stop": "end"}, ("decode must make a text", "Got None")),
        ({"source": jnp.ones(2)}, ("Bigrams.start() got an unexpected keyword argument 'source'",)),
        ({"state": jnp.zeros(2), "source": jnp.ones(2)}, ("state must be None where source is given",)),
    ],
)
def test_one_clear_error(wrong: dict[str, Any], phrases: tuple[str, ...]) -> None:
    arguments = {"model": drawn(), "prompt": jnp.ones((2, 3), int), "max_new_tokens": 3, **wrong}
    with raises(*phrases, kind=TypeError if "unexpected" in phrases[0] else ValueError):
        decoding.generate(**arguments)


@pytest.mark.core
@pytest.mark.needs_jit
def test_what_needs_a_running_program() -> None:
    def inside(prompt: Any, **options: Any) -> Any:
        return jax.jit(lambda x: decoding.generate(drawn(), x, max_new_tokens=2, **options).tokens)(prompt)

    assert inside(jnp.ones((2, 3), int)).shape == (2, 2)
    with raises("stop must be empty under jit"):
        inside(jnp.ones((2, 3), int), stop="a", decode=str)
    with raises("stream must not be called under jit"):
        jax.jit(lambda x: next(decoding.stream(drawn(), x, max_new_tokens=2)))(jnp.ones((2, 3), int))


def test_a_processor_of_ones_own_sees_what_has_changed() -> None:
    model, chosen = made("gpt2"), [1]

    def only(logits: Any, transcript: Any) -> Any:
        return jnp.where(jnp.arange(logits.shape[-1]) == chosen[0], logits, -jnp.inf)

    for token in (1, 3):
        chosen[0] = token
        found = decoding.generate(model, PROMPT, LENS, max_new_tokens=2, processors=[only])
        np.testing.assert_array_equal(found.tokens, token)
