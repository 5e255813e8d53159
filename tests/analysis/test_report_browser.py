"""The report in headless Chromium: switches, sorting, keyboard, phone width, dark mode, no request leaves the page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save
from simulated import Decay, simulate

from forward_influence.analysis.reading.selections import Choice, DocumentSelections, read_selections
from forward_influence.analysis.report.page import report
from forward_influence.storage.run import Run

playwright = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"),
]
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
RULES = {name: Decay("power", level, 0.6) for name, level in (("attention", 1.0), ("entropy", 0.2), ("random", 0.1))}


@dataclass
class Site:
    """A report on disk and the run that it is about."""

    run: Run
    address: str
    selections: list[DocumentSelections]


@dataclass
class View:
    """An open page, and what went wrong in it."""

    page: playwright.Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def _with_hostile_text(run: Run) -> None:
    """Put markup into the tokens of the first document's context."""
    stem = run.documents[0]["part"]
    path, part = run.selections_path(stem), run.part(stem)

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    pieces = json.loads(metadata["pieces/0"])
    pieces[10] = HOSTILE
    pieces[11] = "<b>bold</b> &amp; \u2028 &lt;"
    assert part is not None
    run.write_part(stem, part.rows, {}, save(load_file(path), metadata={**metadata, "pieces/0": json.dumps(pieces)}))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("browser")
    run = simulate(folder / "run", RULES, documents=6, draws=2, layers=3, heads=2, save_selections=True)
    _with_hostile_text(run)
    path = folder / "report.html"
    path.write_text(report([run]).html, encoding="utf-8")
    return Site(run, path.as_uri(), list(read_selections(run)))


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


