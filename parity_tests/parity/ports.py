"""A plain encoder in PyTorch, and its port to Flax with a switch for each mistake that a port may have."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch.nn import functional as F

FEATURES, HEADS, HIDDEN, TOKENS, LENGTH = 12, 3, 20, 11, 5


class TorchAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.query, self.key, self.value, self.out = (torch.nn.Linear(FEATURES, FEATURES) for _ in range(4))

    def forward(self, x: torch.Tensor, mask: torch.Tensor, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
        b, t, _ = x.shape
        q, k, v = (y.view(b, t, HEADS, -1).transpose(1, 2) for y in (self.query(x), self.key(x), self.value(x)))
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        allowed = mask[:, None, None]
        if causal:
            allowed = allowed & torch.ones(t, t, dtype=torch.bool).tril()
        weights = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, -1)), weights


class TorchFeedForward(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.linear2 = torch.nn.Linear(FEATURES, HIDDEN), torch.nn.Linear(HIDDEN, FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear2(F.gelu(self.linear1(x)))


class TorchBlock(torch.nn.Module):
    def __init__(self, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention, self.feed_forward = TorchAttention(), TorchFeedForward()
        self.norm1, self.norm2 = torch.nn.LayerNorm(FEATURES), torch.nn.LayerNorm(FEATURES)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
        if self.pre_norm:
            y, weights = self.attention(self.norm1(x), mask, causal)
            x = x + y
            return x + self.feed_forward(self.norm2(x)), weights
        y, weights = self.attention(x, mask, causal)
        x = self.norm1(x + y)
        return self.norm2(x + self.feed_forward(x)), weights


class TorchEncoder(torch.nn.Module):
    """Tokens ``b t`` and which of them are real, to features, and the attention weights of the last block."""

    def __init__(self, *, pre_norm: bool = True, causal: bool = True, weights: bool = False) -> None:
        super().__init__()
        self.causal, self.weights = causal, weights
        self.embedding, self.positions = torch.nn.Embedding(TOKENS, FEATURES), torch.nn.Embedding(LENGTH, FEATURES)
        self.blocks = torch.nn.ModuleList(TorchBlock(pre_norm) for _ in range(2))
        self.norm = torch.nn.LayerNorm(FEATURES)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> Any:
        x = self.embedding(tokens) * math.sqrt(FEATURES) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x, weights = block(x, mask, self.causal)
        x = self.norm(x)
        return (x, weights) if self.weights else x


# ----------------------------------------------------------------------------------------------------------------------
# The port. Without a bug it is right.


class TransposedLinear(nnx.Linear):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel[...].T + self.bias[...]


class LinearWithoutBias(nnx.Linear):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel[...]


class NarrowLinear(nnx.Linear):
    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x.astype(jnp.bfloat16)).astype(x.dtype)


class RMSNorm(nnx.LayerNorm):
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + self.epsilon)
        return x * scale * self.scale[...] + self.bias[...]


class UnbiasedNorm(nnx.LayerNorm):
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = jax.lax.rsqrt(x.var(-1, keepdims=True, ddof=1) + self.epsilon)
        return (x - x.mean(-1, keepdims=True)) * scale * self.scale[...] + self.bias[...]


class Attention(nnx.Module):
    def __init__(self, bug: str, rngs: nnx.Rngs) -> None:
        kinds: dict[str, Any] = {
            "out": TransposedLinear if bug == "transposed kernel" else nnx.Linear,
            "value": {
                "missing bias": LinearWithoutBias,
                "bfloat16": functools.partial(nnx.Linear, dtype=jnp.bfloat16),
                "cast": NarrowLinear,
            }.get(bug, nnx.Linear),
        }
        for name in ("query", "key", "value", "out"):
            setattr(self, name, kinds.get(name, nnx.Linear)(FEATURES, FEATURES, rngs=rngs))
        self.bug = bug

    def __call__(self, x: jax.Array, mask: jax.Array, causal: bool) -> tuple[jax.Array, jax.Array]:
        b, t, _ = x.shape
        q, k, v = (self._heads(y) for y in (self.query(x), self.key(x), self.value(x)))
        if self.bug == "swapped query and key":
            q, k = k, q
        logits = q @ k.swapaxes(-1, -2) / (1 if self.bug == "missing scale" else math.sqrt(q.shape[-1]))
        allowed = jnp.broadcast_to(mask[:, None, None], (b, 1, t, t))
        if self.bug == "inverted mask":
            allowed = ~allowed
        if self.bug == "missing mask":
            allowed = jnp.ones_like(allowed)
        if causal and self.bug != "missing causal mask":
            allowed = allowed & jnp.tri(t, k=1 if self.bug == "late causal mask" else 0, dtype=bool)
        if self.bug == "inverted causal mask":
            allowed = ~allowed
        weights = self._softmax(jnp.where(allowed, logits, -1e30 if self.bug == "mean of empty rows" else -jnp.inf))
        heads = weights @ v
        if self.bug != "heads not transposed back":
            heads = heads.swapaxes(1, 2)
        if self.bug == "averaged weights":
            weights = weights.mean(1)
        if self.bug == "dropped weights":
            weights = jnp.where(jnp.arange(t) % 2 == 0, weights / 0.75, 0)
        return self.out(heads.reshape(b, t, FEATURES)), weights

    def _heads(self, x: jax.Array) -> jax.Array:
        b, t, _ = x.shape
        if self.bug == "other heads":
            return x.reshape(b, t, 2 * HEADS, -1).swapaxes(1, 2)
        if self.bug == "reshaped to heads":
            return x.reshape(b, HEADS, t, -1)
        if self.bug == "interleaved heads":
            return jnp.moveaxis(x.reshape(b, t, -1, HEADS), -1, 1)
        return x.reshape(b, t, HEADS, -1).swapaxes(1, 2)

    def _softmax(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits, axis={"softmax over queries": -2, "softmax over heads": 1}.get(self.bug, -1))


class FeedForward(nnx.Module):
    def __init__(self, bug: str, rngs: nnx.Rngs) -> None:
        self.linear1 = nnx.Linear(FEATURES, HIDDEN, rngs=rngs)
        self.linear2 = nnx.Linear(HIDDEN, FEATURES, rngs=rngs)
        self.bug = bug

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.linear1(x)
        if self.bug == "stopped gradient":
            x = jax.lax.stop_gradient(x)
        if self.bug == "infinite numbers":
            return self.linear2(jax.nn.gelu(x, approximate=False) / 0)
        if self.bug == "silu":
            return self.linear2(jax.nn.silu(x))
        return self.linear2(jax.nn.relu(x) if self.bug == "relu" else jax.nn.gelu(x, approximate=self.bug == "tanh"))


class Block(nnx.Module):
    def __init__(self, pre_norm: bool, bug: str, rngs: nnx.Rngs) -> None:
        kind = {"rms norm": RMSNorm, "unbiased variance": UnbiasedNorm}.get(bug, nnx.LayerNorm)
        self.attention, self.feed_forward = Attention(bug, rngs), FeedForward(bug, rngs)
        self.norm1 = kind(FEATURES, epsilon=1e-6 if bug == "epsilon" else 1e-5, rngs=rngs)
        self.norm2 = nnx.LayerNorm(FEATURES, epsilon=1e-5, rngs=rngs)
        self.pre_norm, self.bug = pre_norm, bug

    def __call__(self, x: jax.Array, mask: jax.Array, causal: bool) -> tuple[jax.Array, jax.Array]:
        if self.bug == "attends to x":
            y, weights = self.attention(x, mask, causal)
            x = x + y
            return x + self.feed_forward(self.norm2(x)), weights
        if self.pre_norm:
            y, weights = self.attention(self.norm1(x), mask, causal)
            x = y if self.bug == "missing residual" else x + y
            y = self.feed_forward(self.norm2(x))
            return y if self.bug == "missing last residual" else x + y, weights
        y, weights = self.attention(x, mask, causal)
        x = self.norm1(y if self.bug == "missing residual" else x + y)
        return self.norm2(x + self.feed_forward(x)), weights


class Encoder(nnx.Module):
    """The port, with a mistake in one place: in block ``at`` (2 for both), or where ``bug`` says itself."""

    def __init__(
        self, bug: str = "", at: int = 0, *, pre_norm: bool = True, causal: bool = True, weights: bool = False
    ) -> None:
        rngs = nnx.Rngs(0)
        self.embedding, self.positions = nnx.Embed(TOKENS, FEATURES, rngs=rngs), nnx.Embed(LENGTH, FEATURES, rngs=rngs)
        places = [bug if at in (i, 2) else "" for i in range(2)]
        other = bug in ("pre for post", "post for pre")
        self.blocks = nnx.List([Block(pre_norm != (other and here != ""), here, rngs) for here in places])
        self.norm = nnx.LayerNorm(FEATURES, epsilon=1e-12 if bug == "last epsilon" else 1e-5, rngs=rngs)
        self.causal, self.weights, self.bug = causal, weights, bug

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> Any:
        places = jnp.arange(tokens.shape[1])
        if self.bug == "reversed positions":
            places = places[::-1]
        scale = 1 if self.bug == "missing embedding scale" else math.sqrt(FEATURES)
        x = self.embedding(tokens) * scale + self.positions(places)
        for block in self.blocks:
            x, weights = block(x, mask, self.causal)
        x = x if self.bug == "missing last norm" else self.norm(x)
        return (x, weights) if self.weights else x
