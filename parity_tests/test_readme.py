"""The README's code runs as it stands there, and prints what stands below it."""

from pathlib import Path

import pytest

from docs.making.code import blocks, run, without_errors

README = Path(__file__).parent.parent / "README.md"
BLOCKS = [(block.code, block.output) for block in blocks(README.read_text())]


@pytest.mark.every_case
@pytest.mark.parametrize(("code", "output"), BLOCKS)
def test_block(
    code: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # it may write
    run(code, "README.md", {})
    if output:
        assert without_errors(capsys.readouterr().out) == without_errors(output)
