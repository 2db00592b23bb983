"""Models and images that are fetched before jobs need them: the real program, a small hub, a small apptainer."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from orchestrator.access import needed
from orchestrator.app import create_app
from orchestrator.keys import Scope
from orchestrator.model_cache import ModelCache
from orchestrator.pulls import Progress
from orchestrator.schedulers.local import Local
from orchestrator.settings import Settings
from tests.fake_hub import COMMIT, TINY, FakeHub, fake_hub, whole
from tests.orchestrating import RECIPE, fake_engine_site
from tests.test_process import Home, a_home

pytestmark = [pytest.mark.system, pytest.mark.beside]

JSON = dict[str, Any]
MODEL, LARGE, BROKEN, HUGE = "tiny/whole", "tiny/large", "tiny/broken", "tiny/huge"
PULLS, IMAGES = "/api/v1/models/pulls", "/api/v1/images/pulls"
IMAGE = "docker://vllm/vllm-openai:v0.11.2"
CONTENT = bytes(range(256)) * 12_000  # 3 MB, which come in three pieces
APPTAINER = Path(__file__).parent / "fake_apptainer"

home = pytest.fixture(a_home, name="home")


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with fake_hub() as hub:
        broken = whole(BROKEN, TINY)
        broken["contents"] = TINY | {"model.safetensors": bytes(len(TINY["model.safetensors"]))}
        huge = whole(HUGE, TINY)
        huge["siblings"][0]["size"] = 1 << 49
        gated = whole("tiny/gated", TINY, gated="manual")
        large = whole(LARGE, TINY | {"model.safetensors": CONTENT})
        hub.models = [whole(MODEL, TINY), large, broken, huge, gated]
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@contextmanager
def serving(home: Path, **site: Any) -> Iterator[TestClient]:
    home.mkdir(mode=0o700, exist_ok=True)
    facts = fake_engine_site(cache_dir=str(home / "cache"), **site)
    settings = Settings(home=home, scheduler="local", site=facts, poll_seconds=0.2)
    with TestClient(create_app(settings, Local(home)), raise_server_exceptions=False) as http:
        yield http


@pytest.fixture
def http(hub: FakeHub, tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path / "home") as http:
        yield http


def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "home" / "cache" / "huggingface" / "hub")


def pull(http: TestClient, model: str = MODEL, **more: Any) -> JSON:
    answer = http.post(PULLS, json={"model": model, **more})
    assert answer.status_code == 202, answer.text
    found: JSON = answer.json()
    return found


def until(look: Callable[[], JSON], condition: Callable[[JSON], bool]) -> JSON:
    deadline = time.monotonic() + 30
    while not condition(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def ended(http: TestClient, one: JSON, status: str = "done") -> JSON:
    """A pull when it has come to its end, which is `status`."""
    path = f"/api/v1/{one['kind']}s/pulls/{one['id']}"
    found = until(lambda: http.get(path).json(), lambda now: now["status"] not in ("queued", "running"))
    assert found["status"] == status, found
    return found


def audited(http: TestClient, subject: str) -> list[str]:
    return [entry["event"] for entry in http.get("/api/v1/audit").json() if entry["subject"] == subject]


def script(http: TestClient, model: str = MODEL, **config: Any) -> str:
    answer = http.post("/api/v1/render", json={"recipe_name": RECIPE, "config": {"model": model, "gpu": 1} | config})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["script"])


def verdict(http: TestClient, model: str = MODEL, **config: Any) -> tuple[str, str]:
    report = http.post("/api/v1/preflight", json={"model": model, "config": {"gpu": 1} | config}).json()
    (found,) = [verdict for verdict in report["verdicts"] if verdict["check"] == "cache"]
    return found["level"], found["message"]


def test_a_model_is_there_before_its_job(http: TestClient, hub: FakeHub, tmp_path: Path) -> None:
    assert "HF_HUB_OFFLINE" not in script(http)
    assert verdict(http) == ("ok", "the model would be downloaded by the job, 0.3 MB")
    level, message = verdict(http, environment={"HF_HUB_OFFLINE": "1"})
    assert (level, "forbids" in message) == ("error", True)
    first = pull(http)
    assert (first["kind"], first["name"], first["revision"], first["commit"]) == ("model", MODEL, "main", COMMIT)
    done = ended(http, first)
    total = sum(len(content) for name, content in TINY.items() if not name.endswith(".bin"))
    assert (done["bytes_done"], done["bytes_total"], done["percent"], done["files"]) == (total, total, 100.0, 4)
    assert (done["error"], done["eta_seconds"]) == (None, None)
    snapshot = cache(tmp_path).snapshot(MODEL)
    assert snapshot is not None
    assert {path.name for path in snapshot.iterdir()} == TINY.keys() - {"pytorch_model.bin"}
    assert not list(cache(tmp_path).root.rglob("*.incomplete"))
    assert audited(http, first["id"]) == ["model.pull_complete", "model.pull_requested"]
    assert [one["id"] for one in http.get(PULLS).json()] == [first["id"]]
    # What follows for jobs.
    assert "export HF_HUB_OFFLINE=1\n" in script(http)
    assert "export HF_HUB_OFFLINE=0\n" in script(http, environment={"HF_HUB_OFFLINE": "0"})
    assert "HF_HUB_OFFLINE" not in script(http, vllm_args=["--tokenizer", "other/one"])
    assert verdict(http) == ("ok", "the model is in the jobs' cache; the job asks nothing of the hub")
    hub.requests.clear()
    ended(http, pull(http))
    assert not [path for path in hub.requests if path.endswith("model.safetensors")], "what is there is not fetched"


def test_only_some_files(http: TestClient, tmp_path: Path) -> None:
    assert ended(http, pull(http, include=["*.json"]))["files"] == 2
    assert not cache(tmp_path).has(MODEL)
    refused = http.post(PULLS, json={"model": MODEL, "include": ["*.gguf"]})
    assert (refused.status_code, "*.gguf" in refused.text) == (422, True)


def test_one_at_a_time_and_cancelled(http: TestClient, hub: FakeHub, tmp_path: Path) -> None:
    hub.shut_at = 2_500_000
    first = pull(http, LARGE)
    assert pull(http, LARGE)["id"] == first["id"]
    assert http.post(PULLS, json={"model": LARGE, "revision": COMMIT}).status_code == 409
    path = f"{PULLS}/{first['id']}"
    now = until(lambda: http.get(path).json(), lambda now: now["bytes_done"] > 2 << 20)
    assert (now["status"], now["bytes_done"] < now["bytes_total"], now["started_at"] is not None) == (
        "running",
        True,
        True,
    )
    assert list(cache(tmp_path).root.rglob("*.incomplete"))
    assert http.delete(path).json()["status"] == "cancelled"
    assert not list(cache(tmp_path).root.rglob("*.incomplete"))
    assert http.delete(path).json()["status"] == "cancelled", "again changes nothing"
    assert audited(http, first["id"]) == ["model.pull_cancelled", "model.pull_requested"]


def test_two_run_and_the_third_waits(http: TestClient, hub: FakeHub) -> None:
    hub.models += [whole(f"tiny/{n}", {"model.safetensors": bytes([n]) * 300_000}) for n in range(3)]
    hub.shut_at = 100_000
    three = [pull(http, f"tiny/{n}") for n in range(3)]

    def status() -> JSON:
        return {one["name"]: one["status"] for one in http.get(PULLS).json()}

    until(status, lambda now: list(now.values()).count("running") == 2)
    assert status()["tiny/2"] == "queued"
    assert http.delete(f"{PULLS}/{three[2]['id']}").json()["status"] == "cancelled"
    hub.shut_at = None
    for one in three[:2]:
        ended(http, one)


def test_what_is_killed_goes_on_where_it_was(home: Home, hub: FakeHub) -> None:
    home.variables |= {"HF_ENDPOINT": hub.url, "HOME": str(home.folder)}
    hub.shut_at = 2_500_000
    home.serve()
    assert home.process is not None
    first = pull_by(home, LARGE)
    path = f"/api/models/pulls/{first['id']}"
    until(lambda: home.ask("GET", path), lambda now: now["bytes_done"] > 2 << 20)
    home.end(signal.SIGKILL)
    part = next((home.folder / ".cache").rglob("*.incomplete"))
    came = part.stat().st_size
    until(lambda: {"left": fetching(part)}, lambda now: not now["left"])
    hub.shut_at = None
    home.serve()
    done = until(lambda: home.ask("GET", path), lambda now: now["status"] not in ("queued", "running"))
    assert (done["status"], done["bytes_done"]) == ("done", done["bytes_total"])
    assert f"bytes={came}-" in hub.ranges and came >= 2 << 20
    blob = next(path for path in part.parent.iterdir() if path.stat().st_size == len(CONTENT))
    assert blob.read_bytes() == CONTENT
    home.end(signal.SIGTERM)


def pull_by(home: Home, model: str) -> JSON:
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(home.socket)), timeout=20) as client:
        answer = client.post("http://orchestrator/api/models/pulls", json={"model": model})
    assert answer.status_code == 202, answer.text
    found: JSON = answer.json()
    return found


def fetching(part: Path) -> list[int]:
    """The programs that download which have a file open."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ours = b"orchestrator.fetch" in (entry / "cmdline").read_bytes()
            if ours and part in [fd.readlink() for fd in (entry / "fd").iterdir()]:
                found.append(int(entry.name))
        except OSError:  # gone meanwhile
            continue
    return found


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "tiny/nothing"}, 404, "does not exist, or it is private"),
        ({"model": "tiny/gated"}, 404, "is gated"),
        ({"model": "meta-llama/gated"}, 404, "is gated"),
        ({"model": MODEL, "revision": "v9"}, 404, "no such revision"),
        ({"model": MODEL, "revision": "../x"}, 422, "not a revision"),
        ({"model": "../x"}, 400, "not the id of a model"),
        ({"model": HUGE}, 507, "the cache of models is full (tiny/huge needs"),
        ({}, 422, "model"),
    ],
)
def test_what_cannot_be_pulled(http: TestClient, body: JSON, status: int, words: str) -> None:
    answer = http.post(PULLS, json=body)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert http.get(PULLS).json() == []


