"""What jax2onnx makes of attention and of models, where it is installed, computes their numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxpr_as_fun

import jattn
from jattn import biases, masks, models, nn, portable

jax2onnx = pytest.importorskip("jax2onnx")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.whole

BLOCK = dict(num_heads=2, feedforward_features=12, norm="pre")
SIDE = dict(layers=[BLOCK], norm=nn.Norm(), max_length=20)
TEXT = dict(vocab_size=11, features=8, num_heads=2, num_layers=1)


def attend(**options):
    def f(query, key, value):
        return jattn.attention(query, key, value, **options)

    return f, *(np.random.default_rng(i).normal(size=(2, n, h, 8)) for i, (n, h) in enumerate(((5, 4), (7, 2), (7, 2))))


def masked(query, lens):
    return jattn.attention(query, query, query, mask=masks.causal() & masks.lengths(lens))


def causal(query):
    return jattn.attention(query, query, query, mask=masks.causal())


def of(model, *inputs):
    model.eval()
    return lambda *x: model(*x), *inputs


def cases():
    rngs, tokens = nnx.Rngs(0), np.arange(10).reshape(2, 5)
    rich = dict(mask=masks.causal(), bias=biases.alibi(4), logits_soft_cap=3.0, sinks=jnp.ones(4))
    return {
        "attention": attend(),
        "rich": attend(**rich),
        "T5's bias": attend(bias=biases.relative(jnp.arange(32.0 * 4).reshape(32, 4) / 64)),
        "lengths": (masked, np.random.default_rng(0).normal(size=(2, 5, 2, 8)), np.array([5, 3])),
        "in blocks": (causal, np.random.default_rng(0).normal(size=(1, 1024, 2, 8))),
        "GPT2": of(models.GPT2(**TEXT, max_length=64, rngs=rngs), tokens),
        "Llama": of(models.Llama(**TEXT, feedforward_features=12, rngs=rngs), tokens),
        "Bert": of(models.Bert(**TEXT, feedforward_features=12, max_length=64, rngs=rngs), tokens, np.array([5, 3])),
        "EncoderDecoder": of(
            models.EncoderDecoder(11, features=8, encoder=SIDE, decoder=SIDE, rngs=rngs), tokens, tokens[:, :3]
        ),
        "VisionEncoder": of(
            models.VisionEncoder(image_size=8, patch_size=4, features=8, layers=[BLOCK], output_features=5, rngs=rngs),
            np.random.default_rng(0).normal(size=(2, 8, 8, 3)),
        ),
    }


@pytest.mark.parametrize("name", list(cases()))
def test_onnx(name):
    f, *inputs = cases()[name]
    inputs = [jnp.asarray(x, jnp.int32 if x.dtype.kind == "i" else jnp.float32) for x in inputs]
    with portable.for_platforms("cpu"):
        traced = jaxpr_as_fun(jax.make_jaxpr(f)(*inputs))
    model = jax2onnx.to_onnx(lambda *x: traced(*x)[0], inputs=inputs)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    fed = {x.name: np.asarray(y) for x, y in zip(session.get_inputs(), inputs, strict=True)}
    (output,) = session.run(None, fed)
    np.testing.assert_allclose(output, f(*inputs), atol=2e-5)
