"""A small language model, trained here, goes on with prompts by every method of `jattn.decoding`.

    python -m examples.generate [--prompt TEXT ...] [--text FILE] [--tokens 60] [--epochs 5] [--out figures/generate]

The model is of Llama's kind, four blocks of which every second sees 16 tokens only, so that it needs to remember no
more of them. It learns the prose of Python's own documentation, or that of a file, token by token: common words are
one token, others their characters. A smaller model learns beside it, to draft for it.

It prints the perplexity of paragraphs that were held out; the continuations by the most probable token, by drawing, by
beam search and by speculation, with how many of the drafted tokens were kept; a text as it comes, one that ends with a
string, and a queue of prompts. It saves who attends to whom in a drawn text as a page, attention.html.

Under two minutes on 2 quiet cores, most of it to learn. Expected: perplexity 34, 1.6 bits a character, and 45 for
the smaller one, of whose drafts a third is kept; most continuations are phrases of English, of one kind with the text,
that repeat themselves where no token is drawn, mean little, and spell rare words wrongly.
"""

import argparse
import ast
import itertools
import re
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.text import Text

from examples import options
from jattn import plots
from jattn.decoding import Job, attention_of, beam_search, generate, processors, serve, speculate, stream
from jattn.models import TextDecoder
from jattn.nn import Norm, Rotary
from jattn.training import adamw, fit, one_cycle_lr

console = Console(highlight=False)
ROW = 128  # tokens that are learned in a row
WINDOW = 16
PIECE = re.compile(r" ?\w+| ?[^\w\s]+|\s")
PROMPTS = ["The value of the", "Return a new", "If the file cannot be opened,"]


class Vocabulary:
    """Texts as numbers and back: a piece of text that is common is one token, others are a token for each character."""

    def __init__(self, text: str, least: int = 5) -> None:
        common = [piece for piece, times in Counter(PIECE.findall(text)).items() if times >= least and len(piece) > 1]
        self.tokens = [*sorted(set(text)), *common]
        self.numbers = {token: i for i, token in enumerate(self.tokens)}

    def encode(self, text: str) -> list[int]:
        if unknown := set(text) - set(self.numbers):
            raise ValueError(f"text must have characters of the training text only. Got {''.join(sorted(unknown))!r}.")
        pieces = PIECE.findall(text)
        return [self.numbers[x] for piece in pieces for x in ([piece] if piece in self.numbers else piece)]

    def decode(self, tokens: Iterable[int]) -> str:
        return "".join(self.tokens[i] for i in tokens)


def documentation() -> Iterator[str]:
    """What `help` says, and what the modules of the standard library say of themselves."""
    yield from topics.values()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


