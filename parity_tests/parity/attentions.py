"""Attention of a modern decoder in PyTorch, and its port to Flax: each setting of the port may be another one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

B, T, M, D = 2, 9, 10, 6  # examples, tokens, features, features of a head
LENGTHS = np.array([T, 5])
NEVER = -1e30


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the two sides may differ in. The first are those of both sides, the last are mistakes."""

    heads: int = 4
    groups: int = 4
    packed: str = ""  # "(3 h d)", "(h 3 d)" or "(g r d)"
    norms: bool = False  # of queries and keys
    rotary: str = ""  # "half" or "interleaved"
    tables: bool = True  # whether PyTorch's side is given cosines and sines
    base: float = 1e4
    width: int = D  # features that turn
    over: int = 0  # the width of the exponents, that of the features that turn by default
    factor: float = 1.0  # by which frequencies are divided
    amplitude: float = 1.0
    scale: float = D**-0.5
    cap: float | None = None
    sinks: bool = False
    bias: str = ""  # "alibi", "given" or "buckets"
    mask: str = ""  # "lengths", "tokens", "boolean", "pairs" or "additive", which is all of it
    causal: bool = True
    window: int | None = None
    weights: bool = False  # whether they are what comes out
    # Mistakes.
    on: str = "qk"
    ahead: int = 0
    sign: int = 1
    layout: str = ""
    last: bool = False
    bias_sign: float = 1.0
    bias_turned: bool = False
    bias_scaled: bool = False
    slopes: str = "usual"
    both: bool = True  # directions of the buckets
    farthest: int = 16
    shift: int = 0  # of the causal mask
    upper: bool = False
    inverted: bool = False
    left: bool = False
    queries: bool = False  # whether the padding hides queries
    tiled: bool = False
    swapped: str = ""
    split: str = "(h d)"
    merged: str = "(h d)"
    axis: int = -1
    pad_free: bool = False
    averaged: bool = False


