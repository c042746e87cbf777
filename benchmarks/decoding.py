"""Greedy continuation, with the same weights: jattn's, compiled, beside transformers' generate with its cache.

With ``--columns jattn transformers "transformers, compiled"`` also beside its static cache and ``torch.compile``, which
needs a C++ compiler, and minutes.

    python -m benchmarks decoding [--sizes NAME ...] [--batches B ...] [--prompts T ...] [--new N ...]
        [--columns NAME ...] [--rounds 3] [--json FILE]

Random prompts and weights in float32, GPT-2 of width 384 with 6 layers, or of its own smallest size. One new token is
what reading the prompt takes, and the difference to more of them is what each further one takes: the second table. The
third has jattn alone: what a token takes while more or fewer are still to come, and what the caches hold, of all tokens
or of a window.
"""

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.table import Table

from benchmarks.comparison import (
    MIB,
    PASSES,
    Column,
    LeftOut,
    Row,
    at_least_one,
    best_of,
    new_table,
    parser_of,
    print_table,
    run,
)
from jattn import decoding, models, nn

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

    def call() -> tuple[Any, ...]:
        return (decoding.generate(model, prompts, max_new_tokens=work.new).tokens,)

    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    # Logits of random weights lie close together, so that a token may be another by rounding.
    return Column(call, 0, seconds[0] - seconds[1], False)


def transformers_column(work: Work, **options: Any) -> Column:
    import torch

    model, prompts = theirs(work.size), torch.from_numpy(work.prompts())
    how = dict(do_sample=False, max_new_tokens=work.new, min_new_tokens=work.new, pad_token_id=0)
    given = dict(attention_mask=torch.ones_like(prompts), **how, **options)
    return Column(lambda: (model.generate(prompts, **given)[:, work.t :],), 0, None, False)


def compiled_column(work: Work) -> Column:
    """With a cache of one size for all tokens, and each step after the prompt compiled."""
    import torch
    import transformers

    config = transformers.CompileConfig()
    config._compile_all_devices = True  # type: ignore[assignment]  # or generate leaves the option without effect on a CPU
    column = transformers_column(work, cache_implementation="static", compile_config=config)
    torch.compiler.reset()  # or what was compiled for other lengths counts, and after some of them nothing is compiled
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        try:
            column.call()
        except RuntimeError as error:
            raise LeftOut(f"did not compile: {next(filter(None, str(error).splitlines()), type(error))}") from error
        seconds.append(time.perf_counter() - start)
    if not hasattr(theirs(work.size), "_compiled_call"):
        raise LeftOut("did not compile: this version of generate refuses to")
    return column._replace(compiling=seconds[0] - seconds[1])


PLAIN: dict[str, Callable[[Work], Column]] = {"jattn": jattn_column, "transformers": transformers_column}
COLUMNS = {**PLAIN, "transformers, compiled": compiled_column}


class PerToken(NamedTuple):
    """What each token after the first takes, in seconds."""

    label: Row
    columns: dict[str, float]


def per_token(rows: list[Row]) -> list[PerToken]:
    """From the rows with the fewest and the most new tokens."""
    found = []
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault((row["size"], row["batch"], row["prompt"]), []).append(row)
    for (size, batch, prompt), some in alike.items():
        few, many = (f(some, key=lambda row: row["new"]) for f in (min, max))
        if few["new"] < many["new"]:
            steps = many["new"] - few["new"]
            both = [name for name in many["seconds"] if name in few["seconds"]]
            seconds = {name: (best_of(many, name) - best_of(few, name)) / steps for name in both}
            found.append(PerToken({"size": size, "batch": batch, "prompt": prompt}, seconds))
    return found


def table_of_tokens(found: list[PerToken]) -> Table:
    table = new_table("each further token")
    names = list(found[0].columns)
    for header in [*found[0].label, *(f"{name}\n{unit}" for name in names for unit in ("ms", "tokens/s"))]:
        table.add_column(header, justify="right", no_wrap=True)
    for name in names[1:]:
        table.add_column(f"{names[0]} /\n{name}", justify="right")
    for label, columns in found:
        cells = [cell for x in columns.values() for cell in (f"{1000 * x:.2f}", f"{label['batch'] / x:.0f}")]
        table.add_row(*map(str, label.values()), *cells, *(f"{columns[names[0]] / columns[x]:.2f}" for x in names[1:]))
    return table


def print_flat(size: str, batch: int, t: int, rounds: int, new: Iterable[int], window: int) -> None:
    """A token's time while so many are asked for, measured over the same ones; and the bytes of the caches."""
    work, steps = Work(size, batch, t, 1), 32
    prompts = jnp.asarray(work.prompts())
    best: dict[tuple[str, int], float] = {}
    held: dict[tuple[str, int], float] = {}
    models_of = {"all": ours(size), f"window of {window}": windowed(size, window)}
    for _ in range(rounds):
        for name, model in models_of.items():
            for n in new:
                stream = decoding.stream(model, prompts, max_new_tokens=n)
                for _ in range(2):
                    next(stream)
                start = time.perf_counter()
                for _ in range(steps):
                    next(stream)
                seconds = (time.perf_counter() - start) / steps
                best[name, n] = min(best.get((name, n), seconds), seconds)
                held[name, n] = sum(x.nbytes for x in jax.tree.leaves(stream.state)) / MIB
    table = new_table(f"{size}, {batch} x {t}")
    for header in ("attends to", "asked for", "ms a token", "caches MiB"):
        table.add_column(header, justify="right")
    for (name, n), seconds in best.items():
        table.add_row(name, str(n), f"{1000 * seconds:.2f}", f"{held[name, n]:.1f}")
    print_table(table)


@functools.cache
def windowed(size: str, window: int) -> models.TextDecoder:
    """A decoder of that size whose blocks see so many tokens."""
    sizes = SIZES[size]
    block = dict(num_heads=sizes["n_head"], feedforward_features=4 * sizes["n_embd"], norm="pre", window=window)
    layers = [{**block, "rotary": nn.Rotary()}] * sizes["n_layer"]
    model = models.TextDecoder(
        sizes["vocab_size"], features=sizes["n_embd"], layers=layers, norm=nn.Norm("layer"), rngs=nnx.Rngs(0)
    )
    model.eval()
    return model


def main(arguments: list[str]) -> None:
    parser = parser_of("decoding", __doc__, COLUMNS)
    parser.set_defaults(passes=PASSES[:1], rounds=3, columns=list(PLAIN))
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="of these only")
    parser.add_argument("--batches", nargs="+", type=at_least_one, default=[1, 8], metavar="B", help="how many prompts")
    parser.add_argument("--prompts", nargs="+", type=at_least_one, default=[64, 512], metavar="T", help="their length")
    parser.add_argument("--new", nargs="+", type=at_least_one, default=[1, 128], metavar="N", help="tokens that follow")
    parser.add_argument(
        "--flat", nargs="*", type=at_least_one, default=[64, 480], metavar="N", help="asked for in the third table"
    )
    options = parser.parse_args(arguments)
    works = (
        ({"size": size, "batch": b, "prompt": t, "new": n}, Work(size, b, t, n), None)
        for size in options.sizes
        for b in options.batches
        for t in options.prompts
        for n in options.new
    )
    rows = run("greedy continuation, float32", works, COLUMNS, options)
    if found := per_token(rows):
        print_table(table_of_tokens(found))
    if options.flat:
        print_flat(options.sizes[0], options.batches[-1], options.prompts[-1], options.rounds, options.flat, 256)
