"""The explorer of the site: what it draws is what its own line makes, and what it skips is what jattn skips."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jattn import biases, masks
from tests.test_mask_spans import span

PAGE = Path(__file__).parents[1] / "docs" / "_extra" / "explore.html"
T, S, ROWS = 13, 11, 4
CASES = (
    "mask=all keys",
    "mask=causal",
    "mask=causal&mask.offset=3",
    "mask=sliding_window&mask.left=2&mask.right=1",
    "mask=dilated_window&mask.left=2&mask.right=1&mask.dilation=3",
    "mask=neighbourhood&mask.height=2&mask.width=3&mask.radius=1",
    "mask=lengths&mask.valid=7",
    "mask=lengths&mask.valid=0",
    "mask=prefix&mask.n=5",
    "mask=segments of one size&mask.size=3",
    "mask=causal&join=%26&other=sliding_window&other.left=2&other.right=0",
    "mask=sliding_window&mask.left=1&join=|&other=prefix&other.n=2",
    "mask=causal&join=|&other=all keys",
    "mask=causal&bias=alibi&bias.slope=0.5",
    "mask=prefix&bias=where, a hill&bias.distance=2&bias.width=1.5",
)


def test_picture_and_line_agree(browser: Any) -> None:
    complaints: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if PAGE.name not in request.url else None)
    page.goto(PAGE.as_uri())
    for case in CASES:
        fragment = f"t={T}&s={S}&rows={ROWS}&{case}"
        found = page.evaluate("(fragment) => { read(fragment); return described(); }", fragment)
        code = page.evaluate("$('code').textContent")
        names = {"jnp": jnp, "masks": masks, "biases": biases}
        mask = eval(found["mask"] or "masks.dense(jnp.ones((1, 1), bool))", names)
        np.testing.assert_array_equal(np.array(found["allowed"]), np.asarray(mask.as_array(T, S)), err_msg=case)
        if found["bias"]:
            bias = np.asarray(eval(found["bias"], names).as_array(T, S)).reshape(T, S)
            np.testing.assert_allclose(np.array(found["numbers"]), bias, rtol=1e-6, err_msg=case)
        spans = [tuple(map(int, span(mask, start, min(start + ROWS, T), S))) for start in range(0, T, ROWS)]
        kept = [(low, high) for low, high in spans if low < high]
        assert [(low, high) for low, high in found["spans"] if low < high] == kept, case
        given = [f"    {name}={found[name]},\n" for name in ("mask", "bias") if found[name]]
        assert all(line in code for line in given)
        compile(code, case, "exec")
    assert page.locator("#picture svg").count() == 1
    assert complaints == []


@pytest.mark.whole
def test_controls(browser: Any) -> None:
    """A rule shows its numbers, the picture follows, the address keeps it; nothing is wider than a phone."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(PAGE.as_uri())
    page.select_option("#mask", "sliding_window")
    page.locator("#mask-numbers input").nth(0).fill("1")
    page.fill("#t", "6")
    page.fill("#s", "6")
    assert "masks.sliding_window(1, 0)" in page.locator("#code").text_content()
    assert page.locator("#numbers").text_content().startswith("Of 36 pairs 11 may attend")
    assert "mask.left=1" in page.url
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.select_option("#join", "|")
    assert page.locator("#other").is_visible()
