# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The transformer block
#
# A block lets tokens look at each other (self-attention), then lets each think for itself (a feed-forward network),
# with a residual and a layer norm around both. This notebook trains the smallest transformer that needs its attention,
# and then *measures* what the residuals and norms are there for. First, one block in PyTorch and in jattn:

# %%
import codecs
import contextlib
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import torch
from flax import nnx

import jattn
from jattn.training import adam, fit, one_cycle_lr

# %matplotlib inline

close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)  # float32
normal = np.random.default_rng(0).normal
torch.manual_seed(0)
x = normal(size=(2, 5, 8)).astype(np.float32)  # b t m

theirs = torch.nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True)
theirs.eval().requires_grad_(False)
ours = jattn.nn.TransformerBlock(num_heads=2, features=8, feedforward_features=16, rngs=nnx.Rngs(0))

tensors = theirs.state_dict()
for part in ("weight", "bias"):  # PyTorch keeps the three projections in one tensor
    three = tensors.pop(f"self_attn.in_proj_{part}").chunk(3)
    for name, one in zip(("query", "key", "value"), three, strict=True):
        tensors[f"self_attn.{name}.{part}"] = one
names = {"^self_attn": "attention", "out_proj": "out", "^linear": "feed_forward.linear"}
jattn.weights.load_state_dict(ours, tensors, rename=names)

torch_output = theirs(torch.from_numpy(x))
jattn_output = ours(x)

close(jattn_output, torch_output)

# %% [markdown]
# ## Self-attention
#
# Queries, keys and values are three linear maps of the *same* tokens, so each token asks, is asked and answers:
#
# $$\operatorname{softmax}\!\left(\frac{(x W_q)(x W_k)^\top}{\sqrt d}\right) x W_v .$$

# %%
attend = ours.attention
tokens = x[:1]  # one example of 5 tokens
output, weights = attend(tokens, return_weights=True)
assert output.shape == (1, 5, 8)
assert weights.shape == (1, 2, 5, 5)  # b h t s
close(weights.sum(axis=-1), 1)
jattn.plots.heatmaps(weights, column_titles=["head 0", "head 1"])

# %% [markdown]
# Self-attention has no idea of order. Shuffle the tokens, and the outputs are shuffled with them, otherwise unchanged:
# a sentence is a bag of words to it, unless each token is told where it stands.

# %%
order = np.array([3, 0, 4, 1, 2])
close(attend(tokens[:, order]), output[:, order])

# %% [markdown]
# ## Long-term dependency
#
# A task that needs memory: sequences of 20 tokens from $\{1, 2, 3, 4\}$, and at the end the question what the *first*
# one was. The other 19 are noise. A recurrent network has to carry the answer through all of them; attention reaches it
# in one step. How much does the last output depend on each input? Take two untrained networks, and compare the size of
# the gradients.


# %%
def influence(network, x):
    """For each input position, the norm of the gradient of the last output's sum."""
    return jnp.linalg.norm(jax.jit(jax.grad(lambda x: network(x)[0, -1].sum()))(x)[0], axis=-1)


sequence = normal(size=(1, 20, 32)).astype(np.float32)
recurrent = jattn.nn.GRU(32, 32, rngs=nnx.Rngs(0))
attentive = jattn.nn.MultiHeadAttention(num_heads=4, in_features=32, rngs=nnx.Rngs(0))
by_recurrence = influence(lambda x: recurrent(x)[0], sequence)
by_attention = influence(attentive, sequence)

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.semilogy(by_recurrence, "o-", label="GRU")
axis.semilogy(by_attention, "o-", label="self-attention")
axis.set(
    xlabel="input position",
    ylabel="gradient norm",
    title="What the last output knows of each input",
    xticks=range(0, 20, 3),
)
axis.legend()
plt.show()

assert by_recurrence[0] < 0.01 * by_recurrence[-1]  # forgotten
assert by_attention[0] > 0.1 * by_attention[-1]  # as near as any other

# %% [markdown]
# Train a classifier: an embedding, learned positions, one block, and a linear layer on the *last* token. Its answer can
# depend on the first token only through the attention of the last one.


# %%
def sequences(n, seed):
    tokens = np.random.default_rng(seed).integers(1, 5, size=(n, 20))
    return tokens, tokens[:, 0]  # b t, and b


