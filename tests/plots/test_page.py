"""What the page of `attention_view` does in a browser."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jattn.plots import attention_view
from tests.plots.test_view import HEADS, LAYERS, PAIRS, SOURCE, TARGET, TOKENS, WEIGHTS, T, softmax


@pytest.fixture
def visit(browser, tmp_path) -> Iterator[Any]:
    """Opens a view, at an address that ends so; whatever the console says by the end is a failure."""
    complaints: list[str] = []
    contexts = []

    def open_page(view: Any, fragment: str = "", **options: Any) -> Any:
        path = tmp_path / "view.html"
        view.save(path)
        context = browser.new_context(**{"viewport": {"width": 1180, "height": 780}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if "view.html" not in request.url else None)
        page.goto(f"{path.as_uri()}{fragment}")
        settle(page)
        return page

    open_page.complaints = complaints  # type: ignore[attr-defined]
    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def until(page: Any, condition: str) -> None:
    """Playwright's own way to wait would evaluate text in the page, which its policy forbids."""
    for _ in range(1000):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(10)
    raise AssertionError(f"{condition} is still false.")


def settle(page: Any) -> None:
    """Until what was last asked for is drawn, and the address is written."""
    page.wait_for_selector("html[data-drawn]")
    until(page, "!scheduled && current?.kind === state.kind && current.number === state.layer")
    until(page, "location.protocol === 'about:' || fragment() === location.hash.slice(1)")


def option(page: Any, side: str, index: int) -> Any:
    return page.locator(f"#{side} [role=option]").nth(index)


def sentence(weights: np.ndarray, token: str) -> str:
    """What is said of a query with these weights."""
    most = ", ".join(f"'{TOKENS[i]}' {weights[i]:.2f}" for i in np.argsort(-weights)[:3])
    return f"query '{token}' attends most to {most}"


def inked(page: Any, canvas: str = "#lines") -> int:
    """How many pixels of a canvas are drawn."""
    count = f"c => ({PIXELS})(c, 0, 0, c.width, c.height).filter((x, i) => i % 4 == 3 && x).length"
    return page.locator(canvas).evaluate(count)


# Of a copy: browsers complain of a canvas that is drawn and read in turn.
PIXELS = """(canvas, x, y, width, height) => {
  const copy = Object.assign(document.createElement('canvas'), {width: canvas.width, height: canvas.height});
  const context = copy.getContext('2d', {willReadFrequently: true});
  context.drawImage(canvas, 0, 0);
  return [...context.getImageData(x, y, width, height).data];
}"""
VIEW = attention_view(TOKENS, WEIGHTS, title="Cats")
ONLY_HEAD_1 = "#layer=2&heads=1"


