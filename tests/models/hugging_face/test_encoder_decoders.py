"""The encoder-decoder that all families share: padding on any side, packed texts, one encoding for many decodings."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import masks, models
from jattn.nn import Norm
from tests.models.hugging_face.texts import drawn, packed, padded

V = 23
BLOCK: dict[str, Any] = {"num_heads": 2, "feedforward_features": 12, "norm": "pre", "norm_kind": "rms"}
RELATIVE: dict[str, Any] = {
    "layers": [BLOCK, BLOCK],
    "norm": Norm("rms"),
    "relative_buckets": 8,
    "relative_distance": 5,
}
LEARNED: dict[str, Any] = {
    "layers": [{**BLOCK, "norm": "post"}],
    "max_length": 12,
    "first_position": 2,
    "embedding_norm": Norm("layer"),
}
KINDS: dict[str, dict[str, Any]] = {
    "relative": {"encoder": RELATIVE, "decoder": RELATIVE, "tied": False},
    "learned": {"encoder": LEARNED, "decoder": LEARNED, "embedding_scale": 2.0, "logits_bias": True},
    "own embeddings": {"encoder": LEARNED, "decoder": RELATIVE, "source_vocab_size": 31, "logits_scale": 0.5},
    "sound": {"encoder": {**LEARNED, "fixed_positions": True}, "decoder": LEARNED, "mel_bins": 5},
}
TEXTS = ["relative", "learned", "own embeddings"]
SOURCE_LENS, TARGET_LENS = (6, 4, 3), (3, 5, 4)


def made(kind: str, **more: Any) -> models.EncoderDecoder:
    model = models.EncoderDecoder(V, features=8, **KINDS[kind], **more, rngs=nnx.Rngs(0))
    if model.logits_bias is not None:
        model.logits_bias[...] = jnp.linspace(-1, 1, V, dtype=model.logits_bias[...].dtype)
    model.eval()
    return model


def assert_close(x: Any, y: Any) -> None:
    np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.whole
@pytest.mark.parametrize("kind", TEXTS)
def test_padding_and_packing_change_nothing(kind: str) -> None:
    sources, targets = drawn(V, SOURCE_LENS, 0), drawn(V, TARGET_LENS, 1)
    with jax.enable_x64(True):
        model = made(kind, param_dtype=jnp.float64)
        alone = [model(jnp.asarray(x)[None], jnp.asarray(y)[None])[0] for x, y in zip(sources, targets, strict=True)]
        for side in ("left", "right"):
            (source, real), (target, of_target) = padded(sources, side), padded(targets, side)
            found = model(source, target, attention_mask=real, target_attention_mask=of_target)
            for logits, expected, are_real in zip(found, alone, of_target, strict=True):
                assert_close(logits[are_real == 1], expected)
            memory = model.encode(source, attention_mask=real)
            asked: dict[str, Any] = {"attention_mask": of_target, "memory_attention_mask": real}
            for given in (memory, model.project(memory)):
                assert_close(model.decode(target, given, **asked), found)
        lens = {"valid_lens": jnp.array(SOURCE_LENS), "target_valid_lens": jnp.array(TARGET_LENS)}
        for logits, expected in zip(model(source, target, **lens), alone, strict=True):
            assert_close(logits[: len(expected)], expected)

        (source, ids, positions), (target, target_ids, target_positions) = packed(sources[1:]), packed(targets[1:])
        found = model(
            source,
            target,
            positions=positions,
            target_positions=target_positions,
            mask=masks.segments(ids),
            target_mask=masks.segments(target_ids),
            memory_mask=masks.segments(target_ids, ids),
        )
        assert_close(found[0], jnp.concatenate(alone[1:]))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_hidden_states(kind: str) -> None:
    model = made(kind)
    n, k = len(model.encoder.blocks), len(model.decoder.blocks)
    source = jnp.ones((2, 5, 12)) if kind == "sound" else jnp.ones((2, 6), int)
    target = jnp.ones((2, 4), int)
    out = model(source, target, return_weights=True, return_hidden=True)
    assert [x.shape for x in out.weights.encoder] == [(2, 2, 6, 6)] * n
    assert [x.shape for x in out.weights.decoder] == [(2, 2, 4, 4)] * k
    assert [x.shape for x in out.weights.cross] == [(2, 2, 4, 6)] * k
    assert [x.shape for x in out.hidden.encoder] == [(2, 6, 8)] * (n + 1)
    assert [x.shape for x in out.hidden.decoder] == [(2, 4, 8)] * (k + 1)
    np.testing.assert_array_equal(model(source, target), out.output)
    assert model(source, target, return_hidden=True).weights is None
    encoded = model.encode(source, return_weights=True, return_hidden=True)
    np.testing.assert_array_equal(encoded.output, out.hidden.encoder[-1])
    decoded = model.decode(target, encoded.output, return_weights=True)
    assert decoded.weights.encoder is None
    np.testing.assert_array_equal(decoded.weights.cross[0], out.weights.cross[0])


@pytest.mark.whole
def test_fixed_positions_are_not_trained() -> None:
    graph, state = nnx.split(made("sound"))
    source, target = jnp.ones((1, 5, 12)), jnp.ones((1, 4), int)
    gradients = jax.grad(lambda state: nnx.merge(graph, state)(source, target).sum())(state)
    model = nnx.merge(graph, gradients)
    assert not model.encoder.positions.embedding.embedding[...].any()
    assert model.decoder.positions.embedding.embedding[...].any()


@pytest.mark.whole
def test_dropout_is_of_each_side() -> None:
    model = models.EncoderDecoder(
        V, features=8, encoder={**LEARNED, "dropout_rate": 0.5}, decoder=LEARNED, rngs=nnx.Rngs(0)
    )
    model.train()
    source, target, rng = jnp.ones((1, 6), int), jnp.ones((1, 4), int), jax.random.key(0)
    first = model(source, target, rng=rng)
    np.testing.assert_array_equal(model(source, target, rng=rng), first)
    assert np.abs(model(source, target, rng=jax.random.key(1)) - first).max() > 1e-3
    with pytest.raises(ValueError, match="rng must"):
        model(source, target)


def test_what_cannot_be() -> None:
    model, sound = made("learned"), made("sound")
    tokens = jnp.ones((1, 4), int)
    with pytest.raises(ValueError, match="max_length"):
        model(jnp.ones((1, 13), int), tokens)
    with pytest.raises(ValueError, match="max_length"):
        model(tokens, jnp.ones((1, 13), int))
    with pytest.raises(ValueError, match=r"attention_mask must have a 1 or a 0 for each token") as raised:
        model(tokens, tokens, attention_mask=jnp.ones((1, 3), int))
    assert "(1, 4)" in str(raised.value)
    with pytest.raises(ValueError, match="target_attention_mask must have a 1 or a 0 for each token"):
        model(tokens, tokens, target_attention_mask=jnp.ones((1, 3), int))
    memory = model.encode(tokens)
    with pytest.raises(ValueError, match="memory_attention_mask must have a 1 or a 0 for each token"):
        model.decode(tokens, memory, memory_attention_mask=jnp.ones((1, 3), int))
    with pytest.raises(ValueError, match="memory must be what project returned, keys and values for each of 1 blocks"):
        model.decode(tokens, 2 * model.project(memory))
    with pytest.raises(ValueError, match="source must be log-mel features b mel t, of 5 bands"):
        sound(jnp.ones((1, 12, 5)), tokens)
    with pytest.raises(ValueError, match="mel_bins must be None"):
        made("sound", source_vocab_size=3)


@pytest.mark.usefixtures("unchecked")
def test_a_memory_of_other_sequences() -> None:
    model, tokens = made("learned"), jnp.ones((1, 4), int)
    memory = model.encode(tokens)
    with pytest.raises(ValueError, match=r"target must have as many sequences as memory, 1\. Got 2\."):
        model.decode(jnp.ones((2, 4), int), memory)
    with pytest.raises(ValueError, match=r"target must have as many sequences as source, 1\. Got 2\."):
        model(tokens, jnp.ones((2, 4), int))
    with pytest.raises(ValueError, match="memory must have 8 features on its last axis"):
        model.decode(tokens, memory[..., :5])


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_dropout_within_the_network(norm: str) -> None:
    block = {**BLOCK, "norm": norm, "feedforward_dropout_rate": 0.5}
    side = {"layers": [block]}
    model = models.EncoderDecoder(V, features=8, encoder=side, decoder=side, rngs=nnx.Rngs(0))
    network, x = model.encoder.blocks[0].feed_forward, jnp.ones((40, 8))
    model.train()
    assert (network.dropout.rate, network.hidden_dropout.rate) == (0.0, 0.5)
    first, second = (np.asarray(network(x, rng=jax.random.key(seed))) for seed in (0, 1))
    assert (first != second).any(-1).mean() > 0.9
    assert (first != 0).mean() > 0.9  # what comes out of the network is not dropped itself
    model.eval()
    np.testing.assert_array_equal(network(x)[0], network(x)[1])
    experts = {"layers": [{**block, "experts": {"num_experts": 2, "experts_per_token": 1}}]}
    with pytest.raises(ValueError, match="feedforward_dropout_rate must be None for a block of experts"):
        models.EncoderDecoder(V, features=8, encoder=experts, decoder=side, rngs=nnx.Rngs(0))


def test_decoding_is_exported() -> None:
    """The decoder runs from bytes, without the model."""
    model = made("relative")
    source, target = jnp.arange(18).reshape(3, 6) % V, jnp.arange(12).reshape(3, 4) % V
    memory, form = jax.tree.flatten(model.project(model.encode(source)))
    exported = jax.export.export(jax.jit(lambda y, *memory: model.decode(y, form.unflatten(memory))))(target, *memory)
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(target, *memory), model(source, target), rtol=1e-5, atol=1e-5)


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["learned", "sound"])
def test_greedy_continuation_encodes_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens that a search over the whole model finds, step by step."""
    model, calls = made(kind), []
    original = models.EncoderDecoder.encode
    monkeypatch.setattr(models.EncoderDecoder, "encode", lambda *a, **o: (calls.append(1), original(*a, **o))[1])
    rng = np.random.default_rng(0)
    if kind == "sound":
        source, mask = jnp.asarray(rng.normal(size=(2, 5, 12)), jnp.float32), None
    else:
        source, mask = padded(drawn(V, (6, 3), 2), "left")
    target = jnp.array([[1], [2]])
    found = models.greedy_continuation(model, target, max_new_tokens=5, source=source, source_attention_mask=mask)
    assert len(calls) == 1  # while it was traced
    for _ in range(5):
        best = model(source, target, attention_mask=mask)[:, -1].argmax(-1)
        target = jnp.concatenate([target, best[:, None]], -1)
    np.testing.assert_array_equal(found.tokens, target[:, 1:])


