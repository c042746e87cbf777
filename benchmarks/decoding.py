"""Greedy continuation, with the same weights: jattn's, compiled, beside transformers' generate with its cache.

    python -m benchmarks decoding [--sizes NAME ...] [--batches B ...] [--prompts T ...] [--new N ...]
        [--columns NAME ...] [--rounds 3] [--json FILE]

Random prompts and weights in float32, GPT-2 of width 384 with 6 layers, or of its own smallest size. One new token is
what reading the prompt takes; the rest is what each further one takes.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks.comparison import PASSES, Column, at_least_one, parser_of, run
from jattn import models

SIZES: dict[str, dict[str, int]] = {
    "384 x 6": dict(vocab_size=1000, n_embd=384, n_layer=6, n_head=12),
    "small": dict(vocab_size=50257, n_embd=768, n_layer=12, n_head=12),
}


class Work(NamedTuple):
    """A model, its prompts, and how many tokens follow."""

    size: str
    batch: int
    t: int
    new: int

    def prompts(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, SIZES[self.size]["vocab_size"], (self.batch, self.t))


@functools.cache
def theirs(size: str) -> Any:
    """The model of transformers; the same one for every column."""
    import torch
    import transformers

    torch.manual_seed(0)
    settings: Mapping[str, Any] = SIZES[size]
    config = transformers.GPT2Config(**settings, n_positions=1024, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config).eval()


@functools.cache
def ours(size: str) -> Any:
    """The same here."""
    model = theirs(size)
    return models.GPT2.from_hugging_face(model.config.to_dict(), model.state_dict())


def jattn_column(work: Work) -> Column:
    model, prompts = ours(work.size), jnp.asarray(work.prompts())
    # Logits of random weights lie close together, so that a token may be another by rounding.
    return Column(lambda: (models.greedy_continuation(model, prompts, max_new_tokens=work.new).tokens,), 0, None, False)


def transformers_column(work: Work) -> Column:
    import torch

    model, prompts = theirs(work.size), torch.from_numpy(work.prompts())
    how = dict(do_sample=False, max_new_tokens=work.new, min_new_tokens=work.new, pad_token_id=0)
    given = dict(attention_mask=torch.ones_like(prompts), **how)
    return Column(lambda: (model.generate(prompts, **given)[:, work.t :],), 0, None, False)


COLUMNS: dict[str, Callable[[Work], Column]] = {"jattn": jattn_column, "transformers": transformers_column}


def main(arguments: list[str]) -> None:
    parser = parser_of("decoding", __doc__, COLUMNS)
    parser.set_defaults(passes=PASSES[:1], rounds=3)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="of these only")
    parser.add_argument("--batches", nargs="+", type=at_least_one, default=[1, 8], metavar="B", help="how many prompts")
    parser.add_argument("--prompts", nargs="+", type=at_least_one, default=[64, 512], metavar="T", help="their length")
    parser.add_argument("--new", nargs="+", type=at_least_one, default=[1, 128], metavar="N", help="tokens that follow")
    options = parser.parse_args(arguments)
    works = (
        ({"size": size, "batch": b, "prompt": t, "new": n}, Work(size, b, t, n), None)
        for size in options.sizes
        for b in options.batches
        for t in options.prompts
        for n in options.new
    )
    run("greedy continuation, float32", works, COLUMNS, options)
