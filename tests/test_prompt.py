"""Prompts by the simple form: they are routed, limited, named and broken off as all requests for a model are."""

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.errors import EngineError, NotReady, OrchestratorError
from orchestrator.inference import Group, Inferences
from orchestrator.prompt import Question, answer_of, answering, ask, lacks_chat_template, refusal
from orchestrator.replicas import Replica, Replicas
from orchestrator.wire.http1 import answer, parse_response
from orchestrator.wire.upstream import open_pool
from tests.test_inference import replica
from tests.wire.parts import until

WORDS = {"choices": [{"message": {"content": "hello"}}], "usage": {"total_tokens": 3}}
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
NO_TEMPLATE = {"error": {"message": "there is no chat template", "type": "x"}}


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


@dataclass
class Engine:
    """Answers each request with what `say` makes of its path, then closes. `seen`: the heads and bodies that came."""

    say: Callable[[str], bytes]
    port: int = 0
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)  # an answer waits for it
    seen: list[tuple[str, Any]] = field(default_factory=list)
    left: int = 0  # clients that were gone before their answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"content-length: (\d+)", head)
            assert length
            self.seen.append((head, json.loads(await reader.readexactly(int(length[1])))))
            going, leaving = asyncio.create_task(self.goes_on.wait()), asyncio.create_task(reader.read())
            await asyncio.wait({going, leaving}, return_when=asyncio.FIRST_COMPLETED)
            self.left += not going.done()
            going.cancel()
            writer.write(self.say(head.split()[1]))
            await writer.drain()
            writer.close()
            await asyncio.wait({leaving})


def well(path: str) -> bytes:
    return answer(200, json.dumps(WORDS).encode(), [(b"connection", b"close")])


@asynccontextmanager
async def engines(
    *say: Callable[[str], bytes], waiting: bool = False
) -> AsyncIterator[tuple[list[Engine], Inferences]]:
    """One engine for each; `waiting`: they answer when they are told to."""
    there, replicas = [Engine(one) for one in say], Replicas()
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(20):
        found: list[Replica] = []
        for number, one in enumerate(there):
            server = await stack.enter_async_context(await asyncio.start_server(one.serve, "127.0.0.1", 0))
            one.port = server.sockets[0].getsockname()[1]
            found.append(replica(number, one.port))
            if not waiting:
                one.goes_on.set()
        replicas.update("s", "s", found)
        pool = await stack.enter_async_context(open_pool())
        yield there, Inferences(replicas, pool, lambda: datetime.now(UTC), _why)


async def _why(group: Group, model: str | None) -> OrchestratorError:
    return NotReady("nobody answers")


def question(text: str = "hi", **more: Any) -> Question:
    return replace(Question(Group("s"), text, "m", stream=False, fields={"max_tokens": 5}), **more)


def test_a_prompt_is_a_chat_with_its_fields_and_its_id() -> None:
    async def work() -> None:
        async with engines(well) as ([one], inferences):
            fields = {"prompt": "ours", "model": "ours", "stream": False, "top_p": 0.5, "seed": None}
            said = await ask(inferences, question(fields=fields, identity=b"req-7"))
        assert (said.text, said.endpoint_used, said.usage) == ("hello", "chat", {"total_tokens": 3})
        assert (said.replica, said.endpoint) == (f"1:{one.port}", f"http://127.0.0.1:{one.port}")
        [(head, body)] = one.seen
        assert head.startswith("POST /v1/chat/completions ")
        assert "\r\nx-request-id: req-7\r\n" in head
        assert body == {"messages": [{"role": "user", "content": "hi"}], "model": "m", "top_p": 0.5}

    asyncio.run(work())


def test_a_model_without_a_chat_template_is_asked_again_otherwise() -> None:
    def base(path: str) -> bytes:
        if path == "/v1/chat/completions":
            return answer(400, json.dumps(NO_TEMPLATE).encode(), [(b"connection", b"close")])
        return answer(200, b'{"choices":[{"text":"done"}]}', [(b"connection", b"close")])

    async def work() -> None:
        async with engines(base) as ([one], inferences):
            said = await ask(inferences, question())
        assert (said.text, said.endpoint_used, said.usage) == ("done", "completions", None)
        assert [body.get("prompt") for _, body in one.seen] == [None, "hi"]

    asyncio.run(work())


@pytest.mark.parametrize(
    ("routing", "prompts", "sessions", "expected"),
    [
        ("round-robin", ["a"], [b""], [10, 10]),
        ("prefix", ["a"], [b""], [0, 20]),
        ("prefix", ["a", "b", "c"], [b"session-1"], [0, 20]),
    ],
)
def test_the_service_s_policy_chooses(
    routing: str, prompts: list[str], sessions: list[bytes], expected: list[int]
) -> None:
    async def work() -> None:
        async with engines(well, well) as (there, inferences):
            for one in inferences.replicas.every():
                one.routing = routing
            for n in range(20):
                await ask(inferences, question(prompts[n % len(prompts)], session=sessions[n % len(sessions)]))
        assert sorted(len(one.seen) for one in there) == expected

    asyncio.run(work())


