"""The pages of the cluster, the charts and the audit, in a real browser."""

import contextlib
import re
from collections.abc import Callable, Iterator

import httpx2
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import SECONDS, Watch, violations
from tests.browser.site import Site, site, until
from tests.fake_slurm import FakeSlurm
from tests.gateway.serving import short_folder
from tests.queued import Queued, queued

pytestmark = [pytest.mark.system, pytest.mark.browser]

Opened = Callable[..., tuple[BrowserContext, Watch]]
NODES = """\
gpu*~up~2-00:00:00~mixed~3~96/96/0/192~gpu:a100:4~gpu:a100:3(IDX:0-2)~gpu[1-3]~
gpu*~up~2-00:00:00~idle~2~0/128/0/128~gpu:a100:4~gpu:a100:0(IDX:N/A)~gpu[4-5]~
gpu*~up~2-00:00:00~drained~1~0/0/64/64~gpu:a100:4~gpu:a100:0(IDX:N/A)~gpu6~
big~up~1-00:00:00~allocated~1~64/0/0/64~gpu:h100:8~gpu:h100:8(IDX:0-7)~big1~
cpu~drain~infinite~idle~10~0/1280/0/1280~(null)~gpu:0~c[1-10]~
"""
# Whether a row of the table has requests for models, and some that failed.
COUNTED = """[...document.querySelectorAll('[data-chart=requests] tbody tr')].some(
    (row) => Number(row.children[1].textContent) > 0 && Number(row.children[2].textContent) > 0)"""
OTHERS = "".join(
    f"{n}~gpu~{state}~7~Priority~1~1~~~~1795274371~N/A~N/A~x~\n" for n, state in ((7, "RUNNING"), (8, "PENDING"))
)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Queued]:
    with short_folder() as home:
        fake = FakeSlurm(home)
        fake.show_nodes(NODES)
        fake.queue_of_others(OTHERS)
        with queued(home, fake, ORCHESTRATOR_POLL_SECONDS=0.5, ORCHESTRATOR_CLUSTER_SECONDS=0.5) as one:
            yield one


@pytest.fixture
def cluster(opened: Opened, slurm: Queued) -> Page:
    with httpx2.Client(base_url=slurm.url, trust_env=False) as http:
        at = Site(slurm.url, http, {}, slurm.slurm.home, contextlib.ExitStack())
        context, _ = opened(at)
    return context.new_page()


@pytest.fixture(scope="module")
def sampled() -> Iterator[Site]:
    with site(GATEWAY_SAMPLE_SECONDS="1") as made:
        yield made


def test_the_cluster_and_your_jobs_live(cluster: Page, slurm: Queued, axe: str) -> None:
    with httpx2.Client(base_url=slurm.url, trust_env=False) as http:
        body = {"recipe_name": "inference/vllm-single-node", "config": {"model": "gpt2", "gpu": 2}}
        made = http.post("/api/v1/services", json=body).json()["id"]
    slurm.slurm.change("99", name="<b>train</b>", state="RUNNING", nodelist="gpu1", starttime="1795274373")
    cluster.goto("/ui/cluster")
    expect(cluster.locator("#cluster-gpus")).to_contain_text(re.compile(r"a100\s+11 of 24 free"))
    row = cluster.locator("#cluster-partitions").get_by_role("row").nth(1)
    expect(row).to_contain_text("11 of 24 free")
    expect(row).to_contain_text("2 idle, 3 mixed, 1 down")
    expect(row).to_contain_text("2 days")
    jobs = cluster.locator("#cluster-jobs")
    expect(jobs.get_by_role("row").filter(has=cluster.get_by_role("link", name=made))).to_contain_text(
        re.compile(r"2\s+1 ahead")
    )
    expect(jobs).to_contain_text("<b>train</b>")
    assert violations(cluster, axe) == []
    slurm.slurm.show_nodes(NODES.replace("gpu:a100:3(IDX:0-2)", "gpu:a100:4(IDX:0-3)"))
    expect(cluster.locator("#cluster-gpus")).to_contain_text(re.compile(r"8 of 24 free"), timeout=SECONDS)
    slurm.slurm.change(made, state="RUNNING", reason="None", nodelist="gpu4", starttime="1795274373")
    expect(jobs).not_to_contain_text("1 ahead", timeout=SECONDS)
    slurm.slurm.behave("sinfo", "echo 'Unable to contact slurm controller' >&2; exit 1")
    expect(cluster.locator("#cluster-state")).to_contain_text("has not answered since", timeout=SECONDS)
    expect(cluster.locator("#cluster-state")).to_contain_text("Unable to contact slurm controller", timeout=SECONDS)
    slurm.slurm.behave("sinfo")
    expect(cluster.locator("#cluster-state")).to_contain_text("It is asked while this page is open", timeout=SECONDS)
    cluster.emulate_media(color_scheme="dark")
    assert violations(cluster, axe) == []
    cluster.set_viewport_size({"width": 360, "height": 740})
    cluster.wait_for_function("document.documentElement.scrollWidth <= 360", timeout=SECONDS)