def tables(s: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, 1 t n, laid out as the rotation needs them."""
    angles = np.arange(T)[:, None] * s.base ** -(np.arange(0, s.width, 2) / (s.over or s.width)) / s.factor
    spread = np.concatenate([angles, angles], -1) if (s.layout or s.rotary) == "half" else np.repeat(angles, 2, -1)
    return s.amplitude * np.cos(spread)[None], s.amplitude * np.sin(spread)[None]


def slopes_of(s: Settings) -> np.ndarray:
    i = np.arange(s.heads)
    return 2.0 ** -(8 * (i + 1) / s.heads if s.slopes == "usual" else 8 * i / s.heads if s.slopes == "zero" else i + 1)


def inputs_of(s: Settings, seed: int = 0) -> dict[str, np.ndarray]:
    """The arguments of both sides."""
    rng = np.random.default_rng(seed)
    given: dict[str, np.ndarray] = {"x": rng.standard_normal((B, T, M))}
    if s.rotary and s.tables:
        given["cos"], given["sin"] = tables(s)
    if s.bias == "given":
        given["bias"] = rng.standard_normal((1, s.heads, T, T))
    real = np.arange(T) < LENGTHS[:, None]
    if s.left:
        real = real[:, ::-1]
    if s.mask == "lengths":
        given["mask"] = LENGTHS
    elif s.mask == "tokens":
        given["mask"] = real.astype(np.int64)
    elif s.mask == "boolean":
        given["mask"] = real[:, None, None]
    elif s.mask == "pairs":
        given["mask"] = rng.random((B, 1, T, T)) < 0.6
        given["mask"][..., np.arange(T), np.arange(T)] = True
    elif s.mask == "additive":
        allowed = pattern(s)[None, None] & real[:, None, None]
        given["mask"] = np.where(allowed, 0.0, np.finfo(np.float32).min)
    return given


def pattern(s: Settings) -> np.ndarray:
    away = np.arange(T) - np.arange(T)[:, None]
    allowed = np.ones((T, T), bool)
    if s.causal:
        allowed &= away >= -s.shift if s.upper else away <= s.shift
    if s.window is not None:
        allowed &= abs(away) < s.window
    return allowed


def bucket(away: np.ndarray, n: int, farthest: int, both: bool) -> np.ndarray:
    """T5's, one number at a time."""

    def one(d: int) -> int:
        first, size = 0, n
        if both:
            size = n // 2
            first, d = (size if d > 0 else 0), abs(d)
        else:
            d = max(-d, 0)
        exact = size // 2
        if d < exact:
            return first + d
        far = exact + int(np.log(d / exact) / np.log(farthest / exact) * (size - exact))
        return first + min(far, size - 1)

    return np.vectorize(one)(away)


# ----------------------------------------------------------------------------------------------------------------------
# PyTorch's side.


class TorchRMS(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt((x**2).mean(-1, keepdim=True) + 1e-6) * self.weight


def torch_turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, s: Settings) -> torch.Tensor:
    n = cos.shape[-1]
    part, rest = x[..., :n], x[..., n:]
    if s.rotary == "half":
        other = torch.cat([-part[..., n // 2 :], part[..., : n // 2]], -1)
    else:
        other = torch.stack([-part[..., 1::2], part[..., ::2]], -1).flatten(-2)
    return torch.cat([part * cos[:, None] + other * sin[:, None], rest], -1)


class TorchModernAttention(torch.nn.Module):
    def __init__(self, s: Settings) -> None:
        super().__init__()
        h, g = s.heads, s.groups
        self.num_heads, self.num_kv_heads, self.settings = h, g, dataclasses.asdict(s)
        self.head_dim, self.rope_theta = D, s.base
        if s.packed:
            self.qkv_proj = torch.nn.Linear(M, (h + 2 * g) * D)
        else:
            self.q_proj, self.k_proj, self.v_proj = (torch.nn.Linear(M, n * D) for n in (h, g, g))
        self.o_proj = torch.nn.Linear(h * D, M)
        if s.norms:
            self.q_norm, self.k_norm = TorchRMS(D), TorchRMS(D)
        if s.sinks:
            self.sinks = torch.nn.Parameter(torch.ones(h))
        if s.bias == "buckets":
            self.relative_bias = torch.nn.Parameter(torch.ones(8, h))
        self.s = s
        self.scaling, self.sliding_window, self.logits_cap, self.max_distance = s.scale, s.window, s.cap, 16

    def forward(self, x, cos=None, sin=None, bias=None, mask=None):  # type: ignore[no-untyped-def]
        s, (b, t, _) = self.s, x.shape
        h, g = s.heads, s.groups
        if s.packed == "(h 3 d)":
            q, k, v = self.qkv_proj(x).view(b, t, h, 3, D).unbind(3)
        elif s.packed == "(g r d)":
            y = self.qkv_proj(x).view(b, t, g, h // g + 2, D)
            q, k, v = y[..., :-2, :].reshape(b, t, h, D), y[..., -2, :], y[..., -1, :]
        elif s.packed:
            q, k, v = self.qkv_proj(x).split([h * D, g * D, g * D], -1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = q.reshape(b, t, h, D), k.reshape(b, t, g, D), v.reshape(b, t, g, D)
        if s.norms:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if s.rotary:
            if cos is None:
                cos, sin = (torch.as_tensor(y, dtype=x.dtype) for y in tables(s))
            q, k = torch_turned(q, cos, sin, s), torch_turned(k, cos, sin, s)
        k, v = k.repeat_interleave(h // g, 1), v.repeat_interleave(h // g, 1)
        logits = q @ k.mT * s.scale
        if s.cap is not None:
            logits = s.cap * torch.tanh(logits / s.cap)
        away = np.arange(t) - np.arange(t)[:, None]
        if s.bias == "alibi":
            logits = logits - torch.as_tensor(slopes_of(s)[:, None, None] * abs(away), dtype=x.dtype)
        elif s.bias == "buckets":
            logits = logits + self.relative_bias[torch.as_tensor(bucket(away, 8, 16, s.both))].permute(2, 0, 1)
        elif s.bias:
            logits = logits + bias
        if s.mask == "additive":
            logits = logits + mask
        else:
            allowed = torch.as_tensor(pattern(s))
            if s.mask == "lengths":
                allowed = allowed & (torch.arange(t) < mask[:, None])[:, None, None]
            elif s.mask == "tokens":
                allowed = allowed & (mask != 0)[:, None, None]
            elif s.mask:
                allowed = allowed & mask
            logits = logits.masked_fill(~allowed, NEVER)
        if s.sinks:
            logits = torch.cat([logits, self.sinks[:, None, None].expand(b, h, t, 1)], -1)
        weights = logits.softmax(-1)[..., :t]
        y = self.o_proj((weights @ v).transpose(1, 2).reshape(b, t, -1))
        return (weights, y) if s.weights else y


# ----------------------------------------------------------------------------------------------------------------------
# The port.


def turned(x: jax.Array, s: Settings, ahead: int) -> jax.Array:
    cos, sin = tables(s)
    if ahead:
        angles = (np.arange(T)[:, None] + ahead) * s.base ** -(np.arange(0, s.width, 2) / s.width)
        spread = np.concatenate([angles, angles], -1) if s.rotary == "half" else np.repeat(angles, 2, -1)
        cos, sin = np.cos(spread)[None], np.sin(spread)[None]
    cos, sin = jnp.asarray(cos)[:, None], jnp.asarray(s.sign * sin)[:, None]
    n = s.width
    part, rest = (x[..., -n:], x[..., :-n]) if s.last else (x[..., :n], x[..., n:])
    if s.rotary == "half":
        other = jnp.concatenate([-part[..., n // 2 :], part[..., : n // 2]], -1)
    else:
        other = jnp.stack([-part[..., 1::2], part[..., ::2]], -1).reshape(part.shape)
    part = part * cos + other * sin
    return jnp.concatenate([rest, part] if s.last else [part, rest], -1)


class ModernAttention(nnx.Module):
    def __init__(self, s: Settings, of: Settings) -> None:
        """With parameters as ``of`` has them."""
        h, g, rngs = of.heads, of.groups, nnx.Rngs(0)
        if of.packed:
            self.qkv_proj = nnx.Linear(M, (h + 2 * g) * D, rngs=rngs)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nnx.Linear(M, n * D, rngs=rngs) for n in (h, g, g))
        self.o_proj = nnx.Linear(h * D, M, rngs=rngs)
        if of.norms:
            self.q_norm, self.k_norm = (nnx.RMSNorm(D, epsilon=1e-6, rngs=rngs) for _ in range(2))
        if of.sinks:
            self.sinks = nnx.Param(jnp.ones(h))
        if of.bias == "buckets":
            self.relative_bias = nnx.Param(jnp.ones((8, h)))
        self.s, self.of = s, of

    def __call__(self, x, cos=None, sin=None, bias=None, mask=None):  # type: ignore[no-untyped-def]
        s, (b, t, _) = self.s, x.shape
        h, g = s.heads, s.groups
        d = self.of.heads * D // h
        if s.packed == "(h 3 d)":
            q, k, v = jnp.moveaxis(self.qkv_proj(x).reshape(b, t, h, 3, D), 3, 0)
        elif s.packed == "(g r d)":
            y = self.qkv_proj(x).reshape(b, t, g, h // g + 2, D)
            q, k, v = y[..., :-2, :], y[..., -2, :], y[..., -1, :]
        elif s.packed:
            q, k, v = jnp.split(self.qkv_proj(x), [h * D, (h + g) * D], -1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if s.swapped == "values":
            k, v = v, k

        def heads(y: jax.Array, n: int) -> jax.Array:
            y = y.reshape(b, t, -1)
            if s.split == "(h d)":
                return y.reshape(b, t, n, d)
            return (
                jnp.moveaxis(y.reshape(b, n, t, d), 1, 2) if s.split == "time" else y.reshape(b, t, d, n).swapaxes(2, 3)
            )

        q, k, v = heads(q, h), heads(k, g), heads(v, g)
        if s.norms:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.swapaxes(1, 2) for y in (q, k, v))
        if s.rotary:
            q = turned(q, s, s.ahead) if "q" in s.on else q
            k = turned(k, s, 0) if "k" in s.on else k
        k, v = ((jnp.tile(y, (1, h // g, 1, 1)) if s.tiled else jnp.repeat(y, h // g, 1)) for y in (k, v))
        if s.swapped == "keys":
            q, k = k, q
        away = np.arange(t) - np.arange(t)[:, None]
        extra: Any = 0.0
        if s.bias == "alibi":
            extra = -slopes_of(s)[:, None, None] * abs(away)
        elif s.bias == "buckets":
            extra = jnp.moveaxis(self.relative_bias[...][bucket(away, 8, s.farthest, s.both)], -1, 0)
        elif s.bias:
            extra = bias
        extra = s.bias_sign * (jnp.swapaxes(extra, -1, -2) if s.bias_turned else extra)
        logits = q @ k.swapaxes(-1, -2)
        logits = s.scale * (logits + extra) if s.bias_scaled else s.scale * logits
        if s.cap is not None:
            logits = s.cap * jnp.tanh(logits / s.cap)
        if not s.bias_scaled:
            logits = logits + extra
        allowed = jnp.broadcast_to(jnp.asarray(pattern(s)), (b, 1, t, t))
        if s.mask and s.mask != "pairs":
            real = np.arange(T) < LENGTHS[:, None]
            real = jnp.asarray(real[:, ::-1] if s.left else real)
            allowed = allowed & ((real[:, None, :, None] if s.queries else real[:, None, None]) ^ s.inverted)
        elif s.mask:
            allowed = allowed & ((mask.swapaxes(-1, -2) if s.queries else mask) ^ s.inverted)
        logits = jnp.where(allowed, logits, -jnp.inf if s.sinks else NEVER)
        if s.sinks:
            sinks = jnp.broadcast_to(self.sinks[...][:, None, None], (b, h, t, 1))
            logits = jnp.concatenate([logits, sinks], -1)
        weights = jax.nn.softmax(logits, axis=s.axis)[..., :t]
        y = weights @ v
        y = y.reshape(b, t, -1) if s.merged == "time" else y.swapaxes(1, 2)
        if s.merged == "(d h)":
            y = y.swapaxes(2, 3)
        y = self.o_proj(y.reshape(b, t, -1))
        return (weights.mean(1) if s.averaged else weights, y) if self.of.weights else y
