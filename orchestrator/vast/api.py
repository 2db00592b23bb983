"""vast.ai's REST API, as far as it is needed: look at one instance, and say what it shall do."""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx2
from pydantic_core import from_json

from orchestrator.confidential import MASK
from orchestrator.errors import NotConfigured, RentalError, RentalUnknown
from orchestrator.settings import Vast
from orchestrator.vast.instance import MOST_WORDS, Instance, instance_in

MOST_BYTES = 1 << 20  # of an answer; one instance is a few kilobytes
TRIES = 4  # of each request, while vast.ai is busy or broken
MOST_WAIT = 20.0  # seconds that one Retry-After may ask for
_NOT_THERE = 404


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]


@dataclass
class VastApi:
    """`seconds`: for one answer. `pause`: seconds before what failed is tried again, doubled each time."""

    settings: Vast
    client: httpx2.AsyncClient
    seconds: float = 15
    pause: float = 0.5

    async def instance(self) -> Instance:
        """The instance as it is now. Raises RentalError and RentalUnknown."""
        answer = await self._ask("GET", {"owner": "me"}, None)
        if answer.status == _NOT_THERE and isinstance(_json(answer), dict):
            return instance_in({"instances": None}, self._id)
        self._check(answer)
        return instance_in(_json(answer), self._id)

    async def wish(self, state: Literal["running", "stopped"]) -> None:
        """Start or stop it. vast.ai answers when it has understood, not when it is done.

        Saying it twice is saying it once, so that it may be tried again. Raises RentalError and RentalUnknown.
        """
        answer = await self._ask("PUT", {}, {"state": state})
        self._check(answer)
        told = _json(answer)
        if not isinstance(told, dict) or told.get("success") is not True:
            raise RentalError(f"vast.ai does not make it {state}: {self._words(answer)}")

    @property
    def _id(self) -> int:
        if self.settings.instance_id is None:
            raise NotConfigured("VAST_INSTANCE_ID not configured")
        return self.settings.instance_id

    async def _ask(self, method: str, query: dict[str, str], body: dict[str, str] | None) -> Answer:
        """An answer that is neither 429 nor 5xx, or the last of several that are."""
        pause = self.pause
        for _ in range(TRIES - 1):
            answer = await self._once(method, query, body)
            if not (answer.status == 429 or answer.status >= 500):
                return answer
            wait = wait_of(answer, pause)
            if wait > MOST_WAIT:
                return answer
            await asyncio.sleep(wait)
            pause *= 2
        return await self._once(method, query, body)

    async def _once(self, method: str, query: dict[str, str], body: dict[str, str] | None) -> Answer:
        key = self.settings.api_key
        if key is None:
            raise NotConfigured("VAST_API_KEY not configured")
        url = f"{self.settings.api_url.rstrip('/')}/instances/{self._id}/"
        headers = {"authorization": f"Bearer {key.get_secret_value()}", "accept": "application/json"}
        try:
            async with (
                asyncio.timeout(self.seconds),
                self.client.stream(method, url, params=query, json=body, headers=headers) as response,
            ):
                return Answer(response.status_code, await _body(response), response.headers)
        except (TimeoutError, httpx2.TimeoutException) as exc:
            raise RentalUnknown(
                f"vast.ai did not answer within {self.seconds:g} s; look at /infra/vast/status"
            ) from exc
        except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
            raise RentalError(
                f"vast.ai cannot be reached at {self.settings.api_url}: {exc or type(exc).__name__}"
            ) from exc

    def _check(self, answer: Answer) -> None:
        """Raises RentalError for what is no success, with vast.ai's own words."""
        if 200 <= answer.status < 300:
            return
        hint = {401: "; look at VAST_API_KEY", 403: "; look at the permissions of VAST_API_KEY"}.get(answer.status, "")
        later = None
        if answer.status == 429:
            later = max(1, math.ceil(min(wait_of(answer, 1), 3600)))
            hint = f"; ask again in {later} s"
        elif 300 <= answer.status < 400:
            hint = "; look at VAST_API_URL: the key is sent nowhere else"
        raise RentalError(f"vast.ai answers {answer.status}: {self._words(answer)}{hint}", retry_after=later)

    def _words(self, answer: Answer) -> str:
        """What vast.ai says, without our key, which it may repeat."""
        told = _json(answer)
        parts = [told.get(name) for name in ("error", "msg")] if isinstance(told, dict) else []
        words = ": ".join(part for part in parts if isinstance(part, str) and part)
        words = words or answer.body[:MOST_WORDS].decode("utf-8", "replace").strip() or "nothing"
        key = self.settings.api_key
        return (words if key is None else words.replace(key.get_secret_value(), MASK))[:MOST_WORDS]


def wait_of(answer: Answer, otherwise: float) -> float:
    """The seconds that an answer asks to wait for. Not a date: vast.ai sends seconds, also broken ones."""
    try:
        asked = float(answer.headers.get("retry-after", ""))
    except ValueError:
        return otherwise
    return asked if 0 <= asked < math.inf else otherwise


def _json(answer: Answer) -> Any:
    """The content of an answer, None for what is no JSON."""
    try:
        return from_json(answer.body)
    except ValueError:
        return None


async def _body(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MOST_BYTES:
            raise httpx2.ReadError(f"its answer is larger than {MOST_BYTES >> 20} MiB")
    return bytes(body)


@asynccontextmanager
async def open_api(settings: Vast) -> AsyncIterator[VastApi]:
    """With the proxies of the environment, but for a server on this machine."""
    async with httpx2.AsyncClient(timeout=30, follow_redirects=False, trust_env=not settings.local) as client:
        yield VastApi(settings, client)
