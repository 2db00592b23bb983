"""The dashboard at the gateway's door: for whom there are pages, what they may load, and one look for all tabs."""

import asyncio
import html
import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.dashboard.banner import TITLES, banner
from gateway.link import LinkState, LinkStatus
from gateway.settings import Settings
from orchestrator.keys import Key, Scope, changing, hash_of, now
from tests.gateway.fake_orchestrator import FakeOrchestrator
from tests.gateway.serving import gateway, served_orchestrator, until

pytestmark = pytest.mark.anyio

PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FROM_US = {"Sec-Fetch-Site": "same-origin"}
NOT_SENT = ("node_jobs", "endpoint", "model", "estimated_start", "started_at", "ends_at", "stale_since")


def service(number: int, status: str = "pending", **more: Any) -> dict[str, Any]:
    about = {"id": str(number), "name": f"vllm-{number}", "recipe_name": "inference/vllm", "status": status}
    at = {"created_at": "2026-11-21T12:00:00Z", "nodes": [], "reason": "Priority", "config": {}}
    return about | at | dict.fromkeys(NOT_SENT) | more


@pytest.fixture
def orchestrator() -> FakeOrchestrator:
    made = FakeOrchestrator()
    made.told = {"/api/services": [service(2), service(1, "running")], "/slots": []}
    return made


@pytest.fixture
async def settings(folder: Path, orchestrator: FakeOrchestrator) -> AsyncIterator[Settings]:
    async with served_orchestrator(orchestrator, folder / "o.sock"):
        yield Settings(
            local_socket=folder / "o.sock", keys_file=folder / "keys.json", models_file=folder / "models.json"
        )


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    async with gateway(settings) as client:
        yield client


async def test_a_browser_gets_the_page_and_everybody_else_what_it_was(client: httpx2.AsyncClient) -> None:
    page = await client.get("/", headers=PAGE)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "vllm-2" in page.text and page.text.index("service-2") < page.text.index("service-1")
    for accept in ("*/*", "application/json"):
        other = await client.get("/", headers={"Accept": accept})
        assert (other.json()["api"], other.headers["vary"]) == ("/api/v1", "Accept")


async def test_a_page_loads_from_here_alone_and_its_files_are_kept(client: httpx2.AsyncClient) -> None:
    page = await client.get("/", headers=PAGE)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy and "unsafe" not in policy
    assert (page.headers["cache-control"], page.headers["x-frame-options"]) == ("no-store", "DENY")
    links = re.findall(r'(?:src|href)="(/ui/static/[^"]+)"', page.text)
    assert len(links) >= 4
    for link in links:
        file = await client.get(link)
        assert (file.status_code, "immutable" in file.headers["cache-control"]) == (200, True), link
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=|https?://(?!localhost)", page.text)
    gone = await client.get("/ui/static/0000000000000000/style.css")
    assert (gone.status_code, "immutable" in gone.headers.get("cache-control", "")) == (404, False)


async def test_what_a_service_is_called_is_text(client: httpx2.AsyncClient, orchestrator: FakeOrchestrator) -> None:
    orchestrator.told["/api/services"] = [service(1, name="<script>x</script>", reason='"><img src=x>')]
    page = (await client.get("/", headers=PAGE)).text
    assert "<script>x" not in page and "<img" not in page and "&lt;script&gt;x" in page


