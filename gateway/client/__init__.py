"""The gateway's HTTP API from Python: `Client`, and `AsyncClient` with the same operations to be awaited.

    with Client() as client:
        service = client.start("inference/vllm-single-node", {"model": "gpt2"})
        client.wait(service["id"], on_progress=lambda now: print(now["status"], now["reason"]))
        print(client.prompt(service["id"], "Hello")["text"])

Answers are the API's JSON, typed. Errors are subclasses of ClientError. Of the environment
only the proxies are looked at, for a gateway on another machine.
"""

from gateway.client.clients import DEFAULT_URL, AsyncClient, Client
from gateway.client.errors import ApiError, BrokenAnswer, ClientError, Ended, NotReachable, TookTooLong

__all__ = [
    "DEFAULT_URL",
    "ApiError",
    "AsyncClient",
    "BrokenAnswer",
    "Client",
    "ClientError",
    "Ended",
    "NotReachable",
    "TookTooLong",
]
