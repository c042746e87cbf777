"""Whole models forward, with the same weights: jattn's, compiled, beside those of transformers in eager PyTorch.

    python -m benchmarks models [--models NAME ...] [--lengths T ...] [--batch 8] [--width 384] [--layers 6]
        [--columns NAME ...] [--rounds 7] [--json FILE]

Random tokens in float32, hidden states out of an encoder and logits out of a decoder (1,000 tokens of vocabulary). The
attention of transformers is PyTorch's scaled_dot_product_attention, or with "eager" its own. "Products alone" are the
matrix products of jattn's program, and nothing else.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.comparison import FLOOR, PASSES, TOLERANCE, Column, at_least_one, jitted, parser_of, run
from benchmarks.products import products_of
from jattn.models.hugging_face.family import FAMILIES


class Work(NamedTuple):
    """One model and its tokens."""

    name: str
    settings: Mapping[str, Any]
    batch: int
    t: int

    def tokens(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, self.settings["vocab_size"], (self.batch, self.t))


def settings_for(name: str, width: int, layers: int, longest: int) -> dict[str, Any]:
    """Of a model of this width, in the words of its family."""
    if name == "GPT-2":
        return dict(vocab_size=1000, n_embd=width, n_layer=layers, n_head=width // 32, n_positions=longest)
    sizes = dict(vocab_size=1000, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 32)
    grouped = {} if name == "BERT" else {"num_key_value_heads": max(1, width // 128)}
    return dict(**sizes, **grouped, intermediate_size=4 * width, max_position_embeddings=longest)


CLASSES = {"BERT": "BertModel", "GPT-2": "GPT2LMHeadModel", "Llama": "LlamaForCausalLM"}


@functools.cache
def _made(name: str, settings: tuple[tuple[str, Any], ...]) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, CLASSES[name])
    options = {"add_pooling_layer": False} if name == "BERT" else {}
    return kind(kind.config_class(**dict(settings)), **options).eval()


def theirs(work: Work) -> Any:
    """The model of transformers; the same one for every column."""
    return _made(work.name, tuple(work.settings.items()))


def ours(work: Work) -> tuple[Callable[..., tuple[jax.Array]], Any, jax.Array]:
    """jattn's model as a function, and its arguments."""
    model = theirs(work)
    config = model.config.to_dict()
    graph, state = nnx.split(FAMILIES[config["model_type"]].from_hugging_face(config, model.state_dict()))
    return lambda state, tokens: (nnx.merge(graph, state)(tokens),), state, jnp.asarray(work.tokens())


def jattn_column(work: Work) -> Column:
    return jitted(*ours(work))


def products(work: Work) -> Column:
    run = products_of(*ours(work))
    return Column(lambda: (run(),), 0, comparable=False)


def transformers_column(work: Work, attention: str) -> Column:
    import torch

    model, tokens = theirs(work), torch.from_numpy(work.tokens())

    def call() -> tuple[Any, ...]:
        model.set_attn_implementation(attention)
        with torch.no_grad():
            return (model(tokens)[0],)

    return Column(call, 0)


COLUMNS: dict[str, Callable[[Work], Column]] = {
    "jattn": jattn_column,
    "transformers": functools.partial(transformers_column, attention="sdpa"),
    "transformers, eager": functools.partial(transformers_column, attention="eager"),
    FLOOR: products,
}


def main(arguments: list[str]) -> None:
    parser = parser_of("models", __doc__, COLUMNS)
    parser.set_defaults(passes=PASSES[:1])
    parser.add_argument("--models", nargs="+", choices=list(CLASSES), default=list(CLASSES), help="of these only")
    parser.add_argument("--lengths", nargs="+", type=at_least_one, default=[512], metavar="T", help="how many tokens")
    parser.add_argument("--batch", type=at_least_one, default=8, help="how many sequences")
    parser.add_argument("--width", type=at_least_one, default=384, help="of the model, in heads of 32")
    parser.add_argument("--layers", type=at_least_one, default=6, help="how many blocks")
    options = parser.parse_args(arguments)
    longest = max(options.lengths)
    works = (
        (
            {"model": name, "T": t},
            Work(name, settings_for(name, options.width, options.layers, longest), options.batch, t),
            TOLERANCE["float32"],
        )
        for name in options.models
        for t in options.lengths
    )
    run(f"models forward, float32, width {options.width}, batch {options.batch}", works, COLUMNS, options)
