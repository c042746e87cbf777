"""Sentences to vectors by each family, beside sentence-transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jattn import models
from parity_tests.models.hugging_face.encoders import CONFIGS, V, made
from parity_tests.nn import randomised

WORDS = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(V - 4))]
SENTENCES = [" ".join(f"w{i}" for i in range(n)) for n in (3, 12, 1, 7)] + ["", "w1 w2 unknown w3"]


def save_tokenizer(folder: Path) -> None:
    """One of RoBERTa's kind: words between <s> and </s>, padded by the second token."""
    import tokenizers
    import transformers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    of_words = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=12, **names)
    of_words.save_pretrained(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_with_a_layer_on_its_vectors(name: str, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    import torch
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer import modules

    more: dict[str, Any] = {} if CONFIGS[name][0] == "MPNet" else {"pad_token_id": 1}
    randomised(made(name, "Model", **more)).float().save_pretrained(tmp_path / "hf")
    save_tokenizer(tmp_path / "hf")
    transformer = library.SentenceTransformer(str(tmp_path / "hf"), device="cpu")[0]
    dense = randomised(Dense(12, 5, activation_function=torch.nn.Tanh())).float()
    parts = [transformer, modules.Pooling(12, "mean"), dense, modules.Normalize()]
    theirs = library.SentenceTransformer(modules=parts, device="cpu")
    theirs.save(str(tmp_path / "sentences"))
    ours = models.SentenceEncoder.from_folder(tmp_path / "sentences")
    assert type(ours.encoder).__name__ == CONFIGS[name][0]
    assert ours.max_length == 12
    expected = theirs.encode(SENTENCES)
    assert np.abs(np.asarray(ours.embed(SENTENCES)) - expected).max() <= 1e-5
