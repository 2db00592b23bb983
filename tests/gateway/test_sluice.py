"""The commands as processes: what they say when they cannot start, how they end, and what they leave: nothing."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from gateway.__main__ import serve
from gateway.interruption import Interruption, Interruptions
from gateway.settings import environment_of_a_child
from gateway.stage import Stage
from tests.gateway.sshd import free_port

pytestmark = pytest.mark.system


def test_wrong_settings_are_one_message_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEWAY_HOST", "0.0.0.0")
    assert serve(None) == 2
    said = capsys.readouterr()
    assert (said.out, "GATEWAY_API_KEY" in said.err) == ("", True)


def test_a_taken_port_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("GATEWAY_PORT", str(port))
        assert serve(None) == 1
    said = capsys.readouterr().err
    assert f"port {port} on 127.0.0.1 is taken" in said
    assert "GATEWAY_PORT=" in said


def test_a_signal_ends_the_gateway_cleanly(tmp_path: Path) -> None:
    with contextlib.ExitStack() as opened:
        for signum in (signal.SIGINT, signal.SIGTERM):
            port = free_port()
            environment = environment_of_a_child(GATEWAY_PORT=str(port), GATEWAY_LOCAL_SOCKET=str(tmp_path / "o.sock"))
            command = [sys.executable, "-m", "gateway"]
            process = opened.enter_context(
                subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            )
            opened.callback(_signalled, process, signum, port)


def _signalled(process: subprocess.Popen[str], signum: int, port: int) -> None:
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        wait_for_health(client)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode in (0, -signum)
    assert "Traceback" not in stderr


def test_a_stage_leaves_nothing() -> None:
    port = free_port()
    before = _children()
    with Stage(port) as stage:
        deadline = time.monotonic() + 20
        while not stage.is_ready():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert stage.ask("GET", "/health")["ready"] is True
        assert len(_children() - before) == 2
    assert _children() == before
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def _children() -> set[str]:
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def test_signals_wait_until_they_are_allowed() -> None:
    reached = []
    with Interruptions() as interruptions:
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("opened")
        with pytest.raises(Interruption), interruptions.allowed():
            reached.append("never")
        with pytest.raises(Interruption), interruptions.allowed():
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGHUP)  # a second one does not disturb the closing
        reached.append("closed")
    assert reached == ["opened", "closed"]


def test_help_is_quick() -> None:
    """The heavy parts are imported by the subcommands only."""
    heavy = {"asyncssh", "fastapi", "httpx2", "pydantic", "rich", "sqlmodel", "uvicorn"}
    code = f"import sys, gateway.cli; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=20).returncode == 0


def test_a_gateway_loads_nothing_that_only_the_command_line_and_its_pages_need() -> None:
    """Each costs an idle gateway 2 MB and more."""
    heavy = {"rich", "httpx2", "typer", "jinja2", "asyncssh", "sqlalchemy"}
    code = f"import sys, gateway.app; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def wait_for_health(client: httpx2.Client) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            assert client.get("/health").status_code == 200
            return
        except httpx2.ConnectError:
            time.sleep(0.05)
    raise AssertionError("the gateway did not come up in 20 s")
