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
# # Scores and masks
#
# Attention needs two answers for each query and key: how well do they match, and may they meet at all? The first is a
# *score*, any real number. The second is a *mask*, yes or no. The softmax turns both into weights. Here are the two
# classical scores, and what can go wrong between a mask and a softmax. In PyTorch and in jattn:

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import torch
from flax import nnx
from IPython.display import display

import jattn
from jattn.masks import causal, lengths
from jattn.training import adam, fit, one_cycle_lr

# %matplotlib inline

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)  # float32
normal = np.random.default_rng(0).normal
query, key, value = (normal(size=(2, n, 8)).astype(np.float32) for n in (3, 10, 10))  # b t d, b s d, b s e
valid_lens = np.array([2, 6])  # of the 10 keys, 2 are real in the first example and 6 in the second

q, k, v = (torch.from_numpy(a) for a in (query, key, value))
may_attend = torch.arange(10) < torch.from_numpy(valid_lens)[:, None, None]  # b 1 s
torch_output = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=may_attend)
jattn_output = jattn.nn.DotProductAttention()(query, key, value, valid_lens=valid_lens)

close(jattn_output, torch_output)

# %% [markdown]
# ## Masked softmax
#
# Sequences in a batch have different lengths, and the short ones are padded. Nobody may attend to padding:
#
# $$\alpha_{ts} = \frac{e^{z_{ts}}}{\sum_{j\ \text{allowed}} e^{z_{tj}}} \text{ if } s \text{ is allowed, else } 0 .$$
#
# There is one valid length for each example, or one for each query. Here are 2 examples of 2 queries and 4 keys.

# %%
logits = normal(size=(2, 2, 4)).astype(np.float32)  # b t s
for lens in (np.array([2, 3]), np.array([[1, 3], [2, 4]])):
    weights = np.asarray(jattn.masked_softmax(logits, lengths(lens)))
    print(f"valid lengths {lens.tolist()}", weights.round(3), sep="\n", end="\n\n")

    row_lens = np.broadcast_to(lens if lens.ndim == 2 else lens[:, None], (2, 2))  # b t
    for (b, t), n in np.ndenumerate(row_lens):
        exponentials = np.exp(logits[b, t, :n])
        close(weights[b, t, :n], exponentials / exponentials.sum())  # as if there were no padding
        assert (weights[b, t, n:] == 0).all()  # exactly

# %% [markdown]
# A length is just one of many masks. A mask in jattn is a value: it says `True` where a query **may** attend, and it
# combines with `&`, `|` and `~`. It becomes a matrix only when one is asked for.

# %%
mask = causal() & lengths(jnp.array([5, 3]))
np.testing.assert_array_equal(mask.as_array(5, 5)[0, 0], np.tril(np.ones((5, 5))))
assert not mask.as_array(5, 5)[1, :, :, 3:].any()

flat = jattn.masked_softmax(jnp.zeros((2, 5, 5)), mask)  # equal scores, so equal weights
close(flat[0], np.tril(np.ones((5, 5))) / np.arange(1, 6)[:, None])
jattn.plots.heatmaps(flat, column_titles=["causal, 5 tokens", "causal, 3 tokens"])

# %% [markdown]
# ## A row with nothing to attend to
#
# What if a length is zero? A popular recipe writes a large negative number into the masked scores and trusts the
# softmax to make it zero. But a softmax sees differences only. When *all* scores are $-10^6$, all are equal, and the
# query attends to all of the padding. With $-\infty$ it is 0/0.

# %%
close(jax.nn.softmax(jnp.full(4, -1e6)), 1 / 4)  # the mean of the padding
assert torch.softmax(torch.full((4,), -torch.inf), dim=0).isnan().all()
assert jnp.isnan(jax.nn.softmax(jnp.full(4, -jnp.inf))).all()