def test_the_least_loaded_is_asked() -> None:
    async def work() -> None:
        async with engines(well, well) as (_, inferences):
            busy, idle = inferences.replicas.every()
            busy.routing = idle.routing = "least-loaded"
            busy.take(datetime.now(UTC), _Nobody())
            count = Counter([(await ask(inferences, question())).replica for _ in range(6)])
        assert count == {idle.id: 6}

    asyncio.run(work())


class _Nobody:
    def replica_lost(self) -> None: ...


def test_no_replica_is_sent_more_than_it_may() -> None:
    async def work() -> None:
        async with engines(well, well, waiting=True) as (there, inferences):
            inferences.most_in_flight = 2
            asking = [asyncio.create_task(ask(inferences, question())) for _ in range(4)]
            await until(lambda: sum(len(one.seen) for one in there) == 4)
            with pytest.raises(EngineError, match="each replica has 2 requests under way") as caught:
                await ask(inferences, question())
            assert (caught.value.status, caught.value.retry_after) == (429, 1)
            for one in there:
                one.goes_on.set()
            assert [said.text for said in await asyncio.gather(*asking)] == ["hello"] * 4
            assert [one.in_flight for one in inferences.replicas.every()] == [0, 0]

    asyncio.run(work())


@pytest.mark.parametrize(
    ("first", "status"),
    [(answer(500, b"{}", [(b"connection", b"close")]), 200), (b"", 200), (b"HTTP/1.1 200 OK\r\n", 200)],
    ids=["error", "nothing", "half a head"],
)
def test_another_replica_is_asked_when_one_fails(first: bytes, status: int) -> None:
    async def work() -> None:
        async with engines(lambda path: first, well) as (there, inferences):
            said = [await ask(inferences, question()) for _ in range(4)]
        assert {one.replica for one in said} == {f"1:{there[1].port}"}
        assert there[0].seen

    asyncio.run(work())


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (answer(400, b'{"error": {"message": "too long"}}', [(b"connection", b"close")]), 400, "replica .*: too long"),
        (answer(404, b'{"detail": "no such model"}', [(b"connection", b"close")]), 404, "replica .*: no such model"),
        (answer(500, b"oh", [(b"connection", b"close")]), 502, "oh"),
        (answer(503, b"{}", [(b"retry-after", b"7"), (b"connection", b"close")]), 503, "{}"),
        (answer(307, b"", [(b"location", b"http://127.0.0.1:1/"), (b"connection", b"close")]), 502, "status 307"),
        (answer(200, b"hello", [(b"connection", b"close")]), 502, "something that is no completion"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", 502, "broke off"),
    ],
    ids=["400", "404", "500", "503", "307", "no JSON", "half a body"],
)
def test_what_is_no_answer_is_an_error_in_the_engine_s_words(said: bytes, status: int, words: str) -> None:
    async def work() -> None:
        async with engines(lambda path: said) as ([one], inferences):
            with pytest.raises(OrchestratorError, match=words) as caught:
                await ask(inferences, question())
        assert caught.value.status == status
        assert len(one.seen) == 1
        assert caught.value.retry_after == (7 if status == 503 else None)

    asyncio.run(work())


def test_whoever_leaves_ends_the_engine_s_work() -> None:
    async def work() -> None:
        async with engines(well, waiting=True) as ([one], inferences):
            asking = asyncio.create_task(ask(inferences, question()))
            await until(lambda: bool(one.seen))
            asking.cancel()
            await asyncio.wait({asking})
            await until(lambda: one.left == 1)
            assert not inferences.active

    asyncio.run(work())


def test_an_answer_that_nobody_takes_holds_the_engine_back() -> None:
    """It is all there in the end; meanwhile little of it is held here."""
    event = b"data: " + b"x" * 1000 + b"\n\n"
    many = 32 * 1024

    async def work() -> None:
        said = EVENTS + chunk(event) * many + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        async with (
            engines(lambda path: said) as (_, inferences),
            answering(inferences, question(stream=True)) as (_, incoming),
        ):
            pieces = incoming.pieces()
            sizes = [len(await anext(pieces))]
            for _ in range(1000):  # turns of the loop: all of it would come in them
                await asyncio.sleep(0)
            sizes += [len(piece) async for piece in pieces]
        assert sum(sizes) == len(event) * many + len(b"data: [DONE]\n\n")
        assert max(sizes) < 2 * 1024**2

    asyncio.run(work())


def test_the_words_of_an_engine_without_a_template_are_known() -> None:
    assert lacks_chat_template("default Chat Template is no longer allowed")
    assert lacks_chat_template("chat_template is not set")
    assert not lacks_chat_template("the prompt is too long")


def test_an_answer_may_be_empty() -> None:
    assert answer_of(replica(0, 8001), b'{"choices":[{"text":null}]}', "completions").text == ""


def test_a_refusal_says_when_to_ask_again() -> None:
    late = parse_response(b"HTTP/1.1 429 No\r\nretry-after: 9\r\ncontent-length: 0\r\n\r\n")
    said = refusal(None, late, b'{"error": "slow"}')
    assert (said.status, said.retry_after, str(said)) == (429, 9, "slow")
