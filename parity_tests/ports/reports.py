"""The whole report on a planted mistake of each kind.

python -m parity_tests.ports.reports [--markdown FILE]
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from parity_tests.ports.table import PORTS

__all__: list[str] = []

# Of each kind: the port, and the name of the mistake.
KINDS = {
    "Rotary positions": ("Mistral", "interleaved"),
    "Windows": ("Mistral", "window of 5"),
    "Masks": ("T5", "padding inverted"),
    "Biases of the logits": ("T5", "distance"),
    "Scale": ("Gemma 2", "scale of a head"),
    "Heads": ("Mistral", "tiled heads"),
    "Soft caps": ("Gemma 2", "another cap"),
    "Sinks": ("gpt-oss-like", "no sinks"),
    "Norms": ("Gemma 2", "no 1 + w"),
    "Where norms stand": ("Mistral", "post-norm"),
    "Feed-forward networks": ("ViT", "tanh GELU"),
    "Embeddings": ("Whisper", "first position"),
    "Weights": ("BLOOM", "packed by part"),
}


def reports() -> Iterator[tuple[str, str]]:
    """A title and the report for each kind, in float64 and without gradients."""
    for kind, (name, mistake) in KINDS.items():
        port = PORTS[name]
        planted = next(each for each in port.mistakes if each.name == mistake)
        report = port.compare(mistake=planted, dtypes=("float64",), gradients=False)
        yield f"{kind}: {name}, {mistake}", str(report)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, help="write them there too")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    texts = [f"## {title}\n\n```text\n{report}\n```\n" for title, report in reports()]
    print("\n".join(texts))
    if options.markdown is not None:
        options.markdown.write_text("\n".join([HEAD, *texts]))


HEAD = """# Reports of the port debugger

What `jattn.parity.compare` prints for one mistake of each kind, planted in ports of models of Hugging Face with random
weights. Written by `python -m parity_tests.ports.reports --markdown FILE`;
[all that are planted](planted_mistakes.md) are in a table.
"""

if __name__ == "__main__":
    main(sys.argv[1:])