def loss(model, batch, rng):
    tokens, first = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(tokens, rng=rng), first).mean()


model = jattn.models.RecallClassifier(vocab_size=5, rngs=nnx.Rngs(0))  # 0 is no token here
options = dict(optimizer=adam(3e-3), epochs=8, batch_size=50, progress=False)
history = fit(model, sequences(1000, seed=0), loss=loss, **options)

test_tokens, test_first = sequences(200, seed=1)
logits, (weights,) = model(test_tokens, return_weights=True)
accuracy = (logits.argmax(axis=-1) == test_first).mean()
print(f"accuracy on {len(test_first)} new sequences: {accuracy}")
assert accuracy == 1.0

figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
axis.semilogy(history.step_losses)
axis.axhline(np.log(4), color="0.6", ls=":", label="guessing, $\\ln 4$")
axis.set(xlabel="step", ylabel="cross-entropy", title="Learning to look back")
axis.legend()
plt.show()

# %% [markdown]
# Now look at the weights, of one sequence. The classifier reads the last token only, and that is the last row of each
# matrix: it has learned where to look.

# %%
jattn.plots.heatmaps(weights[0], column_titles=[f"head {i}" for i in range(4)])

# %%
last_row = weights[:, :, -1].mean(axis=0)  # h s, the mean over all test sequences
assert (last_row.argmax(axis=-1) == 0).all()  # in every head

figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
for i, head in enumerate(last_row):
    axis.bar(np.arange(20) + 0.2 * (i - 1.5), head, width=0.2, label=f"head {i}")
axis.axhline(1 / 20, color="0.6", ls=":", label="no preference, 1/20")
axis.set(xlabel="key position", ylabel="weight", title="Where the last token looks", xticks=range(0, 20, 3))
axis.legend()
plt.show()

# %% [markdown]
# Without positions the same model can't do it, however long it trains: the 19 tokens before the last are a bag to it,
# and all their orders get the same answer. The best that is left is to guess the most frequent token of the bag.

# %%
blind = jattn.models.RecallClassifier(vocab_size=5, positions=False, rngs=nnx.Rngs(0))
blind.eval()
reversed_tokens = np.concatenate([test_tokens[:, -2::-1], test_tokens[:, -1:]], axis=1)
close(blind(reversed_tokens), blind(test_tokens))
assert not np.allclose(model(reversed_tokens), logits, atol=0.1)

counts = (test_tokens[:, :-1, None] == np.arange(5)).sum(axis=1)
frequent = (counts.argmax(axis=-1) == test_first).mean()
print(f"accuracy of guessing the most frequent token: {frequent}")
assert frequent < 0.6

# %% [markdown]
# ## Post-norm and pre-norm
#
# There are two ways to put a sublayer $f$, its residual and its norm together. In 2017 the norm came after the sum;
# most models since then have it before the sublayer:
#
# $$\text{post:}\quad x \leftarrow \operatorname{norm}(x + f(x)) \qquad\qquad
# \text{pre:}\quad x \leftarrow x + f(\operatorname{norm}(x))$$
#
# Written out from the parts, that is all there is to a block:


# %%
def post(block, x):
    x = block.norm1(x + block.attention(x))
    return block.norm2(x + block.feed_forward(x))


def pre(block, x):
    x = x + block.attention(block.norm1(x))
    return x + block.feed_forward(block.norm2(x))


post_block = jattn.nn.TransformerBlock(2, 8, 16, norm="post", rngs=nnx.Rngs(0))
pre_block = jattn.nn.TransformerBlock(2, 8, 16, norm="pre", rngs=nnx.Rngs(0))
close(post(post_block, x), post_block(x))
close(pre(pre_block, x), pre_block(x))

# %% [markdown]
# ## Layer norm, measured
#
# A layer norm gives each token mean 0 and variance 1, over its $m$ features,
#
# $$\operatorname{norm}(x) = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}\,\gamma + \beta ,$$
#
# where $\gamma = 1$ and $\beta = 0$ before training. Does it? Measured with `torch.std` the result for 8 features is
# not 1 but 1.069. The layer norm divides by the standard deviation of the numbers it has, with $m$ under the sum;
# `torch.std` estimates that of a population, with $m - 1$. Their quotient is $\sqrt{8/7} \approx 1.069$.

