"""The 25 bad inputs: each a line of a table with the status and the words of its answer, through both processes.

A client of the gateway sends them, byte by byte, in front of an orchestrator in front of a fake Slurm. None of them is
a 5xx of ours, starts a job, asks scancel for anything, touches a file, or keeps the next request from its answer.
`test_bad_input.py` asks the same of both processes for every route.
"""

import asyncio
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator.wire.http1 import MOST_HEAD
from tests.halves import COLLECTION, ENDED, PENDING, QDRANT, VLLM, Halves, halves
from tests.orchestrating import until
from tests.test_bad_input import CHUNKED, JSON_BODY, Door, read_answer, request, send_until_refused

pytestmark = [pytest.mark.system, pytest.mark.beside]

START = "/api/v1/services"
PROMPT = f"/api/v1/vllm/{VLLM}/prompt"
CHAT = f"{START}/{VLLM}/v1/chat/completions"
COLLECTIONS = f"/api/v1/vector-db/{QDRANT}/collections"
POINTS = f"{COLLECTIONS}/{COLLECTION}/points"
MODEL_INFO = "/api/v1/vllm/model-info"
NO_HTTP = "This is no valid HTTP/1.1 request: "
JOKE = '{"prompt": "x", "temperature": %s}'
FORM = b"Content-Type: text/plain\r\n"
TOO_DEEP = "[" * 200_000 + "]" * 200_000


@dataclass(frozen=True)
class Bad:
    """`sent` is a whole request, or `(method, path, body)`. The answer has `status` and all of `words`."""

    name: str
    sent: bytes | tuple[str, str, str | bytes | None]
    status: int
    words: tuple[str, ...]
    headers: bytes = JSON_BODY


def start(**config: Any) -> tuple[str, str, str]:
    return "POST", START, json.dumps({"recipe_name": "vllm-single-node", "config": config})


def replicas(**config: Any) -> tuple[str, str, str]:
    return "POST", START, json.dumps({"recipe_name": "vllm-replicas", "config": config})


def named(recipe: str) -> tuple[str, str, str]:
    return "POST", START, json.dumps({"recipe_name": recipe})


def environment(**variables: Any) -> tuple[str, str, str]:
    return start(environment=variables)


def resources(**wanted: Any) -> tuple[str, str, str]:
    return start(resources=wanted)


def chat(**fields: Any) -> tuple[str, str, str]:
    asked = {"model": "Qwen/Qwen2.5-0.5B-Instruct", "messages": [{"role": "user", "content": "x"}]} | fields
    return "POST", CHAT, json.dumps(asked)


def head(line: str, headers: bytes) -> bytes:
    """A request whose headers are just these."""
    return f"{line} HTTP/1.1\r\n".encode() + headers + b"\r\n"


