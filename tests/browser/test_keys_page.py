"""The keys, from none on, in a real browser."""

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.browser.conftest import Watch, violations
from tests.browser.site import Site, site

pytestmark = [pytest.mark.system, pytest.mark.browser]

Opened = Callable[..., tuple[BrowserContext, Watch]]


@pytest.fixture
def unlocked() -> Iterator[Site]:
    """A site that wants no key yet."""
    with site() as made:
        yield made


def test_keys_from_the_first_to_the_last(opened: Opened, unlocked: Site, axe: str) -> None:
    context, watch = opened(unlocked)
    page = context.new_page()
    page.goto("/ui/keys")
    expect(page.get_by_text("No key is in use")).to_be_visible()
    assert violations(page, axe) == []
    page.get_by_label("Name").fill("me")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("textbox", name="Secret")).to_have_value(re.compile(r"sluice_[\w-]{43}"))
    expect(page.get_by_role("textbox", name="Secret")).to_be_focused()
    mine = page.get_by_role("textbox", name="Secret").input_value()
    assert violations(page, axe) == []
    unlocked.http.headers["Authorization"] = f"Bearer {mine}"

    page.get_by_role("link", name="Keys").click()
    expect(page.locator("#key-me")).to_contain_text("(yours)")
    assert mine not in page.content()
    page.get_by_label("Name").fill("editor")
    page.get_by_label("Lives for").fill("30d")
    page.get_by_role("button", name="Create").click()
    editor = page.get_by_role("textbox", name="Secret").input_value()
    headers = {"Authorization": f"Bearer {editor}"}
    assert unlocked.http.get("/v1/models", headers=headers).status_code == 200

    page.get_by_role("button", name="Revoke editor").click()
    dialog = page.get_by_role("dialog", name="Revoke the key editor?")
    dialog.get_by_role("button", name="Cancel").click()
    expect(page.locator("#key-editor")).to_contain_text("live")
    page.get_by_role("button", name="Revoke editor").click()
    assert violations(page, axe) == []
    dialog.get_by_role("button", name="Revoke").click()
    expect(page.locator("#key-editor")).to_contain_text("revoked")
    assert unlocked.http.get("/v1/models", headers=headers).status_code == 401
    page.get_by_role("button", name="Revoke me").click()
    expect(page.get_by_role("dialog")).to_contain_text("It is the last key with the scope admin")

    watch.expected.append("status of 422")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_label("Name").fill("me")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("alert")).to_contain_text("There is a key 'me' already")