nothing = lengths(jnp.array([0, 3]))
weights = jattn.masked_softmax(logits, nothing)
assert (weights[0] == 0).all()  # nothing to attend to, nothing attended to
close(weights[1].sum(axis=-1), 1)

# %% [markdown]
# And backwards? Zero there too, which is the part that usually goes wrong: a NaN that a `where` hides on the way
# forward comes back through the gradient.


# %%
def hidden_nan(logits):
    bias = jnp.where(jnp.arange(4) < jnp.array([0, 3])[:, None, None], 0, -jnp.inf)
    weights = jax.nn.softmax(logits + bias)
    return jnp.where(jnp.isnan(weights), 0, weights)


def gradient(softmax):
    """Of the first key's weights."""
    return jax.jit(jax.grad(lambda z: softmax(z)[..., 0].sum()))(logits)


np.testing.assert_array_equal(hidden_nan(logits)[0], 0)  # looks well
assert np.isnan(gradient(hidden_nan)[0]).all()  # and is not

ours = np.asarray(gradient(lambda z: jattn.masked_softmax(z, nothing)))
assert (ours[0] == 0).all()
assert (ours[1, :, :3] != 0).all()

# %% [markdown]
# ## Additive score
#
# How well do a query and a key match when they aren't even of the same size? Let a small network judge:
#
# $$\operatorname{score}(q, k) = w_v^\top \tanh(W_q\, q + W_k\, k), \qquad
# W_q \in \mathbb{R}^{n \times d_q}, \quad W_k \in \mathbb{R}^{n \times d_k}, \quad w_v \in \mathbb{R}^n .$$
#
# In the einsum below `c` is the width of the query, `d` that of the key, and `n` the hidden width.

# %%
additive = jattn.nn.AdditiveAttention(query_features=20, key_features=2, hidden_features=8, rngs=nnx.Rngs(0))
shapes = (2, 3, 20), (2, 10, 2), (2, 10, 4)  # b t c, b s d, b s e
queries, keys, values = (normal(size=shape).astype(np.float32) for shape in shapes)
output, weights = additive(queries, keys, values, valid_lens=valid_lens, return_weights=True)


def additive_weights(attend, query, key, valid_lens):
    """The weights b t s, from the parameters of an `AdditiveAttention`."""
    q = jnp.einsum("btc,cn->btn", query, attend.query.kernel[...])
    k = jnp.einsum("bsd,dn->bsn", key, attend.key.kernel[...])
    hidden = jnp.tanh(q[:, :, None] + k[:, None])  # b t s n
    scores = jnp.einsum("btsn,no->bts", hidden, attend.score.kernel[...])
    return jattn.masked_softmax(scores, lengths(valid_lens))


close(weights, additive_weights(additive, queries, keys, valid_lens))
close(output, jnp.einsum("bts,bse->bte", weights, values))

# %% [markdown]
# The same weights in PyTorch. What is one line in the formula is an array of $b \cdot t \cdot s \cdot n$ numbers on the
# way, and that is the price of this score.

# %%
tensors = jattn.weights.state_dict(additive)
q, k, v = (torch.from_numpy(a) for a in (queries, keys, values))
hidden = torch.tanh((q @ tensors["query.weight"].T)[:, :, None] + (k @ tensors["key.weight"].T)[:, None])
scores = (hidden @ tensors["score.weight"].T).squeeze(-1)
assert hidden.shape == (2, 3, 10, 8)
close(output, torch.softmax(scores.masked_fill(~may_attend, -torch.inf), dim=-1) @ v)

jattn.plots.heatmaps(weights, column_titles=["2 of 10 keys", "6 of 10 keys"], size=2.6)

# %% [markdown]
# A dot product needs queries and keys of one width, and jattn says so. A matrix between them is enough to make them
# fit, $q^\top W k$, and it costs a matmul only.

# %%
try:
    jattn.nn.DotProductAttention()(queries, keys, values)
except ValueError as error:
    message = str(error)
print(message)
assert "query width 20 and key width 2" in message

