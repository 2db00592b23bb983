"""Where a stream of events stands, however its bytes are cut."""

import itertools
import json

import pytest

from orchestrator.envelope import event, in_a_stream, translated
from orchestrator.events import Tail

CHAT = b"/v1/chat/completions"
EVENT = b'data: {"choices": []}\n\n'
DONE = b"data: [DONE]\n\n"


def chunked(content: bytes, size: int) -> bytes:
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


@pytest.mark.parametrize(("size", "read"), list(itertools.product([1, 2, 7, 15, 1000], [1, 3, 64, 1000])))
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_the_end_is_seen_however_it_is_cut(size: int, read: int, line_end: bytes) -> None:
    for said in (EVENT, EVENT + DONE, EVENT + EVENT[:9]):
        framed = chunked(said.replace(b"\n", line_end), size)
        tail = Tail(CHAT, chunked=True)
        for at in range(0, len(framed), read):
            tail.take(framed[at : at + read])
        assert tail.between == said.endswith(b"\n\n")
        assert tail.whole == tail.said_so == (said == EVENT + DONE)


@pytest.mark.parametrize("cut", range(1, 30))
@pytest.mark.parametrize("behind", [b"", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n"], ids=["", "the last chunk", "trailers"])
def test_a_line_that_is_cut_where_it_looks_like_a_size(cut: int, behind: bytes) -> None:
    """`da` of `data:` is a number, too."""
    said = b"data: {}\r\n\r\ndata: [DONE]\r\n\r\n"
    tail = Tail(CHAT, chunked=True)
    tail.take(b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (said[:cut], said[cut:]) if part) + behind)
    assert tail.between and tail.whole


def test_without_framing() -> None:
    tail = Tail(CHAT, chunked=False)
    assert tail.between and not tail.whole
    for at in range(len(EVENT + DONE)):
        tail.take((EVENT + DONE)[at : at + 1])
    assert tail.between and tail.whole
    tail.take(b": more")
    assert not tail.between and not tail.whole


RESPONSES = b"/v1/responses"
CREATED = b'event: response.created\ndata: {"response": {"status": "in_progress"}}\n\n'
DELTA = b'event: response.output_text.delta\ndata: {"delta": "event: response.completed"}\n\n'
ENDINGS = ("response.completed", "response.incomplete", "response.failed", "error")


def ending(name: str) -> bytes:
    """The last event, with all of the answer in it."""
    return b'event: %s\ndata: {"response": {"output": "%s"}}\n\n' % (name.encode(), b"x" * 3000)


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize(("size", "read"), list(itertools.product([1, 2, 7, 15, 10_000], [1, 3, 64, 10_000])))
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_the_last_event_of_a_response_is_known_by_its_name(name: str, size: int, read: int, line_end: bytes) -> None:
    whole = CREATED + DELTA + ending(name)
    for said in (CREATED + DELTA, whole[:-900], whole, whole + DONE):
        content = said.replace(b"\n", line_end)
        for chunks in (True, False):
            tail = Tail(RESPONSES, chunked=chunks)
            sent = chunked(content, size) + b"0\r\n\r\n" if chunks else content
            for at in range(0, len(sent), read):
                tail.take(sent[at : at + read])
            assert tail.whole == tail.said_so == said.startswith(whole), (said[-40:], chunks)


@pytest.mark.parametrize(
    "said",
    [
        DELTA.replace(b"event: ", b"event: response.completed: ", 1),
        b'data: {"text": "\\nevent: response.completed\\n"}\n\n',
        b"xevent: response.completed\ndata: {}\n\n",
        b"event: response.completed_not\ndata: {}\n\n",
        b": event: response.completed\n\n",
    ],
)
@pytest.mark.parametrize("size", [1, 6, 7, 8, 1000])
def test_what_only_looks_like_the_last_event_of_a_response_is_none(said: bytes, size: int) -> None:
    """Also where a chunk begins with it: what is in chunks is read without them."""
    tail = Tail(RESPONSES, chunked=True)
    tail.take(chunked(CREATED + said, size))
    assert tail.between and not tail.whole


def test_a_response_in_chunks_that_are_none_has_no_end() -> None:
    tail = Tail(RESPONSES, chunked=True)
    tail.take(b"no size at all\r\n" + ending("response.completed"))
    tail.take(chunked(ending("response.completed"), 100))
    assert not tail.whole


def test_a_stream_without_a_last_event_is_whole_at_any_time() -> None:
    tail = Tail(b"/v1/audio/speech", chunked=False)
    tail.take(EVENT)
    assert tail.whole and not tail.said_so


def test_anthropics_streams_end_with_an_event_of_their_own() -> None:
    tail = Tail(b"/v1/messages", chunked=False)
    tail.take(b'event: message_stop\ndata: {"type": "message_stop"}\n\n')
    assert tail.said_so


def test_an_error_within_a_stream_is_one_event() -> None:
    assert in_a_stream(b'{\n  "error": {\r\n}\n}', CHAT).count(b"\n") == 2
    assert event(502, "it broke", b"/v1/messages").startswith(b"event: error\ndata: {")


def test_an_error_within_a_response_is_one_for_openais_sdks_and_by_openais_document() -> None:
    name, data = event(502, "it broke", RESPONSES).decode().removesuffix("\n\n").split("\ndata: ")
    error = {"message": "it broke", "type": "server_error", "param": None, "code": None}
    assert name == "event: error"
    assert json.loads(data) == {"type": "error", "message": "it broke", "param": None, "code": None, "error": error}
    assert json.loads(in_a_stream(b'["odd"]', RESPONSES).decode().split("data: ")[1])["error"] == ["odd"]


@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
def test_what_claims_to_be_compressed_and_is_not_is_an_error_all_the_same(coding: bytes) -> None:
    assert b"cannot be read" in translated(400, b"no such thing", coding)
