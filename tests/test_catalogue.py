"""A catalogue: the masks and score modifications of FlexAttention and of attention-gym, written in jattn.

Each row says a rule twice: in jattn, and in NumPy as a function of the indices of example, head, query and key, the
truth. A row of a mask also has the share of the keys that streaming skips in blocks of 16 queries: those before the
first and after the last that the mask's `reachable` allows. It is 0 where the rule says nothing of that.

Sources: Dong et al., Flex Attention, 2024; the examples and tests of PyTorch's flex_attention; attention-gym.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.numpy.linalg import norm
from scipy.special import erf

from jattn import attention, biases, bind, masks
from jattn._engine import plan
from jattn._engine.platform import CPU
from jattn.biases import Bias, alibi, alibi_slopes, relative
from jattn.implementations import choice
from jattn.logits import Logits
from jattn.masks import (
    Mask,
    causal,
    causal_lower_right,
    dilated_window,
    lengths,
    neighbourhood,
    prefix,
    segments,
    sliding_window,
)
from jattn.scores import Score, modified
from tests import oracle

B, H, K, D, E = 2, 6, 3, 4, 5
N = 128  # keys under the masks, and queries if not said otherwise: 8 x 16 pixels, or 4 x 4 x 8 voxels
T, S = 64, 108  # queries and keys of the modifications: pixels of images that are 12 wide
ROWS = 16  # queries of a block

# A program runs once, so the one that is compiled fastest will do.
COMPILED: dict[str, Any] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # newer ones refuse an option that they don't know
    COMPILED["xla_cpu_use_fusion_emitters"] = False

pytestmark = pytest.mark.usefixtures("x64")


class Row(NamedTuple):
    rule: Callable[..., Any]  # in jattn, of the arrays: a mask, a bias, a score, or arguments of `attention` by name
    truth: Callable[..., Any]  # in NumPy, of the logits x if they are modified, of b, h, i, j, and of the arrays
    skips: float
    t: int
    arrays: dict[str, np.ndarray]


def mask(rule, truth, skips=0.0, t=N, **arrays) -> Row:
    return Row(rule, truth, skips, t, arrays)


def modification(rule, truth, **arrays) -> Row:
    return Row(rule, truth, 0.0, T, arrays)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def integers(seed: int, high: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape)


EXAMPLE, HEAD = ("b", np.arange(B)), ("h", np.arange(H))  # their numbers, to look up what is theirs in an array

# ----------------------------------------------------------------------------------------------------------------------
# Masks: who may attend to whom.

LENGTHS, OFFSETS, PREFIXES, PADDING = (np.array(x) for x in ([100, 45], [95, 38], [32, 11], [5, 50]))
COUNTS = [[50, 30, 35, 13], [15, 75, 2, 36]]  # tokens of each document
DOCUMENTS = np.stack([np.repeat(range(4), counts) for counts in COUNTS])
PLACES = np.stack([np.concatenate([np.arange(n) for n in counts]) for counts in COUNTS])  # in one's document
PROMPTS = np.array([0, 0, 0, 3])  # documents 1 and 2 continue document 0
IMAGES = np.full((B, N), -1)  # which image a token is of; -1: text
IMAGES[0, 10:30], IMAGES[0, 30:45], IMAGES[1, 75:105] = 0, 1, 0
GLOBAL = np.isin(np.arange(N), [0, 35, 64])
LAYOUT = integers(0, 3, H, 8, 8) == 0  # which blocks of 16 x 16 a head computes
BEST = np.argsort(normal(1, B, H, 8, 8))[..., :3]  # of 8 tiles, for each block of 16 queries
LEFTS, ALL = np.array([2, 4, 8, 16, 32, 64]), np.array([1, 0, 0, 1, 0, 0], bool)  # of each head
STARTS, STOPS = np.array([0, 5, 5, 20, 20, 20, 32, 40]), np.array([20, 20, 32, 32, 48, 45, 48, 48])  # of 8 images
PARENTS = [0, *(int(integers(n, n, 1)[0]) for n in range(1, 24))]  # in a tree of drafts
ANCESTORS = np.eye(24, dtype=bool)  # and oneself
for node in range(1, 24):
    ANCESTORS[node] |= ANCESTORS[PARENTS[node]]
SHARD = np.concatenate([np.arange(16), np.arange(112, N)])  # the first and the last of 8 parts
OWNERS = np.array([0, 1, -1, 0, 1, 1, 0, -1, 0, 1, 0, 0, -1, 0, 1, 0])  # of the pages of a pool, 8 slots each
PAGES = np.array([3, 0, 0, 5, 2, 1, 7, 0, 0, 3, 6, 1, 0, 4, 4, 2])  # their places in the owner's sequence
SLOTS = np.where(np.arange(B)[:, None] == OWNERS, PAGES, N).repeat(8, axis=1) * 8 + np.arange(N) % 8  # positions
KEPT = integers(2, 2, B, H, N, N) == 0


def natten_at(y, x, key_y, key_x):
    return (abs(np.clip(y, 1, 6) - key_y) <= 1) & (abs(np.clip(x, 1, 14) - key_x) <= 1)


def tiled(p):
    """Row and column of a pixel, if they lie in tiles of 4 x 4."""
    return p // 64 * 4 + p % 16 // 4, p // 16 % 4 * 4 + p % 4


def morton(p):
    """Row and column of a pixel, if they lie along a Morton curve: every second bit of its number."""
    bits = [p >> n & 1 for n in range(7)]
    return tuple(sum(bit << n for n, bit in enumerate(bits[first::2])) for first in (1, 0))


TILED, MORTON = (y * 16 + x for y, x in (tiled(np.arange(N)), morton(np.arange(N))))

CHUNKS = masks.where(  # of 32 tokens
    lambda q, k: q // 32 == k // 32, span=lambda first, last: (first // 32 * 32, last // 32 * 32 + 31)
)
NATTEN = masks.where(  # each pixel sees the 3 x 3 around it, moved inside at the edges
    lambda q, k: (abs((q // 16).clip(1, 6) - k // 16) <= 1) & (abs((q % 16).clip(1, 14) - k % 16) <= 1),
    span=lambda first, last: ((first // 16).clip(1, 6) * 16 - 16, (last // 16).clip(1, 6) * 16 + 31),
)

MASKS = {
    # The order of tokens.
    "causal": mask(lambda: causal(), lambda b, h, i, j: j <= i, skips=0.44),
    "strictly causal": mask(lambda: causal(offset=-1), lambda b, h, i, j: j < i, skips=0.45),
    "inverse causal": mask(lambda: sliding_window(0, N), lambda b, h, i, j: j >= i, skips=0.44),
    "causal beyond a window": mask(lambda: causal(offset=-17), lambda b, h, i, j: (j <= i) & (i - j > 16), skips=0.57),
    "causal by blocks (diffusion forcing)": mask(
        lambda: masks.where(lambda q, k: k // 16 <= q // 16, span=lambda first, last: (0, last // 16 * 16 + 15)),
        lambda b, h, i, j: j // 16 <= i // 16,
        skips=0.44,
    ),
    "noised and clean blocks (block diffusion)": mask(
        lambda: masks.where(
            lambda q, k: (q // 8 == k // 8) | (k >= 64) & ((q // 8 > k // 8) | (q < 64) & (q // 8 > k // 8 - 8))
        ),
        lambda b, h, i, j: (
            ((i % 64 // 8 == j % 64 // 8) & ((i < 64) == (j < 64)))
            | ((i % 64 // 8 > j % 64 // 8) & (i < 64) & (j >= 64))
            | ((i % 64 // 8 >= j % 64 // 8) & (i >= 64) & (j >= 64))
        ),
    ),
    # Windows.
    "sliding window, causal": mask(
        lambda: sliding_window(16, 0), lambda b, h, i, j: (j <= i) & (i - j <= 16), skips=0.77
    ),
    "sliding window, two-sided": mask(lambda: sliding_window(8, 8), lambda b, h, i, j: abs(i - j) <= 8, skips=0.77),
    "dilated sliding window": mask(
        lambda: dilated_window(2, 2, 4), lambda b, h, i, j: (abs(i - j) <= 8) & (abs(i - j) % 4 == 0), skips=0.77
    ),
    "sliding window with sinks": mask(
        lambda: (sliding_window(16, 0) | prefix(4)) & causal(),
        lambda b, h, i, j: ((i - j <= 16) | (j < 4)) & (j <= i),
        skips=0.44,
    ),
    "chunks (Llama 4)": mask(lambda: CHUNKS & causal(), lambda b, h, i, j: (i // 32 == j // 32) & (j <= i), skips=0.81),
    "sequences side by side, each a prefix language model (batchify)": mask(
        lambda: CHUNKS & (causal() | masks.where(lambda q, k: k % 32 < 4)),
        lambda b, h, i, j: (i // 32 == j // 32) & ((j % 32 <= i % 32) | (j % 32 < 4)),
        skips=0.75,
    ),
    # Prefixes.
    "prefix language model": mask(lambda: causal() | prefix(32), lambda b, h, i, j: (j < 32) | (j <= i), skips=0.42),
    "prefix of each example, seen by itself (vision-language)": mask(
        lambda n: causal() | prefix(n),
        lambda b, h, i, j, n: ((i < n[b]) & (j < n[b])) | (j <= i),
        skips=0.43,
        n=PREFIXES,
    ),
    "causal, but images see all of themselves (Transfusion)": mask(
        lambda images: causal() | segments(images, jnp.where(images < 0, -2, images)),
        lambda b, h, i, j, images: (j <= i) | ((images[b, i] == images[b, j]) & (images[b, i] >= 0)),
        skips=0.41,
        images=IMAGES,
    ),
    # Documents.
    "documents": mask(
        lambda ids: segments(ids), lambda b, h, i, j, ids: ids[b, i] == ids[b, j], skips=0.53, ids=DOCUMENTS
    ),
    "documents, causal": mask(
        lambda ids: segments(ids) & causal(),
        lambda b, h, i, j, ids: (ids[b, i] == ids[b, j]) & (j <= i),
        skips=0.71,
        ids=DOCUMENTS,
    ),
    "documents, each a prefix language model": mask(
        lambda ids, at: segments(ids) & (causal() | masks.where(lambda q, k, at: at < 4, at=("bs", at))),
        lambda b, h, i, j, ids, at: (ids[b, i] == ids[b, j]) & ((at[b, j] < 4) | (j <= i)),
        skips=0.53,
        ids=DOCUMENTS,
        at=PLACES,
    ),
    "documents, sliding window": mask(
        lambda ids: segments(ids) & sliding_window(16, 0),
        lambda b, h, i, j, ids: (ids[b, i] == ids[b, j]) & (j <= i) & (i - j <= 16),
        skips=0.79,
        ids=DOCUMENTS,
    ),
    "documents by where they end, causal (jagged tensors)": mask(
        lambda ends: segments(jnp.searchsorted(ends, jnp.arange(N), side="right")) & causal(),
        lambda b, h, i, j, ends: ((ends <= i[..., None]).sum(-1) == (ends <= j[:, None]).sum(-1)) & (j <= i),
        skips=0.72,
        ends=np.array([50, 80, 115, N]),
    ),
    "documents that continue a prompt (shared prefix)": mask(
        lambda ids, prompt: (segments(ids) & causal()) | segments(jnp.where(prompt[ids] == ids, -1, prompt[ids]), ids),
        lambda b, h, i, j, ids, prompt: (
            ((ids[b, i] == ids[b, j]) & (j <= i))
            | ((ids[b, i] != prompt[ids[b, i]]) & (ids[b, j] == prompt[ids[b, i]]))
        ),
        skips=0.53,
        ids=DOCUMENTS,
        prompt=PROMPTS,
    ),
    # Padding, and what else data leaves out.
    "padding": mask(lambda n: lengths(n), lambda b, h, i, j, n: (j < n[b]) & (i >= 0), skips=0.43, n=LENGTHS),
    "padding of keys and queries": mask(
        lambda n: lengths(n) & masks.where(lambda q, k, n: q < n, n=("b", n)),
        lambda b, h, i, j, n: (i < n[b]) & (j < n[b]),
        skips=0.43,
        n=LENGTHS,
    ),
    "padding on the left, positions from the first token on": mask(
        lambda n: dict(
            mask=causal() & masks.where(lambda q, k: k >= 0, span=lambda first, last: (0, last)),
            query_positions=jnp.arange(N) - n[:, None],
            key_positions=jnp.arange(N) - n[:, None],
        ),
        lambda b, h, i, j, n: (n[b] <= j) & (j <= i),
        skips=0.63,
        n=PADDING,
    ),
    "keys at random": mask(
        lambda kept: masks.dense(kept), lambda b, h, i, j, kept: kept[b, 0, 0, j] & (i >= 0), kept=KEPT[:, :1, :1]
    ),
    "pairs at random": mask(lambda kept: masks.dense(kept), lambda b, h, i, j, kept: kept[b, h, i, j], kept=KEPT),
    "no odd keys": mask(lambda: masks.where(lambda q, k: k % 2 == 0), lambda b, h, i, j: (j % 2 == 0) & (i >= 0)),
    "no late queries": mask(
        lambda: masks.where(lambda q, k: q < 64, span=lambda first, last: (0, N * (first < 64) - 1)),
        lambda b, h, i, j: (i < 64) & (j >= 0),
        skips=0.5,
    ),
    "both ends": mask(lambda: prefix(16) | ~prefix(100), lambda b, h, i, j: ((j < 16) | (j >= 100)) & (i >= 0)),
    # Global tokens.
    "global tokens and a window (Longformer)": mask(
        lambda marks: sliding_window(8, 8) | masks.where(lambda q, k, marks: marks[q] | marks[k], marks=marks),
        lambda b, h, i, j, marks: (abs(i - j) <= 8) | marks[i] | marks[j],
        marks=GLOBAL,
    ),
    "the first tokens and a window (arrow)": mask(
        lambda: (
            sliding_window(2, 2)
            | prefix(8)
            | masks.where(lambda q, k: q < 8, span=lambda first, last: (0, N * (first < 8) - 1))
        ),
        lambda b, h, i, j: (abs(i - j) <= 2) | (i < 8) | (j < 8),
        skips=0.32,
    ),
    "prompt, first frame and near frames (Sparse VideoGen, spatial)": mask(
        lambda: (
            sliding_window(19, 19)
            | prefix(8 + 10)
            | masks.where(lambda q, k: q < 8, span=lambda first, last: (0, N * (first < 8) - 1))
        ),
        lambda b, h, i, j: (j < 8 + 10) | (i < 8) | (abs(i - j) < 20),
        skips=0.22,
    ),
    "prompt, and near pixels of all frames (Sparse VideoGen, temporal)": mask(
        lambda: prefix(8) | masks.where(lambda q, k: (q < 8) | (abs((q - 8) % 10 - (k - 8) % 10) < 3)),
        lambda b, h, i, j: (j < 8) | (i < 8) | (abs((i - 8) % 10 - (j - 8) % 10) < 3),
    ),
    # Sparse patterns.
    "strided (Sparse Transformer)": mask(
        lambda: sliding_window(7, 0) | dilated_window(16, 0, 8),
        lambda b, h, i, j: (j <= i) & ((i - j < 8) | ((i - j) % 8 == 0)),
        skips=0.44,
    ),
    "fixed (Sparse Transformer)": mask(
        lambda: causal() & masks.where(lambda q, k: (q // 8 == k // 8) | (k % 8 == 7)),
        lambda b, h, i, j: (j <= i) & ((i // 8 == j // 8) | (j % 8 == 7)),
        skips=0.44,
    ),
    "blocks of an array": mask(
        lambda layout: masks.where(lambda q, k, layout: layout[q // 16, k // 16], layout=layout),
        lambda b, h, i, j, layout: layout[i // 16, j // 16],
        layout=LAYOUT[0],
    ),
    "blocks of an array for each head, a window and global blocks (BigBird)": mask(
        lambda layout: (
            sliding_window(8, 8)
            | prefix(16)
            | masks.where(lambda q, k, layout, h: layout[h, q // 16, k // 16], layout=layout, h=HEAD)
        ),
        lambda b, h, i, j, layout: (abs(i - j) <= 8) | (j < 16) | layout[h, i // 16, j // 16],
        layout=LAYOUT,
    ),
    "the best tiles for each block of queries (video sparse attention)": mask(
        lambda best: masks.where(
            lambda q, k, best, b, h: (best[b, h, q // 16] == k[..., None] // 16).any(-1), best=best, b=EXAMPLE, h=HEAD
        ),
        lambda b, h, i, j, best: sum(best[b, h, i // 16, n] == j // 16 for n in range(3)) > 0,
        best=BEST,
    ),
    "padding in each tile": mask(
        lambda sizes: masks.where(lambda q, k, sizes: k % 16 < sizes[k // 16], sizes=sizes),
        lambda b, h, i, j, sizes: (j % 16 < sizes[j // 16]) & (i >= 0),
        sizes=np.array([16, 16, 16, 16, 9, 16, 5, 16]),
    ),
    # Heads that differ.
    "a window for each head": mask(
        lambda left: causal() & masks.where(lambda q, k, left: q - k <= left, left=("h", left)),
        lambda b, h, i, j, left: (j <= i) & (i - j <= left[h]),
        skips=0.44,
        left=LEFTS,
    ),
    "heads that see all, and heads with a window": mask(
        lambda sees_all: (
            causal() & (sliding_window(8, 0) | masks.where(lambda q, k, sees_all: sees_all, sees_all=("h", sees_all)))
        ),
        lambda b, h, i, j, sees_all: (j <= i) & (sees_all[h] | (i - j <= 8)),
        skips=0.44,
        sees_all=ALL,
    ),
    # Images and videos.
    "the pixels around (stand-alone self-attention)": mask(
        lambda: neighbourhood((8, 16), (1, 2)),
        lambda b, h, i, j: (abs(i // 16 - j // 16) <= 1) & (abs(i % 16 - j % 16) <= 2),
        skips=0.63,
    ),
    "the voxels around": mask(
        lambda: neighbourhood((4, 4, 8), (1, 2, 1)),
        lambda b, h, i, j: (
            (abs(i // 32 - j // 32) <= 1) & (abs(i // 8 % 4 - j // 8 % 4) <= 2) & (abs(i % 8 - j % 8) <= 1)
        ),
        skips=0.3,
    ),
    "near rows or near columns": mask(
        lambda: neighbourhood((8, 16), (1, 16)) | neighbourhood((8, 16), (8, 1)),
        lambda b, h, i, j: (abs(i // 16 - j // 16) <= 1) | (abs(i % 16 - j % 16) <= 1),
    ),
    "as many pixels for all (NATTEN)": mask(
        lambda: NATTEN, lambda b, h, i, j: natten_at(i // 16, i % 16, j // 16, j % 16), skips=0.62
    ),
    "NATTEN in tiles of 4 x 4": mask(
        lambda at: dict(mask=NATTEN, query_positions=at, key_positions=at),
        lambda b, h, i, j, at: natten_at(*tiled(i), *tiled(j)),
        skips=0.09,
        at=TILED,
    ),
    "NATTEN along a Morton curve": mask(
        lambda at: dict(mask=NATTEN, query_positions=at, key_positions=at),
        lambda b, h, i, j, at: natten_at(*morton(i), *morton(j)),
        skips=0.08,
        at=MORTON,
    ),
    "windows of 4 x 4 (Swin)": mask(
        lambda: masks.where(
            lambda q, k: (q // 64 == k // 64) & (q % 16 // 4 == k % 16 // 4),
            span=lambda first, last: (first // 64 * 64, last // 64 * 64 + 63),
        ),
        lambda b, h, i, j: (i // 16 // 4 == j // 16 // 4) & (i % 16 // 4 == j % 16 // 4),
        skips=0.5,
    ),
    "2 of 3 tiles of 4 x 4, and text (sliding tile attention)": mask(
        lambda: (
            masks.where(lambda q, k: (q >= 96) | (k >= 96))
            | masks.where(lambda q, k: (q // 48 == k // 48) & (((q // 16 % 3).clip(1) - k // 16 % 3) // 2 == 0))
        ),
        lambda b, h, i, j: (
            (i >= 96)
            | (j >= 96)
            | (
                (i // 48 == j // 48)
                & (np.maximum(i // 16 % 3, 1) - 1 <= j // 16 % 3)
                & (j // 16 % 3 <= np.maximum(i // 16 % 3, 1))
            )
        ),
    ),
    "tiles of 1 x 4 x 2 (sliding tile attention)": mask(
        lambda: masks.where(
            lambda q, k: (abs((q // 32).clip(1, 2) - k // 32) <= 1) & (abs((q // 8 % 4).clip(1, 2) - k // 8 % 4) <= 1),
            span=lambda first, last: ((first // 32).clip(1, 2) * 32 - 32, (last // 32).clip(1, 2) * 32 + 63),
        ),
        lambda b, h, i, j: (
            (abs(np.clip(i // 32, 1, 2) - j // 32) <= 1) & (abs(np.clip(i // 8 % 4, 1, 2) - j // 8 % 4) <= 1)
        ),
        skips=0.25,
    ),
    # Queries and keys that differ.
    "tokens that follow a cache": mask(
        lambda: causal_lower_right(32, N), lambda b, h, i, j: j <= i + N - 32, skips=0.06, t=32
    ),
    "decoding, each example from a position of its own": mask(
        lambda n: causal(offset=n) & lengths(n + 32),
        lambda b, h, i, j, n: (j <= i + n[b]) & (j < n[b] + 32),
        skips=0.29,
        t=32,
        n=OFFSETS,
    ),
    "pages of a pool": mask(
        lambda at, n: dict(mask=causal(), query_positions=n[:, None] + jnp.arange(32), key_positions=at),
        lambda b, h, i, j, at, n: at[b, j] <= n[b] + i,
        skips=0.2,
        t=32,
        at=SLOTS,
        n=np.array([32, 8]),
    ),
    "some of the queries (context parallelism)": mask(
        lambda at: dict(mask=causal(), query_positions=at),
        lambda b, h, i, j, at: j <= at[i],
        skips=0.44,
        t=32,
        at=SHARD,
    ),
    "a tree of drafts after a prefix": mask(
        lambda tree: prefix(104) | masks.where(lambda q, k, tree: (k >= 104) & tree[q, (k - 104).clip(0)], tree=tree),
        lambda b, h, i, j, tree: (j < 104) | tree[i, np.maximum(j - 104, 0)],
        t=24,
        tree=ANCESTORS,
    ),
    "blocks of drafts after a prefix": mask(
        lambda: prefix(96) | causal(offset=96) & masks.where(lambda q, k: q // 8 == (k - 96) // 8),
        lambda b, h, i, j: (j < 96) | ((i // 8 == (j - 96) // 8) & ((j - 96) % 8 <= i % 8)),
        skips=0.06,
        t=32,
    ),
    "text, and the images that it refers to (Flamingo)": mask(
        lambda start, stop: masks.where(
            lambda q, k, start, stop: (start[k // 16] <= q) & (q < stop[k // 16]), start=start, stop=stop
        ),
        lambda b, h, i, j, start, stop: (start[j // 16] <= i) & (i < stop[j // 16]),
        t=48,
        start=STARTS,
        stop=STOPS,
    ),
}

# ----------------------------------------------------------------------------------------------------------------------
# Modifications: what becomes of a logit x.

HOPS = integers(3, 5, B, T, S)  # between two nodes of a graph
EDGES = integers(4, 7, B, T, S, 4)  # the kinds of the first 4 edges between them
STEPS = np.arange(4)


def log_gelu(x):
    return np.log(x * (1 + erf(x / np.sqrt(2))) / 2 + 1)


def mean_of_edges(q, k, table, kinds, n, b, h):
    return jnp.where(n[..., None] > STEPS, table[h[..., None], STEPS, kinds[b, q, k]], 0).sum(-1) / n.clip(1)


def t5_bucket(away):
    """Of 32 buckets of distances up to 128: each way 8 near ones, and 8 that double their reach every second time."""
    near = abs(away)
    far = 8 + sum((near**2 >= 64 << n).astype(int) for n in range(1, 8))
    return 16 * (away > 0) + np.where(near < 8, near, far)


MODIFICATIONS = {
    # Functions of the logit and of positions.
    "identity": modification(lambda: modified(lambda x, q, k: x), lambda x, b, h, i, j: x),
    "twice": modification(lambda: modified(lambda x, q, k: 2 * x), lambda x, b, h, i, j: 2 * x),
    "squared": modification(lambda: modified(lambda x, q, k: x * x), lambda x, b, h, i, j: x * x),
    "causal, by minus infinity": modification(
        lambda: modified(lambda x, q, k: jnp.where(k <= q, x, -jnp.inf)),
        lambda x, b, h, i, j: np.where(j <= i, x, -np.inf),
    ),
    "relative and inverse causal": modification(
        lambda: modified(lambda x, q, k: jnp.where(k >= q, x + (q - k), -jnp.inf)),
        lambda x, b, h, i, j: np.where(j >= i, x + (i - j), -np.inf),
    ),
    "relative": modification(lambda: modified(lambda x, q, k: x + (q - k)), lambda x, b, h, i, j: x + (i - j)),
    "a quotient of positions": modification(
        lambda: modified(lambda x, q, k: x - q // (1 + k)), lambda x, b, h, i, j: x - i // (1 + j)
    ),
    "checkerboard": modification(
        lambda: modified(lambda x, q, k: jnp.where((k - q) % 2 == 1, x / 2, x * 2)),
        lambda x, b, h, i, j: np.where(abs(j - i) % 2 == 1, x / 2, x * 2),
    ),
    "divided by the distance": modification(
        lambda: modified(lambda x, q, k: x / (1 + abs(q - k))), lambda x, b, h, i, j: x / (1 + abs(i - j))
    ),
    "sharper for later queries": modification(
        lambda: modified(lambda x, q, k: x * jnp.log(q + 2.0)), lambda x, b, h, i, j: x * np.log(i + 2)
    ),
    "soft cap": modification(lambda: dict(logits_soft_cap=2.0), lambda x, b, h, i, j: 2 * np.tanh(x / 2)),
    "soft cap, as a modification": modification(
        lambda: modified(lambda x, q, k: 2 * jnp.tanh(x / 2)), lambda x, b, h, i, j: 2 * np.tanh(x / 2)
    ),
    "silu": modification(lambda: modified(lambda x, q, k: jax.nn.silu(x)), lambda x, b, h, i, j: x / (1 + np.exp(-x))),
    "an activation in place of the exponential": modification(
        lambda: modified(lambda x, q, k: jnp.log(jax.nn.gelu(x, approximate=False) + 1)),
        lambda x, b, h, i, j: log_gelu(x),
    ),
    "trigonometry, and the number of the example": modification(
        lambda: modified(lambda x, q, k, b: jnp.sin(jnp.cos(x)) + jnp.tan(b), b=("b", jnp.arange(2.0))),
        lambda x, b, h, i, j: np.sin(np.cos(x)) + np.tan(b),
    ),
    # With arrays.
    "a factor for each head": modification(
        lambda scale: modified(lambda x, q, k, scale: x * scale, scale=("h", scale)),
        lambda x, b, h, i, j, scale: x * scale[h],
        scale=normal(10, H),
    ),
    "a temperature for each head": modification(
        lambda heat: modified(lambda x, q, k, heat: x / heat, heat=("h", heat)),
        lambda x, b, h, i, j, heat: x / heat[h],
        heat=np.linspace(0.5, 2, H),
    ),
    "a gate for each head": modification(
        lambda gate: modified(lambda x, q, k, gate: x * jax.nn.sigmoid(gate), gate=("h", gate)),
        lambda x, b, h, i, j, gate: x / (1 + np.exp(-gate[h])),
        gate=normal(11, H),
    ),
    "a factor for each query": modification(
        lambda scale: modified(lambda x, q, k, scale: x * scale[q], scale=scale),
        lambda x, b, h, i, j, scale: x * scale[i],
        scale=normal(12, T),
    ),
    "less for places far apart": modification(
        lambda at, to, n: modified(
            lambda x, q, k, at, to, n: x * jnp.exp(-norm(at[q] - to[k], axis=-1) / n), at=at, to=to, n=("h", n)
        ),
        lambda x, b, h, i, j, at, to, n: x * np.exp(-np.sqrt(((at[i] - to[j]) ** 2).sum(-1)) / n[h]),
        at=normal(13, T, 3),
        to=normal(14, S, 3),
        n=np.linspace(0.5, 2, H),
    ),
    "products of rotary features (multi-head latent attention)": modification(
        lambda at, to: biases.where(
            lambda q, k, at, to, b, h: (at[b, q, h] * to[b, k]).sum(-1) / 4, at=at, to=to, b=EXAMPLE, h=HEAD
        ),
        lambda x, b, h, i, j, at, to: x + np.einsum("bthd,bsd->bhts", at, to) / 4,
        at=normal(15, B, T, H, 2),
        to=normal(16, B, S, 2),
    ),
    # What is added: distances.
    "ALiBi": modification(
        lambda: alibi(H),
        lambda x, b, h, i, j: x - np.array([1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8])[h] * abs(i - j),
    ),
    "ALiBi with slopes that are learned": modification(
        lambda slopes: alibi(slopes), lambda x, b, h, i, j, slopes: x - slopes[h] * abs(i - j), slopes=normal(20, H)
    ),
    "ALiBi with a sign": modification(
        lambda slopes: biases.where(lambda q, k, slope: slope * (k - q), slope=("h", slopes)),
        lambda x, b, h, i, j, slopes: x + slopes[h] * (j - i),
        slopes=alibi_slopes(H),
    ),
    "ALiBi under a soft cap": modification(
        lambda slopes: dict(bias=alibi(slopes), logits_soft_cap=5.0),
        lambda x, b, h, i, j, slopes: 5 * np.tanh((x - slopes[h] * abs(i - j)) / 5),
        slopes=normal(20, H),
    ),
    "a logarithm of the distance (KERPLE)": modification(
        lambda p, r: biases.where(lambda q, k, p, r: -p * jnp.log1p(r * abs(q - k)), p=("h", p), r=("h", r)),
        lambda x, b, h, i, j, p, r: x - p[h] * np.log1p(r[h] * abs(i - j)),
        p=np.linspace(0.5, 2, H),
        r=np.linspace(2, 0.5, H),
    ),
    "one over the distance": modification(
        lambda: biases.where(lambda q, k: 1 / (1.0 + abs(q - k))), lambda x, b, h, i, j: x + 1 / (1 + abs(i - j))
    ),
    "waves of the distance (Sandwich)": modification(
        lambda r, waves: biases.where(
            lambda q, k, r, waves: r * jnp.cos((q - k)[..., None] * waves).sum(-1), r=("h", r), waves=waves
        ),
        lambda x, b, h, i, j, r, waves: x + r[h] * sum(np.cos((i - j) * wave) for wave in waves),
        r=H / 8 / np.arange(1, H + 1),
        waves=10000.0 ** -(np.arange(8) / 8),
    ),
    "relative positions of T5": modification(
        lambda table: relative(table),
        lambda x, b, h, i, j, table: x + table[t5_bucket(j - i), h],
        table=normal(21, 32, H),
    ),
    "a table by distance": modification(
        lambda table: biases.where(lambda q, k, table: table[q - k + S], table=table),
        lambda x, b, h, i, j, table: x + table[i - j + S],
        table=normal(22, T + S),
    ),
    "a table by distance either way": modification(
        lambda table: biases.where(lambda q, k, table: table[abs(q - k)], table=table),
        lambda x, b, h, i, j, table: x + table[abs(i - j)],
        table=normal(23, S),
    ),
    "a table by distance up to 8": modification(
        lambda table: biases.where(lambda q, k, table: table[(q - k + 8).clip(0, 16)], table=table),
        lambda x, b, h, i, j, table: x + table[np.clip(i - j + 8, 0, 16)],
        table=normal(24, 17),
    ),
    "a table by the sum of positions": modification(
        lambda table: biases.where(lambda q, k, table: table[q + k], table=table),
        lambda x, b, h, i, j, table: x + table[i + j],
        table=normal(25, T + S),
    ),
    "a table for each head, by the distance in two axes (Swin)": modification(
        lambda table: biases.where(
            lambda q, k, table, h: table[q // 12 - k // 12 + 11, q % 12 - k % 12 + 11, h], table=table, h=HEAD
        ),
        lambda x, b, h, i, j, table: x + table[i // 12 - j // 12 + 11, i % 12 - j % 12 + 11, h],
        table=normal(26, 19, 23, H),
    ),
    "a number for each query and row of an image (ViTDet)": modification(
        lambda table: biases.where(lambda q, k, table, b, h: table[b, h, q, k // 12], table=table, b=EXAMPLE, h=HEAD),
        lambda x, b, h, i, j, table: x + table[b, h, i, j // 12],
        table=normal(27, B, H, T, 12),
    ),
    # What is added: numbers of one's own.
    "one number": modification(
        lambda n: modified(lambda x, q, k, n: x + n, n=n), lambda x, b, h, i, j, n: x + n, n=np.array(1.5)
    ),
    "a number for each head": modification(
        lambda n: biases.where(lambda q, k, n: n, n=("h", n)), lambda x, b, h, i, j, n: x + n[h], n=normal(30, H)
    ),
    "numbers for each query, example and head": modification(
        lambda x, y, z: biases.where(lambda q, k, x, y, z: x + y + z, x=("t", x), y=("b", y), z=("h", z)),
        lambda logits, b, h, i, j, x, y, z: logits + (x[i] + y[b] + z[h]),
        x=normal(31, T),
        y=normal(32, B),
        z=normal(33, H),
    ),
    "a number for each key": modification(
        lambda n: biases.where(lambda q, k, n: n, n=("s", n)), lambda x, b, h, i, j, n: x + n[j], n=normal(34, S)
    ),
    "a number for each query of each example": modification(
        lambda n: biases.where(lambda q, k, n: n, n=("bt", n)), lambda x, b, h, i, j, n: x + n[b, i], n=normal(35, B, T)
    ),
    "one of four numbers for each query": modification(
        lambda n, which: biases.where(lambda q, k, n: n, n=("bht", n[:, :, which])),
        lambda x, b, h, i, j, n, which: x + n[b, h, which, i],
        n=normal(36, B, H, 4, T),
        which=np.array(2),
    ),
    "a number that is looked up twice": modification(
        lambda n, at: biases.where(lambda q, k, n, at: n[at[q]], n=n, at=at),
        lambda x, b, h, i, j, n, at: x + n[at[i]],
        n=normal(37, T),
        at=integers(38, T, T),
    ),
    "the same numbers for queries and keys": modification(
        lambda n: biases.where(lambda q, k, n: n[q] + n[k], n=n),
        lambda x, b, h, i, j, n: x + (n[i] + n[j]),
        n=normal(39, S),
    ),
    "forget gates (Forgetting Transformer)": modification(
        lambda at, to: biases.where(lambda q, k, at, to: at - to, at=("bht", at), to=("bhs", to)),
        lambda x, b, h, i, j, at, to: x + (at[b, h, i] - to[b, h, j]),
        at=normal(40, B, H, T),
        to=normal(41, B, H, S),
    ),
    "a matrix": modification(lambda n: biases.dense(n), lambda x, b, h, i, j, n: x + n[i, j], n=normal(42, T, S)),
    "a matrix of each example": modification(
        lambda n: biases.dense(n[:, None]), lambda x, b, h, i, j, n: x + n[b, i, j], n=normal(43, B, T, S)
    ),
    "a matrix of each example and head": modification(
        lambda n: biases.dense(n), lambda x, b, h, i, j, n: x + n[b, h, i, j], n=normal(44, B, H, T, S)
    ),
    "a matrix of each head, turned": modification(
        lambda n: biases.dense(n.swapaxes(1, 2)), lambda x, b, h, i, j, n: x + n[h, j, i], n=normal(45, H, S, T)
    ),
    "a matrix, looked up and turned": modification(
        lambda n: biases.where(lambda q, k, n: n[k, q], n=n), lambda x, b, h, i, j, n: x + n[j, i], n=normal(46, S, T)
    ),
    "a table of each head by hops in a graph (Graphormer)": modification(
        lambda table, hops: biases.where(lambda q, k, table, n, h: table[h, n], table=table, n=("bts", hops), h=HEAD),
        lambda x, b, h, i, j, table, hops: x + table[h, hops[b, i, j]],
        table=normal(47, H, 5),
        hops=HOPS,
    ),
    "the mean of a table over the edges between two nodes (Graphormer)": modification(
        lambda table, kinds, n: biases.where(mean_of_edges, table=table, kinds=kinds, n=("bts", n), b=EXAMPLE, h=HEAD),
        lambda x, b, h, i, j, table, kinds, n: (
            x
            + sum(np.where(p < n[b, i, j], table[h, p, kinds[b, i, j, p]], 0) for p in range(4))
            / np.maximum(n[b, i, j], 1)
        ),
        table=normal(48, H, 4, 7),
        kinds=EDGES,
        n=HOPS,
    ),
}

# ----------------------------------------------------------------------------------------------------------------------
# The tests.


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Of so few queries streaming would make one block. And only the program of a CPU is traced, to save time."""
    monkeypatch.setattr(plan, "_ROWS", (ROWS * H // K,))
    monkeypatch.setattr(choice, "where_lowered", lambda run, arguments, alike, alone: run(CPU, arguments))


def features(t: int, s: int) -> dict[str, np.ndarray]:
    """Query, key and value; all products of query and key are exact."""
    query, key = (integers(seed, 7, B, n, heads, D) - 3.0 for seed, n, heads in ((50, t, H), (51, s, K)))
    return dict(query=query, key=key, value=normal(52, B, s, K, E))


def as_jax(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: jnp.asarray(x) for name, x in arrays.items()}


def options_of(row: Row, arrays: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `attention`."""
    rule = row.rule(**arrays)
    names = {Mask: "mask", Bias: "bias", Score: "score"}
    return rule if isinstance(rule, dict) else {name: rule for kind, name in names.items() if isinstance(rule, kind)}


def truth_of(row: Row, s: int, *logits: np.ndarray) -> np.ndarray:
    """What NumPy says of every example, head, query and key."""
    indices = np.arange(B)[:, None, None, None], np.arange(H)[:, None, None], np.arange(row.t)[:, None], np.arange(s)
    return np.broadcast_to(row.truth(*logits, *indices, **row.arrays), (B, H, row.t, s))


def modified_logits(row: Row) -> np.ndarray:
    given = features(T, S)
    key = np.repeat(given["key"], H // K, axis=2)
    return truth_of(row, S, oracle.logits(given["query"], key, oracle.dot_product(D**-0.5)))


def assert_attention(row: Row, s: int, expected: np.ndarray, beside: Any = None) -> None:
    """The expected output of both implementations, and the same gradients, also of the arrays, under one more mask."""
    arrays = as_jax(row.arrays)
    learned = {name: x for name, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}

    def output(learned, given, arrays, implementation):
        options = options_of(row, arrays | learned)
        mask = masks.all_of(options.pop("mask", None), beside)
        return attention(**given, **options, mask=mask, implementation=implementation)

    @functools.partial(jax.jit, compiler_options=COMPILED)
    def run(learned, given, arrays, weight):
        results = []
        for implementation in ("dense", "streaming"):
            one = functools.partial(output, arrays=arrays, implementation=implementation)
            out, pull = jax.vjp(one, learned, given)
            results.append((out, pull(weight)))
        return results

    weight = jnp.asarray(normal(53, B, row.t, H, E))
    (dense, gradients), (streaming, streamed) = run(learned, as_jax(features(row.t, s)), arrays, weight)
    np.testing.assert_allclose(dense, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(streaming, expected, rtol=0, atol=1e-12)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(streamed), strict=True):
        assert np.isfinite(x).all(), path
        np.testing.assert_allclose(y, x, rtol=0, atol=1e-11 * (1 + np.abs(x).max()), err_msg=str(path))


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.every_case
def test_matrix_of_a_mask(name):
    row = MASKS[name]
    options = options_of(row, as_jax(row.arrays))
    if len(options) == 1:
        allowed = options["mask"].as_array(row.t, N)
    else:  # it says nothing of positions, but the logits do
        given = as_jax(features(row.t, N))
        allowed = bind(given["query"], given["key"], **options).call.logits.matrix() > -jnp.inf
    np.testing.assert_array_equal(np.broadcast_to(allowed, (B, H, row.t, N)), truth_of(row, N))


@pytest.mark.parametrize("name", MASKS)
def test_keys_that_streaming_skips(name):
    """Of each example, for the queries of a block that share a key head; never one that some query may attend to."""
    row, g = MASKS[name], H // K
    options = options_of(row, as_jax(row.arrays))
    positions = (options.get(name) for name in ("query_positions", "key_positions"))
    rules = Logits(*[None] * 6, options["mask"], None, *positions).aligned(1).by_head((B,), K, g)
    allowed = truth_of(row, N).reshape(B, K, g, row.t, N)
    seen = []
    for n, k in np.ndindex(*np.max([(1, 1), *(x.shape[:2] for x in jax.tree.leaves(rules))], axis=0)):
        one = rules.map_fields(lambda name, axes, x, n=n, k=k: x[n % x.shape[0], k % x.shape[1]])
        for start in range(0, row.t, ROWS):
            first, last = map(int, one.key_range(start, ROWS, N))
            keys = np.flatnonzero(allowed[n, k, :, start : start + ROWS].any(axis=(0, 1)))
            assert keys.size == 0 or first <= keys[0] <= keys[-1] < last
            seen.append(last - first)
    assert round(1 - np.mean(seen) / N, 2) == row.skips


@pytest.mark.parametrize("name", MASKS)
def test_attention_under_a_mask(name):
    row = MASKS[name]
    assert_attention(row, N, oracle.attend(**features(row.t, N), mask=truth_of(row, N)).output)


@pytest.mark.parametrize(
    "name",
    [
        "causal",
        "sliding window with sinks",
        "documents, causal",
        "the first tokens and a window (arrow)",
        "pages of a pool",
    ],
)
def test_attention_under_a_mask_and_lengths(name):
    row, valid = MASKS[name], np.array([90, 31])
    allowed = truth_of(row, N) & (np.arange(N) < valid[:, None, None, None])
    expected = oracle.attend(**features(row.t, N), mask=allowed).output
    assert_attention(row, N, expected, lengths(jnp.asarray(valid)))


@pytest.mark.parametrize("name", MODIFICATIONS)
def test_matrix_of_a_modification(name):
    row, given = MODIFICATIONS[name], as_jax(features(T, S))

    @functools.partial(jax.jit, compiler_options=COMPILED)
    def matrix(arrays, query, key):
        return bind(query, key, **options_of(row, arrays)).call.logits.matrix()

    logits = matrix(as_jax(row.arrays), given["query"], given["key"])
    np.testing.assert_allclose(logits, modified_logits(row), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", MODIFICATIONS)
def test_attention_with_a_modification(name):
    row, away = MODIFICATIONS[name], np.arange(S) - np.arange(T)[:, None]
    allowed = (away >= -30) & (away <= 9)
    expected = oracle.attend(**features(T, S), score=oracle.constant, bias=modified_logits(row), mask=allowed).output
    assert_attention(row, S, expected, sliding_window(30, 9))


@pytest.mark.parametrize(
    "name",
    [
        "soft cap",
        "a factor for each head",
        "ALiBi with slopes that are learned",
        "relative positions of T5",
        "a matrix of each example",
    ],
)
def test_attention_with_a_modification_and_lengths(name):
    row, valid = MODIFICATIONS[name], np.array([90, 31])
    given, allowed = features(T, S), np.arange(S) < valid[:, None, None, None]
    expected = oracle.attend(**given, score=oracle.constant, bias=modified_logits(row), mask=allowed).output
    assert_attention(row, S, expected, lengths(jnp.asarray(valid)))
