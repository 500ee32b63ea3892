"""Pages, figures and CSV files of text that was written to do harm: it is shown, and does nothing."""

from __future__ import annotations

import csv
import io
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from made_report import MadeReport, write_report
from playwright.sync_api import Browser, Page, sync_playwright

from aitia.datasets.remote import relative_link
from aitia.reports.rows import rows_of

CHROMIUM = shutil.which("chromium")
OVERRIDE, RIGHT_TO_LEFT = "gpj.\u202eexe\u2066", "שלום"
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')
DRAWN = "[...document.querySelectorAll('figure.chart')].every((figure) => 'drawn' in figure.dataset)"
NO_TEXT = re.compile(r"<(script|style|title)\b.*?</\1>|<(?!/?bdi)[^>]*>", re.DOTALL)
STARTS = ["=", "+", "-", "@", " =", "\t=", "\r=", "\n=", "\u00a0=", "\ufeff=", "＝", "＋", "－", "＠", " ＝"]
needs_browser = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER TESTS: chromium is missing (apt-get install chromium)"),
]


def pages(report: MadeReport) -> list[Path]:
    found = sorted(report.folder.rglob("*.html"))
    assert len(found) == 4
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> MadeReport:
    return write_report(tmp_path_factory.mktemp("guarded") / "run")


def test_every_page_forbids_what_it_does_not_need(report: MadeReport) -> None:
    for page in pages(report):
        text = page.read_text(encoding="utf-8")
        (policy,) = POLICY.findall(text)
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == "'none'" and rules["script-src"] == "'self' file:"
        assert text.index(policy) < text.index("<link"), "it holds for what comes after it"
        for script in re.findall(r"<script\b[^>]*>", text):
            assert "src=" in script or "application/json" in script, "no script stands in the page itself"
        assert not re.search(r"\son\w+=", text.split("</head>")[0]) and "javascript:" not in text


def test_marks_of_direction_are_shown_and_reorder_nothing(tmp_path: Path) -> None:
    made = write_report(tmp_path / "run", text=OVERRIDE)
    for file in (path for path in made.folder.rglob("*") if path.suffix in (".html", ".svg", ".js", ".css")):
        if file.name != "vega.js":
            text = file.read_text(encoding="utf-8")
            assert not re.search("[\u202a-\u202e\u2066-\u2069]", text), file.name
    index = (made.folder / "index.html").read_text(encoding="utf-8")
    assert r"gpj.\u202eexe\u2066" in index


def test_names_from_right_to_left_stand_in_elements_of_their_own(tmp_path: Path) -> None:
    made = write_report(tmp_path / "run", text=f" {RIGHT_TO_LEFT} 12")
    for page in pages(made):
        outside = re.sub(
            r"<(script|style|title)\b.*?</\1>|<(?!/?bdi)[^>]*>", "", page.read_text(encoding="utf-8"), flags=re.S
        )
        assert f"{RIGHT_TO_LEFT} 12</bdi>" in outside
        assert RIGHT_TO_LEFT not in re.sub(r"<bdi>.*?</bdi>", "", outside), page.name
        assert "\u2068" not in outside


@pytest.mark.parametrize(
    "start", ["=", "+", "-", "@", " =", "\t=", "\r=", "\n=", "\u00a0=", "\ufeff=", "＝", "＋", "－", "＠", " ＝"]
)
def test_no_cell_begins_a_formula(start: str) -> None:
    text = rows_of(["group", f"{start}1+1"], [[f'{start}cmd|"/c calc"!A1', -1.5], ["-0.5", None]]).as_csv()
    header, row, number = csv.reader(io.StringIO(text))
    assert header[1].startswith("'") and row[0] == f'\'{start}cmd|"/c calc"!A1'
    assert row[1] == "-1.5" and number[0] == "-0.5", "numbers stay numbers"


@pytest.mark.parametrize("name", ["run#1", "50%", "what?", "a%20b", 'ü "quoted" & <b>', "a:b"])
def test_links_lead_to_folders_of_any_name(name: str, tmp_path: Path) -> None:
    target, folder = tmp_path / name / "reports/test/index.html", tmp_path / "other/reports/test/compare"
    link = relative_link(target, folder)
    assert not set('#?"<> ') & set(link)
    assert (folder / unquote(link)).resolve() == target.resolve()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


def until(page: Page, expression: str) -> None:
    for _ in range(1_500):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise AssertionError(expression)


ATTACK = """<script>window.broken = 'inline'</script><img src=x onerror="window.broken = 'handler'">
<script src="data:text/javascript,window.broken='data'"></script><base href="https://example.com/">
<iframe srcdoc="<script>parent.broken='frame'</script>"></iframe><img src="https://example.com/seen.png">
<form action="https://example.com/"><button id="send">x</button></form>"""


class TestInABrowser:
    pytestmark = needs_browser

    def test_a_page_runs_nothing_that_was_put_into_it(
        self, report: MadeReport, browser: Browser, tmp_path: Path
    ) -> None:
        index = tmp_path / "copy/index.html"
        shutil.copytree(report.folder, index.parent)
        text = index.read_text(encoding="utf-8")
        index.write_text(text.replace('<main id="main"', ATTACK + '<main id="main"'), encoding="utf-8")
        context = browser.new_context()
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(index.as_uri())
        until(page, DRAWN)
        page.evaluate("document.getElementById('send').click()")
        page.wait_for_timeout(300)
        assert page.evaluate("window.broken") is None
        assert "example.com" not in page.evaluate("document.baseURI")
        blocked = page.evaluate(
            "new Promise((done) => { const s = document.createElement('script'); s.textContent = 'window.broken = 1';"
            "document.body.append(s); done(window.broken === undefined); })"
        )
        assert blocked
        assert not [url for url in asked if not url.startswith(("file:", "data:"))]
        context.close()

    def test_figures_are_drawn_from_a_web_server_too(self, report: MadeReport, browser: Browser) -> None:
        handler = partial(_Quiet, directory=str(report.folder))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                context = browser.new_context()
                page = context.new_page()
                troubles: list[str] = []
                page.on("console", lambda m: troubles.append(m.text) if m.type in ("error", "warning") else None)
                page.on("pageerror", lambda error: troubles.append(str(error)))
                for name in ("index.html", "clusters/0.html", "failures/0-0.html"):
                    page.goto(f"http://127.0.0.1:{server.server_port}/{name}")
                    until(page, DRAWN)
                    assert page.locator("figure.chart svg").count() > 1
                context.close()
                assert not [text for text in troubles if "favicon" not in text and "404" not in text]
            finally:
                server.shutdown()
                thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""
