"""A real Chromium, and pages that are watched: what a page's console says, and where its requests go."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from scripts.vendor import AXE, fetch
from tests.browser.site import Site, site
from tests.vllm import make

# Pictures are made when they are wanted, and test nothing that the others do not.
collect_ignore = [] if os.environ.get("SLUICE_SCREENSHOTS") else ["test_screenshots.py"]
SECONDS = 20_000  # milliseconds that a page may take to show what it should, on a busy machine


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        reason = "NO CHROMIUM, so the dashboard is not tested in a browser: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def running() -> Iterator[Site]:
    """A site that tests share: each leaves its services ended, or does not mind."""
    with site() as made:
        yield made


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, fetched once by npm."""
    folder = make.cache() / f"axe-{AXE.version}"
    if not (folder / "axe.min.js").is_file():
        fetch(AXE, folder)
    return (folder / "axe.min.js").read_text("utf-8")


@dataclass
class Watch:
    """What came up in the pages of a test. `expected`: parts of messages that are no fault."""

    url: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def add(self, page: Page) -> None:
        page.set_default_timeout(SECONDS)
        page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def check(self) -> None:
        """Nothing went wrong in a page, and nothing left this machine."""
        wrong = [text for text in self.errors if not any(part in text for part in self.expected)]
        assert wrong == []
        assert [url for url in self.requests if not url.startswith((f"{self.url}/", "data:", "blob:"))] == []


Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., tuple[BrowserContext, Watch]]]:
    """A browser profile of its own at a site; checked at the end."""
    made: list[tuple[BrowserContext, Watch]] = []

    def profile(at: Site, **options: Any) -> tuple[BrowserContext, Watch]:
        context = browser.new_context(base_url=at.url, **options)
        watch = Watch(at.url)
        context.on("page", watch.add)
        made.append((context, watch))
        return context, watch

    yield profile
    for context, watch in made:
        context.close()
        watch.check()


@pytest.fixture
def page(opened: Callable[..., tuple[BrowserContext, Watch]], running: Site) -> Page:
    context, _ = opened(running)
    return context.new_page()


def violations(page: Page, axe: str) -> list[str]:
    """What axe-core finds of serious or critical impact. Evaluated by the debugger, which no CSP hinders."""
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']} ({one['impact']}): {one['help']}: {[node['html'][:200] for node in one['nodes'][:3]]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
