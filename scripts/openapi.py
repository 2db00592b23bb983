"""Write openapi/*.json from the code: `make openapi`. A test fails when they differ from it."""

import json
import sys
from pathlib import Path
from typing import Any

from gateway.docs import own_document
from gateway.openapi import gateway_document
from orchestrator.app import create_app
from orchestrator.schedulers.local import Local
from orchestrator.settings import Settings

FOLDER = Path(__file__).parents[1] / "openapi"


def documents() -> dict[str, dict[str, Any]]:
    """The documents by file name."""
    home = Path("/nonexistent")  # nothing is opened before the application starts
    orchestrator = create_app(Settings(home=home), Local(home)).openapi()
    return {
        "orchestrator-openapi.json": orchestrator,
        "server-openapi.json": gateway_document(orchestrator, own_document()),
    }


def text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for name, document in documents().items():
        (FOLDER / name).write_text(text(document), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
