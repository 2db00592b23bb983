"""What all pages have: light and dark, the keyboard, signing in, and what they say when the cluster is away."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from orchestrator.keys import Key, Scope, changing, hash_of, now
from tests.browser.conftest import Watch, violations
from tests.browser.site import Site, site

pytestmark = [pytest.mark.system, pytest.mark.browser]

Opened = Callable[..., tuple[BrowserContext, Watch]]
ADMIN, USE = "secret-of-the-admin", "secret-of-a-user"


@pytest.fixture(scope="module")
def locked() -> Iterator[Site]:
    """A site that wants keys."""
    with site(GATEWAY_API_KEY=ADMIN) as made:
        with changing(made.home / "keys.json") as keys:
            keys.append(Key("ann", Scope.USE, hash_of(USE.encode()), now()))
        yield made


def ground(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))


def test_dark_is_the_system_s_or_chosen_and_is_remembered(opened: Opened, running: Site, axe: str) -> None:
    context, _ = opened(running, color_scheme="dark")
    page = context.new_page()
    page.goto("/")
    dark = ground(page)
    assert violations(page, axe) == []
    page.get_by_role("button", name="Switch to light").click()
    light = ground(page)
    assert light != dark
    page.reload()
    assert ground(page) == light
    page.get_by_role("button", name="Switch to dark").click()
    page.goto("/ui/start/inference/vllm-single-node")
    assert ground(page) == dark
    expect(page.locator("#script pre.script")).to_be_visible()
    assert violations(page, axe) == []


def test_the_keyboard_suffices(page: Page) -> None:
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Start a service").first).to_be_focused()


def test_nothing_is_wider_than_a_phone(opened: Opened, running: Site, axe: str) -> None:
    service = running.start(model="gpt2")
    context, _ = opened(running, viewport={"width": 360, "height": 740})
    page = context.new_page()
    for path in ("/", f"/ui/services/{service}", "/ui/start", "/ui/start/inference/vllm-replicas"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        assert violations(page, axe) == [], path
    running.http.post(f"/api/v1/services/{service}/status", json={"status": "cancelled"})


def test_signing_in_and_what_a_key_may_not_do(opened: Opened, locked: Site, axe: str) -> None:
    context, watch = opened(locked)
    watch.expected.append("status of 401")
    page = context.new_page()
    page.goto("/ui/start?x=1")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert violations(page, axe) == []
    page.get_by_label("Key").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("does not know")
    page.get_by_label("Key").fill(ADMIN)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{locked.url}/ui/start?x=1")
    (cookie,) = [one for one in context.cookies() if one["name"].startswith("sluice-session")]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert ADMIN not in cookie["value"]
    assert page.evaluate("fetch('/api/v1/services').then((answer) => answer.status)") == 200
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert page.evaluate("fetch('/api/v1/services').then((answer) => answer.status)") == 401
    page.get_by_label("Key").fill(USE)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Services", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Sign out")).to_contain_text("ann")
    assert page.get_by_role("link", name="Start").count() == 0


def test_an_orchestrator_that_is_away_is_said_on_every_page(opened: Opened, locked: Site) -> None:
    context, watch = opened(locked, extra_http_headers={"X-API-Key": ADMIN})
    watch.expected.append("status of 503")
    page = context.new_page()
    page.goto("/")
    expect(page.locator("#banner")).not_to_be_visible()
    locked.orchestrator.close()
    expect(page.locator("#banner")).to_contain_text("The orchestrator does not answer")
    expect(page.locator("#banner")).to_contain_text("sluice orchestrator")
    page.goto("/ui/start")
    expect(page.get_by_role("heading", name="The orchestrator does not answer")).to_be_visible()
    expect(page.locator("#banner")).to_be_visible()
    locked.begin()
    expect(page.locator("#banner")).not_to_be_visible()
    expect(page.get_by_role("heading", name="Start a service")).to_be_visible()