matrix = normal(size=(2, 20)).astype(np.float32)
_, bilinear = jattn.nn.DotProductAttention(scale=1.0)(queries, keys @ matrix, values, return_weights=True)
close(bilinear, jax.nn.softmax(jnp.einsum("btc,dc,bsd->bts", queries, matrix, keys)), rtol=1e-4)

# %% [markdown]
# ## Why the square root?
#
# $$\operatorname{score}(q, k) = \frac{q^\top k}{\sqrt d}$$
#
# If all components are independent with mean 0 and variance 1, each product $q_i k_i$ has variance 1 too, and the sum
# of $d$ of them has variance $d$. So scores grow like $\sqrt d$, and the softmax of large scores is a hard maximum.
# That is bad for learning: the softmax's Jacobian, $\operatorname{diag}(\alpha) - \alpha \alpha^\top$, is zero where
# one weight is 1. Measure all three, on 2000 queries with ten keys each:


# %%
def largest_weight(alpha):  # t s
    return alpha.max(axis=-1).mean()


def slope(alpha):
    """The softmax's Jacobian, its norm in the mean over all queries."""
    jacobian = np.eye(10) * alpha[:, None] - alpha[:, :, None] * alpha[:, None]  # t s s
    return np.linalg.norm(jacobian, axis=(1, 2)).mean()


widths = 4 ** np.arange(1, 6)  # d: 4 to 1024
scores = [np.einsum("td,tsd->ts", normal(size=(2000, d)), normal(size=(2000, 10, d))) for d in widths]
plain = [np.asarray(jax.nn.softmax(z)) for z in scores]
scaled = [np.asarray(jax.nn.softmax(z / d**0.5)) for z, d in zip(scores, widths, strict=True)]

close([z.std() for z in scores], np.sqrt(widths), rtol=0.03)
assert largest_weight(plain[-1]) > 0.95
close(largest_weight(scaled[-1]), largest_weight(scaled[0]), rtol=0.1)
assert slope(plain[-1]) < 0.2 * slope(scaled[-1])

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
axes[0].loglog(widths, [z.std() for z in scores], "o", base=4, label="measured")
axes[0].loglog(widths, np.sqrt(widths), ":", base=4, color="black", label="$\\sqrt{d}$")
axes[0].set_title("standard deviation of $q^T k$")
for axis, measure in ((axes[1], largest_weight), (axes[2], slope)):
    for label, alphas in (("$q^T k$", plain), ("$q^T k / \\sqrt{d}$", scaled)):
        axis.semilogx(widths, [measure(alpha) for alpha in alphas], "o-", base=4, label=label)
    axis.set_ylim(bottom=0)
axes[1].set_title("largest of ten weights")
axes[2].set_title("norm of the softmax's Jacobian")
for axis in axes:
    axis.set_xlabel("width $d$")
    axis.legend()
plt.show()

# %% [markdown]
# ## Bahdanau attention
#
# A recurrent encoder reads a source into states $h_1, \dots, h_S$, a recurrent decoder writes a target. Before 2015 the
# only thing between them was the encoder's last state, however long the source. Bahdanau, Cho and Bengio let the
# decoder look back instead: at each step its previous state $s_{t-1}$ is the query, and all the encoder's states are
# keys and values,
#
# $$c_t = \sum_{j} \alpha(s_{t-1}, h_j)\, h_j .$$
#
# The context $c_t$ and the last token together are what the decoder's next step sees. The task here: write a sequence
# backwards. Token 0 is padding, and it also starts each target.


# %%
def pairs(n, seed):
    """Sources b s of 4 to 6 tokens, their lengths b, and the same sequences reversed."""
    generator = np.random.default_rng(seed)
    lens = generator.integers(4, 7, size=n)
    position = np.arange(6)
    source = np.where(position < lens[:, None], generator.integers(1, 11, size=(n, 6)), 0)
    mirrored = np.maximum(lens[:, None] - 1 - position, 0)
    target = np.where(position < lens[:, None], np.take_along_axis(source, mirrored, axis=1), 0)
    return source, lens, target