# %%
token = x[0, 0]
normed = np.asarray(post_block.norm1(token))
for name, numbers in (("before", token), ("after", normed)):
    estimated = torch.tensor(numbers).std()
    print(f"{name:6s}  mean {numbers.mean():7.4f}  std {numbers.std():.4f}  torch.std {estimated:.4f}")
close(normed.mean(), 0)
close(normed.std(), 1)
close(torch.tensor(normed).std(), np.sqrt(8 / 7))

# %% [markdown]
# So the squares of a normed token add up to $m$, and its norm is $\sqrt m$. The output of an untrained post-norm block
# has the norm $\sqrt{b\,t\,m}$, whatever goes in: here $\sqrt{2 \cdot 5 \cdot 8} \approx 8.94$. A pre-norm block has
# no norm on its way out. It passes its input on, with something added that does not grow with it, as the sublayers see
# normed tokens only.

# %%
rows = []
for scale in (1, 10, 100):
    for name, block in (("post", post_block), ("pre", pre_block)):
        output = block(scale * x)
        norms = [float(jnp.linalg.norm(z)) for z in (scale * x, output, output - scale * x)]
        rows.append((scale, name, *norms))

print("input times   norm   of input  of output  of their difference")
for scale, name, before, after, difference in rows:
    print(f"{scale:11d}   {name:4s} {before:10.2f} {after:10.2f} {difference:20.2f}")
    if name == "post":
        close(after, np.sqrt(80), rtol=1e-3)
    else:
        assert difference < 2 * rows[1][-1]

# %% [markdown]
# ## Residuals, measured
#
# Stack 12 untrained blocks, and send a gradient back from the last to the first. With a residual, the derivative of
# $x + f(x)$ is $1 + f'(x)$: the 1 is a way through that no sublayer stands in. Without it, only a product of Jacobians
# is left. Norms play a part too, so measure every combination. The same parameters serve them all.


# %%
def residuals_only(block, x):
    x = x + block.attention(x)
    return x + block.feed_forward(x)


def norms_only(block, x):
    return block.norm2(block.feed_forward(block.norm1(block.attention(x))))


def neither(block, x):
    return block.feed_forward(block.attention(x))


steps = {
    "residuals, pre-norm": pre,
    "residuals, post-norm": post,
    "residuals only": residuals_only,
    "norms only": norms_only,
    "neither": neither,
}
blocks = [jattn.nn.TransformerBlock(4, 64, 256, rngs=nnx.Rngs(i)) for i in range(12)]
graphdef = nnx.graphdef(blocks[0])
states = jax.tree.map(lambda *layers: jnp.stack(layers), *map(nnx.state, blocks))
deep_x, cotangent = normal(size=(2, 2, 20, 64)).astype(np.float32)  # b t m each


def measure(step):
    """After each block, the tokens' share of difference; before each block, the size of the gradient."""

    def run(offsets):  # zeros, added before each block: their gradient is the one we want
        def one_block(x, layer):
            state, offset = layer
            x = step(nnx.merge(graphdef, state), x + offset)
            return x, jnp.linalg.norm(x - x.mean(axis=1, keepdims=True)) / jnp.linalg.norm(x)

        last, differences = jax.lax.scan(one_block, deep_x, (states, offsets))
        return (last * cotangent).sum(), differences

    gradients, differences = jax.jit(jax.grad(run, has_aux=True))(jnp.zeros((12, *deep_x.shape)))
    return differences, jnp.linalg.norm(gradients.reshape(12, -1), axis=1) / np.linalg.norm(cotangent)


differences, gradients = {}, {}
for name, step in steps.items():
    differences[name], gradients[name] = measure(step)

# %% [markdown]
# On the left, the gradient on its way back, from right to left. With neither it fades, with residuals only it explodes,
# and norms keep it in bounds, even without residuals. So are the residuals superfluous?
#
# On the right, on the way forward, what share of the tokens' norm is *different* from token to token. Without residuals
# it falls ever faster, and after four blocks all 20 tokens are the same, but for the rounding of float32. Each
# attention is an average, and averages of averages agree. The gradient is in good health, but there is nothing left to
# learn from: no later block can tell which token was which. (Found by Dong, Cordonnier and Loukas, *Attention is not
# all you need*, 2021.)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for name in steps:
    left.semilogy(range(12), gradients[name], "o-", ms=4, label=name)
    right.semilogy(range(1, 13), differences[name], "o-", ms=4)
