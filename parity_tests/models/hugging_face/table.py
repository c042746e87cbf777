"""What works of each family of Hugging Face's, found by doing it with tiny models of `transformers`, as a table.

    python -m parity_tests.models.hugging_face.table [--families NAME ...] [--markdown FILE]

Some minutes on 2 cores.
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jattn import heads, models
from jattn.parity.widen import float64_throughout
from jattn.weights import files
from parity_tests.models.hugging_face import decoders, encoder_decoders, encoders, vision
from parity_tests.models.hugging_face.case import Arrays, Case
from parity_tests.nn import randomised

__all__ = ["CASES", "COLUMNS", "MARKS", "row_of", "write"]

CASES: dict[str, Case] = {**decoders.ROWS, **encoders.ROWS, **encoder_decoders.ROWS, **vision.ROWS}


def theirs_on(hf: Any, given: Arrays) -> np.ndarray:
    """The main output of a model of `transformers`."""
    arrays = {name: np.moveaxis(x, -1, 1) if name == "pixel_values" else x for name, x in given.items()}
    with torch.no_grad():
        out = hf(**{name: torch.from_numpy(x) for name, x in arrays.items()})
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits], -1).numpy()
    names = ("logits", "logits_per_image", "text_embeds", "image_embeds", "last_hidden_state")
    return next(out[name] for name in names if name in out).numpy()


def ours_on(model: Any, given: Arrays) -> Any:
    """Ours."""
    out = jax.jit(lambda *inputs: model(*inputs))(*map(jnp.asarray, given.values()))
    return out.per_image if isinstance(out, models.CLIPOutput) else out


def row_of(case: Case) -> tuple[str, ...]:
    """The class here, the largest error of its output in float64, and of each deed yes, or why not."""
    with tempfile.TemporaryDirectory() as folder, float64_throughout(), jax.enable_x64(True):
        hf = randomised(case.made())
        hf.save_pretrained(folder)
        ours, theirs = models.load(folder), theirs_on(hf, case.given)
        error = float(np.abs(np.asarray(ours_on(ours, case.given)).reshape(theirs.shape) - theirs).max())
        return (
            type(ours).__name__,
            f"{error / np.abs(theirs).max():.0e}",
            _said(_generates, hf, ours, case) if case.generates else "-",
            _said(_shards, hf, ours, case),
            _said(_prunes, hf, ours, case),
        )


def _said(deed: Callable[[Any, Any, Case], bool], *arguments: Any) -> str:
    try:
        return "yes" if deed(*arguments) else "no: other numbers"
    except (ValueError, TypeError, NotImplementedError) as error:
        return f"no: {str(error).splitlines()[0]:.80}"


def _generates(hf: Any, ours: Any, case: Case) -> bool:
    """Five tokens, as its ``generate``."""
    from transformers.generation import GenerationMixin

    theirs = {name: torch.from_numpy(x) for name, x in case.given.items()}
    prompt = theirs.get("decoder_input_ids", theirs.get("input_ids"))
    how = {"do_sample": False, "num_beams": 1, "max_new_tokens": 5, "use_cache": False, "eos_token_id": None}
    expected = GenerationMixin.generate(hf, **theirs, **how)[:, prompt.shape[1] :].numpy()
    source = {} if len(case.given) == 1 else {"source": jnp.asarray(next(iter(case.given.values())))}
    found = models.greedy_continuation(ours, jnp.asarray(prompt.numpy()), max_new_tokens=5, **source)
    return bool((np.asarray(found.tokens) == expected).all())


def _shards(hf: Any, ours: Any, case: Case) -> bool:
    """In bfloat16, out of several files, and back the same bits."""
    with tempfile.TemporaryDirectory() as folder:
        small = randomised(case.made()).to(torch.bfloat16)
        small.save_pretrained(folder, max_shard_size="4KB")
        back = models.load(folder).to_hugging_face()
        several = len(list(Path(folder).glob("*.safetensors"))) > 1
        # A pooler that nothing asks for may be left out.
        entries = {name: x for name, x in files.load(folder).items() if name in back or "pooler" not in name}
        return several and all((files.to_numpy(back[name]) == x).all() for name, x in entries.items())


def _prunes(hf: Any, ours: Any, case: Case) -> bool:
    """Without a head, and with its output at zero, the same."""
    path, layer = next(iter(heads.layers(ours).items()))
    pruned = heads.prune(ours, {path: [1]})
    expected = ours_on(pruned, case.given)
    layer.out.kernel[...] = layer.out.kernel[...].at[1].set(0)
    return bool(np.abs(np.asarray(expected - ours_on(ours, case.given))).max() < 1e-12)


COLUMNS = ("family", "class", "error", "generates", "shards", "prunes")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(CASES), default=list(CASES), help="of these only")
    parser.add_argument("--markdown", type=Path, help="write the table there, between its marks")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    rows = [(name, *row_of(CASES[name])) for name in track(options.families, "Loading", transient=True)]
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if options.markdown is not None:
        write(options.markdown, rows)


MARKS = "<!-- written by a command -->\n", "<!-- until here -->\n"


def write(page: Path, rows: Sequence[tuple[str, ...]]) -> None:
    """The table in place of the one that stands between the marks."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    page.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
