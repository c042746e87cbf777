"""The code of a page, as the site draws of it and the tests run it."""

import re
from typing import Any, NamedTuple

__all__ = ["Block", "blocks", "run", "without_errors"]


class Block(NamedTuple):
    """A block of Python, where it ends, and what is said below it that it prints."""

    code: str
    end: int
    output: str


def blocks(page: str) -> list[Block]:
    """The blocks of Python of a page in Markdown."""
    found = re.finditer(r"^```python\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", page, re.DOTALL | re.MULTILINE)
    return [Block(one[1], one.end(), one[2] or "") for one in found]


def run(code: str, page: str, names: dict[str, Any]) -> None:
    """Run a block; what it defines is in names afterwards."""
    exec(compile(code, page, "exec"), names)


def without_errors(text: str) -> str:
    """Less the sizes of errors, which are not the same on every machine."""
    return re.sub(r"\d(\.\d)?e[-+]\d\d", "#", text)