def paragraphs(texts: Iterable[str]) -> list[str]:
    """Those that look like prose, each once, on a line of its own."""
    found = dict.fromkeys(" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text))
    return [part + "\n" for part in found if len(part) > 80 and part[0].isupper() and part[-1] in ".:"]


def loss(model: TextDecoder, rows: jax.Array, rng: jax.Array) -> jax.Array:
    """The mean cross-entropy of each next token."""
    logits = model(rows[:, :-1], rng=rng)
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()


def trained(
    v: int, features: int, windows: Sequence[int | None], rows: Sequence[np.ndarray], arguments: argparse.Namespace
) -> tuple[TextDecoder, float]:
    """A decoder with a block for each window, and its loss on the second of the rows."""
    block: dict[str, Any] = dict(
        num_heads=features // 32,
        feedforward_features=3 * features,
        norm="pre",
        norm_kind="rms",
        activation="silu",
        gated=True,
        use_bias=False,
        feedforward_bias=False,
        rotary=Rotary(),
    )
    layers = [{**block, "window": window} for window in windows]
    model = TextDecoder(v, features=features, layers=layers, norm=Norm("rms"), rngs=nnx.Rngs(arguments.seed))
    batch_size = min(8, len(rows[0]))
    history = fit(
        model,
        *rows,
        loss=loss,
        optimizer=adamw(one_cycle_lr(5e-3, max(arguments.epochs * (len(rows[0]) // batch_size), 4)), weight_decay=0.1),
        epochs=arguments.epochs,
        batch_size=batch_size,
        drop_last=True,
        seed=arguments.seed,
        clip_norm=1.0,
    )
    return model, history.validation_losses[-1]


def continue_all(
    model: TextDecoder, draft: TextDecoder, words: Vocabulary, prompts: list[list[int]], arguments: argparse.Namespace
) -> None:
    """Every method, on the prompts; a paragraph ends with the end of its line."""
    end, rng = words.numbers["\n"], jax.random.key(arguments.seed)
    lens = jnp.array([len(prompt) for prompt in prompts])
    padded = jnp.array([prompt + [end] * (int(lens.max()) - len(prompt)) for prompt in prompts])
    asked: dict[str, Any] = dict(max_new_tokens=arguments.tokens, eos=end)

    console.rule("Greedy: each token the most probable one")
    greedy = generate(model, padded, lens, **asked)
    show(arguments.prompt, greedy.tokens, words, greedy.log_probabilities.sum(-1))

    console.rule("Beam search: of whole continuations the best, by keeping four")
    found = beam_search(model, padded, lens, beams=4, length_penalty=0.0, **asked)
    show(arguments.prompt, found.tokens, words, found.scores)

    console.rule("Drawn: temperature 0.8, of the 50 most probable, of those the first 95%")
    likely = [processors.temperature(0.8), processors.top_k(50), processors.top_p(0.95)]
    drawn = generate(model, padded, lens, processors=likely, rng=rng, **asked)
    show(arguments.prompt, drawn.tokens, words, drawn.log_probabilities.sum(-1))

    console.rule("Drawn, three sequences of one prompt")
    three = generate(model, padded[:1], lens[:1], processors=likely, rng=rng, sequences=3, **asked)
    show(arguments.prompt[:1] * 3, three.tokens[0], words, three.log_probabilities[0].sum(-1))

    console.rule("Speculative: the small model drafts, the model decides")
    hows: dict[str, Any] = {"greedy": {}, "drawn": dict(processors=likely, rng=rng)}
    for name, how in hows.items():
        sped = speculate(model, draft, padded, lens, ahead=4, **asked, **how)
        accepted, drafted = int(sped.accepted.sum()), int(sped.drafted.sum())
        console.print(f"  {name}: {accepted} of {drafted} drafted tokens accepted, {sped.lengths.sum()} in all.")
        if not how:
            same = bool((sped.tokens == greedy.tokens).all())
            console.print(f"  {'The same tokens' if same else 'Not the same tokens'} as without a draft.")

    console.rule("As it comes, up to the first full stop")
    console.print(Text.assemble("  ", (arguments.prompt[-1], "bold"), " |"), end="")
    last = jnp.array(prompts[-1:])
    coming = stream(model, last, processors=likely, rng=rng, stop=".", decode=words.decode, **asked)
    for (token,) in coming:
        console.file.write(words.decode([token]))
        console.file.flush()  # each token as soon as it is there
    console.print()

    console.rule("A queue through two slots, as they end")
    jobs = [Job(prompt, max_new_tokens=n) for prompt, n in zip(prompts * 2, itertools.cycle((24, 6, 12, 3)))]
    for served in serve(model, jobs, slots=2, eos=end, processors=likely, rng=rng):
        show([f"{served.number}: {(arguments.prompt * 2)[served.number]}"], served.tokens[None], words)

    text, weights = attention_of(model, padded, drawn, lens)
    layers = {f"layer 0, the last {WINDOW} tokens": weights[:1], "layer 3, all tokens": weights[3:]}
    page = plots.attention_view([words.tokens[i] for i in text], layers, title="A drawn text")
    page.save(arguments.out / "attention.html")


def show(prompts: Sequence[str], tokens: Any, words: Vocabulary, log_probabilities: Any = None) -> None:
    """Each prompt, how it goes on to the end of the paragraph, and how probable that is."""
    for i, prompt in enumerate(prompts):
        said = words.decode(np.asarray(tokens[i]).tolist()).split("\n")[0]
        note = "" if log_probabilities is None else f"  ({log_probabilities[i]:.1f})"
        console.print(Text.assemble("  ", (prompt, "bold"), " |", said, (note, "dim")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", nargs="+", default=PROMPTS, help="what to go on with")
    parser.add_argument("--text", type=Path, help="a file to learn; its paragraphs have empty lines between them")
    parser.add_argument("--tokens", type=options.count, default=60, help="of a continuation, at most")
    parser.add_argument("--epochs", type=options.count, default=5, help="how often the text is seen")
    parser.add_argument("--seed", type=options.seed, default=0, help="of parameters, batches and what is drawn")
    parser.add_argument("--out", type=options.folder, default="figures/generate", help="folder for the page")
    arguments = parser.parse_args()
    start = time.perf_counter()

    prose = paragraphs(documentation() if arguments.text is None else [arguments.text.read_text(encoding="utf-8")])
    held_out = "".join(prose[::16])
    words = Vocabulary("".join(prose))
    prompts = [words.encode("\n" + prompt) for prompt in arguments.prompt]  # each begins a paragraph
    learned = "".join(part for i, part in enumerate(prose) if i % 16)
    numbers = [np.array(words.encode(text)) for text in (learned, held_out)]
    if min(map(len, numbers)) <= ROW:
        raise ValueError(f"--text must have more prose: over {ROW} tokens in every sixteenth paragraph of it alone.")
    rows = [np.lib.stride_tricks.sliding_window_view(x, ROW + 1)[::ROW] for x in numbers]
    v = len(words.tokens)
    console.print(f"{len(prose)} paragraphs, {sum(map(len, numbers))} tokens, {v} of them different.")
    model, nats = trained(v, 96, (WINDOW, None) * 2, rows, arguments)
    draft, of_draft = trained(v, 64, (None,), rows, arguments)
    for name, x in (("model", nats), ("draft", of_draft)):
        bits = x * len(numbers[1]) / len(held_out) / np.log(2)
        console.print(f"Held out, the {name}: perplexity {np.exp(x):.1f} of tokens, {bits:.2f} bits a character.")
    console.print(f"Trained in {time.perf_counter() - start:.0f} s. Log-probabilities are in brackets.")
    continue_all(model, draft, words, prompts, arguments)
    console.print(f"The page is in {arguments.out}. Took {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