def test_the_charts_draw_what_goes_through_the_gateway(opened: Opened, sampled: Site, axe: str) -> None:
    service = sampled.start(model="gpt2")
    sampled.until(service, "running")
    context, _ = opened(sampled)
    page = context.new_page()
    page.goto("/ui/charts")
    requests = page.locator("[data-chart=requests]")
    expect(requests.locator("canvas")).to_be_visible()
    question = {"model": "gpt2", "messages": [{"role": "user", "content": "hello"}]}
    for _ in range(5):
        assert sampled.http.post("/v1/chat/completions", json=question).status_code == 200
    assert sampled.http.post("/v1/chat/completions", json=question | {"model": "none"}).status_code == 404
    requests.get_by_text("As a table").click()
    rows = requests.get_by_role("row")
    until(lambda: page.evaluate(COUNTED))
    expect(rows.first).to_contain_text(re.compile("Time.*for models.*of these failed.*others"))
    latency = page.locator("[data-chart=latency] .keys")
    expect(latency).to_contain_text("ms")
    expect(page.locator("[data-chart=days] canvas")).to_be_visible()
    expect(page.locator("[data-chart=days] .nothing")).to_be_visible()  # no GPU here
    assert violations(page, axe) == []
    page.get_by_role("link", name="24 h").click()
    expect(page.get_by_role("link", name="24 h")).to_have_attribute("aria-current", "true")
    expect(page.locator("[data-chart=requests] canvas")).to_be_visible()
    page.emulate_media(color_scheme="dark")
    assert violations(page, axe) == []
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_function("document.documentElement.scrollWidth <= 360", timeout=SECONDS)
    sampled.http.post(f"/api/v1/services/{service}/status", json={"status": "cancelled"})


def test_the_audit_is_filtered_and_paged(opened: Opened, sampled: Site, axe: str) -> None:
    service = sampled.start(model="gpt2")
    sampled.http.post(f"/api/v1/services/{service}/status", json={"status": "cancelled"})
    context, watch = opened(sampled)
    watch.expected.append("status of 422")
    page = context.new_page()
    page.goto("/ui/audit")
    expect(page.get_by_role("row").nth(1)).to_contain_text(re.compile("service|job"))
    page.get_by_label("What").fill("service.created")
    page.get_by_label("Service").fill(service)
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("row")).to_have_count(2)
    expect(page.get_by_role("row").nth(1)).to_contain_text(re.compile(rf"user.*service\.created.*{service}", re.DOTALL))
    assert violations(page, axe) == []
    page.get_by_label("From").fill("yesterday")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("alert")).to_contain_text("2026-11-01T00:00:00Z")
    page.get_by_role("link", name="Show all").click()
    expect(page.get_by_label("What")).to_have_value("")
    page.emulate_media(color_scheme="dark")
    assert violations(page, axe) == []
    for _ in range(20):
        identity = sampled.start(model="gpt2")
        sampled.http.post(f"/api/v1/services/{identity}/status", json={"status": "cancelled"})
    page.goto("/ui/audit?actor=user")
    expect(page.get_by_role("row")).to_have_count(51)
    page.get_by_role("link", name="Older").click()
    expect(page).to_have_url(re.compile("offset=50"))
    expect(page.get_by_text("51 to")).to_be_visible()
    page.get_by_role("link", name="Newer").click()
    expect(page.get_by_text("1 to 50")).to_be_visible()
