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
# # Multi-head attention by hand
#
# Multi-head attention is made of four things that are each a line long: a linear map, a dot product, a softmax and a
# weighted average. Here they are built one after the other, in einsums whose letters are the axes, and held against
# `jattn.nn` and PyTorch on the same weights. First the goal, in both:

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch
from flax import nnx

import jattn

# %matplotlib inline

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)  # float32
normal = np.random.default_rng(0).normal
torch.manual_seed(0)
x = normal(size=(1, 4, 10)).astype(np.float32)  # b t m: 4 queries
y = normal(size=(1, 6, 10)).astype(np.float32)  # b s m: 6 keys
padding = np.arange(6) >= np.array([[3]])  # b s: only the first 3 keys are real

theirs = torch.nn.MultiheadAttention(10, num_heads=5, bias=False, batch_first=True).requires_grad_(False)
ours = jattn.nn.MultiHeadAttention(num_heads=5, in_features=10, rngs=nnx.Rngs(0))
q, k, v = theirs.in_proj_weight.chunk(3)  # PyTorch stacks the three projections in one matrix
tensors = {"query.weight": q, "key.weight": k, "value.weight": v, "out.weight": theirs.out_proj.weight}
jattn.weights.load_state_dict(ours, tensors)

tx, ty, may_not = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(padding)
torch_output, _ = theirs(tx, ty, ty, key_padding_mask=may_not)  # PyTorch: True where a query may NOT attend
jattn_output = ours(x, y, valid_lens=jnp.array([3]))  # jattn: how many keys are real

close(jattn_output, torch_output)

# %% [markdown]
# ## The linear map
#
# A linear layer from 4 to 3 features computes
#
# $$y = x W^\top + b, \qquad y_i = \sum_j W_{ij}\, x_j + b_i .$$
#
# PyTorch stores $W$, of shape $(3, 4)$: one row for each output. Flax stores the kernel $W^\top$, of shape $(4, 3)$, so
# that input comes before output, as in the product. That transpose is most of what `jattn.weights` does.

# %%
linear = torch.nn.Linear(4, 3).requires_grad_(False)
flax_linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
jattn.weights.load_state_dict(flax_linear, linear.state_dict())
W, b = linear.weight.numpy(), linear.bias.numpy()

assert W.shape == (3, 4)
assert flax_linear.kernel.shape == (4, 3)
np.testing.assert_array_equal(flax_linear.kernel[...], W.T)

row = normal(size=4).astype(np.float32)
by_hand = [sum(W[i, j] * row[j] for j in range(4)) + b[i] for i in range(3)]
close(by_hand, linear(torch.from_numpy(row)))
close(by_hand, flax_linear(row))

# %% [markdown]
# Two rows at once are two independent maps: $(2, 4) \cdot (4, 3) = (2, 3)$, and $b$ is added to each row. Nothing
# flows from one row to the other. In a transformer the rows are tokens, and only in attention do they meet.

# %%
rows = normal(size=(2, 4)).astype(np.float32)
assert flax_linear(rows).shape == (2, 3)
close(flax_linear(rows), rows @ W.T + b)

changed = rows.copy()
changed[0] += 1
assert not np.allclose(flax_linear(changed)[0], flax_linear(rows)[0])
close(flax_linear(changed)[1], flax_linear(rows)[1])

# %% [markdown]
# ## Softmax, and its axis
#
# $$\operatorname{softmax}(z)_i = \frac{e^{z_i}}{\sum_j e^{z_j}}$$
#
# turns scores into positive weights that sum to 1 *along one axis*. On the matrix below both axes give something odd:
# all rows come out alike, or all columns. A softmax doesn't see a number that is added to all its scores,
# $e^{z_i + c} = e^c e^{z_i}$, and here each row is the row above plus 3, each column the one before plus 1.

# %%
matrix = jnp.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
along_rows, along_columns = jax.nn.softmax(matrix, axis=1), jax.nn.softmax(matrix, axis=0)
e = np.e
close(along_rows, np.tile(np.array([1, e, e**2]) / (1 + e + e**2), (3, 1)))
close(along_columns, np.tile(np.array([[1], [e**3], [e**6]]) / (1 + e**3 + e**6), (1, 3)))
close(along_rows, torch.softmax(torch.tensor(matrix.tolist()), dim=1))
print(along_rows.round(4), along_columns.round(4), sep="\n\n")