def test_a_hub_that_is_away(http: TestClient, hub: FakeHub) -> None:
    hub.mood = "breaks"
    answer = http.post(PULLS, json={"model": MODEL})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")


def test_a_content_that_is_not_what_the_hub_says(http: TestClient, tmp_path: Path) -> None:
    failed = ended(http, pull(http, BROKEN), "failed")
    assert "model.safetensors of tiny/broken is something else" in failed["error"]
    assert not cache(tmp_path).has(BROKEN)
    assert audited(http, failed["id"])[0] == "model.pull_failed"


def test_a_hub_that_breaks_off(http: TestClient, hub: FakeHub) -> None:
    hub.shut_at = 2_500_000
    first = pull(http, LARGE)
    until(lambda: http.get(f"{PULLS}/{first['id']}").json(), lambda now: now["bytes_done"] > 2 << 20)
    hub.mood, hub.shut_at = "breaks", None
    assert ended(http, first)["status"] == "done", "what has begun is not asked for again"
    hub.models.append(whole("tiny/late", TINY))
    hub.mood = "well"


def test_ids(http: TestClient) -> None:
    for method in ("GET", "DELETE"):
        assert http.request(method, f"{PULLS}/pull_0").status_code == 404
    one = ended(http, pull(http))
    assert http.get(f"{IMAGES}/{one['id']}").status_code == 404
    assert http.delete(f"{PULLS}/{one['id']}").json()["status"] == "done", "what has ended stays"
    for path in (PULLS, IMAGES, "/api/models/pushes", "/api/v1/models/pushes/content"):
        assert needed("POST", path) is Scope.MANAGE
        assert needed("GET", path) is Scope.USE


