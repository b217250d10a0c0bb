"""The web page in a real browser, with a camera and a microphone that play the demo clip."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

import affectrt
from tests.sdk.chromium import Page, browser, find_chromium, record
from tests.sdk.serving import PATIENCE_S, running

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser"
DEMO = Path(__file__).parents[2] / "demo"
BOTH = ("camera", "microphone")


@pytest.fixture(scope="module")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    program = find_chromium()
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    folder = tmp_path_factory.mktemp("chromium")
    with browser(program, folder, *record(DEMO / "clip.mp4", folder)) as open_page:
        yield open_page


def is_on(name: str) -> str:
    return f"document.getElementById('{name}').dataset.on == 'true'"


def start(page: Page) -> None:
    page.value("document.getElementById('start').click()")


def test_results_move(open_page: Any, tiny_model: affectrt.Model) -> None:
    with running(tiny_model) as server, open_page(server.url, BOTH) as page:
        assert page.text("sensing-text") == "Not sensing"
        assert page.text("where") == urlsplit(server.url).netloc
        start(page)
        page.until(is_on("lamp-audio"))
        page.until(is_on("lamp-vision"))
        assert page.text("sensing-text") == "Sensing: camera and microphone"
        assert page.text("notice") == ""
        page.value("document.getElementById('words').focus()")
        page.call("Input.insertText", text="so very happy")
        page.press("Enter", 13, "\r")
        page.until(is_on("lamp-text"))
        seen = page.text("interval")
        page.until(f"document.getElementById('interval').textContent != '{seen}'")
        assert page.value("document.getElementById('line').getAttribute('d').split('L').length") > 5
        assert page.value("document.querySelectorAll('#emotions meter').length") == 7
        assert page.value(
            "[...document.querySelectorAll('#emotions meter')].reduce((a, m) => a + m.value, 0)"
        ) == (pytest.approx(1.0, abs=0.01))
        assert page.text("latency").endswith(" ms")
        page.until("document.getElementById('summary').textContent.startsWith('Sentiment')")
        page.value("document.getElementById('stop').click()")
        page.until("!document.getElementById('consent').hidden")
        assert page.text("sensing-text") == "Not sensing"
        assert page.value("document.getElementById('preview').srcObject") is None
        assert page.console == []


def test_it_goes_on_with_what_is_allowed(open_page: Any, tiny_model: affectrt.Model) -> None:
    with running(tiny_model) as server:
        with open_page(server.url, ("microphone",)) as page:
            start(page)
            page.until(is_on("lamp-audio"))
            assert "camera was denied" in page.text("notice")
            assert page.text("sensing-text") == "Sensing: microphone"
        with open_page(server.url, ()) as page:
            start(page)
            page.until("document.getElementById('notice').textContent.includes('microphone was denied')")
            page.until(is_on("sensing"))
            page.value("document.getElementById('words').focus()")
            page.call("Input.insertText", text="great")
            page.press("Enter", 13, "\r")
            page.until(is_on("lamp-text"))
            assert page.text("sensing-text") == "Sensing: typed words alone"


def test_it_outlives_the_server(open_page: Any, tiny_model: affectrt.Model) -> None:
    with running(tiny_model) as server:
        port = urlsplit(server.url).port
        stack = open_page(server.url, BOTH)
        page = stack.__enter__()
        start(page)
        page.until(is_on("lamp-audio"))
    page.until("document.getElementById('notice').textContent.includes('lost')")
    assert page.text("sensing-text") == "Not sensing: not connected"
    with running(tiny_model, port=port):
        page.until(is_on("sensing"))
        page.until(is_on("lamp-audio"))
        assert page.text("notice") == ""
        stack.__exit__(None, None, None)


def test_a_token_and_a_full_house(open_page: Any, tiny_model: affectrt.Model) -> None:
    token = "correct-horse-battery-staple"
    with running(tiny_model, token=token, session_limit=1) as server:
        with open_page(server.url, ()) as page:
            page.until("!document.getElementById('token-field').hidden")
            start(page)
            page.until("document.getElementById('notice').textContent.includes('token')")
            assert page.text("sensing-text") == "Not sensing"
        with open_page(f"{server.url}#token={token}", ()) as page:
            start(page)
            page.until(is_on("sensing"))
            assert page.value("location.hash") == ""
            with open_page(f"{server.url}#token={token}", ()) as second:
                start(second)
                second.until("document.getElementById('notice').textContent.includes('sessions are taken')")
                page.value("document.getElementById('stop').click()")
                second.until(is_on("sensing"))  # its turn came


def test_the_keyboard_is_enough(open_page: Any, tiny_model: affectrt.Model) -> None:
    with running(tiny_model) as server, open_page(server.url, ()) as page:
        order = []
        for _ in range(3):
            page.press("Tab", 9)
            order.append(page.value("document.activeElement.id"))
        assert order == ["use-camera", "use-microphone", "start"]
        page.press("Enter", 13, "\r")
        page.until(is_on("sensing"))
        assert page.value("document.activeElement.id") == "stop"
        page.press("Enter", 13, "\r")
        page.until("document.activeElement.id == 'start'")
        unnamed = (
            "[...document.querySelectorAll('input, button')].filter(e => !e.labels?.length && !e.innerText)"
        )
        assert page.value(f"{unnamed}.map(e => e.id)") == []


def test_the_example_in_a_page_of_another_server(open_page: Any, tiny_model: affectrt.Model) -> None:
    pages = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietFiles, directory=str(EXAMPLE)))
    thread = threading.Thread(target=pages.serve_forever)
    thread.start()
    own = f"http://127.0.0.1:{pages.server_port}"
    try:
        with running(tiny_model, origins=frozenset({own})) as server:
            where = server.url.replace("http", "ws", 1).rstrip("/")
            with open_page(f"{own}/?server={where}", ()) as page:
                page.until("document.querySelector('[role=status]').textContent == 'connected to tiny'")
                page.value("document.querySelector('input').focus()")
                page.call("Input.insertText", text="great")
                page.press("Enter", 13, "\r")
                page.until("document.querySelector('pre').textContent.includes('text')")
    finally:
        pages.shutdown()
        thread.join()
        pages.server_close()


class QuietFiles(SimpleHTTPRequestHandler):
    """Of a folder; tells nobody about it."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def test_the_page_asks_nobody_else_for_anything(tiny_model: affectrt.Model) -> None:
    with running(tiny_model) as server:
        for name in ("", "page.css", "page.js", "client.js", "timeline.js", "worklet.js", "icon.svg"):
            with urlopen(server.url + name, timeout=PATIENCE_S) as answer:
                policy = answer.headers["content-security-policy"]
                assert "default-src 'none'" in policy and "unsafe" not in policy
                text = answer.read().decode()
            assert "//" not in text.replace("// ", "").replace("http://www.w3.org/", "")