def test_a_source_is_for_encoder_decoders() -> None:
    prompt = jnp.ones((2, 1), int)
    with pytest.raises(ValueError, match="source must be given to decode with EncoderDecoder"):
        models.greedy_continuation(made("learned"), prompt, max_new_tokens=2)
    with pytest.raises(ValueError, match="source must be one for each of 2 prompts"):
        models.greedy_continuation(made("learned"), prompt, max_new_tokens=2, source=jnp.ones((3, 4), int))
    with pytest.raises(ValueError, match="max_length = 12"):
        models.greedy_continuation(made("learned"), prompt, max_new_tokens=12, source=jnp.ones((2, 4), int))


T5: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": V,
    "d_model": 8,
    "d_kv": 3,
    "d_ff": 12,
    "num_layers": 1,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}


def test_the_weights_of_t5_say_whether_its_logits_are_tied() -> None:
    pytest.importorskip("torch", reason="no torch: no state dict was made")
    untied = models.T5(**models.T5.hugging_face.arguments({**T5, "tie_word_embeddings": False}), rngs=nnx.Rngs(0))
    assert untied.output is not None
    assert untied.logits_scale is None
    entries = untied.to_hugging_face()
    again = models.T5.from_hugging_face({**T5, "scale_decoder_outputs": False}, entries)
    assert again.output is not None
    assert again.logits_scale is None
    entries["lm_head.weight"] = entries["shared.weight"]
    tied = models.T5.from_hugging_face(T5, entries)
    assert tied.output is None
    assert tied.logits_scale == 8**-0.5


