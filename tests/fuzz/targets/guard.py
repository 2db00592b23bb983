"""Who may ask the gateway: nobody under another name, with a key nobody without it; and the key never goes further."""

import time
from urllib.parse import urlsplit

from gateway.guard import Guard
from gateway.sessions import Sessions
from gateway.settings import Settings, is_loopback
from orchestrator.access import CREDENTIALS, Refusal
from orchestrator.keys import Key, Keys, Scope, hash_of, now
from orchestrator.wire.http1 import end_to_end
from tests.fuzz.target import Target

_KEY = b"sk-1"
_SETTINGS = Settings(host="127.0.0.1", allowed_hosts=["Host.Docker.Internal"])
_NO_KEYS = Keys(None)
_ONE_KEY = Keys(None, [Key("one", Scope.ADMIN, hash_of(_KEY), now())])
_NAMES = (b"host", b"origin", b"authorization", b"x-api-key", b"api-key")


def _run(data: bytes) -> None:
    headers = [_header(line) for line in data.split(b"\n")]
    for keys in (_NO_KEYS, _ONE_KEY):
        guard = Guard(_SETTINGS, keys, Sessions(keys, time.monotonic))
        first, second = (guard.judge("GET", "/v1/models", headers) for _ in range(2))
        assert first == second
        if isinstance(first, Refusal):
            assert first.text and first.status in (400, 401, 403)
        else:
            _check_names(headers)
            assert keys is _NO_KEYS or any(_KEY in value for name, value in headers if name != b"host")
            assert (first is None) is (keys is _NO_KEYS)
    further = end_to_end(headers, CREDENTIALS)
    assert not any(name in _NAMES[2:] for name, _ in further)


def _header(line: bytes) -> tuple[bytes, bytes]:
    return _NAMES[line[0] % len(_NAMES)] if line else b"host", line[1:].strip(b" \t")


def _check_names(headers: list[tuple[bytes, bytes]]) -> None:
    """A browser that reads the Host header sees a name of ours."""
    host = next(value for name, value in headers if name == b"host").decode("latin-1")
    seen = urlsplit(f"http://{host}/")
    name = seen.hostname or ""
    assert seen.username is None and seen.path == "/" and not seen.query and not seen.fragment, host
    assert is_loopback(name) or name.endswith(".localhost") or name == "host.docker.internal", host
    origins = [value.lower() for name, value in headers if name == b"origin"]
    assert all(origin.partition(b"://")[2].decode("latin-1") == host.lower() for origin in origins), origins


TARGET = Target(
    _run,
    seeds=[
        b"\x00localhost:8001", b"\x00127.0.0.1\n\x01http://127.0.0.1", b"\x00[::1]:8001\n\x02Bearer sk-1",
        b"\x00host.docker.internal\n\x03sk-1", b"\x00a.localhost:1\n\x04sk-1\n\x01https://a.localhost:1",
        b"\x00evil.com", b"\x00localhost:1@evil.com", b"\x00localhost\n\x00evil.com", b"\x00localhost:a/b",
    ],
    words=[
        b"\n\x00", b"\n\x01http://", b"\n\x02Bearer sk-1", b"\n\x03sk-1", b"localhost", b"127.0.0.1", b"[::1]", b":80",
        b"@", b"/", b".localhost", b"\xff", b"%", b"[", b"]", b"::ffff:127.0.0.1", b"?", b"#",
    ],
)  # fmt: skip
