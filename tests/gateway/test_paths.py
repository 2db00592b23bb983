"""The table of paths, both ways, and the paths that are refused."""

import pytest

from gateway.paths import PathError, check, is_relayed, to_client, to_orchestrator
from orchestrator.dispatch import INFERENCE, OF_A_SERVICE

TABLE = [
    ("POST", "/api/v1/services", "POST", "/api/services/start"),
    ("DELETE", "/api/v1/services/42", "POST", "/api/services/stop/42"),
    ("DELETE", "/api/v1/services/42:8001", "POST", "/api/services/stop/42:8001"),
    ("GET", "/api/v1/services", "GET", "/api/services"),
    ("GET", "/api/v1/services/42/logs", "GET", "/api/services/42/logs"),
    ("POST", "/api/v1/services/42/status", "POST", "/api/services/42/status"),
    ("POST", "/api/v1/vllm/42/prompt", "POST", "/api/services/vllm/42/prompt"),
    ("GET", "/api/v1/vllm/services", "GET", "/api/services/vllm/services"),
    ("PUT", "/api/v1/vector-db/7/collections/c", "PUT", "/api/services/vector-db/7/collections/c"),
    ("GET", "/api/v1/vector-db/7/qdrant", "GET", "/api/services/vector-db/7/qdrant"),
    ("GET", "/api/v1/recipes/inference/vllm-single-node", "GET", "/api/recipes/inference/vllm-single-node"),
    ("DELETE", "/api/v1/service-groups/sg-1", "DELETE", "/api/service-groups/sg-1"),
    ("GET", "/v1/models/Qwen%2FQwen2.5-0.5B-Instruct", "GET", "/v1/models/Qwen%2FQwen2.5-0.5B-Instruct"),
    ("GET", "/api/v1/services/42:8001/v1/models/a%2Fb", "GET", "/api/services/42:8001/v1/models/a%2Fb"),
    ("POST", "/v1/chat/completions", "POST", "/v1/chat/completions"),
    ("GET", "/jobs/1", "GET", "/jobs/1"),
    ("POST", "/infra/vast/start", "POST", "/infra/vast/start"),
]


@pytest.mark.parametrize(("method", "path", "there_method", "there_path"), TABLE)
def test_table(method: str, path: str, there_method: str, there_path: str) -> None:
    check(path)
    assert is_relayed(path)
    assert to_orchestrator(method, path) == (there_method, there_path)
    assert to_client(there_method, there_path) == (method, path)


def test_the_orchestrator_s_own_paths_pass_unchanged() -> None:
    assert to_orchestrator("POST", "/api/services/start") == ("POST", "/api/services/start")
    assert to_client("GET", "/api/v1/services") == ("GET", "/api/v1/services")


@pytest.mark.parametrize("path", sorted(path.decode() for path in INFERENCE))
def test_whatever_names_a_model_is_passed_on(path: str) -> None:
    check(path)
    assert is_relayed(path)
    assert to_orchestrator("POST", path) == ("POST", path)


@pytest.mark.parametrize("path", sorted(path.decode() for path in INFERENCE | OF_A_SERVICE))
def test_so_is_what_one_service_is_asked(path: str) -> None:
    check(f"/api/v1/services/42{path}")
    assert is_relayed(f"/api/v1/services/42{path}")


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/../admin", "/api/v1/./x", "/api/v1/..", "/api/v1/%2e%2e/x", "/api/v1/%2E/x", "/api/v1/a%2Fb",
        "/api/v1/a%2fb", "/api/v1/a%00", "/api/v1/a\\b", "/api/v1/a%5Cb", "/v1/models/..%2fx", "/v1/models/a%2F..%2Fb",
        "/api/v1/services/4%2f2/v1/models/a", "/api/v1/services/42/logs/v1/models/a%2Fb",
        "/api/v1/a b", "/api/v1/\xe9", "/api/v1/a\x7f",
    ],
)  # fmt: skip
def test_refused(path: str) -> None:
    with pytest.raises(PathError):
        check(path)


@pytest.mark.parametrize("path", ["/apiary", "/v2/x", "/jobsx", "/infra", "/", "//api/v1"])
def test_not_relayed(path: str) -> None:
    assert not is_relayed(path)