# %% [markdown]
# In attention the axis is that of the keys, the last: each *query* has one unit of attention to spend. Over the other
# axis each *key* would have one unit to be spread over the queries, and no error would tell.
#
# ## Gradients
#
# Each operation is a node of a graph, and knows its own derivatives. The chain rule multiplies along a path and adds
# over paths. With $a = 2$, $b = 1$:
#
# $$c = a + b = 3, \qquad d = b + 1 = 2, \qquad e = c\,d = 6 .$$
#
# From $e$ to $a$ there is one path, through $c$. To $b$ there are two:
#
# $$\frac{\partial e}{\partial a} = \frac{\partial e}{\partial c} = d = 2, \qquad
# \frac{\partial e}{\partial b} = \frac{\partial e}{\partial c} + \frac{\partial e}{\partial d} = d + c = 5 .$$


# %%
def graph(a, b):
    c = a + b
    d = b + 1
    return c * d


a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
graph(a, b).backward()  # PyTorch records the graph, walks it, and stores gradients in a and b
gradients = jax.grad(graph, argnums=(0, 1))(2.0, 1.0)  # JAX makes a function, and stores nothing

assert graph(2.0, 1.0) == 6
assert (a.grad.item(), b.grad.item()) == (2, 5)
assert tuple(map(float, gradients)) == (2, 5)

# %% [markdown]
# The same rule gives the softmax its gradient. With $p = \operatorname{softmax}(z)$,
#
# $$\frac{\partial p_i}{\partial z_j} = p_i\,(\delta_{ij} - p_j),$$
#
# which goes to zero where one weight goes to 1: a softmax that has made up its mind no longer learns. That is why dot
# products are scaled.

# %%
z = jnp.array([0.0, 1.0, 2.0])
p = jax.nn.softmax(z)
jacobian = jax.jacobian(jax.nn.softmax)(z)
close(jacobian, jnp.diag(p) - jnp.outer(p, p))
decided = jax.jacobian(jax.nn.softmax)(10 * z)
assert jnp.abs(decided).max() < 1e-3 * jnp.abs(jacobian).max()

# %% [markdown]
# ## Heads of full width
#
# Each head $h$ has three linear maps of its own, from the model's width $m$ to $m$, and
#
# $$\mathrm{head}_h = \operatorname{softmax}\!\left(\frac{q_h k_h^\top}{\sqrt m}\right) v_h, \qquad
# q_h = x W_h^q + b_h^q, \quad k_h = x W_h^k + b_h^k, \quad v_h = x W_h^v + b_h^v .$$
#
# The heads are put side by side, $h \cdot m$ features wide, and a last map takes them back to $m$. In PyTorch that is
# a loop over lists of layers, and jattn's state dict has their names.

# %%
m, h = 8, 3
wide = jattn.nn.WideMultiHeadSelfAttention(m, num_heads=h, rngs=nnx.Rngs(1))
tokens = normal(size=(2, 5, m)).astype(np.float32)  # b t m
tensors = jattn.weights.state_dict(wide)


def affine(name, x):
    return torch.nn.functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


heads = []
for i in range(h):
    q, k, v = (affine(f"{name}.{i}", torch.from_numpy(tokens)) for name in ("query", "key", "value"))
    heads.append(torch.softmax(q @ k.mT / m**0.5, dim=-1) @ v)
by_loop = affine("out", torch.cat(heads, dim=-1))

close(wide(tokens), by_loop)

# %% [markdown]
# The loop is over an axis, so give the axis a letter. With all heads in one array the whole of attention is four
# einsums: `b` batch, `t` query, `s` key, `h` head, `d` feature of query and key, `e` of value, `m` model width.