TABLE: dict[str, tuple[Bad, ...]] = {
    "1 no finite number": (
        Bad("NaN", ("POST", PROMPT, JOKE % "NaN"), 422, ("The body is no JSON", " at line 1")),
        Bad("Infinity", ("POST", PROMPT, JOKE % "-Infinity"), 422, ("The body is no JSON",)),
        Bad("1e999", ("POST", PROMPT, JOKE % "1e999"), 422, ("temperature", "finite number")),
    ),
    "2 lone surrogates": (
        Bad("in a prompt", ("POST", PROMPT, r'{"prompt": "\ud800"}'), 422, ("The body is no JSON",)),
        Bad("in a name", ("POST", START, r'{"recipe_name": "\udfff"}'), 422, ("The body is no JSON",)),
    ),
    "3 no JSON": (
        Bad("cut off", ("POST", START, '{"recipe_name": "vll'), 422, ("The body is no JSON",)),
        Bad("nothing", ("POST", START, b""), 422, ("Field required",)),
        Bad("a byte order mark", ("POST", START, b'\xef\xbb\xbf{"recipe_name": "x"}'), 422, ("The body is no JSON",)),
        Bad("UTF-16", ("POST", START, '{"recipe_name": "x"}'.encode("utf-16")), 422, ("The body is no JSON",)),
    ),
    "4 nesting": (
        Bad("200,000 levels", ("POST", START, f'{{"config": {TOO_DEEP}}}'), 422, ("The body is no JSON",)),
        Bad("in a prompt", ("POST", PROMPT, f'{{"prompt": {TOO_DEEP}}}'), 422, ("The body is no JSON",)),
    ),
    "5 much": (
        Bad("100 MB", ("POST", START, b" " * 100_000_000), 413, ("larger than 32 MiB",)),
    ),
    "6 another type": (
        Bad("text", ("POST", START, '{"recipe_name": "x"}'), 422, ("Content-Type: application/json",), FORM),
        Bad("none", ("POST", START, '{"recipe_name": "x"}'), 422, ("Content-Type: application/json",), b""),
    ),
    "7 hosts": (
        Bad("evil", head(f"GET {START}", b"Host: evil.example\r\n"), 403, ("'evil.example'", "GATEWAY_ALLOWED_HOSTS")),
        Bad("none", head(f"GET {START}", b""), 403, ("localhost",)),
        Bad("two", head(f"GET {START}", b"Host: localhost\r\nHost: evil.example\r\n"), 400, ("more than one Host",)),
    ),
    "8 origins": (
        Bad("foreign", request(f"GET {START}".encode(), b"Origin: https://evil.example\r\n"), 403,
            ("a page from https://evil.example may not use this gateway",)),
        Bad("null", request(f"GET {START}".encode(), b"Origin: null\r\n"), 403, ("a page from null",)),
        Bad("another port", request(f"GET {START}".encode(), b"Origin: http://localhost:9\r\n"), 403, ("a page from",)),
    ),
    "9 smuggling": (
        Bad("a length and chunks", request(f"POST {START}".encode(), b"Content-Length: 4\r\n" + CHUNKED, b"0\r\n\r\n"),
            400, (NO_HTTP,)),
        Bad("two lengths", request(f"POST {START}".encode(), b"Content-Length: 1\r\nContent-Length: 2\r\n", b"{}"),
            400, (NO_HTTP,)),
        Bad("no chunk", request(f"POST {START}".encode(), JSON_BODY + CHUNKED, b"zz\r\n{}\r\n0\r\n\r\n"), 400,
            ("chunk",)),
        Bad("absolute form", request(b"GET http://evil.example/api/v1/services"), 404, ("nothing at http://evil",)),
        Bad("a large head", request(f"GET {START}".encode(), b"X-More: " + b"x" * 2 * MOST_HEAD + b"\r\n"), 431,
            (f"larger than {MOST_HEAD >> 10} KiB",)),
    ),
    "10 traversal": (
        *(Bad(name, named(name), 404, ("not found", "inference/vllm-single-node")) for name in (
            "../../etc/passwd", "inference/../../../etc/passwd", "%2e%2e%2fetc", "C:\\x", "a\0b",
            "\N{LATIN SMALL LETTER DOTLESS I}nference/vllm")),
        Bad("5,000 characters", named("x" * 5000), 422, ("at most 200 characters",)),
        Bad("in a path", ("GET", "/api/v1/recipes/..%2F..%2Fetc%2Fpasswd", None), 400, ("%2f",)),
        Bad("of a service", ("GET", f"{START}/..%2F..%2Forchestrator.db/logs", None), 400, ("%2f",)),
    ),
    "11 line breaks in values": (
        Bad("a directive", environment(A="x\n#SBATCH --account=x"), 422, ("config.environment.A", "line break")),
        Bad("CR", environment(A="x\rid"), 422, ("config.environment.A", "line break")),
        Bad("NUL", environment(A="x\0"), 422, ("config.environment.A", "control character")),
        Bad("in the account", start(account="x\n#SBATCH --qos=y"), 422, ("config.account",)),
        Bad("in the model", start(model="x\n$(id)"), 422, ("config.model",)),
    ),
    "12 dangerous names": (
        *(Bad(name, environment(**{name: "x"}), 422,
              (f"config.environment.{name} is not allowed: it would change how the job", "[site.environment]"))
          for name in (
            "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "GCONV_PATH", "GLIBC_TUNABLES", "PATH", "HOME", "BASH_ENV",
            "ENV", "IFS", "SHELLOPTS", "BASHOPTS", "BASH_FUNC_id", "PS4", "PS1", "PROMPT_COMMAND", "PYTHONSTARTUP",
            "PYTHONPATH", "SLURM_JOB_ID", "SLURM_CONF", "SBATCH_ACCOUNT", "SRUN_X", "SQUEUE_STATES", "SCANCEL_X",
            "SLUICE_PART", "VLLM_API_KEY", "DOCKER_HOST")),
        *(Bad(repr(name), environment(**{name: "x"}), 422, ("is not a name; use letters, digits and _ only",))
          for name in ("", "a b", "A=B", "A;id", "BASH_FUNC_id%%", "1A")),
    ),
    "13 template syntax where it cannot be": (
        *(Bad(text, named(text), 404, ("not found",)) for text in ("{{ 7*7 }}", "{% raw %}", "{{ ''.__class__ }}")),
        Bad("a name", environment(**{"{{ 7*7 }}": "x"}), 422, ("is not a name", "{{ 7*7 }}")),
        Bad("the account", start(account="{{ 7*7 }}"), 422, ("config.account", "{{ 7*7 }}")),
    ),
    "14 resources": (
        *(Bad(f"gpu {value!r}", resources(gpu=value), 422, ("config.resources.gpu", "whole number"))
          for value in ("4.5", "1e9", True, "4;id", (1,), "")),
        Bad("gpu -1", resources(gpu="-1"), 422, ("config.resources.gpu", "0 to 64")),
        Bad("gpu 65", resources(gpu=65), 422, ("config.resources.gpu", "0 to 64")),
        *(Bad(f"memory {value!r}", resources(memory=value), 422, ("config.resources.memory", "64G"))
          for value in ("0", "1K", "64X", "-1G", "1e9", True, "9999999T", "64G;id")),
        *(Bad(f"time_limit {value!r}", resources(time_limit=value), 422, ("config.resources.time_limit", "1 to 10080"))
          for value in (0, -5, 10**12)),
        *(Bad(f"time_limit {value!r}", resources(time_limit=value), 422, ("config.resources.time_limit", "whole"))
          for value in ("1-00:00:00", "UNLIMITED")),
        Bad("cpu", resources(cpu=0), 422, ("config.resources.cpu", "1 to 1024")),
        Bad("nodes", resources(nodes=2**31), 422, ("config.resources.nodes", "inference/vllm-single-node")),
        Bad("a list", start(resources=[]), 422, ("config.resources must be an object",)),
    ),
    "15 replicas that do not fit": (
        Bad("3 of 4", replicas(gpu=4, gpu_per_replica=3), 422, ("4 GPUs", "replicas of 3", "allowed for 4: 1, 2, 4")),
        Bad("8 of 4", replicas(gpu=4, gpu_per_replica=8), 422, ("replicas of 8", "allowed for 4: 1, 2, 4")),
        Bad("0", replicas(gpu=4, gpu_per_replica=0), 422, ("config.gpu_per_replica is 0", "allowed: ")),
        Bad("without GPUs", replicas(gpu=None), 422, ("ask for GPUs",)),
    ),
    "16 ports": (
        *(Bad(str(port), replicas(gpu=4, base_port=port), 422, ("base_port", "1024")) for port in (22, 80, 0, -1)),
        Bad("65535 for four", replicas(gpu=4, base_port=65535), 422, ("the ports 65535 to 65538", "beyond 65535")),
        Bad("65536", start(replica_port=65536), 422, ("replica_port is 65536", "65535")),
    ),
    "17 unknown fields": (
        Bad("of the request", ("POST", START, '{"recipe_name": "vllm", "recipe": 1}'), 422, ("recipe", "Extra inputs")),
        Bad("of config", start(modle="x"), 422, ("config: unknown key 'modle'", "Did you mean 'model'")),
        Bad("of resources", resources(gpus=1), 422, ("config.resources: unknown key 'gpus'", "'gpu'")),
        Bad("of a query", ("GET", f"{START}?staus=failed", None), 422, ("'staus'", "'status'")),
    ),
    "18 foreign jobs": (
        *(Bad(f"{method} {job}", (method, f"{START}/{job}{end}", body), 404, ("not found",))
          for job in ("abc", "-1", "1%3B2", str(2**63), "4242", "0")
          for method, end, body in (("DELETE", "", None), ("POST", "/status", '{"status": "cancelled"}'))),
        Bad("a slash", ("DELETE", f"{START}/1%2F2", None), 400, ("%2f",)),
    ),
    "19 models that are not there": (
        *(Bad(model[:20], ("POST", "/v1/chat/completions", json.dumps({"model": model, "messages": []})), 404,
              ("does not exist", "there is Qwen/Qwen2.5-0.5B-Instruct"))
          for model in ("nobody/nothing", "../x", "a b", "x" * 10_000, "{{ 7*7 }}")),
        Bad("a list", ("POST", "/v1/chat/completions", '{"model": ["x"], "messages": []}'), 400, ("$.model",)),
    ),
    "20 other hosts than the hub": (
        Bad("traversal", ("GET", f"{MODEL_INFO}/Qwen/..%2F..%2Fapi", None), 400, ("..",)),
        Bad("a URL", ("GET", f"{MODEL_INFO}/http:%2F%2Fevil.example%2Fx", None), 400, ("evil.example",)),
        Bad("a user and a host", ("GET", f"{MODEL_INFO}/x@evil.example", None), 400,
            ("'x@evil.example' is not the id of a model",)),
    ),
    "21 tails": (
        *(Bad(value, ("GET", f"{START}/{ENDED}/logs?tail={value}", None), 422, ("tail",))
          for value in ("-1", "10000001", str(10**12), "1" + "0" * 400, "all", "NaN", "")),
    ),
    "22 status words": (
        *(Bad(json.dumps(word), ("POST", f"{START}/{PENDING}/status", json.dumps({"status": word})), 400,
              ("Currently only 'cancelled' is supported",))
          for word in ("running", "Cancelled", "", None, 7, ["cancelled"])),
        Bad("none", ("POST", f"{START}/{PENDING}/status", "{}"), 400, ("Missing 'status' field", '"cancelled"')),
        Bad("in a query", ("GET", f"{START}?status=dead", None), 422, ("'pending'", "'running'")),
    ),
    "23 mixed dialects": (
        Bad("both bodies", ("PUT", f"{COLLECTIONS}/new",
            '{"vector_size": 2, "vectors": {"size": 3, "distance": "Dot"}}'), 400,
            ("the body mixes 'vector_size' with 'vectors'",)),
        Bad("another dimension", ("PUT", POINTS, '{"points": [{"id": 1, "vector": [1, 2, 3]}]}'), 400, ("dim",)),
        Bad("NaN", ("PUT", POINTS, '{"points": [{"id": 1, "vector": [NaN, 2]}]}'), 422, ("The body is no JSON",)),
        Bad("a limit below 1", ("POST", f"{POINTS}/search", '{"query_vector": [1, 1], "limit": -1}'), 400, ("limit",)),
        Bad("a name", ("PUT", f"{COLLECTIONS}/..%2Fx", '{"vector_size": 2}'), 400, ("%2f",)),
    ),
    "24 odd sampling fields": (
        Bad("stream", chat(stream=["yes"]), 400, ("stream",)),
        Bad("messages", chat(messages="hi"), 400, ("messages",)),
        Bad("max_tokens", chat(max_tokens=-1), 400, ("max_tokens must be 1 to",)),
        Bad("n", chat(n=10**6), 400, ("n must be 1 to",)),
        Bad("of a prompt", ("POST", PROMPT, '{"prompt": "x", "max_tokens": 0}'), 422, ("max_tokens",)),
        Bad("a prompt that is none", ("POST", PROMPT, '{"prompt": ["x"]}'), 422, ("prompt",)),
    ),
}  # fmt: skip
CASES = [pytest.param(bad, id=f"{group}: {bad.name}"[:70]) for group, rows in TABLE.items() for bad in rows]