def test_an_engine_that_loads_says_how_far_it_is(http: TestClient) -> None:
    small = {"gpu": None, "cpu": 1, "memory": "1G"}
    shards = r"\rLoading safetensors checkpoint shards:  50% Completed | 1/2 [00:02<00:02,  2.55s/it]\n"
    environment = {"FAKE_LOAD_SECONDS": "3600", "FAKE_SAYS": shards}
    config = small | {"model": "gpt2", "environment": environment}
    started = http.post("/api/v1/services", json={"recipe_name": RECIPE, "config": config}).json()
    path = f"/api/v1/services/{started['id']}"
    try:
        now = until(lambda: http.get(path).json(), lambda now: bool(now["progress"] and now["progress"]["percent"]))
        assert now["progress"] == {
            "phase": "loading", "percent": 50.0, "text": "Loading safetensors checkpoint shards 1/2"
        }  # fmt: skip
    finally:
        http.post(f"{path}/status", json={"status": "cancelled"})
        until(lambda: http.get(path).json(), lambda now: now["job"]["ended_at"] is not None)
    assert http.get(path).json()["progress"] is None


# Images


@pytest.fixture
def with_apptainer(tmp_path: Path) -> JSON:
    """A site whose engines run in images, and whose file of modules brings apptainer."""
    init = tmp_path / "init.sh"
    init.write_text(f"export PATH={APPTAINER}:$PATH FAKE_APPTAINER_GATE={tmp_path}/gate\n")
    return {"runtime": "apptainer", "image_dir": str(tmp_path / "images"), "module_init": str(init)}


def test_an_image_is_there_before_its_job(with_apptainer: JSON, tmp_path: Path) -> None:
    file = tmp_path / "images" / "vllm--vllm-openai--v0.11.2.sif"
    with serving(tmp_path / "home", **with_apptainer) as http:
        assert f" {IMAGE} " in script(http)
        (tmp_path / "gate").touch()
        answer = http.post(IMAGES, json={"image": IMAGE, "size_gb": 0.001})
        assert answer.status_code == 202, answer.text
        one = answer.json()
        path = f"{IMAGES}/{one['id']}"
        now = until(lambda: http.get(path).json(), lambda now: now["bytes_done"] >= 100_000 and now["text"] != "")
        assert "Fetching OCI image..." in now["text"] and "\x1b" not in now["text"]
        assert (now["path"], now["bytes_total"]) == (str(file), None)
        (tmp_path / "gate").unlink()
        done = ended(http, one)
        assert done["bytes_done"] == done["bytes_total"] == len(file.read_bytes())
        assert file.read_text() == f"SIF of {IMAGE}"
        assert [path.name for path in file.parent.iterdir()] == [file.name], "nothing else is left"
        assert f" {file} " in script(http)
        assert audited(http, one["id"]) == ["image.pull_complete", "image.pull_requested"]


