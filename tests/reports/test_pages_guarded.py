"""Pages, figures and CSV files of text that was written to do harm: it is shown, and does nothing."""

from __future__ import annotations

import csv
import io
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from made_report import MadeReport, write_report
from playwright.sync_api import Browser, Page, sync_playwright

from aitia.datasets.files.remote import relative_link
from aitia.reports.figures.rows import rows_of

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
        assert RIGHT_TO_LEFT not in re.sub(r"<bdi>.*?</bdi>", "", outside, flags=re.S), page.name
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
<script src="data:text/javascript,window.broken='data'"></script><base href="http://SERVER/">
<iframe srcdoc="<script>parent.broken='frame'</script>"></iframe><img src="http://SERVER/seen.png">
<form action="http://SERVER/"><button id="send">x</button></form>"""


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder; give the server's address, and the paths that it is asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


class TestInABrowser:
    pytestmark = needs_browser

    def test_a_page_runs_nothing_that_was_put_into_it(
        self, report: MadeReport, browser: Browser, tmp_path: Path
    ) -> None:
        index = tmp_path / "copy/index.html"
        shutil.copytree(report.folder, index.parent)
        text = index.read_text(encoding="utf-8")
        with served(tmp_path) as (address, asked):
            attack = ATTACK.replace("SERVER", address)
            index.write_text(text.replace('<main id="main"', attack + '<main id="main"'), encoding="utf-8")
            context = browser.new_context()
            page = context.new_page()
            page.goto(index.as_uri())
            until(page, DRAWN)
            page.evaluate("document.getElementById('send').click()")
            page.wait_for_timeout(300)
            assert page.evaluate("window.broken") is None
            assert page.evaluate("document.baseURI") == index.as_uri()
            page.evaluate(
                "{ const s = document.createElement('script'); s.textContent = 'window.broken = 1';"
                "document.body.append(s); }"
            )
            page.evaluate(f"fetch('http://{address}/').catch(() => 0)")
            assert page.evaluate("window.broken") is None
            context.close()
            assert not asked

    def test_figures_are_drawn_from_a_web_server_too(self, report: MadeReport, browser: Browser) -> None:
        troubles: list[str] = []
        with served(report.folder) as (address, asked):
            context = browser.new_context()
            page = context.new_page()
            page.on("console", lambda m: troubles.append(m.text) if m.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: troubles.append(str(error)))
            for name in ("index.html", "clusters/0.html", "failures/0-0.html"):
                page.goto(f"http://{address}/{name}")
                until(page, DRAWN)
                assert page.locator("figure.chart svg").count() > 1
            context.close()
            assert asked
        assert not [text for text in troubles if "404" not in text], "no icon is there to be shown"
