"""The pages in a real browser: opened from disk, without a network, by people who see, read, print or use keys.

Needs Debian's chromium (`apt-get install chromium`); without it these tests are skipped.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from made_report import MadeReport, write_report
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER TESTS: chromium is missing (apt-get install chromium)"),
]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PAGES = ("index.html", "clusters/0.html", "failures/0-0.html")
HOSTILE = "</script><img src=x onerror=window.broken=1><b>&amp;\"'\u2028${1}{{2}}"
USABLE = 3.0  # seconds of the page's own thread, so that a busy machine is no reason to fail
DRAWN = "[...document.querySelectorAll('figure.chart')].every((figure) => 'drawn' in figure.dataset)"

Open = Callable[..., Page]


def until(page: Page, expression: str, seconds: float = 30.0) -> None:
    """Wait until an expression is true; Playwright's own waiting needs `eval`, which the pages forbid."""
    ends = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < ends, expression
        page.wait_for_timeout(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> MadeReport:
    return write_report(tmp_path_factory.mktemp("browser") / "run", failures=60)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open a page; at the end nothing may have been requested but files, and no error been logged."""
    troubles: list[str] = []
    contexts = []

    def open_one(folder: Path, name: str, **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: troubles.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(f"a dialog: {dialog.message}"))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else troubles.append(r.url))
        page.goto((folder / name).as_uri())
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not troubles


@pytest.mark.parametrize("name", PAGES)
def test_pages_draw_their_figures_without_errors_and_are_accessible(
    report: MadeReport, open_page: Open, name: str
) -> None:
    page = open_page(report.folder, name)
    until(page, DRAWN)
    assert page.locator("figure.chart svg").count() == page.locator("figure.chart").count() > 1
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page, options={"preload": False}).response["violations"]
        bad = [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]
        assert not bad, scheme


@pytest.mark.parametrize("name", PAGES)
def test_every_link_and_picture_resolves(report: MadeReport, open_page: Open, name: str) -> None:
    page = open_page(report.folder, name)
    until(page, DRAWN)
    found = page.evaluate("[...document.querySelectorAll('[href], [src]')].map((e) => e.href || e.src)")
    links = {urlsplit(link) for link in found if isinstance(link, str)}
    assert len(links) > 8 and {link.scheme for link in links} == {"file"}
    pages = {f"failures/{entry['failure']}.html" for entry in report.entries}
    for link in links:
        path = Path(unquote(link.path))
        known = path.is_relative_to(report.folder) and path.relative_to(report.folder).as_posix() in pages
        assert path.is_file() or known, path  # two of the made failures have a page
    broken = page.evaluate("[...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src)")
    assert not [source for source in broken if source]


def cells(page: Page, column: int) -> list[str]:
    return page.locator(f".failures tbody tr td:nth-child({column + 1})").all_inner_texts()


def test_the_table_is_sorted_filtered_searched_and_paged(report: MadeReport, open_page: Open) -> None:
    page = open_page(report.folder, "index.html")
    status, controls = page.locator(".failures [role=status]"), page.locator(".controls")
    assert status.inner_text() == "60 of 60 failures, 1 to 25 shown"
    context = page.get_by_role("button", name="context")
    context.focus()
    page.keyboard.press("Enter")
    values = [entry["context"] for entry in report.entries]
    assert cells(page, 2) == sorted(values, key=int)[:25], "numbers in texts are sorted as numbers"
    assert page.locator("th[aria-sort=ascending]").inner_text().strip() == "context"
    page.keyboard.press("Space")
    assert cells(page, 2) == sorted(values, key=int, reverse=True)[:25]
    controls.get_by_label("seed").select_option("3")
    assert status.inner_text() == "12 of 60 failures, 1 to 12 shown" and set(cells(page, 1)) == {"3"}
    controls.get_by_label("Framing 1").select_option("outer")
    assert set(cells(page, 6)) == {"outer"} and int(status.inner_text().split()[0]) == 4
    controls.get_by_label("seed").select_option("all")
    controls.get_by_label("Framing 1").select_option("all")
    page.get_by_role("searchbox").fill("3-1")
    assert all("3-1" in name for name in cells(page, 0)) and "3-1" in cells(page, 0)
    page.get_by_role("searchbox").fill("nothing such")
    assert status.inner_text() == "0 of 60 failures"
    page.get_by_role("searchbox").fill("")
    page.get_by_role("button", name="Next").click()
    assert status.inner_text() == "60 of 60 failures, 26 to 50 shown"
    page.get_by_label("rows a page").select_option("all")
    assert len(cells(page, 0)) == 60
    page.get_by_role("link", name="0-0").last.click()
    page.wait_for_url("**/failures/0-0.html")


def test_missing_values_are_sorted_last_both_ways(report: MadeReport, open_page: Open) -> None:
    page = open_page(report.folder, "index.html")
    for _ in range(2):
        page.get_by_role("button", name="rate corrected").click()
        assert set(cells(page, 8)) == {"–"}
    page.get_by_role("button", name="rate as paid").click()
    shares = [int(text.removesuffix("%")) for text in cells(page, 7)]
    assert shares == sorted(shares) and shares[0] == 50


def test_five_thousand_failures_stay_usable(tmp_path: Path, open_page: Open) -> None:
    many = write_report(tmp_path / "run", failures=5_000, pages=1)
    page = open_page(many.folder, "failures/0-0.html")
    measured = page.context.new_cdp_session(page)
    measured.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto((many.folder / "index.html").as_uri())
    controls = page.locator(".controls")
    page.wait_for_selector(".failures[data-ready]")
    page.get_by_role("button", name="rate as paid").click()
    controls.get_by_label("seed").select_option("4")
    assert page.locator(".failures [role=status]").inner_text().startswith("1000 of 5000")
    metrics = {each["name"]: each["value"] for each in measured.send("Performance.getMetrics")["metrics"]}
    until(page, DRAWN)
    controls.get_by_label("seed").select_option("all")
    page.get_by_label("rows a page").select_option("all")
    assert len(cells(page, 0)) == 5_000
    assert 0.0 < metrics["TaskDuration"] < USABLE, f"sorted and filtered after {metrics['TaskDuration']:.1f} s of work"


def test_the_failing_episode_is_played(report: MadeReport, open_page: Open) -> None:
    page = open_page(report.folder, "failures/0-0.html")
    player, status = page.locator(".player"), page.locator(".player [role=status]")
    assert status.inner_text() == "0: down"
    page.get_by_role("button", name="Next").click()
    assert status.inner_text() == "1: down (decisive step)" and "decisive" in (player.get_attribute("class") or "")
    page.get_by_role("slider").press("End")
    assert status.inner_text() == "2: down"
    page.get_by_role("button", name="Play").click()
    until(page, "document.querySelector('.player input').value === '2'")
    page.get_by_role("button", name="Play").wait_for()  # it stops at the end


def test_text_of_environments_stays_text(tmp_path: Path, open_page: Open) -> None:
    made = write_report(tmp_path / "run", failures=4, pages=1, text=HOSTILE)
    for name in PAGES:
        page = open_page(made.folder, name)
        until(page, DRAWN)
        assert page.evaluate("document.querySelectorAll('[onerror], figure b b, td b, img[src=x]').length") == 0
        assert page.evaluate("window.broken") is None
    page = open_page(made.folder, "index.html")
    assert page.locator(".failures tbody td:nth-child(3)").first.text_content() == "0" + HOSTILE
    page.locator(".controls").get_by_label("context").select_option(label="1" + HOSTILE)
    assert page.locator(".failures tbody tr").count() == 1
    page = open_page(made.folder, "failures/0-0.html")
    until(page, DRAWN)
    page.locator("#top-groups .layer_0_marks path").first.hover(position={"x": 9, "y": 2})
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "onerror" in tip.inner_text() and tip.locator("img, b").count() == 0


def test_without_javascript_rows_and_still_pictures_remain(report: MadeReport, open_page: Open) -> None:
    page = open_page(report.folder, "index.html", java_script_enabled=False)
    assert page.locator("noscript table tbody tr").count() == len(report.entries)
    assert page.locator("noscript table").is_visible() and not page.locator(".controls").is_visible()
    still = page.locator("#correction-curve-0 img")
    assert still.is_visible() and (still.bounding_box() or {"height": 0})["height"] > 100
    page = open_page(report.folder, "failures/0-0.html", java_script_enabled=False)
    assert page.locator(".strip").first.is_visible() and not page.locator(".player").is_visible()


def test_print_is_light_and_without_controls(report: MadeReport, open_page: Open) -> None:
    page = open_page(report.folder, "index.html", color_scheme="dark")
    until(page, DRAWN)
    colour = "getComputedStyle(document.querySelector('#shares .mark-text text')).fill"
    dark = page.evaluate(colour)
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(colour) != dark, "figures are printed in light colours"
    assert not page.locator(".controls").is_visible() and page.locator(".failures table").is_visible()


def test_a_phone_needs_no_sideways_scrolling_and_keys_reach_the_content(report: MadeReport, open_page: Open) -> None:
    for name in PAGES:
        page = open_page(report.folder, name, viewport={"width": 400, "height": 800})
        until(page, DRAWN)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, name
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"


def test_a_missing_library_leaves_the_numbers(tmp_path: Path, browser: Browser) -> None:
    made = write_report(tmp_path / "run", failures=2, pages=1)
    (made.folder / "assets" / "vega.js").unlink()
    page = browser.new_page()
    page.goto((made.folder / "clusters" / "0.html").as_uri())
    assert page.locator("#shares-0 details table").is_visible()
    page.close()