def open_view(browser: playwright.Browser, site: Site, width: int = 1280, scheme: str = "light") -> View:
    """The report opened in a fresh context, once its token view is ready."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    view = View(context.new_page())
    view.page.on("request", lambda request: view.requests.append(request.url))
    view.page.on("pageerror", lambda error: view.errors.append(str(error)))
    view.page.on("console", lambda m: view.errors.append(m.text) if m.type in ("error", "warning") else None)
    view.page.goto(site.address)
    view.page.wait_for_selector("#token-view[data-ready='0']")
    return view


@pytest.fixture
def view(browser: playwright.Browser, site: Site) -> Iterator[View]:
    opened = open_view(browser, site)
    yield opened
    assert opened.errors == []
    assert opened.requests == [site.address]
    opened.page.context.close()


def shades(view: View, panel: int = 0) -> np.ndarray:
    """The shading of every token of a panel, as the page computed it: (n,), 0..0.85."""
    script = "(p) => [...document.querySelectorAll('.text')[p].children].map(t => +t.style.getPropertyValue('--s'))"
    return np.array(view.page.evaluate(script, panel))


def chosen(site: Site, document: int, rule: str) -> Choice:
    return next(c for c in site.selections[document].choices if c.selector == rule)


def test_selection_is_shaded_by_rule_layer_head_and_document(view: View, site: Site) -> None:
    attention = chosen(site, 0, "attention").selection
    assert np.allclose(shades(view), 0.85 * attention.mean((0, 1)), atol=6e-4)
    view.page.get_by_label("Left layer").select_option("1")
    assert np.allclose(shades(view), 0.85 * attention[1].mean(0), atol=6e-4)
    view.page.get_by_label("Left head").select_option("1")
    assert np.allclose(shades(view), 0.85 * attention[1, 1], atol=6e-4)
    view.page.get_by_label("Left layer").select_option("all")
    assert np.allclose(shades(view), 0.85 * attention[:, 1].mean(0), atol=6e-4)
    view.page.get_by_label("Left rule").select_option(label="random · draw 0")
    random = next(c for c in site.selections[0].choices if c.selector == "random" and c.seed == 0).selection
    assert np.allclose(shades(view), 0.85 * random[:, 1].mean(0), atol=6e-4)
    view.page.locator("#pick-document").select_option("3")
    view.page.wait_for_selector("#token-view[data-ready='3']")
    other = next(c for c in site.selections[3].choices if c.selector == "random" and c.seed == 0).selection
    assert np.allclose(shades(view), 0.85 * other[:, 1].mean(0), atol=6e-4)


def test_two_rules_stand_side_by_side(view: View, site: Site) -> None:
    entropy = chosen(site, 0, "entropy").selection
    assert np.allclose(shades(view, 1), 0.85 * entropy.mean((0, 1)), atol=6e-4)
    left, right = (view.page.locator(".panel").nth(k).bounding_box() for k in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    assert view.page.locator(".text").nth(0).inner_text() == view.page.locator(".text").nth(1).inner_text()


def test_shading_by_score_follows_the_ranks(view: View, site: Site) -> None:
    view.page.get_by_label("Shade by").select_option("rank")
    choice, context = chosen(site, 0, "entropy"), site.selections[0].contexts[0]
    made = shades(view, 1)[context.first : context.stop]
    assert choice.scores is not None
    scores = choice.scores[0, 0, context.first : context.stop]
    assert (np.diff(made[np.argsort(scores)]) >= 0).all()
    assert made.max() == pytest.approx(0.85)


def test_hovering_tells_score_and_share_in_both_panels(view: View, site: Site) -> None:
    view.page.locator(".text").nth(0).locator(".t").nth(12).hover()
    attention, entropy = chosen(site, 0, "attention"), chosen(site, 0, "entropy")
    count = int(attention.selection[:, :, 12].sum())
    left, right = (view.page.locator(".detail").nth(k).inner_text() for k in (0, 1))
    assert left.startswith("attention. Token 12 ")
    assert f"selected in {count} of 6 layer-heads" in left
    assert entropy.scores is not None
    told = float(re.search(r"; score ([\d.e-]+) \(the same in every layer and head\)", right)[1])
    assert told == pytest.approx(float(entropy.scores[0, 0, 12]), rel=0.06)
    assert "% of candidates" in right
    assert "% of candidates, on average" in left
    view.page.get_by_label("Left layer").select_option("1")
    view.page.get_by_label("Left head").select_option("1")
    one = view.page.locator(".detail").nth(0).inner_text()
    # one score per token is kept: with one layer and head chosen it is still the mean over all, and says so
    assert attention.scores is not None
    told = float(re.search(r"; score (-?[\d.e-]+) \(mean over all layers and heads\)", one)[1])
    assert told == pytest.approx(float(attention.scores[:, :, 12].mean()), rel=0.06)
    assert "% of candidates." in one
    view.page.locator(".text").nth(0).locator(".t").nth(0).hover()
    assert "protected" in view.page.locator(".detail").nth(1).inner_text()


def test_arrow_keys_move_through_the_text(view: View) -> None:
    view.page.locator(".text").nth(1).locator(".t").nth(0).focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
        view.page.keyboard.press(key)
    assert view.page.evaluate("document.activeElement.dataset.i") == "11"
    assert view.page.locator(".detail").nth(0).inner_text().startswith("attention. Token 11 ")
    view.page.keyboard.press("End")
    assert view.page.evaluate("document.activeElement.dataset.i") == "255"


def test_everything_that_acts_is_reached_by_the_tab_key(view: View) -> None:
    reached = set()
    view.page.locator("a.skip").focus()
    for _ in range(200):
        reached.add(
            view.page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.id")
        )
        view.page.keyboard.press("Tab")
    assert {"Left rule", "Left layer", "Left head", "Right rule", "pick-document", "pick-shade"} <= reached


def test_markup_in_a_document_is_shown_as_text(view: View) -> None:
    text = view.page.locator(".text").nth(0)
    assert HOSTILE in text.text_content()
    assert "<b>bold</b> &amp; \u2028 &lt;" in text.text_content()
    assert view.page.locator(".text img, .text b, .text script").count() == 0
    assert view.page.title() == "Forward Influence: run"


def _column(view: View, table: str, column: int) -> list[str]:
    script = "([t, c]) => [...document.getElementById(t).tBodies[0].rows].map(r => r.cells[c].dataset.value)"
    return view.page.evaluate(script, [table, column])


def test_tables_sort_by_click_and_by_key(view: View) -> None:
    heading = view.page.locator("#table-comparison th").nth(2)
    before = _column(view, "table-comparison", 2)
    heading.locator("button").click()
    assert _column(view, "table-comparison", 2) == sorted(before, key=float)
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").press("Enter")
    assert _column(view, "table-comparison", 2) == sorted(before, key=float, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    rules = view.page.locator("#table-comparison th").nth(0)
    rules.locator("button").click()
    assert _column(view, "table-comparison", 0) == sorted(_column(view, "table-comparison", 0))
    assert heading.get_attribute("aria-sort") is None


def test_cells_without_a_value_stay_last(view: View) -> None:
    button = view.page.locator("#table-comparison th").nth(3).locator("button")
    for _ in range(2):
        button.click()
        column = _column(view, "table-comparison", 3)
        assert column[-3:] == ["", "", ""]
        assert "" not in column[:-3]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A report whose pictures have many panels, and of a run that is not finished."""
    folder = tmp_path_factory.mktemp("wide")
    some = {"budgets": ("0.1", "0.2"), "effects": ("total", "direct"), "save_selections": True}
    run = simulate(folder / "run", RULES, documents=7, measured=6, draws=1, **some)
    path = folder / "report.html"
    path.write_text(report([run]).html, encoding="utf-8")
    return Site(run, path.as_uri(), [])


