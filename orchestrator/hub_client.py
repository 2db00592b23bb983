"""The HTTP client of huggingface_hub: bounded in time, in size and in where it goes.

The library's own has no time limit in list_models, and repeats what has failed for half a minute, or for as long as the
hub's Retry-After says (huggingface_hub 2.4, utils/_http.py, `http_backoff`).
"""

import time
from collections.abc import Mapping
from typing import Any

import httpx2

from orchestrator.errors import NotReady

RETRY_SECONDS = 30  # how long a failure is remembered, and what Retry-After says
MOST_BYTES = 32 * 1024 * 1024  # of one answer of the hub: 100 models with their configurations are about 2 MiB

_REDIRECTS = 3
_ADVICE = (
    "The login node must reach it: set HTTPS_PROXY, or HF_ENDPOINT to a mirror, and start the orchestrator again. "
    "GET /api/v1/vllm/available-models answers without it."
)


class BoundedClient(httpx2.Client):
    """One try of each request, within `seconds`, and to no other host. Proxies are those of the environment.

    What would be repeated by huggingface_hub is raised as NotReady, which it does not know and passes on.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(follow_redirects=False)
        self._seconds = seconds

    def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        endpoint = f"{request.url.scheme}://{request.url.netloc.decode()}"
        deadline = time.monotonic() + self._seconds
        try:
            response = self._exchange(request, deadline)
            for _attempt in range(_REDIRECTS):
                if (following := response.next_request) is None:
                    break
                if not _same_origin(following.url, request.url):
                    raise unreachable(endpoint, f"it sends us to {following.url.host}, where we do not go")
                response = self._exchange(following, deadline)
        except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
            raise unreachable(endpoint, str(exc) or type(exc).__name__) from exc
        if response.status_code == 429:
            raise NotReady(
                f"The Hugging Face Hub at {endpoint} answers 429: too many requests. Ask again later; a token in "
                "[site] token_file raises the limit.",
                retry_after=_retry_after(response.headers),
            )
        if response.status_code >= 500:
            raise unreachable(endpoint, f"it answers {response.status_code} {response.reason_phrase}")
        return response

    def _exchange(self, request: httpx2.Request, deadline: float) -> httpx2.Response:
        """One request and all of its answer, read in pieces so that a slow one is given up."""
        left = max(0.001, deadline - time.monotonic())
        request.extensions = {**request.extensions, "timeout": httpx2.Timeout(left).as_dict()}
        response = super().send(request, stream=True, follow_redirects=False)
        body = bytearray()
        try:
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout(f"the answer was not complete within {self._seconds:g} s", request=request)
                if len(body) > MOST_BYTES:
                    raise httpx2.ReadError(f"the answer is larger than {MOST_BYTES >> 20} MiB", request=request)
        finally:
            response.close()
        return _complete(response, bytes(body))


def _complete(response: httpx2.Response, body: bytes) -> httpx2.Response:
    """The same answer with its body, which is decoded already. A next page at another host is not mentioned."""
    dropped = {"content-encoding", "content-length", "transfer-encoding"}
    following = response.links.get("next", {}).get("url")
    if following is not None and not _same_origin(httpx2.URL(following), response.request.url):
        dropped.add("link")
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in dropped]
    complete = httpx2.Response(response.status_code, headers=headers, content=body, request=response.request)
    complete.next_request = response.next_request
    return complete


def _same_origin(one: httpx2.URL, other: httpx2.URL) -> bool:
    return (one.scheme, one.netloc) == (other.scheme, other.netloc)


def _retry_after(headers: Mapping[str, str]) -> int:
    """Seconds, at most an hour."""
    given = headers.get("retry-after", "")
    return min(int(given), 3600) if given.isascii() and given.isdigit() else RETRY_SECONDS


def unreachable(endpoint: str, reason: str) -> NotReady:
    text = f"The Hugging Face Hub at {endpoint} cannot be asked: {reason[:500].rstrip('. ')}. {_ADVICE}"
    return NotReady(text, retry_after=RETRY_SECONDS)
