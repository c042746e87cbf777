"""The table of families: its rows say what was done, and the page has one for each of them."""

from pathlib import Path

import pytest

from parity_tests.models.hugging_face.table import CASES, COLUMNS, MARKS, row_of, write

pytest.importorskip("transformers", reason="no transformers: families were not compared with its models")

PAGE = Path(__file__).parents[3] / "docs" / "models.md"


@pytest.mark.whole
@pytest.mark.parametrize("name", ["T5", "OLMo 2", "CLIP"])
def test_a_row(name: str) -> None:
    kind, error, generates, shards, prunes = row_of(CASES[name])
    assert kind == name.replace(" ", "")
    assert float(error) < 1e-14
    assert (generates, shards) == ("-" if name == "CLIP" else "yes", "yes")
    if name == "OLMo 2":  # whose norm of queries is over all heads
        assert prunes.startswith("no: heads must name layers that can lose heads")
    else:
        assert prunes == "yes"


def test_the_page_has_a_row_for_each() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition(MARKS[0])[2].partition(MARKS[1])[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n") if line]
    assert tuple(rows[0]) == COLUMNS
    assert [row[0] for row in rows[2:]] == list(CASES)


def test_writing_replaces_the_table_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}old\n{MARKS[1]}after\n")
    write(page, [("a", "b", "c", "d", "e", "f")])
    assert page.read_text() == (
        f"before\n{MARKS[0]}\n| family | class | error | generates | shards | prunes |\n"
        f"| --- | --- | --- | --- | --- | --- |\n| a | b | c | d | e | f |\n\n{MARKS[1]}after\n"
    )
