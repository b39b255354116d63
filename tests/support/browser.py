"""Pages in a real browser: Debian's chromium, driven by playwright."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"


class Reader:
    """Opens pages and keeps what the browser complains about and asks for."""

    def __init__(self, browser: "sync_api.Browser") -> None:
        self.browser = browser
        self.trouble: list[str] = []

    def open(self, page: Path, *, width: int = 1280, scheme: str = "light") -> "sync_api.Page":
        phone = width < 600
        self.context = self.browser.new_context(
            viewport={"width": width, "height": 850},
            color_scheme=scheme,
            reduced_motion="reduce",
            is_mobile=phone,
            has_touch=phone,
        )
        tab = self.context.new_page()
        tab.on("console", lambda message: self.trouble.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        tab.on("request", lambda request: self._asked(request.url, page))
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-plots=drawn]", timeout=30_000)
        return tab

    def _asked(self, url: str, page: Path) -> None:
        if url != page.as_uri() and not url.startswith(("data:", "blob:")):
            self.trouble.append(f"request: {url}")


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def reader(browser: "sync_api.Browser") -> Iterator[Reader]:
    reader = Reader(browser)
    yield reader
    reader.context.close()