@pytest.fixture(scope="module")
def both() -> Iterator[Halves]:
    with halves() as both:
        yield both


@pytest.fixture
def door(both: Halves) -> Iterator[Door]:
    """The gateway. Afterwards both processes are alive and well, and no job has been started or cancelled."""
    before = jobs(both)
    yield Door("gateway", ("127.0.0.1", both.port))
    both.check()
    assert jobs(both) == before


def jobs(both: Halves) -> list[str]:
    """What sbatch and scancel have been asked for."""
    calls = (both.socket.parent / "slurm" / "calls").read_text().splitlines()
    return [line for line in calls if line.startswith(("sbatch ", "scancel "))]


@pytest.mark.parametrize("bad", CASES)
def test_a_bad_input_has_its_answer(door: Door, bad: Bad) -> None:
    answer = door.send(bad.sent) if isinstance(bad.sent, bytes) else send(door, bad)
    told = answer.error()
    text = told if isinstance(told, str) else json.dumps(told)
    assert (answer.status, [word for word in bad.words if word not in text]) == (bad.status, []), text


def send(door: Door, bad: Bad) -> Any:
    assert not isinstance(bad.sent, bytes)
    method, path, body = bad.sent
    if len(body or "") < 10_000_000:
        return door.ask(method, path, body, bad.headers)
    assert isinstance(body, bytes)
    length = b"Content-Length: %d\r\n" % len(body)
    with door.connect() as connection:
        send_until_refused(connection, request(f"{method} {path}".encode(), bad.headers + length), body[: 1 << 20])
        return read_answer(connection, to_the_end=True)


