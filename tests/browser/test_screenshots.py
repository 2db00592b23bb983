"""The pictures of docs/dashboard.md, by `make screenshots`."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import Watch
from tests.browser.site import site

pytestmark = [pytest.mark.system, pytest.mark.browser]

INTO = Path(__file__).parents[2] / "docs/images"
MOST_BYTES = 200_000
DESK, PHONE = {"width": 1240, "height": 780}, {"width": 390, "height": 780}


def test_screenshots(opened: Callable[..., tuple[BrowserContext, Watch]]) -> None:
    INTO.mkdir(exist_ok=True)

    def take(page: Page, name: str) -> None:
        path = INTO / f"dashboard-{name}.png"
        page.screenshot(path=path, animations="disabled")
        assert path.stat().st_size < MOST_BYTES, name

    with site() as shown:
        page = opened(shown, viewport=DESK, color_scheme="light")[0].new_page()
        failed = shown.start(model="Qwen/Qwen2.5-7B-Instruct", max_model_len=32768)
        shown.until(failed, "failed")
        stopped = shown.start(model="facebook/opt-125m")
        shown.http.post(f"/api/v1/services/{stopped}/status", json={"status": "cancelled"})
        shown.until(stopped, "cancelled")
        shown.start(model="mistralai/Mistral-7B-Instruct-v0.3", environment={"FAKE_LOAD_SECONDS": "600"})
        group = shown.start("inference/vllm-replicas", model="meta-llama/Llama-3.1-8B-Instruct", gpu=2)
        shown.until(group, "running")
        running = shown.start(model="Qwen/Qwen2.5-0.5B-Instruct")
        shown.until(running, "running")
        shown.http.post(f"/api/v1/vllm/{running}/prompt", json={"prompt": "Name three rivers."})
        page.goto("/")
        expect(page.locator(f"#service-{running}")).to_contain_text("running")
        take(page, "services")
        page.goto(f"/ui/services/{running}")
        expect(page.locator("#log")).to_contain_text("listens on")
        expect(page.locator("#service-numbers")).to_contain_text("Tokens written")
        take(page, "service")
        page.goto(f"/ui/services/{group}")
        expect(page.locator("#service-replicas")).to_contain_text("running")
        page.locator("#service-replicas").scroll_into_view_if_needed()
        take(page, "group")
        page.goto(f"/ui/services/{failed}")
        expect(page.locator("#log")).to_contain_text("ValueError")
        take(page, "failure")
        page.goto("/ui/start/inference/vllm-single-node")
        page.get_by_label("GPUs a node").fill("2")
        expect(page.locator("#script pre.script")).to_contain_text("gpu:2")
        take(page, "start")
        dark = opened(shown, viewport=DESK, color_scheme="dark")[0].new_page()
        dark.goto(f"/ui/services/{running}")
        expect(dark.locator("#log")).to_contain_text("listens on")
        expect(dark.locator("#service-numbers")).to_contain_text("Tokens written")
        take(dark, "dark")
        phone = opened(shown, viewport=PHONE, color_scheme="light", device_scale_factor=2)[0].new_page()
        phone.goto("/")
        expect(phone.locator(f"#service-{running}")).to_contain_text("running")
        take(phone, "phone")