@pytest.mark.parametrize(
    ("family", "changed", "phrase"),
    [
        (models.T5, {**T5, "architectures": ["T5EncoderModel"]}, "architectures must be"),
        (models.T5, {**T5, "feed_forward_proj": "gated"}, "feed_forward_proj must be"),
        (models.T5, {**T5, "d_kv": None}, "d_kv"),
        (models.BART, {"model_type": "bart", "tie_word_embeddings": False}, "tie_word_embeddings must be True"),
        (models.BART, {"model_type": "bart", "encoder_layerdrop": 0.1}, r"encoder_layerdrop must be 0\.0"),
        (models.Whisper, {"model_type": "whisper", "apply_spec_augment": True}, "apply_spec_augment must be False"),
    ],
)
def test_settings_that_are_refused(family: Any, changed: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ValueError, match=phrase):
        family.hugging_face.arguments(changed)


def test_log_mel() -> None:
    """A tone is loudest in the band around it, and nothing is more than 8 powers of ten below it."""
    t = np.arange(16000) / 16000
    found = np.asarray(
        models.log_mel(jnp.asarray(np.stack([np.sin(2 * np.pi * f * t) for f in (440, 3000)])), seconds=2)
    )
    assert found.shape == (2, 80, 200)
    loudest = found[:, :, 50].argmax(-1)
    # 440 Hz are 6.6 mel, and 3,000 Hz 30.98; the middles of the bands are 45.245 / 81 mel apart, and so far from 0.
    np.testing.assert_array_equal(loudest, [round(6.6 * 81 / 45.245) - 1, round(30.98 * 81 / 45.245) - 1])
    np.testing.assert_allclose(found.max((1, 2)) - found.min((1, 2)), 2, rtol=1e-6)
    np.testing.assert_array_equal(models.log_mel(jnp.ones(32000), seconds=None, mel_bins=8).shape, (8, 200))
    with pytest.raises(ValueError, match="samples must be more than 200"):
        models.log_mel(jnp.ones(200), seconds=None)
