"""Every example in its short form: it runs, and saves what it says."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[1]
SHORT = {
    "nadaraya_watson": ["--steps", "20"],
    "attention_regression": ["--epochs", "2", "--samples", "64"],
    "first_token_recall": ["--epochs", "1"],
    "date_translation": ["--epochs", "1", "--examples", "500"],
    "date_translation, sentences": ["--epochs", "2", "--pairs", "examples/data/eng-fra.tsv"],
    "digits": ["--epochs", "1", "--seeds", "1"],
}


@pytest.mark.parametrize("name", SHORT)
def test_example(name: str, tmp_path: Path) -> None:
    module = f"examples.{name.split(',')[0]}"
    command = [sys.executable, "-m", module, "--out", str(tmp_path), *SHORT[name]]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.glob("*.png"))


def test_none_is_forgotten() -> None:
    """The quickstart is run whole by CI; what is imported by another is no example of its own."""
    parts = {"__init__", "dates", "pairs", "quickstart"}
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} - parts == {name.split(",")[0] for name in SHORT}
