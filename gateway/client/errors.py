"""What can go wrong between a client and its gateway.

ClientError
  ApiError       the API refused or failed: status, detail, retry_after
  NotReachable   nothing answers there; the text says what to do
  BrokenAnswer   an answer that is not what the API promises, or a stream that ended too early
  Ended          a service that was waited for has ended instead of answering
  TookTooLong    the time that a caller wanted to wait is over
"""

from gateway.shapes import JSON, ServiceDetail


class ClientError(Exception):
    """Any of these; its text is for the user."""


class ApiError(ClientError):
    """`status`: HTTP's. `detail`: the API's own words. `retry_after`: seconds, or None. `body`: all of the answer."""

    def __init__(self, status: int, detail: str, retry_after: float | None = None, body: JSON | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after = retry_after
        self.body = body or {}


class NotReachable(ClientError):
    """`url` is the gateway's address."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"no answer from {url}: {why}. Start the gateway with `sluice gateway` "
            "(GATEWAY_CLUSTER=<host of your SSH configuration>), or use the address at which it listens."
        )
        self.url = url


class BrokenAnswer(ClientError):
    """What came is not complete, or not JSON."""


class Ended(ClientError):
    """`service` is how it ended."""

    def __init__(self, service: ServiceDetail) -> None:
        super().__init__(f"service {service['id']} has ended ({service['status']}){_why_ended(service)}")
        self.service = service


class TookTooLong(ClientError):
    """`service` is how it stands; it goes on."""

    def __init__(self, service: ServiceDetail, seconds: float) -> None:
        why = f": {service['reason']}" if service["reason"] else ""
        super().__init__(f"service {service['id']} is still {service['status']} after {seconds:g} s{why}")
        self.service = service


def _why_ended(service: ServiceDetail) -> str:
    """The reason, the diagnosis where there is one, and the next step."""
    found, wrote = service["diagnosis"], f"What it wrote: sluice logs {service['id']}"
    reason = f": {service['reason']}" if service["reason"] else ""
    if found is None:
        return f"{reason}. {wrote}"
    again = f" Start it again so: sluice retry {service['id']}." if found["changes"] else ""
    return f"{reason}. {found['sentence']} {found['advice']}{again} {wrote}"
