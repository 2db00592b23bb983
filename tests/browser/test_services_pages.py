"""Services in the dashboard, in a real browser: start, watch, read the log, stop, understand a failure, retry."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import Watch, violations
from tests.browser.site import Site

pytestmark = [pytest.mark.system, pytest.mark.browser]

Opened = Callable[..., tuple[BrowserContext, Watch]]


def test_from_a_recipe_to_a_service_that_answers_and_its_end(opened: Opened, running: Site, axe: str) -> None:
    context, watch = opened(running)
    watch.expected.append("status of 422")  # as browsers say what a form was answered
    page = context.new_page()
    page.goto("/")
    page.get_by_role("link", name="Start a service").first.click()
    expect(page.get_by_role("heading", name="Start a service")).to_be_visible()
    assert violations(page, axe) == []
    page.get_by_role("link", name="vllm-single-node").click()
    script = page.locator("#script pre.script")
    expect(script).to_contain_text("#SBATCH --gres=gpu")
    page.get_by_label("GPUs a node").fill("0")
    expect(script).not_to_contain_text("#SBATCH --gres=gpu")
    page.get_by_text("More settings").click()
    page.get_by_label("Further variables of the job").fill("no variable")
    expect(page.locator("#w-variables")).to_contain_text("is not NAME=value")
    page.get_by_label("Further variables of the job").fill("MINE=1")
    page.get_by_label("Model", exact=True).fill("no such ;model")
    expect(page.locator("#w-VLLM_MODEL")).to_contain_text("owner/name")
    expect(page.get_by_label("Model", exact=True)).to_have_attribute("aria-invalid", "true")
    assert violations(page, axe) == []
    page.get_by_role("button", name="Start the service").click()
    expect(page.locator("#start-problem")).to_contain_text("owner/name")
    page.get_by_label("Model", exact=True).fill("gpt2")
    expect(page.get_by_label("Model", exact=True)).not_to_have_attribute("aria-invalid", "true")
    expect(script).to_contain_text("gpt2")
    page.get_by_role("button", name="Check first").click()
    expect(page.locator("#verdicts h2")).to_be_visible()
    page.get_by_role("button", name="Start the service").click()
    expect(page.locator("#service-head")).to_have_attribute("data-kind", "running", timeout=30_000)
    expect(page.locator("#service-facts")).to_contain_text("http://127.0.0.1:")
    expect(page.locator("#log")).to_contain_text("listens on")
    expect(page.locator("#service-numbers")).to_contain_text("Requests running")
    expect(page.locator("#service-history")).to_contain_text("The engine answers")
    assert violations(page, axe) == []
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_role("button", name="Leave it").click()
    expect(page.get_by_role("dialog")).not_to_be_visible()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Stop it").click()
    expect(page.locator("#service-head")).to_have_attribute("data-kind", "ended")
    expect(page.get_by_role("button", name="Stop", exact=True)).not_to_be_visible()
    expect(page.get_by_role("link", name="Edit and start")).to_be_visible()
    expect(page.locator("#log-state")).to_contain_text("the job has ended")


def test_a_failure_is_explained_and_a_retry_applies_what_is_to_be_changed(page: Page, running: Site, axe: str) -> None:
    service = running.start(model="gpt2", max_model_len=8192)
    running.until(service, "failed")
    page.goto(f"/ui/services/{service}")
    expect(page.locator(".sentence")).to_contain_text("4096 tokens fit")
    expect(page.locator(".changes tbody")).to_contain_text(re.compile(r"max_model_len\s*8192\s*4096"))
    assert violations(page, axe) == []
    page.get_by_role("button", name="Retry with this change").click()
    expect(page.locator("#service-head")).to_have_attribute("data-kind", re.compile("pending|configuring|running"))
    expect(page.locator("#service-head")).to_have_attribute("data-kind", "running", timeout=30_000)
    made = page.url.rpartition("/")[2]
    assert made != service
    assert running.http.get(f"/api/v1/services/{made}").json()["config"]["max_model_len"] == 4096
    page.goto(f"/ui/services/{service}")
    page.get_by_role("link", name="Edit and start").click()
    expect(page.get_by_label("Longest context")).to_have_value("4096")
    running.http.post(f"/api/v1/services/{made}/status", json={"status": "cancelled"})


def test_all_tabs_of_a_browser_follow_by_one_stream(opened: Opened, running: Site, axe: str) -> None:
    context, watch = opened(running)
    tabs = [context.new_page() for _ in range(8)]  # more than a browser opens connections to one host
    for tab in tabs:
        tab.goto("/")
    service = running.start(model="gpt2")
    for tab in tabs:
        row = tab.locator(f"#service-{service}")
        expect(row).to_contain_text("running")
        expect(row.locator("xpath=preceding-sibling::tr")).to_have_count(0)
    assert violations(tabs[0], axe) == []
    streams = [url for url in watch.requests if "/ui/events" in url]
    assert len(streams) == 1
    tabs[0].close()  # the one that listens: another one takes over
    running.http.post(f"/api/v1/services/{service}/status", json={"status": "cancelled"})
    for tab in tabs[1:]:
        expect(tab.locator(f"#service-{service}")).to_contain_text("cancelled")


def test_the_list_is_filtered_and_the_focus_stays(page: Page, running: Site) -> None:
    one, other = running.start(model="gpt2"), running.start(model="facebook/opt-125m")
    page.goto("/")
    expect(page.locator(f"#service-{one}")).to_be_visible()
    page.get_by_label("Filter by name, model or node").fill("opt-125")
    expect(page.locator(f"#service-{one}")).not_to_be_visible()
    expect(page.locator(f"#service-{other}")).to_be_visible()
    page.locator(f"#service-{other} a").focus()
    expect(page.locator(f"#service-{other}")).to_contain_text("running", timeout=30_000)
    expect(page.locator(f"#service-{other} a")).to_be_focused()
    for service in (one, other):
        running.http.post(f"/api/v1/services/{service}/status", json={"status": "cancelled"})
    page.get_by_label("Filter by name, model or node").fill("")
    page.get_by_role("radio", name="Under way").check()
    expect(page.locator(f"#service-{other}")).not_to_be_visible()
    page.get_by_role("radio", name="Ended").check()
    expect(page.locator(f"#service-{other}")).to_be_visible()


def test_what_strangers_write_is_text(page: Page, running: Site) -> None:
    evil = "<img src=x onerror=alert(1)>"
    service = running.start(model="gpt2", environment={"NOTE": evil, "FAKE_LOAD_SECONDS": evil})
    running.until(service, "failed")
    page.goto(f"/ui/services/{service}")
    expect(page.locator("#log")).to_contain_text(evil)
    page.get_by_text("What was asked for").click()
    expect(page.locator(".config")).to_contain_text(evil)
    assert page.locator("main img").count() == 0
