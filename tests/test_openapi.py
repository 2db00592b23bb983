"""The documents in openapi/ are those of the code."""

import json
import re
from typing import Any

import pytest

from orchestrator.dispatch import INFERENCE
from scripts.openapi import FOLDER, documents, text


@pytest.mark.parametrize("name", ["orchestrator-openapi.json", "server-openapi.json"])
def test_the_shipped_document_is_that_of_the_code(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == text(documents()[name]), "run `make openapi`"


def _operations(name: str) -> list[tuple[str, dict[str, Any]]]:
    paths = json.loads((FOLDER / name).read_text(encoding="utf-8"))["paths"]
    return [(f"{method} {path}", operation) for path, item in paths.items() for method, operation in item.items()]


@pytest.mark.parametrize("name", ["orchestrator-openapi.json", "server-openapi.json"])
def test_every_operation_says_what_it_does_and_every_error_has_its_schema(name: str) -> None:
    for where, operation in _operations(name):
        assert operation.get("summary"), where
        for status, response in operation["responses"].items():
            if status[0] in "45":
                assert "schema" in response["content"]["application/json"], f"{where} {status}"


@pytest.mark.parametrize("name", ["orchestrator-openapi.json", "server-openapi.json"])
def test_every_body_has_an_example(name: str) -> None:
    document = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    for where, operation in _operations(name):
        for kind, body in operation.get("requestBody", {}).get("content", {}).items():
            reference = body["schema"].get("$ref", "").rpartition("/")[2]
            schema = document["components"]["schemas"][reference] if reference else body["schema"]
            assert "example" in body or schema.get("examples"), f"{where} {kind}"


def test_what_the_data_path_answers_is_documented() -> None:
    """All of it, at least by its name."""
    described = (FOLDER / "server-openapi.json").read_text(encoding="utf-8")
    assert [path for path in INFERENCE if not re.search(rf'[`"]{re.escape(path.decode())}[`"]', described)] == []


def test_the_gateway_documents_the_clients_paths() -> None:
    documented = {where for where, _ in _operations("server-openapi.json")}
    assert {"post /api/v1/services", "delete /api/v1/services/{service_id}", "get /health"} <= documented
    assert not [where for where in documented if "/api/" in where and "/api/v1/" not in where]