def test_5_chunks_without_an_end_are_a_413(door: Door) -> None:
    with door.connect() as connection:
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        send_until_refused(connection, request(f"POST {START}".encode(), JSON_BODY + CHUNKED), chunk)
        answer = read_answer(connection, to_the_end=True)
    assert (answer.status, "larger than 32 MiB" in answer.error()) == (413, True)


LITERAL = (
    "$(touch /tmp/p)",
    "`id`",
    "'; rm -rf ~;'",
    "{{ 7*7 }}",
    "{% raw %}",
    "{{ ''.__class__ }}",
    "a\\b",
    '"$HOME"',
)


def test_11_and_13_what_a_shell_or_a_template_would_understand_is_text_in_the_job(both: Halves) -> None:
    """Not refused: a value may be anything on one line."""
    values = {f"A{number}": text for number, text in enumerate(LITERAL)}
    wanted = {"gpu": None, "environment": values, "vllm_args": list(LITERAL)}
    body = {"recipe_name": "vllm-single-node", "config": wanted}
    made = both.through.post(START, json=body)
    assert made.status_code == 200, made.text
    script = (both.socket.parent / "slurm" / "scripts" / made.json()["id"]).read_text()
    exported = [line for line in script.splitlines() if line.startswith("export A")]
    assert [shlex.split(line)[1] for line in exported] == [f"{name}={value}" for name, value in values.items()]
    words = shlex.split(
        next(line for line in script.splitlines() if "touch" in line and "export" not in line), posix=True
    )
    assert [word for word in words if word != "\n"] == [*LITERAL]