def test_images_that_cannot_be_pulled(with_apptainer: JSON, tmp_path: Path) -> None:
    with serving(tmp_path / "home", **with_apptainer) as http:
        failed = http.post(IMAGES, json={"image": "docker://nobody/nothing", "size_gb": 0.001}).json()
        assert "requested access to the resource is denied" in ended(http, failed, "failed")["error"]
        (tmp_path / "gate").touch()
        one = http.post(IMAGES, json={"image": IMAGE, "size_gb": 0.001}).json()
        until(lambda: http.get(f"{IMAGES}/{one['id']}").json(), lambda now: now["bytes_done"] > 0)
        assert http.delete(f"{IMAGES}/{one['id']}").json()["status"] == "cancelled"
        assert list((tmp_path / "images").iterdir()) == []
        for image, status in (("vllm/vllm-openai", 422), ("docker://../x", 422)):
            assert http.post(IMAGES, json={"image": image}).status_code == status
        assert http.post(IMAGES, json={"image": IMAGE, "size_gb": 9999}).status_code in (202, 507)
    with serving(tmp_path / "other", runtime="apptainer") as http:
        answer = http.post(IMAGES, json={"image": IMAGE})
        assert (answer.status_code, "image_dir" in answer.text) == (400, True)


# Pushes


def test_a_model_comes_from_a_laptop(http: TestClient, tmp_path: Path) -> None:
    body = pushed()
    first = http.post("/api/v1/models/pushes", json=body).json()
    assert first["snapshot"] is None and {file["path"] for file in first["missing"]} == set(TINY)
    for file in first["missing"]:
        content = TINY[file["path"]]
        half = len(content) // 2
        assert put(http, file, 0, content[:half]).json() == {"have": half, "complete": False}
        if file["path"] == "model.safetensors":  # the link broke: what has come is known
            again = http.post("/api/v1/models/pushes", json=body).json()["missing"]
            assert {f["path"]: f["have"] for f in again}["model.safetensors"] == half
            assert put(http, file, 0, content[:half]).status_code == 409
        assert put(http, file, half, content[half:]).json() == {"have": len(content), "complete": True}
    last = http.post("/api/v1/models/pushes", json=body).json()
    assert (last["missing"], last["snapshot"]) == ([], str(cache(tmp_path).snapshot("me/mine")))
    assert cache(tmp_path).has("me/mine")
    assert "export HF_HUB_OFFLINE=1\n" in script(http, "me/mine")
    assert audited(http, "me/mine") == ["model.pushed"]


def test_a_push_that_is_refused(http: TestClient) -> None:
    file = pushed()["files"][3]
    wrong = put(http, file, 0, bytes(file["size"]))
    assert (wrong.status_code, "something else" in wrong.text) == (422, True)
    assert put(http, file | {"path": "../../x"}, 0, b"").status_code == 422
    assert put(http, file, 0, bytes((32 << 20) + 1)).status_code == 413
    body = pushed()
    body["files"][0] |= {"size": 1 << 49}
    assert http.post("/api/v1/models/pushes", json=body).status_code == 507
    body["files"][0] |= {"path": "/etc/passwd"}
    assert http.post("/api/v1/models/pushes", json=body).status_code == 422


def pushed() -> JSON:
    files = [
        {"path": f["rfilename"], "size": f["size"], "blob": f.get("lfs", {}).get("sha256", f["blobId"])}
        for f in whole("me/mine", TINY)["siblings"]
    ]
    return {"model": "me/mine", "commit": COMMIT, "files": files}


def put(http: TestClient, file: JSON, offset: int, data: bytes) -> Any:
    about = {name: file[name] for name in ("path", "size", "blob")} | {"model": "me/mine", "offset": offset}
    return http.put("/api/v1/models/pushes/content", params=about, content=data)


# Numbers


def test_speed_and_what_is_left() -> None:
    progress = Progress()
    assert (progress.speed, progress.eta(100)) == (None, None)
    for second in range(20):
        progress.add(second, second * 10)
    assert (progress.done, progress.speed, progress.eta(1000)) == (190, 10.0, 81.0)
    assert progress.eta(None) is None
    for second in range(20, 40):
        progress.add(second, 190)
    assert (progress.speed, progress.eta(1000)) == (0.0, None)
