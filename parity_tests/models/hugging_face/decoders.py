"""What the tests of GPT-2 and of Llama share: tiny models of Hugging Face's `transformers` beside ours."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jattn import models

V = 29
TOKENS = np.random.default_rng(0).integers(0, V, (3, 7))
LENS = np.array([7, 4, 1])


def logits_and_weights(hf: torch.nn.Module, parameters: dict[str, torch.Tensor], tokens: Any, valid_lens: Any) -> Any:
    """What a model of theirs says with these parameters, through which gradients flow.

    Theirs gives the weights in the model's dtype, ours in float32 or wider.
    """
    real = torch.ones_like(tokens) if valid_lens is None else torch.arange(tokens.shape[1]) < valid_lens[:, None]
    arguments = {"input_ids": tokens, "attention_mask": real.long(), "output_attentions": True}
    outputs = torch.func.functional_call(hf, parameters, (), arguments)
    wide = [weights.to(torch.promote_types(weights.dtype, torch.float32)) for weights in outputs.attentions]
    return outputs.logits, wide


def assert_loads_and_dumps(kind: Any, hf: Any, folder: Path) -> None:
    """From their state dict and from their folder the same model, and back the same bits, in each dtype."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        with jax.enable_x64(dtype == torch.float64), torch.no_grad():
            theirs = hf.to(dtype).state_dict()
            hf.save_pretrained(folder)
            for ours in (kind.from_hugging_face(hf.config.to_dict(), theirs), kind.from_folder(folder)):
                back = ours.to_hugging_face()
                assert back.keys() == theirs.keys()
                for name, tensor in theirs.items():
                    assert back[name].dtype == dtype
                    assert torch.equal(back[name], tensor), name
                hf.load_state_dict(back)
            if dtype == torch.float32:  # and before the frequencies of Llama's positions were rounded to bfloat16
                logits = nnx.jit(ours)(jnp.asarray(TOKENS))
                np.testing.assert_allclose(logits, hf(torch.from_numpy(TOKENS)).logits, rtol=1e-5, atol=1e-5)


def sure_of_itself(hf: Any, seed: int = 0) -> Any:
    """Large weights, small biases and embeddings: otherwise the last norm's bias would say which token follows, or the
    last token itself."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in hf.named_parameters():
        std = 0.1 if parameter.ndim < 2 else 5 * parameter.shape[0] ** -0.5
        std *= 0.1 if "embed" in name else 1.0
        mean = 1.0 if parameter.ndim < 2 and name.endswith("weight") else 0.0  # a norm's scale
        torch.nn.init.normal_(parameter, mean, std, generator=generator)
    return hf


def assert_continues_alike(kind: Any, hf: Any, seed: int = 0) -> None:
    """Token for token as ``generate`` does: whole prompts, padded ones (theirs on the left), and until eos."""
    n, tokens = 9, torch.from_numpy(TOKENS)

    def generate(prompt: torch.Tensor, mask: torch.Tensor | None = None, **options: Any) -> np.ndarray:
        mask = torch.ones_like(prompt) if mask is None else mask
        options = {"do_sample": False, "max_new_tokens": n, "eos_token_id": None, "pad_token_id": 0, **options}
        return hf.generate(prompt, attention_mask=mask, **options)[:, prompt.shape[1] :].numpy()

    with jax.enable_x64(True), torch.no_grad():
        ours = kind.from_hugging_face(hf.config.to_dict(), sure_of_itself(hf, seed).state_dict())
        whole = models.greedy_continuation(ours, jnp.asarray(TOKENS), max_new_tokens=n)
        np.testing.assert_array_equal(whole.tokens, generate(tokens))
        assert len(np.unique(whole.tokens)) > 4, "these continuations are too much alike to show anything"

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