# %%
def attend_by_hand(attend, x, y, allowed=True):
    """The weights b h t s and the output b t m, from the parameters of a `jattn.nn.MultiHeadAttention`."""

    def project(layer, x):
        bias = 0 if layer.bias is None else layer.bias[...]
        return jnp.einsum("btm,mhd->bthd", x, layer.kernel[...]) + bias

    query, key, value = project(attend.query, x), project(attend.key, y), project(attend.value, y)
    scores = jnp.einsum("bthd,bshd->bhts", query, key) / query.shape[-1] ** 0.5
    weights = jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf), axis=-1)
    heads = jnp.einsum("bhts,bshe->bthe", weights, value)
    out_bias = 0 if attend.out.bias is None else attend.out.bias[...]
    return weights, jnp.einsum("bthe,hem->btm", heads, attend.out.kernel[...]) + out_bias


wide_weights, wide_output = attend_by_hand(wide, tokens, tokens)
output, weights = wide(tokens, return_weights=True)
close(output, wide_output)
close(weights, wide_weights)
assert weights.shape == (2, h, 5, 5)

# %% [markdown]
# The last einsum sums over `h` and `e` together: *concatenate the heads, then multiply* is the same as *let each head
# write into the output and add up*. So no head ever waits for another, and each has its own share of the output.
#
# ## Heads that share the width
#
# Usually the heads divide the width among them, $d = m / h$. Below $m = 10$ and $h = 5$, so each head compares queries
# and keys in just $d = 2$ dimensions. There are 4 queries and 6 keys, of which the first 3 are real.

# %%
valid_lens = jnp.array([3])
real = jnp.arange(6) < valid_lens[:, None, None, None]  # b h t s
output, weights = ours(x, y, valid_lens=valid_lens, return_weights=True)
by_hand, output_by_hand = attend_by_hand(ours, x, y, real)

assert ours.query.kernel.shape == (10, 5, 2)  # m h d
assert output.shape == (1, 4, 10)
assert weights[0].shape == (5, 4, 6)  # of all heads: h t s
close(weights, by_hand)
close(output, output_by_hand)
_, per_head = theirs(tx, ty, ty, key_padding_mask=may_not, average_attn_weights=False)
close(weights, per_head)

# %% [markdown]
# Now let all queries and keys be vectors of ones, which is a common way to try out shapes. Then all keys look alike to
# every head, so every weight is $1/3$, *whatever the parameters are*. Such a test can see shapes and masks, and not a
# single wrong projection.

# %%
ones_x, ones_y = jnp.ones((1, 4, 10)), jnp.ones((1, 6, 10))
_, flat = ours(ones_x, ones_y, valid_lens=valid_lens, return_weights=True)
close(flat[..., :3], 1 / 3)
assert (flat[..., 3:] == 0).all()

jattn.plots.heatmaps(
    np.concatenate([flat, weights]),  # inputs h t s
    row_titles=["all ones", "random"],
    column_titles=[f"head {i}" for i in range(5)],
)

# %% [markdown]
# Full width costs more. Without biases there are $3 h m^2$ numbers in the projections of full-width heads and $h m^2$
# in the last map, against $4 m^2$ however many heads share the width.


# %%
def count(module):
    return sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))


full = jattn.nn.WideMultiHeadSelfAttention(10, num_heads=5, use_bias=False, rngs=nnx.Rngs(0))
assert count(full) == 4 * 5 * 10**2
assert count(ours) == 4 * 10**2

# %% [markdown]
# ## What each head contributes
#
# As the output is a sum over heads, a gate of 0 or 1 on each head takes it apart: with one gate open at a time the
# parts add up to the whole. Which head matters most? A first answer is the size of its part, a better one how much the
# output changes without it; both are one call for each head, and nothing has to be trained again.

# %%
parts = jnp.stack([ours(x, y, valid_lens=valid_lens, head_gates=gate) for gate in jnp.eye(5)])  # h b t m
close(parts.sum(axis=0), output)

without = jnp.stack([ours(x, y, valid_lens=valid_lens, head_gates=1 - gate) for gate in jnp.eye(5)])
size, change = (jnp.linalg.norm(z.reshape(5, -1), axis=1) for z in (parts, output - without))
close(size, change, rtol=1e-4)  # the same here; behind another layer they differ

figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
axis.bar(range(5), size / jnp.linalg.norm(output))
axis.set(xlabel="head", ylabel="norm, the output's is 1", title="The part of each head")
plt.show()
