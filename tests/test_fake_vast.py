"""The fake vast.ai is as the real one to vast.ai's own client, which is held against it."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients import environments
from tests.fake_vast import ID, KEY, FakeVast, fake_vast

pytestmark = pytest.mark.system


@pytest.fixture
def vast() -> Iterator[FakeVast]:
    with fake_vast(ports={8001: 41234}) as vast:
        yield vast


def seen(vast: FakeVast, *cases: tuple[str, int], key: str = KEY) -> list[Any]:
    """What the client sees, one after the other."""
    asked = [{"name": str(number), "do": do, "id": instance} for number, (do, instance) in enumerate(cases)]
    program = str(Path(environments.__file__).with_name("vastai_program.py"))
    words = [str(environments.python("vastai")), program, vast.url.removesuffix("/api/v0"), key]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        words, input=json.dumps(asked), capture_output=True, text=True, timeout=60, env=environment | {"NO_PROXY": "*"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(done.stdout).values())


def test_an_instance_is_started_and_stopped(vast: FakeVast) -> None:
    show = ("show", ID)
    before, on, *starting, off, stopping, stopped = seen(
        vast, show, ("start", ID), show, show, show, ("stop", ID), show, show
    )
    assert [on, off] == [{"success": True}, {"success": True}]
    looks = [(one["actual_status"], one["intended_status"], one["cur_state"]) for one in (before, *starting)]
    assert looks == [
        ("exited", "stopped", "stopped"), ("exited", "running", "stopped"), ("loading", "running", "running"),
        ("running", "running", "running"),
    ]  # fmt: skip
    assert [one["actual_status"] for one in (stopping, stopped)] == ["running", "exited"]
    assert starting[-1]["ports"]["8001/tcp"][0]["HostPort"] == "41234"
    assert before["ports"] is None
    assert vast.wishes == ["running", "stopped"]
    asked = vast.asked[0], vast.asked[1]
    assert asked == (f"GET /api/v0/instances/{ID}/?owner=me", f"PUT /api/v0/instances/{ID}/")


def test_what_is_not_there(vast: FakeVast) -> None:
    show, start = seen(vast, ("show", 7), ("start", 7))
    assert show is None
    assert (start["status"], start["said"]["error"]) == (404, "no_such_instance")


def test_a_wrong_key(vast: FakeVast) -> None:
    (show,) = seen(vast, ("show", ID), key="wrong")
    assert (show["status"], show["said"]["error"]) == (401, "auth_error")


def test_the_client_tries_again_when_it_is_busy(vast: FakeVast) -> None:
    vast.becomes("busy", times=2)
    (show,) = seen(vast, ("show", ID))
    assert show["id"] == ID
    assert len(vast.asked) == 3