class TestBrowser:
    def test_the_weights_are_those_given(self, visit):
        page = visit(VIEW)
        for i in range(LAYERS):
            seen = page.evaluate(
                f"layerOf(0, {i}).then(x => Array.from({{length: x.heads * x.t * x.s}}, (_, i) =>"
                "weightAt(x, Math.floor(i / x.t / x.s), Math.floor(i / x.s) % x.t, i % x.s)))"
            )
            apart = np.abs(np.reshape(seen, WEIGHTS[i].shape) - WEIGHTS[i])
            assert np.all(apart <= WEIGHTS[i].max(-1, keepdims=True) / 510 * (1 + 1e-5))
        assert page.title() == page.inner_text("h1") == "Cats"

    def test_hover_and_click(self, visit):
        page = visit(VIEW, ONLY_HEAD_1)
        before = inked(page)
        option(page, "queries", 2).hover()
        settle(page)
        most = int(WEIGHTS[2, 1, 2].argmax())
        assert page.inner_text("#details h2") == "sat"
        assert page.locator("#details li bdi").first.inner_text() == TOKENS[most]
        assert option(page, "keys", most).locator(".weight").inner_text() == f"{WEIGHTS[2, 1, 2, most]:.2f}"
        assert 0 < inked(page) < before
        page.mouse.move(5, 5)
        settle(page)
        assert page.locator("#details h2").count() == 0

        option(page, "keys", 3).click()
        page.mouse.move(5, 5)
        settle(page)
        assert option(page, "keys", 3).get_attribute("aria-selected") == "true"
        column = WEIGHTS[2, 1, :, 3]
        assert page.locator("#details li bdi").first.inner_text() == TOKENS[int(column.argmax())]
        assert "gets most from" in page.inner_text("#details")
        option(page, "keys", 3).click()  # lets go
        settle(page)
        assert page.locator("#details h2").count() == 0
        assert page.locator("[aria-selected=true][role=option]").count() == 0

    def test_a_tap(self, visit):
        page = visit(VIEW, ONLY_HEAD_1, has_touch=True, is_mobile=True)
        option(page, "queries", 1).tap()
        settle(page)
        assert page.inner_text("#live") == sentence(WEIGHTS[2, 1, 1], "cat")

    def test_keyboard(self, visit):
        page = visit(VIEW, ONLY_HEAD_1)
        option(page, "queries", 0).focus()
        page.keyboard.press("ArrowDown")
        settle(page)
        assert page.inner_text("#live") == sentence(WEIGHTS[2, 1, 1], "cat")
        focused = "[document.activeElement.parentElement.id, Number(document.activeElement.dataset.index)]"
        for key, place in [
            ("End", ["queries", 5]),
            ("ArrowUp", ["queries", 4]),
            ("ArrowRight", ["keys", 4]),
            ("Home", ["keys", 0]),
            ("ArrowUp", ["keys", 0]),
            ("ArrowLeft", ["queries", 0]),
        ]:
            page.keyboard.press(key)
            assert page.evaluate(focused) == place
        settle(page)
        assert page.locator("#queries [tabindex='0']").count() == page.locator("#keys [tabindex='0']").count() == 1
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Escape")
        settle(page)
        assert page.locator("[role=option][aria-selected=true]").count() == 0

    def test_every_control_is_reached_by_tab_and_named(self, visit):
        page = visit(VIEW)
        seen = []
        for _ in range(30):
            page.keyboard.press("Tab")
            seen.append(
                page.evaluate(
                    "document.activeElement.id || document.activeElement.ariaLabel || document.activeElement.className"
                )
            )
        for name in ("tab-lines", "layer", "head 0", "head 3", "all", "none", "search"):
            assert name in seen
        snapshot = page.locator("body").aria_snapshot()
        for line in (
            'combobox "Layer"',
            'searchbox "Find"',
            'tab "Lines" [selected]',
            'group "Heads"',
            'button "head 0" [pressed]',
            'listbox "Queries: tokens that attend"',
            'option "the"',
        ):
            assert line in snapshot

    def test_heads(self, visit):
        page = visit(VIEW, "#query=2")
        settle(page)
        mean = WEIGHTS[0, :, 2].mean(0)
        first = page.locator("#details li").first
        assert first.locator("bdi").inner_text() == TOKENS[int(mean.argmax())]
        assert abs(float(first.locator(".weight").inner_text()) - mean.max()) < 2e-3
        assert first.locator("i").count() == HEADS
        page.locator("#heads button").nth(1).click()
        settle(page)
        assert page.locator("#heads [aria-pressed=true]").count() == 3
        assert page.url.endswith("#heads=0,2,3&query=2")
        page.locator("#heads button").nth(3).dblclick()
        settle(page)
        assert page.url.endswith("#heads=3&query=2")
        page.click("#none")
        settle(page)
        assert (page.inner_text("#details"), inked(page)) == ("No heads are chosen.", 0)
        page.click("#all")
        settle(page)
        assert inked(page) > 0

    def test_layers_with_different_heads(self, visit):
        page = visit(attention_view(TOKENS, [WEIGHTS[0], WEIGHTS[1, :1], WEIGHTS[2, :0]]))
        for layer, heads in enumerate((4, 1, 0)):
            page.select_option("#layer", str(layer))
            settle(page)
            assert page.locator("#heads [aria-pressed=true]").count() == page.locator("#heads button").count() == heads
        assert page.inner_text("#details") == "Layer 2 has no heads."
        page.select_option("#layer", "0")
        settle(page)
        assert page.locator("#heads [aria-pressed=true]").count() == 4

    def test_tabs(self, visit):
        page = visit(VIEW)
        page.focus("#tab-lines")
        for name, key in (("matrix", "ArrowRight"), ("heads", "End"), ("lines", "ArrowRight"), ("heads", "ArrowLeft")):
            page.keyboard.press(key)
            settle(page)
            assert page.evaluate("document.activeElement.id") == f"tab-{name}"
            assert page.locator("[role=tabpanel]:visible").get_attribute("id") == f"panel-{name}"
            assert page.locator("[role=tab][aria-selected=true]").get_attribute("id") == f"tab-{name}"

    def test_matrix(self, visit):
        page = visit(VIEW, "#view=matrix&layer=1&heads=2")
        margin, cell = page.evaluate("[matrix.margin, matrix.cell]")
        assert margin > 0  # labels
        page.locator("#matrix").hover(position={"x": margin + 3.5 * cell, "y": margin + 1.5 * cell})
        settle(page)
        assert page.inner_text("#details h2") == "cat → on"
        assert page.locator("#details .weight").inner_text() == f"{WEIGHTS[1, 2, 1, 3]:.3f}"
        page.mouse.move(5, 5)
        page.focus("#matrix")
        for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "End"):  # the first chooses the first cell
            page.keyboard.press(key)
        settle(page)
        assert page.inner_text("#live") == f"query 'cat', key 'mat': {WEIGHTS[1, 2, 1, 5]:.3f}"
        assert page.url.endswith("view=matrix&cell=1,5")

        # The pixels: the largest weight has the ramp's last colour.
        q, k = np.unravel_index(WEIGHTS[1, 2].argmax(), (T, T))
        colour = page.locator("#matrix").evaluate(
            f"c => ({PIXELS})(c, {margin + (k + 0.5) * cell}, {margin + (q + 0.5) * cell}, 1, 1)"
        )
        assert colour == [13, 27, 84, 255]

    def test_all_heads(self, visit):
        page = visit(VIEW, "#view=heads")
        until(page, "document.querySelectorAll('.layer[data-drawn]').length === 3")
        pictures = page.locator(".layer button canvas")
        assert pictures.count() == LAYERS * HEADS
        assert len({pictures.nth(i).evaluate("c => c.toDataURL()") for i in range(LAYERS * HEADS)}) == LAYERS * HEADS
        page.get_by_role("button", name="layer 1, head 2").hover()
        assert page.inner_text("#details h2") == "layer 1, head 2"
        page.get_by_role("button", name="layer 1, head 2").click()
        settle(page)
        assert page.url.endswith("#layer=1&heads=2")
        assert page.locator("#panel-lines").is_visible()

    def test_search(self, visit):
        page = visit(VIEW, ONLY_HEAD_1)
        page.fill("#search", "THE")
        settle(page)
        assert page.inner_text("#found") == "2 found"
        assert page.locator("#queries [data-found]").count() == page.locator("#keys [data-found]").count() == 2
        for at, index in ((1, 0), (2, 4), (1, 0)):
            page.press("#search", "Enter")
            settle(page)
            assert page.inner_text("#found") == f"{at} of 2"
            assert option(page, "queries", index).get_attribute("aria-selected") == "true"
        page.press("#search", "Shift+Enter")
        assert page.inner_text("#found") == "2 of 2"
        page.fill("#search", "dog")
        assert page.inner_text("#found") == "not found"

    def test_search_in_the_matrix(self, visit):
        page = visit(VIEW, "#view=matrix&layer=2&heads=1")
        before = page.locator("#matrix").evaluate("c => c.toDataURL()")
        page.fill("#search", "sat")
        page.press("#search", "Enter")
        settle(page)
        assert page.inner_text("#live") == sentence(WEIGHTS[2, 1, 2], "sat")
        assert page.locator("#matrix").evaluate("c => c.toDataURL()") != before

    def test_the_address_restores_all(self, visit):
        fragment = "#kind=1&layer=1&heads=0&view=matrix&query=2&cell=3,1&search=K%C3%A4"
        view = attention_view(SOURCE, PAIRS, query_tokens=TARGET)
        page = visit(view, fragment)
        assert page.url.endswith(fragment)
        assert page.input_value("#search") == "Kä"
        assert [page.input_value(f"#{name}") for name in ("kind", "layer")] == ["1", "1"]
        assert page.inner_text("#details h2") == "sat → Katze"
        page.evaluate("location.hash = '#kind=0&key=1'")  # as if someone pasted it
        until(page, "state.kind === 0")
        settle(page)
        assert option(page, "keys", 1).get_attribute("aria-selected") == "true"
        assert page.locator("#keys .token").all_text_contents() == TARGET

    @pytest.mark.parametrize(
        "fragment", ["#kind=9&layer=-1&heads=x,99&query=1e3", "#%&=&view=%00", "#cell=1", "#heads=", "#heads=abc"]
    )
    def test_an_address_that_fits_nothing(self, visit, fragment):
        page = visit(VIEW, fragment)
        assert page.evaluate("[state.kind, state.layer, state.view, state.pinned, state.cell]") == [
            0,
            0,
            "lines",
            None,
            None,
        ]
        assert page.locator("#heads [aria-pressed=true]").count() == HEADS

    def test_no_heads_are_an_address_too(self, visit):
        assert visit(VIEW, "#heads=none").inner_text("#details") == "No heads are chosen."

    def test_encoder_and_decoder(self, visit):
        weights = {"encoder self-attention": [softmax((3, 4, 4))], "alignment": softmax((5, 4))}
        page = visit(attention_view(SOURCE, weights, query_tokens=TARGET))
        assert page.locator("#queries .token").all_text_contents() == SOURCE
        page.select_option("#kind", label="alignment")
        settle(page)
        assert page.locator("#queries .token").all_text_contents() == TARGET
        assert page.locator("#keys .token").all_text_contents() == SOURCE
        option(page, "queries", 4).click()
        settle(page)
        most = SOURCE[int(weights["alignment"][4].argmax())]
        assert page.inner_text("#live").startswith(f"query '.' attends most to '{most}'")

    def test_what_a_causal_mask_forbids_has_no_line(self, visit):
        page = visit(attention_view(TOKENS, softmax((1, 1, T, T), causal=True)), "#query=1")
        assert page.locator("#details li bdi").count() == 2
        assert page.locator("#keys [data-shade]").count() == 2

    def test_tokens_are_data(self, visit):
        tokens = [
            "<script>window.hit = 1</script>", "</script><script>window.hit = 1</script>", "<!--", "\"'`&amp;",
            "a\u2028b", "\ud83d", "שלום", "", " <img src=x onerror='window.hit = 1'>", "\n", " ", "{{weights}}",
            "a\u202eb", "\0",
        ]  # fmt: skip
        shown = [
            *tokens[:4], "a⟨U+2028⟩b", "⟨U+D83D⟩", "שלום", "⟨empty⟩", "␣<img src=x onerror='window.hit = 1'>", "↵", "␣",
            "{{weights}}", "a⟨U+202E⟩b", "⟨U+0000⟩",
        ]  # fmt: skip
        page = visit(
            attention_view(tokens, softmax((14, 14)), title=tokens[1]), "#search=<script>window.hit=1</script>"
        )
        assert page.locator("#queries .token").all_text_contents() == shown
        for i in range(14):
            option(page, "queries", i).click()
            settle(page)
            assert page.inner_text("#details h2") == shown[i]
        assert page.inner_text("h1") == page.title() == tokens[1]
        page.click("#tab-matrix")
        settle(page)
        assert page.evaluate("window.hit") is None

    def test_nothing_else_may_run(self, visit):
        page = visit(VIEW)
        page.evaluate("fetch('https://example.invalid').catch(() => 0)")
        page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hit = 1'}))"
        )
        assert page.evaluate("window.hit") is None
        assert len(visit.complaints) >= 2
        assert all("Content Security Policy" in text for text in visit.complaints)
        visit.complaints.clear()

    @pytest.mark.parametrize("view", ["lines", "matrix", "heads"])
    def test_a_phone(self, visit, view):
        tokens = ["a_very_long_token_" * 5, *TOKENS[1:]]
        weights = softmax((12, 12, T, T))
        page = visit(
            attention_view(tokens, weights),
            f"#view={view}&query=0",
            viewport={"width": 375, "height": 740},
            has_touch=True,
        )
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        heights = page.evaluate(
            "[...document.querySelectorAll('button, select, input, [role=option]')].map(x => x.offsetHeight)"
        )
        assert min(height for height in heights if height) >= 24

    def test_on_a_phone_the_token_is_not_hidden_by_its_weights(self, visit):
        view = attention_view([f"token{i}" for i in range(16)], np.eye(16))
        page = visit(view, "#query=9", viewport={"width": 375, "height": 600}, has_touch=True)
        token, details = option(page, "queries", 9).bounding_box(), page.locator("#details").bounding_box()
        assert token["y"] >= 0
        assert token["y"] + token["height"] <= details["y"]

    def test_on_a_phone_a_long_token_leaves_room_for_its_numbers(self, visit):
        view = attention_view(["a_very_long_token_" * 17, *TOKENS[1:]], WEIGHTS)
        page = visit(view, "#query=0", viewport={"width": 320, "height": 640}, has_touch=True)
        details = page.locator("#details").bounding_box()
        number = page.locator("#details .weight").nth(1).bounding_box()
        assert number["y"] + number["height"] <= details["y"] + details["height"]
        assert number["x"] + number["width"] <= details["x"] + details["width"]

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_printed(self, visit, scheme):
        page = visit(VIEW, "#query=2", color_scheme=scheme)
        page.emulate_media(media="print", color_scheme=scheme)
        settle(page)
        assert not page.locator("#controls").is_visible()
        assert not page.locator("#tabs").is_visible()
        assert page.locator("#details .weight").first.is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 34, 48)"

    def test_light_and_dark(self, visit):
        grounds = []
        for scheme in ("light", "dark"):
            page = visit(VIEW, color_scheme=scheme)
            grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            # Text on its ground, by the contrast of the web's guidelines.
            assert page.evaluate(CONTRAST) >= 4.5
        assert grounds == ["rgb(251, 251, 253)", "rgb(18, 21, 28)"]

    def test_views_in_a_notebook_keep_to_themselves(self, visit):
        other = attention_view(SOURCE, softmax((4, 4)), title="Other")
        page = visit(SimpleNamespace(save=lambda path: path.write_text(notebook(VIEW, other), encoding="utf-8")))
        first, second = page.frames[1:]
        option(first, "queries", 1).click()
        settle(first)
        assert first.inner_text("#details h2") == "cat"
        assert second.locator("#details h2").count() == 0
        assert second.locator("#queries .token").all_text_contents() == SOURCE

    def test_hundreds_of_tokens(self, visit):
        t = 512
        weights = softmax((2, 3, t, t))
        page = visit(attention_view([f"token{i}" for i in range(t)], weights), "#query=400")
        box = option(page, "queries", 400).bounding_box()
        assert 0 < box["y"] < 780
        assert page.locator("#details li").count() == 8
        page.select_option("#layer", "1")
        settle(page)
        mean = weights[1, :, 400].mean(0)
        assert page.locator("#details li bdi").first.inner_text() == f"token{mean.argmax()}"
        # The bar of the most attended leads to it.
        page.locator("#details li button").first.click()
        box = option(page, "keys", int(mean.argmax())).bounding_box()
        assert 0 < box["y"] < 780


# The smallest contrast of text and ground by the web's guidelines, WCAG 2.
CONTRAST = """Math.min(...[...document.querySelectorAll('#heads button, .token, h1, label, [role=tab], p')].map(x => {
  const probe = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const luminance = colour => {
    probe.fillStyle = colour;
    probe.fillRect(0, 0, 1, 1);
    const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = [...probe.getImageData(0, 0, 1, 1).data].map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let ground = x;
  while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
  const [a, b] = [getComputedStyle(x).color, getComputedStyle(ground).backgroundColor].map(luminance);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}))"""


def notebook(*views: Any) -> str:
    """A document with several cells' outputs, and names and a style of its own that would disturb them."""
    names = "scheduled = false, current = {kind: 0, number: 0}, state = {kind: 0, layer: 0}, fragment = () => ''"
    cells = "".join(view._repr_html_() for view in views)
    head = f"<style>* {{ color: red }}</style><script>const {names}</script>"
    return f"<!DOCTYPE html><html data-drawn=0>{head}{cells}"
