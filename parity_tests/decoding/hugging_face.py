"""The same decoding here and by ``generate`` of Hugging Face's `transformers`, both in float64: models and settings."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jattn import models
from jattn.decoding import processors
from jattn.parity.widen import float64_throughout
from parity_tests.models.hugging_face import decoders, encoder_decoders
from parity_tests.models.hugging_face.generation import LENS, TOKENS, V, make_sure_of_itself

__all__ = ["PAD", "PAIRS", "N", "Pair", "V", "pair"]

N, PAD = 7, 5
SOUND = np.random.default_rng(0).normal(size=(3, 5, 18))
SOURCE = np.random.default_rng(0).integers(0, V, (3, 9))
SOURCE_MASK = (np.arange(9) < np.array([9, 4, 6])[:, None]).astype(int)

# By a name: the model, and the seed with which it says different tokens.
PAIRS: dict[str, tuple[str, int]] = {
    "GPT-2, padded": ("GPT-2", 0),
    "Llama, padded": ("Llama", 0),
    "Mistral": ("Mistral", 4),  # a window of 4 tokens, so that its cache is a ring
    "Mistral, padded": ("Mistral", 4),
    "T5": ("T5", 5),
    "BART": ("BART", 2),
    "Whisper": ("Whisper", 4),
}


class Pair(NamedTuple):
    """A model of `transformers` and the same one here, and what both go on from."""

    hf: Any
    ours: Any
    given: dict[str, Any]  # to ours
    theirs: dict[str, Any]

    def generate(self, **options: Any) -> Any:
        """What theirs says after the prompts, most probable tokens unless there are beams.

        Whisper has a ``generate`` of its own, which begins with tokens of language and task, suppresses some and asks
        for times; that of all models does nothing of it.
        """
        from transformers.generation import GenerationMixin

        options = {"do_sample": False, "max_new_tokens": N, "pad_token_id": PAD, "eos_token_id": None, **options}
        out = GenerationMixin.generate(
            self.hf, **self.theirs, **options, return_dict_in_generate=True, output_scores=True
        )
        tokens = out.sequences[:, self.given["prompt"].shape[1] :].numpy()
        out.sequences = np.pad(tokens, ((0, 0), (0, N - tokens.shape[1])), constant_values=PAD)
        return out

    def ends(self) -> list[int]:
        """Tokens that would end examples at different times."""
        said = self.generate().sequences
        assert len(np.unique(said)) > 4, "it must say more than 4 tokens to show anything"
        return [int(said[0, 3]), int(said[1, 1])]

    def processors(self, eos: list[int], beams: int = 1) -> tuple[list[Any], dict[str, Any]]:
        """For ours and for theirs, which counts padding as it does tokens where it wants so many before an end."""
        t = self.given["prompt"].shape[1]
        lens = self.given["prompt_attention_mask"].sum(1) if "prompt_attention_mask" in self.given else jnp.full(3, t)
        ours = [
            processors.repetition_penalty(0.7),  # for repetition, so that there is some to forbid
            processors.no_repeat_ngrams(2),
            processors.min_length(jnp.repeat(lens + 4, beams), eos),
        ]
        return ours, {"repetition_penalty": 0.7, "no_repeat_ngram_size": 2, "min_length": t + 4}


@contextlib.contextmanager
def pair(name: str, folder: Path) -> Iterator[Pair]:
    """Both in float64, of which their logits would be float32 otherwise."""
    model, seed = PAIRS[name]
    is_decoder = model in decoders.CONFIGS
    with float64_throughout(), jax.enable_x64(True), torch.no_grad():
        hf = (decoders if is_decoder else encoder_decoders).made(model).eval()
        make_sure_of_itself(hf, seed)
        if model == "BART":
            _go_by_the_last_tokens(hf)
        hf.save_pretrained(folder)
        asked = _prompts(name.endswith("padded")) if is_decoder else _sources(hf)
        yield Pair(hf, models.load(folder), *asked)


def _go_by_the_last_tokens(hf: Any) -> None:
    """Of BART, whose norms come after the blocks: attention would drown the token, and the token its place."""
    for name, parameter in hf.named_parameters():
        if name.endswith(("out_proj.weight", "embed_positions.weight")):
            parameter.mul_(30 if "embed" in name else 0.04)


def _prompts(padded: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whole, or padded on the left."""
    lens = LENS if padded else np.full(3, 7)
    mask = (np.arange(7) >= 7 - lens[:, None]).astype(int)
    rolled = np.stack([np.roll(row, 7 - n) for row, n in zip(TOKENS, lens, strict=True)])
    tokens = np.where(mask, rolled, PAD)
    ours = {"prompt": jnp.asarray(tokens), "prompt_attention_mask": jnp.asarray(mask)}
    return ours, {"inputs": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask)}


def _sources(hf: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Texts padded on the right, or sound; targets start with one token."""
    theirs: dict[str, Any] = {"use_cache": False}  # it makes one for as many blocks as the encoder has
    ours: dict[str, Any] = {"prompt": jnp.full((3, 1), hf.config.decoder_start_token_id)}
    if hf.config.model_type == "whisper":
        return {**ours, "source": jnp.asarray(SOUND)}, {**theirs, "input_features": torch.from_numpy(SOUND)}
    ours |= {"source": jnp.asarray(SOURCE), "source_attention_mask": jnp.asarray(SOURCE_MASK)}
    return ours, {**theirs, "input_ids": torch.from_numpy(SOURCE), "attention_mask": torch.from_numpy(SOURCE_MASK)}