async def test_without_an_orchestrator_and_without_a_page(
    client: httpx2.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    missing = await client.get("/ui/nothing", headers=PAGE)
    assert (missing.status_code, "no page at /ui/nothing" in missing.text) == (404, True)
    del orchestrator.told["/api/services"]
    refused = await client.get("/", headers=PAGE)
    assert (refused.status_code, "nothing at GET /api/services" in refused.text) == (404, True)
    part = await client.get("/", headers=PAGE | {"HX-Request": "true"})
    assert part.text.startswith('<div class="problem"')


async def test_slots_stand_above_the_services(client: httpx2.AsyncClient, orchestrator: FakeOrchestrator) -> None:
    about = {"longest_wait_seconds": 2.0, "told": "it waits for a GPU"}
    models = [{"name": "big", "state": "loading", "waiting": 2} | about]
    orchestrator.told["/slots"] = [{"name": "main", "phase": "switching", "loaded": None, "models": models}]
    page = (await client.get("/", headers=PAGE)).text
    assert re.search(r"big</span> loading, 2 requests waiting <span class=\"muted\">it waits for a GPU", page)


async def test_a_group_shows_its_replicas(client: httpx2.AsyncClient, orchestrator: FakeOrchestrator) -> None:
    common = {"job_id": "7", "node_index": 0, "gpu_id": "0", "endpoint": None, "problem": ""}
    replicas = [
        common | {"id": "7:8001", "replica_index": 0, "port": 8001, "status": "running"},
        common | {"id": "7:8002", "replica_index": 1, "port": 8002, "status": "starting", "problem": "it loads"},
    ]
    node_jobs = [{"job_id": "7", "node_index": 0, "node": "node1", "replicas": replicas}]
    times = dict.fromkeys(("submitted_at", "started_at", "ready_at", "ended_at", "exit_code"))
    details = dict.fromkeys(("diagnosis", "next_job", "idle_timeout", "last_activity", "idle_shutdown_at"))
    job = {"id": "7", "name": "sluice-7", "scheduler": "slurm", "state": "RUNNING", "restarts": 1} | times
    group = service(7, "running", node_jobs=node_jobs, nodes=["node1"], job=job, handovers=0, **details)
    orchestrator.told |= {"/api/services/7": group, "/api/services": [group]}
    page = (await client.get("/ui/services/7", headers=PAGE)).text
    assert all(words in page for words in ("7:8001", "7:8002", "it loads", "1 restart"))
    assert "1 of 2 replicas on node1" in (await client.get("/", headers=PAGE)).text


@pytest.mark.parametrize("state", list(LinkState))
def test_the_banner_says_how_the_link_stands(state: LinkState) -> None:
    shown = html.unescape(banner(LinkStatus(state, "login:/o.sock", now(), "it asks for a code"), answers=False))
    assert TITLES[state] in shown and "login:/o.sock" in shown and " hidden" not in shown
    assert " hidden" in banner(LinkStatus(LinkState.UP, "login:/o.sock", now()), answers=True)


async def test_away(folder: Path) -> None:
    async with gateway(Settings(local_socket=folder / "none.sock", models_file=folder / "m.json")) as client:
        page = await client.get("/", headers=PAGE)
    assert page.status_code == 503
    banner = page.text[page.text.index('id="banner"') :]
    assert "The orchestrator does not answer" in banner and "sluice orchestrator" in banner


async def test_signing_in(client: httpx2.AsyncClient, settings: Settings, orchestrator: FakeOrchestrator) -> None:
    with changing(settings.keys_path) as keys:
        keys += [Key("ann", Scope.USE, hash_of(b"secret"), now())]

    async def wanted() -> bool:
        return (await client.get("/")).status_code == 401

    await until(wanted)
    turned = await client.get("/ui/services?from=1", headers=PAGE)
    assert (turned.status_code, turned.headers["location"]) == (303, "/ui/sign-in?next=%2Fui%2Fservices%3Ffrom%3D1")
    part = await client.get("/ui/services", headers=PAGE | {"HX-Request": "true"})
    assert (part.status_code, part.headers["hx-redirect"]) == (401, "/ui/sign-in")
    form = await client.get("/ui/sign-in?next=%2F%2Fevil", headers=PAGE)
    assert (form.status_code, 'name="next" value="/"' in form.text) == (200, True)
    wrong = await client.post("/ui/sign-in", data={"key": "x", "next": "/"}, headers=FROM_US)
    assert (wrong.status_code, "does not know that key" in wrong.text) == (401, True)
    huge = await client.post("/ui/sign-in", data={"key": "x" * 300_000}, headers=FROM_US)
    assert huge.status_code == 413
    signed = await client.post("/ui/sign-in", data={"key": "secret", "next": "/ui/services"}, headers=FROM_US)
    assert (signed.status_code, signed.headers["location"]) == (303, "/ui/services")
    assert {"httponly", "samesite=strict", "path=/"} <= set(signed.headers["set-cookie"].lower().split("; "))
    page = await client.get("/ui/services", headers=PAGE | FROM_US)
    assert page.status_code == 200 and "ann" in page.text and 'href="/ui/start"' not in page.text
    assert (await client.get("/api/v1/services", headers=FROM_US)).status_code == 200
    assert (await client.get("/api/v1/services", headers={"Sec-Fetch-Site": "same-site"})).status_code == 401
    stop = await client.post("/ui/services/1/stop", headers=FROM_US)
    assert (stop.status_code, "scope use" in stop.text) == (403, True)
    assert not any(method == "POST" for method, _ in orchestrator.seen)
    await client.post("/ui/sign-out", headers=FROM_US)
    assert (await client.get("/api/v1/services", headers=FROM_US)).status_code == 401


async def test_only_our_own_pages_change_anything(client: httpx2.AsyncClient, orchestrator: FakeOrchestrator) -> None:
    for headers in ({}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://localhost:1"}):
        refused = await client.post("/ui/services/1/stop", headers=headers)
        assert refused.status_code == 403
    assert not any(method == "POST" for method, _ in orchestrator.seen)
    orchestrator.told["/api/services/1/status"] = {"status": "cancelled"}
    done = await client.post("/ui/services/1/stop", headers={"Origin": str(client.base_url).rstrip("/")})
    assert (done.status_code, done.headers["location"]) == (303, "/ui/services/1")
    assert orchestrator.seen[-1] == ("POST", "/api/services/1/status")


async def events(client: httpx2.AsyncClient, said: "asyncio.Queue[dict[str, Any]]") -> None:
    async with client.stream("GET", "/ui/events?topics=services,nothing") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                said.put_nowait(json.loads(line[6:]))


@asynccontextmanager
async def watching(
    client: httpx2.AsyncClient, queues: Sequence["asyncio.Queue[dict[str, Any]]"]
) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(events(client, queue)) for queue in queues]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_200_services_and_20_tabs(client: httpx2.AsyncClient, orchestrator: FakeOrchestrator) -> None:
    """One look for all of them, the change within 2 s, and only the row that is another."""
    rows = [service(number) for number in range(200, 0, -1)]
    orchestrator.told["/api/services"] = rows
    queues: list[asyncio.Queue[dict[str, Any]]] = [asyncio.Queue() for _ in range(20)]
    async with watching(client, queues):
        async with asyncio.timeout(20):
            first = [await queue.get() for queue in queues]
        assert all((told["whole"], len(told["pieces"])) == (True, 202) for told in first)
        asked = len(orchestrator.seen)
        orchestrator.told["/api/services"] = [service(200, "running"), *rows[1:]]
        began = time.monotonic()
        async with asyncio.timeout(10):
            second = [await queue.get() for queue in queues]
        took = time.monotonic() - began
        for told in second:
            assert (told["whole"], set(told["pieces"]), told["gone"]) == (
                False,
                {"service-200", "services-summary"},
                [],
            )
        assert took < 2
        looks = (len(orchestrator.seen) - asked) / 2  # at services and at slots
        assert looks <= took / 1.0 + 2, "one look a second, whoever watches"


async def test_streams_do_not_keep_the_gateway_from_its_end(settings: Settings) -> None:
    said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    async with AsyncExitStack() as opened:
        outliving = await opened.enter_async_context(httpx2.AsyncClient(trust_env=False, timeout=10))
        async with gateway(settings) as client:
            outliving.base_url = client.base_url
            task = asyncio.create_task(events(outliving, said))
            await said.get()
            began = time.monotonic()
        assert time.monotonic() - began < 0.9, "uvicorn would wait for a second"
        await asyncio.wait_for(task, 5)