left.set(xlabel="before block", ylabel="gradient norm, 1 after the last block")
left.set_title("The gradient on its way back")
right.set(xlabel="after this many blocks", ylabel="share of the norm")
right.set_title("How different the tokens are")
figure.legend(loc="outside lower center", ncols=3)
plt.show()

assert gradients["neither"][0] < 0.02
assert gradients["residuals only"][0] > 1e4
for name in ("residuals, pre-norm", "residuals, post-norm", "norms only"):
    assert 0.1 < gradients[name].min() <= gradients[name].max() < 10

for name in ("norms only", "neither"):
    assert differences[name][3] < 1e-5
assert differences["residuals, post-norm"][-1] > 1e-2
assert differences["residuals, pre-norm"][-1] > 0.3

# %% [markdown]
# ## One token after another
#
# Blocks that see the past only make a model of text: from each token, the probabilities of the next. A small one learns
# the Zen of Python by heart, from pieces that begin anywhere. Half a minute, and it says the next character:

# %%
with contextlib.redirect_stdout(None):  # it prints itself when it is imported
    import this
zen = codecs.decode(this.s, "rot13")
characters = sorted(set(zen))
numbers = np.array([characters.index(character) for character in zen])


def encode(text):
    return jnp.array([[characters.index(character) for character in text]])  # b t


def decode(tokens):
    return "".join(characters[token] for token in tokens)


block = dict(num_heads=4, feedforward_features=128, norm="pre", rotary=jattn.nn.Rotary())
decoder = jattn.models.TextDecoder(
    len(characters), features=64, layers=[block] * 2, norm=jattn.nn.Norm(), rngs=nnx.Rngs(0)
)


def next_token_loss(model, rows, rng):
    return optax.softmax_cross_entropy_with_integer_labels(model(rows[:, :-1]), rows[:, 1:]).mean()


rows = np.lib.stride_tricks.sliding_window_view(numbers, 73)  # longer than a line
options = dict(optimizer=adam(one_cycle_lr(5e-3, 12 * (len(rows) // 16))), epochs=12, batch_size=16, progress=False)
history = fit(decoder, rows, loss=next_token_loss, drop_last=True, **options)
print(f"loss of the last epoch: {history.losses[-1]:.3f}")

# %% [markdown]
# `jattn.decoding` asks it again and again. `generate` appends the most probable token until the line ends; the keys and
# values of what was read are kept, so that each token is read once. `stream` gives the same, as it comes.

# %%
end = characters.index("\n")
found = jattn.decoding.generate(decoder, encode("\nExplicit"), max_new_tokens=60, eos=end)
said = decode(found.tokens[0, : found.lengths[0]].tolist())
print(said)
assert said == " is better than implicit.\n"

coming = jattn.decoding.stream(decoder, encode("\nExplicit"), max_new_tokens=60, eos=end)
assert "".join(decode(token.tolist()) for token in coming) == said

# %% [markdown]
# Two lines begin with "If the implementation is", and without what stands before it a model can't know which is meant.
# The most probable token commits itself to one of them. `beam_search` keeps several beginnings, and finds both, each
# with the logarithm of about ½; with an `rng`, `generate` draws, and says now the one, now the other.

# %%
prompt = encode("\nIf the implementation is")
beams = jattn.decoding.beam_search(decoder, prompt, beams=2, length_penalty=0.0, max_new_tokens=60, eos=end).beams
lines = [decode(tokens[:n].tolist()) for tokens, n in zip(beams.tokens[0], beams.lengths[0], strict=True)]
for line, score in zip(lines, beams.scores[0], strict=True):
    print(f"{float(score):6.2f} {line}", end="")
assert set(lines) == {" hard to explain, it's a bad idea.\n", " easy to explain, it may be a good idea.\n"}
assert np.exp(beams.scores).sum() > 0.8  # hardly anything else is possible

drawn = jattn.decoding.generate(decoder, prompt, max_new_tokens=60, eos=end, rng=jax.random.key(0), sequences=20)
beginnings = [decode(tokens[:5].tolist()) for tokens in drawn.tokens[0]]
print({beginning: beginnings.count(beginning) for beginning in set(beginnings)})
assert {" hard", " easy"} <= set(beginnings)