def after_start(target):
    """What the decoder is fed: the target one step late."""
    return jnp.pad(target, ((0, 0), (1, 0)))[:, :-1]


def loss(model, batch, rng):
    source, lens, target = batch
    logits = model(source, after_start(target), lens, rng=rng)
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean(where=target > 0)


model = jattn.models.Seq2Seq(11, 11, embedding_features=16, num_layers=1, dropout_rate=0.0, rngs=nnx.Rngs(0))
history = fit(
    model,
    pairs(2000, seed=0),
    loss=loss,
    optimizer=adam(one_cycle_lr(0.03, total_steps=200)),
    epochs=10,
    batch_size=100,
    clip_norm=1.0,
    progress=False,
)
assert history.losses[-1] < 0.1 * history.losses[0]
print(history.losses.round(3))

# %% [markdown]
# One step of the decoder, by hand: query, weights, context, recurrent step, logits.

# %%
source, lens, target = pairs(200, seed=1)
state, decoder = jax.jit(model.encoder)(source, lens), model.decoder
step = jax.jit(decoder.step)
start = jnp.zeros(200, int)
logits, after, weights = step(start, state)

query = state.hidden[-1][:, None]  # b 1 n: the top layer's state
by_hand = additive_weights(decoder.attention, query, state.outputs, lens)  # b 1 s
context = jnp.einsum("bts,bsn->btn", by_hand, state.outputs)[:, 0]
step_input = jnp.concatenate([decoder.embedding(start), context], axis=-1)  # b (m + n)
step_output, hidden = decoder.gru.step(step_input, state.hidden)

close(weights, by_hand[:, 0])
close(logits, decoder.output(step_output), atol=1e-5)
close(after.hidden, hidden)
assert (weights[np.arange(6) >= lens[:, None]] == 0).all()  # padding gets nothing

# %% [markdown]
# Write by feeding each answer back in, and keep the weights of each step. Their matrix is the *alignment*.

# %%
token, alignment, written = start, [], []
for _ in range(6):
    logits, state, weights = step(token, state)
    token = logits.argmax(axis=-1)
    written.append(token)
    alignment.append(weights)
written, alignment = jnp.stack(written, axis=1), jnp.stack(alignment, axis=1)  # b t and b t s

real = target > 0
accuracy = (written == target)[real].mean()
print(f"tokens written correctly: {accuracy:.3f}")
assert accuracy > 0.9

mirrored = lens[:, None] - 1 - np.arange(6)  # b t: where the token to be written stands
ahead = (alignment.argmax(axis=-1) - mirrored)[real]
on_it, after_it = (ahead == 0).mean(), (ahead == 1).mean()
print(f"the largest weight is on the token itself: {on_it:.2f}, one place after it: {after_it:.2f}")
assert on_it + after_it > 0.9
assert after_it > on_it

# %% [markdown]
# The matrices run from the upper right to the lower left: nobody told the model where to look. Look closely, and most
# of the weight is not *on* the token to be written but one place after it. The keys are not tokens, but states of
# a recurrent network, and the state after the next token still knows this one. Alignments of recurrent models are to be
# read with that in mind.

# %%
chosen = np.array([np.argmax(lens == n) for n in (6, 5, 4)])
figure = jattn.plots.heatmaps(
    (alignment * real[..., None])[chosen],
    column_titles=[" ".join(map(str, source[i, : lens[i]])) for i in chosen],
    xlabel="source position",
    ylabel="target position",
    size=2.8,
)
for axis, i in zip(figure.axes[:3], chosen, strict=True):
    axis.plot(mirrored[i, : lens[i]], range(lens[i]), "rx", label="the token to be written")
figure.axes[0].legend(fontsize="small", loc="upper left")
display(figure)
