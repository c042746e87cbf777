"""The README's code runs as it stands there, and prints what stands below it."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", README.read_text(), re.DOTALL)


@pytest.mark.every_case
@pytest.mark.parametrize(("code", "output"), BLOCKS)
def test_block(
    code: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # it writes checkpoints
    exec(compile(code, "README.md", "exec"), {})
    if output:
        assert without_errors(capsys.readouterr().out) == without_errors(output)


def without_errors(text: str) -> str:
    """Less the sizes of errors, which are not the same on every machine."""
    return re.sub(r"\d(\.\d)?e[-+]\d\d", "#", text)
