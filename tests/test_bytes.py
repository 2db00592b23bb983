"""Every path that names a model, through gateway, SSH and orchestrator to an engine: what one end sends the other gets,
byte for byte."""

from collections.abc import Iterator

import pytest

from orchestrator.dispatch import INFERENCE
from tests.clients.place import Place, place
from tests.echo_engine import FRAMINGS, digest, kind_of, said
from tests.gateway.sshd import BINARY
from tests.test_quirks import absent

pytestmark = [pytest.mark.system, pytest.mark.beside, pytest.mark.timeout(120)]

MODEL = "org/echo"
PATHS = sorted(path.decode() for path in INFERENCE)
STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
JSON = "application/json; charset=utf-8"
# As no library writes it: spaces, an escape, a name twice, numbers that no float holds, fields of some engine's own.
ODD = (
    '{ "model" : "org\\/echo",\t"messages":[{"role":"user","content":"\\u00e4 \u00e4 \\ud83d\\ude00 \U0001f600"}],\r\n'
    '"prompt": "p", "input" : ["a", [1, 2]], "query":"q", "documents": ["d"], "seed": 123456789012345678901234567890,'
    '"temperature": 1.50e-3000, "twice": 1, "twice": 2, "stream": false, "own": {"deep": [null, true]} }  \n\n'
).encode()
CLIENTS = {"Authorization": "Bearer of-the-client", "X-API-Key": "of-the-client"}  # the engine wants its own
BOUNDARY = "--=_odd'boundary"
FORM = (
    b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\norg/echo\r\n'
    b'--%b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n%b\r\n'
    b'--%b\r\nContent-Disposition: form-data; name="timestamp_granularities[]"\r\n\r\nword\r\n--%b--\r\n'
)


@pytest.fixture(scope="module")
def there() -> Iterator[Place]:
    if BINARY is None:
        absent("NO SSHD, so the bytes are not compared: apt-get install openssh-server")
    with place("echo_engine.py") as one:
        one.start(MODEL)
        yield one


@pytest.fixture(scope="module", params=["every model", "one service"])
def base(request: pytest.FixtureRequest, there: Place) -> str:
    """Where the paths are: at the root, and below a service."""
    if request.param == "every model":
        return ""
    return f"/api/v1/services/{there.http.get('/api/v1/services').json()[0]['id']}"


def form(size: int) -> bytes:
    """A file of so many bytes with all values in it, line ends and what looks like a boundary among them."""
    boundary = BOUNDARY.encode()
    block = bytes(range(256)) + b"\r\n--" + boundary[:-1] + b"\r\n"
    return FORM % (boundary, boundary, (block * (size // len(block) + 1))[:size], boundary, boundary)


def compare(there: Place, base: str, path: str, content: bytes, kind: str, *, query: str, pieces: int = 0) -> None:
    """Send it, in one piece or in several whose number nobody knows, and look at both ends."""
    target = f"{path}?a=%20b&{query}"
    sent: bytes | Iterator[bytes] = content
    if pieces:
        sent = (content[at : at + len(content) // pieces] for at in range(0, len(content), len(content) // pieces))
    with there.http.stream("POST", f"{base}{target}", content=sent, headers={"Content-Type": kind} | CLIENTS) as answer:
        raw = b"".join(answer.iter_raw())
    stream = b'"stream": true' in content
    assert answer.status_code == 200, raw[:500]
    assert (answer.headers["x-target"], answer.headers["x-kind"]) == (target, kind)
    assert answer.headers["x-digest"] == digest(content), "the engine got other bytes"
    assert answer.headers.get_list("content-type") == [kind_of(path, stream)]
    assert raw == said(path, stream), "the client got other bytes"


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("path", PATHS)
def test_odd_json_passes_both_ways(there: Place, base: str, path: str, framing: str) -> None:
    compare(there, base, path, ODD, JSON, query=f"framing={framing}")


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("path", STREAMED)
def test_so_do_events(there: Place, base: str, path: str, framing: str) -> None:
    content = ODD.replace(b'"stream": false', b'"stream": true')
    assert content != ODD
    compare(there, base, path, content, "application/json", query=f"framing={framing}")


@pytest.mark.parametrize("pieces", [0, 7])
@pytest.mark.parametrize("size", [0, 3000, 3 << 20])
@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
def test_so_does_an_uploaded_sound(there: Place, base: str, path: str, size: int, pieces: int) -> None:
    kind = f'multipart/form-data; boundary="{BOUNDARY}"'
    compare(there, base, path, form(size), kind, query="framing=chunked", pieces=pieces)
