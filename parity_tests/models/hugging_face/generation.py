"""Greedy continuations of decoders beside ``generate`` of Hugging Face's `transformers`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jattn import models

__all__ = ["LENS", "TOKENS", "V", "assert_continues_alike"]

V = 29
TOKENS = np.random.default_rng(0).integers(0, V, (3, 7))
LENS = np.array([7, 4, 1])


def make_sure_of_itself(hf: Any, seed: int) -> None:
    """Large weights, small biases and embeddings: otherwise the last norm's bias would say which token follows, or the
    last token itself."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in hf.named_parameters():
        std = 0.1 if parameter.ndim < 2 else 5 * parameter.shape[0] ** -0.5
        std *= 0.1 if "embed" in name else 1.0
        mean = 1.0 if parameter.ndim < 2 and name.endswith("weight") else 0.0  # a norm's scale
        torch.nn.init.normal_(parameter, mean, std, generator=generator)


def assert_continues_alike(kind: Any, hf: Any) -> None:
    """Token for token as ``generate`` does: whole prompts, padded ones (theirs on the left), and until eos."""
    n, tokens = 9, torch.from_numpy(TOKENS)

    def generate(prompt: torch.Tensor, mask: torch.Tensor | None = None, **options: Any) -> np.ndarray:
        mask = torch.ones_like(prompt) if mask is None else mask
        options = {"do_sample": False, "max_new_tokens": n, "eos_token_id": None, "pad_token_id": 0, **options}
        return hf.generate(prompt, attention_mask=mask, **options)[:, prompt.shape[1] :].numpy()

    with jax.enable_x64(True), torch.no_grad():
        for seed in range(20):  # many random models say one token again and again, which shows nothing
            make_sure_of_itself(hf, seed)
            theirs = generate(tokens)
            if len(np.unique(theirs)) > 4:
                break
        else:
            raise AssertionError("hf must say more than 4 tokens with some seed to show anything")
        ours = kind.from_hugging_face(hf.config.to_dict(), hf.state_dict())
        all_real = jnp.full_like(jnp.asarray(LENS), 7)  # the program that padded prompts run as well
        whole = models.greedy_continuation(ours, jnp.asarray(TOKENS), all_real, max_new_tokens=n)
        np.testing.assert_array_equal(whole.tokens, theirs)

        padded = models.greedy_continuation(ours, jnp.asarray(TOKENS), jnp.asarray(LENS), max_new_tokens=n)
        for i, length in enumerate(LENS):
            np.testing.assert_array_equal(padded.tokens[i], generate(tokens[i : i + 1, :length])[0])
        left = torch.stack([row.roll(7 - int(length)) for row, length in zip(tokens, LENS, strict=True)])
        mask = (torch.arange(7) >= 7 - torch.from_numpy(LENS)[:, None]).long()
        np.testing.assert_array_equal(padded.tokens, generate(left, mask))

        eos = [int(whole.tokens[0, 3]), int(whole.tokens[1, 1])]
        ended = models.greedy_continuation(ours, jnp.asarray(TOKENS), max_new_tokens=n, eos=eos, pad=5)
        theirs = generate(tokens, eos_token_id=eos, pad_token_id=5)
        theirs = np.pad(theirs, ((0, 0), (0, n - theirs.shape[1])), constant_values=5)
        np.testing.assert_array_equal(ended.tokens, theirs)
        assert int(ended.lengths.min()) < n
        for row, length in zip(theirs, ended.lengths, strict=True):
            assert length == n or row[length - 1] in eos
