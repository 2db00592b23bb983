"""The journal: one line for each record, private, bounded, without secrets, and without lines that are not ours."""

import io
import json
import logging
import resource
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.journal import Json, Noted, Stderr, Text, open_journal
from orchestrator.wire.hosted import SERVED
from orchestrator.wire.http1 import Request, parse_request
from orchestrator.wire.server import CLIENT_LEFT

log = logging.getLogger("somewhere")
SECRET = "hf_" + "aB3" * 11


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """The file of an open journal."""
    level = logging.getLogger().level
    with open_journal("info", "text", tmp_path / "x.log", 1):
        yield tmp_path / "x.log"
    logging.getLogger().setLevel(level)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("ascii").splitlines()]


def test_a_record_is_one_line_of_json_in_a_private_file(file: Path) -> None:
    log.info("a %s of %d", "number", 7)
    log.debug("too much")
    (told,) = lines(file)
    assert told.keys() == {"at", "level", "logger", "message"}
    assert (told["level"], told["logger"], told["message"]) == ("info", "somewhere", "a number of 7")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_secrets_are_masked_in_words_arguments_and_tracebacks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "x.log"
    with open_journal("info", "text", file):
        try:
            raise ValueError(f"HF_TOKEN={SECRET}")
        except ValueError:
            log.exception("%s and Bearer %s and ?api_key=planted1", SECRET, "planted-planted")
    (told,) = lines(file)
    both = file.read_text() + capsys.readouterr().err
    assert told["message"] == "hf_*** and Bearer *** and ?api_key=***"
    assert "ValueError: HF_TOKEN=***" in told["error"]
    assert both.count("***") >= 8
    assert SECRET not in both and "planted" not in both


@pytest.mark.parametrize("formatter", [Text(), Json()], ids=["text", "json"])
def test_no_text_of_others_makes_a_line_of_its_own(formatter: logging.Formatter) -> None:
    forged = "x\n2026-11-21T00:00:00Z INFO orchestrator: all is well\r\x1b[2J\u2028\x85"
    record = logging.LogRecord("a", logging.INFO, "", 0, "%s", (forged,), None)
    record.request = forged.encode("latin-1", "replace")
    text = formatter.format(record)
    assert len(text.splitlines()) == 1
    assert text.isprintable()


def test_a_tracebacks_lines_are_indented_below_the_record() -> None:
    try:
        raise ValueError("a\nERROR forged")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "", 0, "broke", (), sys.exc_info())
    first, *rest = Text().format(record).splitlines()
    assert first.endswith("ERROR a: broke")
    assert rest[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in rest)


def test_records_of_a_request_have_its_id(file: Path) -> None:
    before = SERVED.set(b"req-7")
    log.info("within")
    SERVED.reset(before)
    log.info("told", extra={"request": b"req-8"})
    log.info("outside")
    assert [line.get("request") for line in lines(file)] == ["req-7", "req-8", None]


def test_the_file_is_bounded_and_every_part_of_it_private(file: Path) -> None:
    for number in range(3000):
        log.info("%d %s", number, "x" * 2000)
    parts = sorted(file.parent.iterdir())
    assert [part.name for part in parts] == ["x.log", "x.log.1", "x.log.2", "x.log.3"]
    assert max(part.stat().st_size for part in parts) <= 1 << 20
    assert {stat.S_IMODE(part.stat().st_mode) for part in parts} == {0o600}
    assert "2999 x" in file.read_text()


def test_a_link_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError), open_journal("info", "text", tmp_path / "x.log"):
        raise AssertionError("it was opened")
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_cannot_be_written_is_told_once_and_stops_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_journal("warning", "json", tmp_path / "x.log"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            log.warning("one")
            log.warning("two")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        log.warning("three")
    assert [line["message"] for line in lines(tmp_path / "x.log")] == ["three"]
    told = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["message"] for line in told if line.startswith("{")] == [
        "one", "two", "three",
    ]  # fmt: skip
    assert [line for line in told if not line.startswith("{")] == [
        "a line of the log is lost: [Errno 27] File too large"
    ]


@pytest.mark.parametrize(("style", "terminal", "is_json"), [
    ("auto", True, False), ("auto", False, True), ("text", False, False), ("json", True, True),
])  # fmt: skip
def test_a_terminal_gets_text_and_everything_else_json(
    style: Any, terminal: bool, is_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with open_journal("warning", style):
        log.warning("words")
    assert stream.getvalue().startswith("{") == is_json
    assert "words" in stream.getvalue()


def test_a_record_that_cannot_be_formatted_is_lost_without_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    with open_journal("warning", "text"):
        record = logging.LogRecord("a", logging.ERROR, "", 0, "%s and %s", (SECRET,), None)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, Stderr):
                handler.handle(record)
    assert capsys.readouterr().err == "a line of the log is lost: not enough arguments for format string\n"


def request(method: str, target: str) -> Request:
    made = parse_request(f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    made.id = b"req-1"
    return made


CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("method", "target", "status", "noted"),
    [
        ("GET", "/api/v1/services", 200, False),
        ("POST", "/api/v1/services?x=1", 200, True),
        ("POST", "/api/services/start", 200, True),
        ("DELETE", "/api/v1/services/7", 200, True),
        ("POST", "/api/v1/services/7/status", 200, True),
        ("PUT", "/api/v1/vector-db/7/collections/books", 200, True),
        ("GET", "/api/v1/services/7", 404, True),
        ("POST", CHAT, 200, False),
        ("POST", CHAT, 502, True),
        ("POST", CHAT, CLIENT_LEFT, False),
        ("POST", "/api/v1/vllm/7/prompt", 200, False),
        ("POST", "/api/services/vllm/7/prompt", 503, True),
        ("PUT", "/api/v1/vector-db/7/collections/books/points", 200, False),
        ("POST", "/api/v1/vector-db/7/qdrant/collections/b/points/search", 200, False),
        ("POST", "/api/services/7/v1/embeddings", 200, False),
        ("POST", "/tokenize", 200, False),
        ("GET", "/ready", 503, False),
    ],
)
def test_changes_and_failures_have_a_line_and_traffic_has_none(
    file: Path, method: str, target: str, status: int, noted: bool
) -> None:
    told: list[int] = []
    Noted(lambda request, status, seconds: told.append(status))(request(method, target), status, 0.0123)
    assert told == [status]
    written = [(line["message"], line["request"]) for line in lines(file)]
    path = target.partition("?")[0]
    assert written == ([(f"{method} {path} was answered with {status} after 12 ms", "req-1")] if noted else [])
