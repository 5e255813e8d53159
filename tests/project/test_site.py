"""The site of `make docs`, opened from its folder: nothing is fetched from elsewhere, and the search works."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "site"
CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH"),
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="`make docs` has built no site"),
]
playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture
def browser():
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield opened
        opened.close()


@pytest.mark.parametrize("page", ["index.html", "cli.html", "api.html"])
def test_pages_fetch_nothing_and_the_search_works(browser, page):
    opened = browser.new_page()
    asked: list[str] = []
    failed: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("requestfailed", lambda request: failed.append(request.url))
    opened.on("pageerror", lambda error: failed.append(str(error)))
    opened.goto((SITE / page).as_uri())
    opened.fill("input.md-search__input", "representation change")
    opened.wait_for_selector(".md-search-result__item", state="attached", timeout=20_000)
    assert not failed
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked), asked
