"""The site: code on its pages runs and prints what stands below it, no rule is missing, no public module either."""

import re
import types
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from docs.making import drawing, tables
from docs.making.code import blocks, run, without_errors
from jattn import biases, masks, scores

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
ELSEWHERE = {"portable_programs.md"}  # in tests/portable, as its code is for two processes
WITH_CODE = {name: blocks(page) for name, page in PAGES.items() if blocks(page) and name not in ELSEWHERE}
SOON_DONE = ("idea.md", "index.md", "kernel_regression.md", "many_devices.md", "masks.md", "biases.md")


@pytest.mark.every_case
@pytest.mark.parametrize(
    "name", [name if name in SOON_DONE else pytest.param(name, marks=pytest.mark.whole) for name in WITH_CODE]
)
def test_code_of_a_page(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Block after block, as a reader types it."""
    if any("import torch\n" in block.code for block in WITH_CODE[name]):
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)  # some write files
    names: dict[str, object] = {}
    for block in WITH_CODE[name]:
        run(block.code, name, names)
        printed = capsys.readouterr().out
        assert without_errors(printed) == without_errors(block.output)


@pytest.mark.parametrize("module", [masks, biases])
def test_no_rule_is_missing_from_the_gallery(module: object) -> None:
    """Each function that makes one is drawn, by its name, below the line that calls it."""
    name = module.__name__.rpartition(".")[2]
    makers = set(module.__all__) - {"Grid", "Mask", "Bias", "over", "as_bias"}
    called = set(re.findall(rf"\b{name}\.(\w+)\(", "".join(block.code for block in WITH_CODE[f"{name}.md"])))
    assert called == makers
    sections = PAGES[f"{name}.md"].split("\n## ")[1:]
    drawn = {section.partition("\n")[0] for section in sections if drawing.MARK.search(section)}
    assert makers - {"all_of", "alibi_slopes"} <= drawn


def test_no_score_is_missing_from_its_page() -> None:
    sections = PAGES["scores.md"].split("\n## ")[1:]
    drawn = {section.partition("\n")[0] for section in sections if drawing.MARK.search(section)}
    assert set(scores.__all__) - {"Modification", "Modified", "Number", "Score"} <= drawn


def test_each_public_module_has_a_page() -> None:
    """Those that others reach by attributes, from `jattn` on."""
    public = {"jattn.nn.torch", *_public(jattn)}
    assert {path.stem for path in (DOCS / "api").glob("*.rst")} == public
    listed = re.findall(r"^api/(\S+)$", PAGES["index.md"], re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in (DOCS / "api").glob("*.rst"))


def test_the_first_page_of_the_api_lists_all() -> None:
    """In an order of its own, so by name."""
    listed = re.findall(r":: jattn\.(\w+)$", (DOCS / "api" / "jattn.rst").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == [name for name in jattn.__all__ if not isinstance(getattr(jattn, name), types.ModuleType)]


def _public(module: types.ModuleType) -> Iterator[str]:
    yield module.__name__
    for name in module.__all__:
        if isinstance(one := getattr(module, name), types.ModuleType):
            yield from _public(one)


def test_picture_of_a_mask() -> None:
    """Four cells are filled, in whole shade, and the grid has as many lines as it has edges."""
    svg = drawing.drawn(masks.dense(jnp.array([[True, False, True], [False, True, True]])), 2, 3)
    [path] = re.findall(r'<path class="more" opacity="(\S+)" d="(\S+ .*?)"', svg)
    assert path[0] == "1"
    assert re.findall(r"M([\d.]+) ([\d.]+)h", path[1]) == [
        ("0.06", "0.06"),
        ("2.06", "0.06"),
        ("1.06", "1.06"),
        ("2.06", "1.06"),
    ]
    assert 'class="less"' not in svg
    assert "2 queries, one a row, and 3 keys, one a column" in svg
    assert svg.count("figcaption") == 0


def test_picture_of_numbers() -> None:
    """The largest has the whole shade, half of it half, negative ones the other colour; what is no number has none."""
    svg = drawing.drawn(np.array([[4.0, -2.0, 0.0], [np.nan, -np.inf, 2.0]]))
    shades = re.findall(r'class="(more|less)" opacity="(\S+)" d="M([\d.]+) ([\d.]+)', svg)
    assert shades == [("more", "0.5", "2.06", "1.06"), ("more", "1", "0.06", "0.06"), ("less", "0.5", "1.06", "0.06")]


def test_pictures_of_examples_and_heads() -> None:
    svg = drawing.drawn(np.ones((2, 1, 3, 4)))
    assert re.findall("<figcaption>(.*?)</figcaption>", svg) == ["example 0", "example 1"]
    svg = drawing.drawn(np.ones((1, 7, 3, 4)))
    assert re.findall("<figcaption>(.*?)</figcaption>", svg) == ["head 0", "head 1", "head 2", "head 3"]


def test_a_mark_sees_the_code_above_it() -> None:
    page = "```python\na = 1\n```\n\n<!-- drawn 2 x 2: Rule(a) -->\n\n```python\na = 0\n```\n\nend\n"
    page = "```python\nfrom jattn.masks import causal as Rule\n```\n" + page
    written = drawing.with_pictures(page, "page")
    assert written.startswith("```python\nfrom")
    assert written.endswith("end\n")
    assert re.findall(r'class="more" opacity="1" d="(\S+ .*?)"', written)[0].count("M") == 4  # causal(1), all four


@pytest.mark.parametrize("text", ["1.16 (1.4)", "0.68 (-)", "1.4 s, 4,352 MiB", "6e-16", "(77)", " 0.89 ms "])
def test_a_cell_of_numbers(text: str) -> None:
    assert tables.is_number(text)


@pytest.mark.parametrize("text", ["", "-", "yes", "3 of them", "b t h d", "1 / sqrt(d)"])
def test_a_cell_of_words(text: str) -> None:
    assert not tables.is_number(text)
