"""A real browser before a bundle: fails what asks for anything beyond this machine, or complains."""

import functools
import http.server
import importlib.util
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bundle_by_rule import NUM_CODES, NUM_SHOWN, write_bundle

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@pytest.fixture(scope="session")
def browser():
    """Chromium. Without one these tests are skipped, or fail under --strict-skips."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    missing = "chromium or google-chrome" if path is None else None
    if importlib.util.find_spec("playwright") is None:
        missing = "playwright"
    if missing:
        pytest.skip(f"the pages were not tried in a browser: there is no {missing} here")
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        # Names of other machines are not even looked up.
        args = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        started = playwright.chromium.launch(executable_path=path, args=args)
        yield started
        started.close()


@pytest.fixture(scope="session")
def small(browser, tmp_path_factory):
    """A bundle of two files of codes and of pictures; tests must not change it."""
    return write_bundle(tmp_path_factory.mktemp("small"), NUM_CODES, NUM_SHOWN)


@pytest.fixture(scope="session")
def big(browser, tmp_path_factory):
    """A bundle of the paper's scale in codes, and of as many pictures as an explorer shows at most."""
    folder = tmp_path_factory.mktemp("big")
    return write_bundle(folder, num_codes=8192, num_shown=10_000, num_words=5000)


class Window:
    """A window of the browser on a bundle. `complaints` are errors, and requests that would leave the machine."""

    def __init__(self, browser, folder: Path, base: str, **options) -> None:
        self.folder, self.base = folder, base
        options = {"viewport": {"width": 1200, "height": 900}, **options}
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("request", self._see)

    def _hear(self, message) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text} {message.location.get('url', '')}")

    def _see(self, request) -> None:
        address = urlsplit(request.url)
        if address.scheme in ("file", "data", "blob") or address.hostname in LOOPBACK:
            return
        self.complaints.append(f"request to {request.url}")

    def visit(self, address: str = "") -> None:
        """Open an address ("#/code/3") as a fresh visitor would, and wait until the page stands."""
        self.page.goto("about:blank")
        self.page.goto(self.base + address)
        self.wait()

    def wait(self) -> None:
        """Until the page of the address stands. (wait_for_function would need eval, which the pages forbid.)"""
        end = time.monotonic() + 30
        while not self.page.evaluate("document.body?.dataset.shown === (location.hash || '#/wall')"):
            assert time.monotonic() < end, f"{self.address()} does not come"
            self.page.wait_for_timeout(20)

    def click(self, selector: str) -> None:
        """Click what may be a link, and wait until the page behind it stands."""
        self.page.locator(selector).first.click()
        self.wait()

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.wait()

    def address(self) -> str:
        return self.page.evaluate("location.hash")

    def lit(self, view: str = "main .patches:not(.code-map)") -> list[int]:
        """Numbers of the patches that are lit in a view, by default in all images."""
        patches = self.page.locator(f"{view} .patch.lit")
        return patches.evaluate_all("patches => patches.map(patch => Number(patch.dataset.patch))")

    def text(self) -> str:
        return self.page.locator("main").inner_text()


@pytest.fixture
def open_window(browser) -> Iterator:
    """open_window(bundle, base=None, **options of a browser context) -> Window; complaints at the end fail the test."""
    windows = []

    def open_one(bundle, base: str | None = None, **options) -> Window:
        folder = Path(getattr(bundle, "folder", bundle))
        windows.append(Window(browser, folder, base or (folder / "index.html").as_uri(), **options))
        return windows[-1]

    yield open_one
    complaints = [complaint for window in windows for complaint in window.complaints]
    for window in windows:
        window.context.close()
    assert not complaints, "\n".join(complaints)


@pytest.fixture(scope="session")
def small_over_http(small):
    """The address of the small bundle on a static file server of Python's."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(small.folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def window(small, open_window) -> Window:
    """A window on the small bundle, from the disk."""
    return open_window(small)