def test_22_a_second_cancel_is_no_error(both: Halves) -> None:
    made = both.through.post(START, json={"recipe_name": "vllm-single-node", "config": {"gpu": None}}).json()
    path = f"{START}/{made['id']}/status"
    told = [both.through.post(path, json={"status": "cancelled"}) for _ in range(2)]
    assert [(answer.status_code, answer.json()["status"]) for answer in told] == [(200, "cancelled")] * 2


def test_23_a_huge_limit_finds_what_there_is(both: Halves) -> None:
    found = both.through.post(f"{POINTS}/search", json={"query_vector": [1, 1], "limit": 2**63})
    assert (found.status_code, found.json()["num_results"]) == (200, 1)


HOSTILE = (
    "printf 'CLUSTER: evil\\n'", "printf 'Welcome to the cluster!\\n'", "printf '\\xff\\xfe\\x00\\n'",
    "head -c 3000000 /dev/zero | tr '\\0' '\\037'; echo", "printf '7\\x1fsluice-x\\x1fRUNNING+\\x1f\\n'",
    "yes '1\\x1fother|name\\x1fRUNNING' | head -n 100000",
)  # fmt: skip


@pytest.mark.parametrize("output", HOSTILE)
def test_25_hostile_output_of_squeue_ends_no_job(both: Halves, output: str) -> None:
    """Beside it squeue says what is so; what cannot be understood is passed over."""
    slurm = both.socket.parent / "slurm"
    (slurm / "squeue.sh").write_text(output)
    try:
        looked_again(both)
        for service, status in ((VLLM, "running"), (PENDING, "pending"), (ENDED, "failed")):
            assert both.through.get(f"{START}/{service}/status").json()["status"] == status
        shown = both.through.get(f"{START}/{VLLM}").json()
        assert (shown["stale_since"], shown["nodes"]) == (None, ["localhost"])
    finally:
        (slurm / "squeue.sh").write_text("")
    both.check()


def looked_again(both: Halves) -> None:
    """Return when the watcher has asked squeue, and used its answer, twice."""
    first = last_look(both)
    for _ in range(2):
        asyncio.run(until(lambda: last_look(both) > first))  # noqa: B023 - it is called within this turn
        first = last_look(both)


def last_look(both: Halves) -> str:
    """In ISO 8601, so that a later one is greater."""
    return str(both.direct.get("/health").json()["watcher"]["last_look"])
