"""The endpoints of a single machine that switches its models, as editors and scripts of that document call them.

Each row is a call of the document and what it says of the answer. The document's two slots have one port each; here
each has a base URL.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from tests.test_process import Home, a_home
from tests.test_slots import client, engines, model

pytestmark = [pytest.mark.system, pytest.mark.beside, pytest.mark.timeout(120)]

PRIMARY, SECONDARY = "qwen3-32b-nvfp4", "llama4-scout-17b-nvfp4"
CHAT = {"model": "local", "messages": [{"role": "user", "content": "Hallo"}]}
Check = Callable[[Any], bool]
CALLS: list[tuple[str, str, Any, Check]] = [
    ("GET", "/health", None, lambda told: told["status"] == "healthy"),
    ("GET", "/v1/models", None, lambda told: {"local", PRIMARY, SECONDARY} <= {card["id"] for card in told["data"]}),
    ("POST", "/v1/chat/completions", CHAT, lambda told: "Hallo" in told["choices"][0]["message"]["content"]),
    ("GET", "/slots/local/v1/models", None, lambda told: "local" in [card["id"] for card in told["data"]]),
    (
        "POST",
        "/slots/local/v1/chat/completions",
        CHAT,
        lambda told: told["choices"][0]["message"]["role"] == "assistant",
    ),
    ("POST", "/slots/local/v1/chat/completions", CHAT | {"model": SECONDARY}, lambda told: told["model"] == SECONDARY),
    ("POST", "/v1/chat/completions", CHAT | {"model": PRIMARY}, lambda told: told["model"] == PRIMARY),
    ("GET", "/api/tags", None, lambda told: PRIMARY in [one["name"] for one in told["models"]]),
]


@pytest.fixture(scope="module")
def spark() -> Iterator[Home]:
    """The machine: two models, of which one fits."""
    home_of = a_home()
    home = next(home_of)
    path = home.folder / "models.yaml"
    listed = {name: model(home, name, slot="local") for name in (PRIMARY, SECONDARY)}
    path.write_text(json.dumps({"slots": {"local": {"default": PRIMARY}}, "models": listed}))
    home.variables |= {"ORCHESTRATOR_POLL_SECONDS": "0.2", "ORCHESTRATOR_WAKE_HOLD_SECONDS": "60"}
    home.variables["MODELS_YAML_PATH"] = str(path)
    home.serve()
    yield home
    next(home_of, None)


@pytest.mark.parametrize(
    ("method", "path", "body", "check"), CALLS, ids=[f"{c[0]} {c[1]} {n}" for n, c in enumerate(CALLS)]
)
def test_the_documents_calls(spark: Home, method: str, path: str, body: Any, check: Check) -> None:
    with client(spark) as http:
        answer = http.request(method, path, json=body)
    assert answer.status_code == 200, answer.text
    assert check(answer.json()), answer.text
    assert len(engines(spark)) <= 1


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/slots/local/v1/models"])
def test_clients_that_ask_for_the_head_only(spark: Home, path: str) -> None:
    with client(spark) as http:
        answer: httpx2.Response = http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
