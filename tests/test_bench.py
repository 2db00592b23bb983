"""The bench's own instruments: a driver that overlooked a wrong byte would make every figure worthless."""

import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import native, table
from bench.chains import ASYNCSSH, NGINX_CHAIN
from bench.measure import medians
from bench.targets import TARGETS, Target
from tests.gateway.sshd import free_port

Change = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def programs() -> tuple[Path, Path]:
    """The driver and the replica."""
    try:
        return native.driver(), native.replica()
    except native.NoCompiler as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(str(exc))
        pytest.skip(str(exc))


@pytest.fixture
def replica(programs: tuple[Path, Path]) -> Iterator[int]:
    port = free_port()
    with subprocess.Popen([programs[1], "--model", "any", "--port", str(port)]) as process:
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        yield port
        process.terminate()


@contextmanager
def between(replica: int, change: Change) -> Iterator[int]:
    """A proxy of one connection that changes what the replica answers, a piece at a time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_pass_on, args=(listener, replica, change))
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def _pass_on(listener: socket.socket, replica: int, change: Change) -> None:
    client, _ = listener.accept()
    with client, socket.create_connection(("127.0.0.1", replica)) as engine:
        engine.sendall(client.recv(65536))
        engine.settimeout(0.3)
        try:
            while data := engine.recv(1 << 20):
                client.sendall(change(data))
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            return


def drive(programs: tuple[Path, Path], folder: Path, port: int, kind: str, *options: str) -> dict[str, Any]:
    body = folder / "question.json"
    prompt = "rate 0 count 5" if kind == "stream" else "Tell me of the sea."
    question = {"model": "bench", "stream": kind == "stream", "messages": [{"role": "user", "content": prompt}]}
    body.write_text(json.dumps(question))
    command: list[str | Path] = [
        programs[0],
        kind,
        "--to",
        f"127.0.0.1:{port}",
        "--body",
        body,
        "--requests",
        "1",
        "--limit",
        "5",
    ]
    told = subprocess.run([*command, *options], capture_output=True, text=True, timeout=30)
    report: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    assert told.returncode == (1 if report["errors"] else 0)
    return report


@pytest.mark.parametrize("loose", [(), ("--loose",)])
def test_right_answers(programs: tuple[Path, Path], replica: int, tmp_path: Path, loose: tuple[str, ...]) -> None:
    plain = drive(programs, tmp_path, replica, "plain", *loose)
    assert (plain["errors"], plain["answers"]) == (0, 1), plain
    stream = drive(programs, tmp_path, replica, "stream", "--count", "5", *loose)
    assert (stream["errors"], stream["window_events"], stream["first"]["n"]) == (0, 5, 1), stream


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("plain", lambda data: data.replace(b"Ferne", b"ferne", 1), "byte"),
        ("plain", lambda data: data.replace(b":100}}", b":101}}"), "byte"),
        ("plain", lambda data: data.replace(b"content-length: 700", b"content-length: 699"), ""),
        ("plain", lambda data: data.replace(b" 200 OK", b" 500 No", 1), "answered HTTP/1.1 500"),
        ("plain", lambda data: data[:-1], "the connection ended within an answer"),
        ("stream", lambda data: data.replace(b'"index":0', b'"index":1', 1), "not what was sent"),
        ("stream", lambda data: data.replace(b"#000003", b"#000004"), "event 4 came instead of 3"),
        ("stream", lambda data: data.replace(b"data: [DONE]", b"data: [GONE]"), "end is not what was sent"),
        ("stream", lambda data: data[: data.find(b"#000004")], "the connection ended within an answer"),
        ("stream", lambda data: data.replace(b"chatcmpl-bench", b"chatcmpl-banch", 1), "not what was sent"),
    ],
)
def test_wrong_answers_are_seen(
    programs: tuple[Path, Path], replica: int, tmp_path: Path, kind: str, change: Change, words: str
) -> None:
    with between(replica, change) as port:
        report = drive(programs, tmp_path, port, kind, *(("--count", "5") if kind == "stream" else ()), "--limit", "1")
    assert report["errors"] >= 1
    assert words in report["first_error"]


def test_a_missing_event_is_seen_in_an_answer_written_anew(
    programs: tuple[Path, Path], replica: int, tmp_path: Path
) -> None:
    def without_stamp(data: bytes) -> bytes:
        return data.replace(b'"@', b'"%', 1)

    with between(replica, without_stamp) as port:
        report = drive(programs, tmp_path, port, "stream", "--count", "5", "--loose")
    assert report["errors"] >= 1


def test_targets_are_met_or_missed_by_their_ratio() -> None:
    figures = {ASYNCSSH: {"c32_cpu": 60.0, "slowest_ms": 12.0}, NGINX_CHAIN: {"c32_cpu": 50.0}}
    cpu = Target("", "c32_cpu", ASYNCSSH, 1.5, NGINX_CHAIN)
    assert cpu.reached(figures) == 1.2
    assert cpu.is_met(1.2)
    assert not cpu.is_met(1.6)
    more = Target("", "c32_cpu", ASYNCSSH, 1.5, NGINX_CHAIN, at_least=True)
    assert not more.is_met(1.2)
    assert more.is_met(1.6)
    assert Target("", "slowest_ms", ASYNCSSH, 10).reached(figures) == 12
    assert Target("", "slowest_ms", "not measured", 10).reached(figures) is None
    assert Target("", "slowest_ms", ASYNCSSH, 10, NGINX_CHAIN).reached(figures) is None


def test_every_figure_of_a_target_is_in_the_table() -> None:
    text = table.rendered(
        {"machine": {"cores": 2}, "date": "now", "runs": {ASYNCSSH: [1]}, "left_out": {"x": "y"}, "failures": ["z"]},
        {ASYNCSSH: {"c32_cpu": 60.0, "c32_foreign": 0.5, "rss_idle/gateway": 40.0}, NGINX_CHAIN: {}},
    )
    for target in TARGETS:
        assert f"| {target.words} | {target.ours} |" in text
    assert "| memory idle, gateway, MB | gateway + asyncssh + orchestrator | – | at most 70 | 40 | met |" in text  # noqa: RUF001
    assert "0.50 cores" in text
    assert "too much" in text
    assert "- left out: x: y" in text
    assert "- **failed**: z" in text


def test_the_table_replaces_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.put_into(document, "new")
    assert document.read_text() == f"before\n{table.BEGIN}\n\nnew\n\n{table.END}\nafter\n"
    document.write_text("no marks")
    with pytest.raises(ValueError, match="has no lines"):
        table.put_into(document, "new")


def test_medians() -> None:
    assert medians([{"a": 1.0}, {"a": 9.0}, {"a": 2.0}]) == {"a": 2.0}
    assert medians([]) == {}
