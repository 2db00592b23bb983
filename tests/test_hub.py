"""Models from the hub: the real huggingface_hub against a small hub of ours, through the orchestrator's routes."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from gateway import paths
from orchestrator.app import create_app
from orchestrator.errors import BadRequest, Invalid, NotFound, NotReady
from orchestrator.hub import Hub, check_model_id
from orchestrator.schedulers.local import Local
from orchestrator.settings import Settings, SettingsError, Site
from tests.fake_hub import TOKEN, FakeHub, Mood, fake_hub, model
from tests.orchestrating import Clock, fake_engine_site

pytestmark = [pytest.mark.system, pytest.mark.beside]

JSON = dict[str, Any]
QWEN = "Qwen/Qwen2.5-7B-Instruct"
PREFIXES = ("/api/services", "/api", "/api/v1", "/api/v1/services")


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
        yield hub


@contextmanager
def serving(home: Path, site: Site | None = None) -> Iterator[TestClient]:
    home.mkdir(mode=0o700, exist_ok=True)
    settings = Settings(home=home, scheduler="local", site=site or fake_engine_site(), poll_seconds=3600)
    with TestClient(create_app(settings, Local(home)), raise_server_exceptions=False) as http:
        yield http


@pytest.fixture
def http(hub: FakeHub, tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path / "home") as http:
        yield http


def get(http: TestClient, path: str, **query: Any) -> Any:
    response = http.get(f"/api/v1/vllm/{path}", params=query or None)
    assert response.status_code == 200, response.text
    return response.json()


def refused(http: TestClient, path: str, **query: Any) -> tuple[int, str]:
    """The status and the text of an error, which has the shape of the contract."""
    response = http.get(f"/api/v1/vllm/{path}", params=query or None)
    body = response.json()
    assert body["success"] is False
    assert response.status_code != 503 or int(response.headers["Retry-After"]) > 0
    return response.status_code, body["error"]


# The shapes


def test_available_models_needs_no_network(http: TestClient, hub: FakeHub) -> None:
    answer = get(http, "available-models")
    assert list(answer) == [
        "model_source", "vllm_version", "supported_architectures", "notes", "examples", "how_to_find_models",
        "resource_guidelines",
    ]  # fmt: skip
    assert list(answer["supported_architectures"]) == ["text-generation", "vision-language", "embedding"]
    assert "Qwen2ForCausalLM" in answer["supported_architectures"]["text-generation"]
    for prefix in PREFIXES:
        assert http.get(f"{prefix}/vllm/available-models").json() == answer, prefix
    assert hub.requests == []


def test_search(http: TestClient, hub: FakeHub) -> None:
    answer = get(http, "search-models", query="qwen", limit=10)
    assert answer == {
        "models": [
            {
                "id": QWEN, "downloads": 9000, "likes": 90, "architecture": "Qwen2ForCausalLM", "vllm_compatible": True,
                "created_at": "2024-09-16T11:55:40Z", "tags": ["transformers", "text-generation"],
            },
            {
                "id": f"{QWEN}-GGUF", "downloads": 7000, "likes": 70, "architecture": None, "vllm_compatible": False,
                "created_at": "2024-09-16T11:55:40Z", "tags": ["transformers", "text-generation"],
            },
        ],
        "total": 2,
    }  # fmt: skip
    assert hub.requests == ["/api/models"]
    assert (hub.queries[0]["sort"], hub.queries[0]["limit"]) == (["downloads"], ["10"])


def test_search_sorts_and_limits_as_asked(http: TestClient, hub: FakeHub) -> None:
    assert [m["id"] for m in get(http, "search-models", sort_by="likes", limit=1)["models"]] == [QWEN]
    assert get(http, "search-models", sort_by="created_at")["total"] == 6
    assert [query["sort"] for query in hub.queries] == [["likes"], ["createdAt"]]


def test_search_by_architecture_looks_further_than_the_first_page(http: TestClient, hub: FakeHub) -> None:
    hub.models = [model(f"many/{n:03}", "Qwen2ForCausalLM" if n % 2 else "Odd", 1000 - n) for n in range(600)]
    answer = get(http, "search-models", architecture="Qwen2ForCausalLM", limit=100)
    assert [m["id"] for m in answer["models"]] == [f"many/{n:03}" for n in range(1, 200, 2)]
    assert len(hub.requests) == 5, "500 models in pages of 100"
    assert get(http, "search-models", architecture="Qwen2ForCausalLM", limit=3)["total"] == 3
    assert len(hub.requests) == 5, "the limit is applied to what is kept"


def test_model_info(http: TestClient, hub: FakeHub) -> None:
    answer = get(http, f"model-info/{QWEN}")
    assert answer == {
        "id": QWEN, "architecture": "Qwen2ForCausalLM", "vllm_compatible": True, "task_type": "text-generation",
        "downloads": 9000, "likes": 90, "tags": ["transformers", "text-generation"], "size_bytes": 15_231_271_888,
        "size_gb": 15.23, "pipeline_tag": "text-generation", "library_name": "transformers",
    }  # fmt: skip
    for prefix in PREFIXES:
        for model_id in (QWEN, quote(QWEN, safe=""), "Qwen%2fQwen2.5-7B-Instruct"):
            assert http.get(f"{prefix}/vllm/model-info/{model_id}").json() == answer, (prefix, model_id)
    assert hub.requests == [f"/api/models/{QWEN}"]


def test_the_gateway_passes_on_an_id_with_an_encoded_slash() -> None:
    path = "/api/v1/vllm/model-info/Qwen%2FQwen2.5-7B-Instruct"
    paths.check(path)
    assert paths.to_orchestrator("GET", path)[1] == "/api/services/vllm/model-info/Qwen%2FQwen2.5-7B-Instruct"


@pytest.mark.parametrize(
    ("model_id", "size", "gb", "task"),
    [
        ("openai-community/gpt2", None, None, "text-generation"),
        ("tiny/counted", 2400, 0.0, "text-generation"),
        ("BAAI/bge-m3", None, None, "embedding"),
        (f"{QWEN}-GGUF", None, None, None),
        ("odd/fields", None, None, None),
    ],
)
def test_what_the_hub_does_not_say_is_null(
    http: TestClient, model_id: str, size: int | None, gb: float | None, task: str | None
) -> None:
    answer = get(http, f"model-info/{model_id}")
    assert (answer["size_bytes"], answer["size_gb"], answer["task_type"]) == (size, gb, task)


def test_a_renamed_model_is_followed(http: TestClient) -> None:
    assert get(http, "model-info/gpt2")["id"] == "openai-community/gpt2"


def test_model_options_are_the_popular_ones_that_vllm_runs(http: TestClient, hub: FakeHub) -> None:
    assert get(http, "model-options") == [
        {"label": f"{QWEN} (7.6B)", "value": QWEN},
        {"label": "openai-community/gpt2", "value": "openai-community/gpt2"},
        {"label": "tiny/counted (1M)", "value": "tiny/counted"},
    ]
    get(http, "model-options")
    assert len(hub.requests) == 1


# What is refused


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"limit": 0}, ["limit", "greater than or equal to 1"]),
        ({"limit": 101}, ["limit", "less than or equal to 100"]),
        ({"limit": "many"}, ["limit", "integer"]),
        ({"sort_by": "size"}, ["sort_by", "'downloads', 'likes', 'created_at'"]),
        ({"architecture": "Qwen2ForCausalLLM"}, ["Qwen2ForCausalLM", "0.32.0", "available-models"]),
        ({"architecture": ""}, ["architecture", "available-models"]),
        ({"query": "x" * 201}, ["query", "200"]),
    ],
)
def test_a_wrong_value_is_named_and_the_hub_not_asked(
    http: TestClient, hub: FakeHub, query: JSON, words: list[str]
) -> None:
    status, text = refused(http, "search-models", **query)
    assert status == 422
    assert [word for word in words if word not in text] == []
    assert hub.requests == []


EVIL = [
    "Qwen/../../api", "../whoami-v2", "..", ".", "./x", "x/.", "a/b/c", "a..b/c", "https://evil.example/x",
    "//evil.example/x", "@evil.example/x", "user@evil.example", "evil.example:80/x", "Qwen\\x", "a/b?x=1", "a/b#x",
    "a b/c", "a/b\n", "a\n/b", "a/b\0", "\0", "x" * 5000, "a/" + "x" * 97, "\u00e9/x", "\uff51wen/x", "a/%2e%2e", "",
    "/", "a/", "/a", "{{7*7}}", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("model_id", EVIL, ids=lambda value: ascii(value)[:30])
def test_an_evil_id(model_id: str) -> None:
    with pytest.raises(BadRequest, match="not the id of a model") as caught:
        check_model_id(model_id)
    assert len(str(caught.value)) < 1500


def test_an_evil_id_never_reaches_the_network(http: TestClient, hub: FakeHub) -> None:
    # Some are changed on their way: dots by the client, and starlette's routes know no line feed.
    for model_id in (one for one in EVIL if one not in (".", "..") and "\n" not in one and one.isprintable()):
        status, text = refused(http, f"model-info/{quote(model_id, safe='')}")
        assert (status, "not the id of a model" in text) == (400, True), model_id
    for raw in (
        "Qwen/../../api",
        "..",
        "%2e%2e/%2e%2e/api",
        "a%0Ab/c",
        "a%00/b",
        "@evil.example",
        "https://evil.example/x",
    ):
        assert http.get(f"/api/v1/vllm/model-info/{raw}").status_code in (400, 404), raw
    assert hub.requests == []


@pytest.mark.parametrize("model_id", ["gpt2", QWEN, "a.b-c_d/e.f-g_h", "0/1"])
def test_what_is_an_id(model_id: str) -> None:
    check_model_id(model_id)


def test_an_unknown_model(http: TestClient) -> None:
    status, text = refused(http, "model-info/nobody/nothing")
    assert status == 404
    assert "'nobody/nothing' not found" in text
    assert "search-models" in text


def test_a_gated_model_says_what_to_do(http: TestClient, hub: FakeHub) -> None:
    status, text = refused(http, "model-info/meta-llama/gated")
    assert status == 404
    assert "gated" in text
    assert f"{hub.url}/meta-llama/gated" in text
    assert "token_file" in text


# Without a hub


def test_a_hub_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: FakeHub) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with serving(tmp_path / "home") as http:
        for path in ("search-models?query=qwen", f"model-info/{QWEN}"):
            begun = time.monotonic()
            status, text = refused(http, path)
            assert (status, time.monotonic() - begun < 8) == (503, True)
            assert [word for word in ("http://127.0.0.1:1", "refused", "HTTPS_PROXY") if word not in text] == []
        assert {"label": "Qwen/Qwen2.5-0.5B-Instruct (494M)", "value": "Qwen/Qwen2.5-0.5B-Instruct"} in get(
            http, "model-options"
        )
        assert get(http, "available-models")["examples"]


@pytest.mark.parametrize("endpoint", ["hf-mirror.example", "ftp://127.0.0.1", "http://", "http://[::1", "http://a b"])
def test_an_endpoint_that_is_no_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with serving(tmp_path / "home") as http:
        status, text = refused(http, f"model-info/{QWEN}")
    assert (status, "HF_ENDPOINT" in text) == (503, True)


def test_offline_mode_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: FakeHub) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with serving(tmp_path / "home") as http:
        for path in ("search-models?query=qwen", f"model-info/{QWEN}"):
            status, text = refused(http, path)
            assert (status, "HF_HUB_OFFLINE" in text) == (503, True)
        assert len(get(http, "model-options")) >= 5
        assert get(http, "available-models")["vllm_version"]
    assert hub.requests == []


def hub_of(hub: FakeHub, *, clock: Clock | None = None, token_file: Path | None = None, seconds: float = 5) -> Hub:
    return Hub(endpoint=hub.url, offline=False, token_file=token_file, clock=clock or Clock(), seconds=seconds)


@pytest.mark.parametrize(
    ("mood", "words"),
    [
        ("hangs", "within 0.3 s"),
        ("trickles", "within 0.3 s"),
        ("breaks", "answers 503"),
        ("login page", "not the hub's API"),
        ("sends us away", "169.254.169.254"),
        ("refuses the token", "token"),
    ],
)
def test_a_sick_hub_is_a_503_within_the_time_limit(hub: FakeHub, mood: Mood, words: str) -> None:
    hub.mood = mood
    limit = 0.3 if mood in ("hangs", "trickles") else 30

    async def asking() -> None:
        ours = hub_of(hub, seconds=limit)
        for work in (ours.model(QWEN), ours.search("x", architecture=None, limit=5, sort_by="likes"), ours.popular()):
            begun = time.monotonic()
            with pytest.raises(NotReady, match=words) as caught:
                await work
            assert caught.value.retry_after == 30
            assert time.monotonic() - begun < limit + 5
        ours.close()

    asyncio.run(asking())
    assert len(hub.requests) == 3, "nothing is tried twice"


def test_further_pages_at_another_host_are_not_fetched(hub: FakeHub) -> None:
    hub.models = [model(f"many/{n:03}", "Qwen2ForCausalLM", 1000 - n) for n in range(600)]
    ours = hub_of(hub)
    hub.url = "http://127.0.0.2:9"
    found = asyncio.run(ours.search("", architecture="Qwen2ForCausalLM", limit=200, sort_by="likes"))
    assert (len(found), len(hub.requests)) == (100, 1)


def test_a_hub_that_is_busy_says_for_how_long(hub: FakeHub) -> None:
    hub.mood = "busy"

    async def asking() -> None:
        with pytest.raises(NotReady, match="429") as caught:
            await hub_of(hub).search("x", architecture=None, limit=5, sort_by="likes")
        assert caught.value.retry_after == 77

    asyncio.run(asking())


# The cache


def test_the_second_call_asks_nothing_for_an_hour(hub: FakeHub) -> None:
    clock = Clock()

    async def asking() -> None:
        ours = hub_of(hub, clock=clock)
        first = await ours.model(QWEN)
        clock.advance(3599)
        assert await ours.model(QWEN) is first
        assert len(hub.requests) == 1
        clock.advance(1)
        assert await ours.model(QWEN) == first
        assert len(hub.requests) == 2

    asyncio.run(asking())


def test_a_failure_is_remembered_for_half_a_minute(hub: FakeHub) -> None:
    clock = Clock()

    async def asking() -> None:
        ours = hub_of(hub, clock=clock)
        for _ in range(3):
            with pytest.raises(NotFound):
                await ours.model("new/model")
        assert len(hub.requests) == 1
        hub.models.append(model("new/model", None, 0))
        clock.advance(30)
        assert (await ours.model("new/model")).id == "new/model"

    asyncio.run(asking())


def test_twenty_at_once_are_one_call(http: TestClient, hub: FakeHub) -> None:
    hub.seconds = 0.3
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: get(http, f"model-info/{QWEN}"), range(20)))
    assert answers == [answers[0]] * 20
    assert len(hub.requests) == 1


# The settings


@pytest.mark.parametrize(
    ("ours", "jobs", "endpoint"),
    [
        (None, {}, "https://huggingface.co"),
        (None, {"HF_ENDPOINT": "https://mirror.example/hf/"}, "https://mirror.example/hf"),
        ("https://ours.example", {"HF_ENDPOINT": "https://mirror.example"}, "https://ours.example"),
    ],
)
def test_the_endpoint(monkeypatch: pytest.MonkeyPatch, ours: str | None, jobs: dict[str, str], endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", ours or "")
    settings = Settings(site=Site(environment=jobs | {"HF_HUB_OFFLINE": "1"}))
    assert (settings.hub_endpoint, settings.hub_offline) == (endpoint, False), "jobs may be offline where we are not"


# The token


@pytest.mark.parametrize(("content", "sent"), [(None, None), (f"{TOKEN}\n", f"Bearer {TOKEN}")])
def test_the_token_is_that_of_the_file_and_of_nothing_else(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, sent: str | None
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    file = tmp_path / "token"
    file.write_text(content or "")

    async def asking() -> None:
        ours = hub_of(hub, token_file=file if content else None)
        assert (await ours.model("gpt2")).id == "openai-community/gpt2"
        with pytest.raises(NotFound, match="not found"):
            await ours.model("nobody/nothing")

    asyncio.run(asking())
    assert hub.tokens == [sent, sent, sent]


@pytest.mark.parametrize("content", ["", "hf_a\nhf_b", "hf_ä", "hf a"])
def test_a_broken_token_file_is_named_and_never_shown(hub: FakeHub, tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)

    async def asking() -> str:
        with pytest.raises(SettingsError) as caught:
            await hub_of(hub, token_file=file).model(QWEN)
        return str(caught.value)

    text = asyncio.run(asking())
    assert str(file) in text
    assert "hf" not in text.replace(str(file), "")
    assert hub.requests == []


def test_what_the_library_refuses_is_refused_in_our_words(hub: FakeHub) -> None:
    with pytest.raises(BadRequest, match="a--b"):
        asyncio.run(hub_of(hub).model("a--b"))
    assert hub.requests == []


def test_what_the_hub_refuses_is_told_in_its_words(hub: FakeHub) -> None:
    hub.mood = "refuses"
    with pytest.raises(Invalid, match="this is not for me"):
        asyncio.run(hub_of(hub).model(QWEN))
