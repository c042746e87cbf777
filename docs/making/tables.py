"""Cells of tables that hold numbers alone are marked, so that no line is broken in one, and tables of many columns."""

import re
from typing import Any

__all__ = ["is_number", "on_doctree"]

MANY = 8  # columns, from which on letters are small
_NUMBER = r"(?:\(-\)|\(?[-+]?\d[\d.,]*(?:e[-+]?\d+)?\)?(?: (?:ms|s|MiB|GiB))?)"


def on_doctree(app: Any, doctree: Any) -> None:
    """Sphinx's event: a page is read."""
    for cell in doctree.findall(lambda node: node.tagname == "entry"):
        if is_number(cell.astext()):
            cell["classes"].append("number")
    for table in doctree.findall(lambda node: node.tagname == "table"):
        if len(list(table.findall(lambda node: node.tagname == "colspec"))) >= MANY:
            table["classes"].append("many")


def is_number(text: str) -> bool:
    """Whether it is a number, or several, with units or without: ``1.16 (1.4)``, ``1.4 s, 0 MiB``."""
    return bool(re.fullmatch(rf"{_NUMBER}(?:,? {_NUMBER})*", text.strip()))
