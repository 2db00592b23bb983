"""The pictures of docs/dashboard.md, by `make screenshots`."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import Watch
from tests.browser.site import Site, site
from tests.browser.test_cluster_pages import NODES, OTHERS
from tests.fake_slurm import FakeSlurm
from tests.gateway.serving import short_folder
from tests.queued import queued

pytestmark = [pytest.mark.system, pytest.mark.browser]

INTO = Path(__file__).parents[2] / "docs/images"
MOST_BYTES = 200_000
DESK, PHONE = {"width": 1240, "height": 780}, {"width": 390, "height": 780}


def take(page: Page, name: str) -> None:
    INTO.mkdir(exist_ok=True)
    path = INTO / f"dashboard-{name}.png"
    page.screenshot(path=path, animations="disabled")
    assert path.stat().st_size < MOST_BYTES, name


def test_screenshots(opened: Callable[..., tuple[BrowserContext, Watch]]) -> None:
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


TEXTS = [
    "Boats carry grain down the river",
    "Bread and butter for breakfast",
    "The telescope sees distant planets",
    "A ferry crosses the lake",
]
QUESTION = "What is Python's list comprehension? Give a short example in a code block."


@pytest.mark.skipif("SLUICE_SCREENSHOTS" not in os.environ, reason="it waits for a real model: make screenshots")
def test_screenshots_of_the_playgrounds(opened: Callable[..., tuple[BrowserContext, Watch]]) -> None:
    with site() as shown:
        for recipe in ("inference/llamacpp-cpu", "vector-db/qdrant"):
            body = {"recipe_name": recipe}
            shown.until(str(shown.http.post("/api/v1/services", json=body).json()["id"]), "running")
        page = opened(shown, viewport=DESK, color_scheme="light")[0].new_page()
        page.goto("/ui/chat")
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("System prompt").fill("Answer in one or two sentences.")
        page.get_by_label("Your message").fill(QUESTION)
        page.get_by_label("Your message").press("Enter")
        expect(page.locator(".turn")).to_have_attribute("data-state", "complete", timeout=100_000)
        take(page, "chat")
        page.goto("/ui/vectors")
        page.get_by_label("Name").fill("sentences")
        page.get_by_label("Numbers in each vector").fill("576")
        page.get_by_role("button", name="Create").click()
        page.get_by_text("Texts instead").click()
        page.get_by_label("Texts, one a line").fill("\n".join(TEXTS))
        page.get_by_role("button", name="Add texts").click()
        expect(page.get_by_text("4 points added.")).to_be_visible(timeout=60_000)
        page.get_by_label("Text", exact=True).fill("A ship crosses the sea")
        page.get_by_role("button", name="Make the vector").click()
        expect(page.get_by_label("Query vector")).not_to_be_empty(timeout=60_000)
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_role("region", name="Results").locator("tbody tr")).to_have_count(4)
        page.evaluate("scrollTo(0, 0)")
        take(page, "vectors")


def test_a_screenshot_of_the_cluster(opened: Callable[..., tuple[BrowserContext, Watch]]) -> None:
    with short_folder() as home, contextlib.ExitStack() as stack:
        slurm, now = FakeSlurm(home), int(time.time())
        slurm.show_nodes(NODES)
        slurm.queue_of_others(OTHERS)
        one = stack.enter_context(queued(home, slurm, ORCHESTRATOR_POLL_SECONDS=0.5, ORCHESTRATOR_CLUSTER_SECONDS=0.5))
        http = stack.enter_context(httpx2.Client(base_url=one.url, trust_env=False, timeout=30))
        for model, gpu in (("Qwen/Qwen2.5-7B-Instruct", 2), ("meta-llama/Llama-3.3-70B-Instruct", 4)):
            body = {"recipe_name": "inference/vllm-single-node", "config": {"model": model, "gpu": gpu}}
            assert http.post("/api/v1/services", json=body).status_code == 200
        runs = {"state": "RUNNING", "reason": "None", "starttime": str(now - 7200), "endtime": str(now + 9000)}
        slurm.change("100", nodelist="gpu4", **runs)
        slurm.change("101", starttime=str(now + 1500), submittime=str(now - 600))
        slurm.change("99", name="train_resnet", nodelist="gpu1", submittime=str(now - 9000), **runs)
        page = opened(Site(one.url, http, {}, home, stack), viewport=DESK, color_scheme="light")[0].new_page()
        page.goto("/ui/cluster")
        expect(page.locator("#cluster-jobs")).to_contain_text("1 ahead")
        expect(page.locator("#cluster-jobs .status-running")).to_have_count(2, timeout=20_000)
        page.screenshot(path=INTO / "dashboard-cluster.png", animations="disabled")
        assert (INTO / "dashboard-cluster.png").stat().st_size < MOST_BYTES


WAVE = (1, 2, 4, 7, 9, 8, 6, 3, 2, 4, 8, 12, 14, 11, 7, 4, 2, 1, 3, 6, 9, 7, 4, 2, 1)
WAVE_SECONDS = 15  # a point of the chart


@pytest.mark.skipif("SLUICE_SCREENSHOTS" not in os.environ, reason="it waits for charts to fill: make screenshots")
@pytest.mark.timeout(600)
def test_screenshots_of_what_has_happened(opened: Callable[..., tuple[BrowserContext, Watch]]) -> None:
    with site(GATEWAY_SAMPLE_SECONDS="5") as shown:
        models = ("Qwen/Qwen2.5-7B-Instruct", "meta-llama/Llama-3.1-8B-Instruct")
        services = [shown.start(model=model, gpu=2) for model in models]
        for service in services:
            shown.until(service, "running")
        page = opened(shown, viewport=DESK, color_scheme="light")[0].new_page()
        for height in WAVE:
            for number in range(height):
                question = {"model": models[number % 2], "messages": [{"role": "user", "content": "Name a river."}]}
                assert shown.http.post("/v1/chat/completions", json=question).status_code == 200
            time.sleep(WAVE_SECONDS)
        page.goto("/ui/charts")
        expect(page.locator("[data-chart=requests] canvas")).to_be_visible()
        expect(page.locator("[data-chart=latency] .keys")).to_contain_text("ms")
        take(page, "charts")
        shown.http.post(f"/api/v1/services/{services[1]}/status", json={"status": "cancelled"})
        shown.until(services[1], "cancelled")
        page.goto("/ui/audit")
        expect(page.get_by_role("row").nth(1)).to_contain_text(services[1])
        take(page, "audit")
        page.goto("/ui/keys")
        page.get_by_label("Name").fill("me")
        page.get_by_role("button", name="Create").click()
        mine = page.get_by_role("textbox", name="Secret").input_value()
        shown.http.headers["Authorization"] = f"Bearer {mine}"
        page.get_by_role("link", name="Keys").click()
        page.get_by_label("Name").fill("editor")
        page.get_by_label("Lives for").fill("30d")
        page.get_by_role("button", name="Create").click()
        expect(page.get_by_role("textbox", name="Secret")).to_be_focused()
        page.get_by_role("link", name="Keys").click()
        expect(page.locator("#key-editor")).to_contain_text("live")
        take(page, "keys")