def _text_height(view: View, selector: str) -> float:
    """Pixels of a picture's axis label, as drawn."""
    script = """(s) => { const svg = document.querySelector(s + ' svg');
      const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
      return scale * parseFloat(getComputedStyle(svg.querySelector('text')).fontSize); }"""
    return float(view.page.evaluate(script, selector))


def test_pictures_with_many_panels_take_the_whole_width(browser: playwright.Browser, wide: Site) -> None:
    view = open_view(browser, wide)
    page = view.page.locator("#pictures").bounding_box()
    figure = view.page.locator("figure.wide").nth(0).bounding_box()
    narrow = view.page.locator("figure:not(.wide)").nth(0).bounding_box()
    assert figure["width"] > 0.95 * page["width"]
    assert narrow["width"] < 0.6 * page["width"]
    assert _text_height(view, "figure.wide") >= 9
    assert view.page.locator(".missing").inner_text().startswith("run is not finished; documents: 6 of 7 measured")
    view.page.context.close()


def test_on_a_phone_wide_pictures_scroll_within_themselves(browser: playwright.Browser, wide: Site) -> None:
    view = open_view(browser, wide, 390)
    assert view.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    drawing = view.page.locator("figure.wide .drawing").nth(0)
    assert drawing.evaluate("e => e.scrollWidth > e.clientWidth")
    assert _text_height(view, "figure.wide") >= 8
    assert _text_height(view, "figure:not(.wide)") >= 8
    view.page.context.close()


def test_dark_pages_show_nothing_around_the_overlap_map(browser: playwright.Browser, site: Site) -> None:
    """What is masked is not there: no path in the page's white."""
    view = open_view(browser, site, scheme="dark")
    svg = view.page.locator("figure", has_text="Share of the budget").locator("svg").inner_html()
    meshes = svg[svg.index("QuadMesh") : svg.index("text_1")]
    assert "stroke: #ffffff" not in meshes
    view.page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width_has_no_sideways_scrolling(browser: playwright.Browser, site: Site, scheme: str) -> None:
    view = open_view(browser, site, 390, scheme)
    root = "document.documentElement"
    assert view.page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") == 0
    left, right = (view.page.locator(".panel").nth(k).bounding_box() for k in (0, 1))
    assert left["y"] + left["height"] <= right["y"]
    assert view.errors == []
    view.page.context.close()


def _luminance(colour: str) -> float:
    """Relative luminance (WCAG) of an rgb(...) colour."""
    channels = np.array([float(x) for x in colour[colour.index("(") + 1 : -1].replace(",", " ").split()[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_light_and_dark_are_readable(browser: playwright.Browser, site: Site, scheme: str, dark: bool) -> None:
    view = open_view(browser, site, scheme=scheme)
    page = _luminance(view.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (page < 0.1) == dark
    for selector in ("body", "nav.page a", ".quiet", "figcaption", "td", "figure svg text"):
        name = "fill" if selector.endswith("text") else "color"
        ink = view.page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{name}")
        low, high = sorted((_luminance(ink), page))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector
    view.page.context.close()
