"""Sign-ins with a browser: whose cookie is taken, from which requests, and how long."""

from dataclasses import replace

import pytest
from pydantic import SecretStr

from gateway.guard import Guard
from gateway.sessions import LIFETIME_SECONDS, Sessions, cookie_name, from_our_page, session_value
from gateway.settings import Settings
from orchestrator.access import Headers, Refusal
from orchestrator.keys import Key, Keys, Scope, hash_of, now

ADMIN, USER = Key("me", Scope.ADMIN, hash_of(b"a"), now()), Key("ann", Scope.USE, hash_of(b"u"), now())
HOST = (b"host", b"localhost:8001")
OURS, SITE = (b"sec-fetch-site", b"same-origin"), (b"sec-fetch-site", b"same-site")


class Clock:
    time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def keys() -> Keys:
    return Keys(None, [ADMIN, USER])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(keys: Keys, clock: Clock) -> Sessions:
    return Sessions(keys, clock)


@pytest.fixture
def guard(keys: Keys, sessions: Sessions) -> Guard:
    return Guard(Settings(api_key=SecretStr("a")), keys, sessions)


def signed_in(value: str, *more: tuple[bytes, bytes]) -> Headers:
    return [HOST, (b"cookie", f"other=1; sluice-session-8001={value}; third".encode()), *more]


@pytest.mark.parametrize(
    ("method", "headers", "ours"),
    [
        ("GET", [], True),
        ("GET", [OURS], True),
        ("GET", [(b"sec-fetch-site", b"none")], True),
        ("GET", [SITE], False),
        ("GET", [(b"sec-fetch-site", b"cross-site")], False),
        ("POST", [], False),
        ("POST", [OURS], True),
        ("POST", [SITE], False),
        ("POST", [(b"sec-fetch-site", b"none")], False),
        ("POST", [(b"origin", b"http://localhost:8001")], True),
        ("DELETE", [SITE, (b"origin", b"http://localhost:8001")], False),
    ],
)
def test_which_requests_are_of_our_pages(method: str, headers: Headers, ours: bool) -> None:
    assert from_our_page(method, headers) is ours


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost:8001", "sluice-session-8001"),
        ("sluice.example", "sluice-session-80"),
        ("[::1]:9", "sluice-session-9"),
    ],
)
def test_gateways_on_several_ports_have_cookies_of_their_own(host: str, name: str) -> None:
    assert cookie_name(host) == name


@pytest.mark.parametrize(
    ("cookies", "value"),
    [
        (b"sluice-session-8001=v", "v"),
        (b'a="x;y"; b=\xff{}; sluice-session-8001=v; c', "v"),
        (b"sluice-session-9=v", ""),
        (b"sluice-session-8001", ""),
        (b"", ""),
    ],
)
def test_the_cookie_among_those_of_others(cookies: bytes, value: str) -> None:
    assert session_value([HOST, (b"cookie", cookies)]) == value


def test_a_cookie_stands_for_its_key(guard: Guard, sessions: Sessions) -> None:
    headers = signed_in(sessions.begin(USER), OURS)
    assert guard.judge("GET", "/api/v1/services", headers) == USER
    assert guard.judge("POST", "/v1/chat/completions", headers) == USER
    refused = guard.judge("POST", "/api/v1/services", headers)
    assert isinstance(refused, Refusal) and refused.status == 403 and "scope use" in refused.text
    assert guard.judge("POST", "/ui/start/inference/x", headers) == USER, "what it asks for is judged there"


def test_a_cookie_is_nothing_to_pages_of_others(guard: Guard, sessions: Sessions) -> None:
    value = sessions.begin(ADMIN)
    for method, more in (("GET", [SITE]), ("POST", []), ("POST", [SITE])):
        refused = guard.judge(method, "/api/v1/services", signed_in(value, *more))
        assert isinstance(refused, Refusal) and refused.status == 401


def test_a_cookie_ends_with_its_time_its_key_and_by_signing_out(
    guard: Guard, keys: Keys, sessions: Sessions, clock: Clock
) -> None:
    first, second = sessions.begin(ADMIN), sessions.begin(ADMIN)
    before = keys.generation
    sessions.end(first)
    assert keys.generation > before, "what was concluded from its head is concluded anew"
    assert isinstance(guard.judge("GET", "/", signed_in(first)), Refusal)
    assert guard.judge("GET", "/", signed_in(second)) == ADMIN
    clock.time += LIFETIME_SECONDS
    assert isinstance(guard.judge("GET", "/", signed_in(second)), Refusal)
    before = keys.generation
    sessions.tick()
    assert keys.generation > before
    gone = Sessions(Keys(None, [USER]), clock)
    assert gone.key_of(signed_in(gone.begin(ADMIN))) is None


def test_a_revoked_key_is_said(sessions: Sessions) -> None:
    revoked = replace(ADMIN, revoked=now())
    guard = Guard(Settings(), Keys(None, [revoked]), other := Sessions(Keys(None, [revoked]), Clock()))
    refused = guard.judge("GET", "/", signed_in(other.begin(revoked)))
    assert isinstance(refused, Refusal) and "was revoked" in refused.text


def test_a_key_that_is_given_counts_and_not_the_cookie(guard: Guard, sessions: Sessions) -> None:
    headers = signed_in(sessions.begin(ADMIN), OURS)
    assert guard.judge("GET", "/", [*headers, (b"x-api-key", b"u")]) == USER
    assert isinstance(guard.judge("GET", "/", [*headers, (b"x-api-key", b"wrong")]), Refusal)


def test_what_needs_no_key_and_what_only_our_pages_may_do(guard: Guard, sessions: Sessions) -> None:
    assert guard.judge("GET", "/ui/sign-in", [HOST]) is None
    assert guard.judge("GET", "/ui/static/x/style.css", [HOST]) is None
    assert guard.judge("POST", "/ui/sign-in", [HOST, OURS]) is None
    free = Guard(Settings(), Keys(None), sessions)
    for path in ("/ui/sign-in", "/ui/services/1/stop"):
        refused = free.judge("POST", path, [HOST])
        assert isinstance(refused, Refusal) and refused.status == 403 and "own pages" in refused.text
        assert free.judge("POST", path, [HOST, OURS]) is None


def test_the_oldest_gives_way(sessions: Sessions) -> None:
    first = sessions.begin(ADMIN)
    rest = [sessions.begin(ADMIN) for _ in range(1000)]
    assert sessions.key_of(signed_in(first)) is None
    assert sessions.key_of(signed_in(rest[0])) == ADMIN
