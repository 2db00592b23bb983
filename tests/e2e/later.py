"""What the operations of docs/async.md promise; `tests.e2e.promises` has them among its own."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.e2e.deployment import wait_for

if TYPE_CHECKING:
    from tests.e2e.promises import Answer, Call

MODEL = "gpt2"
CHAT = "/v1/chat/completions"
LINE = (
    '{"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions",'
    ' "body": {"model": "gpt2", "messages": [{"role": "user", "content": "Hello"}]}}\n'
)


def queued(call: "Call", answer: "Answer") -> None:
    """A request with "async": true: it is answered, and sent again with the same key it is the same job."""
    told = answer.json(202)
    assert told["status"] == "queued" and told["id"] == told["job_id"]
    assert (told["status_url"], told["result_url"]) == (f"/jobs/{told['id']}", f"/jobs/{told['id']}/result")
    wait_for(lambda: call.api.get(told["status_url"])["status"] == "done", "the job is done")
    said = call.asked["messages"][0]["content"]
    assert said in call.api.get(told["result_url"])["choices"][0]["message"]["content"]
    if any(header.startswith("Idempotency-Key:") for header in call.curl.headers):
        assert call.run().json(202)["id"] == told["id"]


def a_job(call: "Call", prompt: str = "hello") -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "async": True}
    call.made["job_"] = call.api.http.post(CHAT, json=body).json()["job_id"]


def a_finished_job(call: "Call") -> None:
    a_job(call)
    wait_for(lambda: call.api.get(f"/jobs/{call.made['job_']}")["status"] == "done", "the job is done")


def a_long_job(call: "Call") -> None:
    a_job(call, "sleep 30")
    wait_for(lambda: call.api.get(f"/jobs/{call.made['job_']}")["status"] == "running", "the job runs")


def a_file(call: "Call") -> None:
    sent = call.api.http.post("/v1/files", files={"file": ("r.jsonl", LINE.encode())}, data={"purpose": "batch"})
    call.made["file-"] = sent.json()["id"]


def a_batch(call: "Call") -> None:
    a_file(call)
    body = {"input_file_id": call.made["file-"], "endpoint": CHAT, "completion_window": "24h"}
    call.made["batch_"] = call.api.http.post("/v1/batches", json=body).json()["id"]


def job(call: "Call", answer: "Answer") -> None:
    told = answer.json()
    assert (told["job_id"], told["status"], told["model"]) == (call.made["job_"], "done", MODEL)
    assert (told["attempts"], told["position"], told["error"]) == (1, None, None)


def result(call: "Call", answer: "Answer") -> None:
    assert "hello" in answer.json()["choices"][0]["message"]["content"]


def cancelled(call: "Call", answer: "Answer") -> None:
    told = answer.json()
    assert (told["job_id"], told["status"], told["cancelled"]) == (call.made["job_"], "cancelled", True)
    assert call.api.get(f"/jobs/{told['job_id']}")["status"] == "cancelled"


def jobs(call: "Call", answer: "Answer") -> None:
    told = answer.json()
    assert call.made["job_"] in [one["job_id"] for one in told]
    assert {one["status"] for one in told} == {"done"}


def queue(call: "Call", answer: "Answer") -> None:
    told = answer.json()
    assert (told["counts"]["queued"], told["items"], told["oldest_wait_seconds"]) == (0, [], None)
    assert told["counts"]["done"] >= 1


def status(call: "Call", answer: "Answer") -> None:
    told = answer.json()
    assert (told["status"], told["scheduler"]) == ("healthy", "slurm")
    assert MODEL in told["models"] and told["services"]["running"] >= len(call.running)
    assert told["uptime_seconds"] > 0 and told["watcher"]["late"] is False


def uploaded(call: "Call", answer: "Answer") -> None:
    told = answer.json()
    assert (told["object"], told["bytes"], told["purpose"]) == ("file", len(LINE), "batch")
    assert call.api.http.get(f"/v1/files/{told['id']}/content").text == LINE


def batch_started(call: "Call", answer: "Answer") -> None:
    told = answer.json()
    assert (told["status"], told["input_file_id"]) == ("validating", call.made["file-"])
    wait_for(lambda: call.api.get(f"/v1/batches/{told['id']}")["status"] == "completed", "the batch is complete")
    done = call.api.get(f"/v1/batches/{told['id']}")
    assert done["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert "Hello" in call.api.http.get(f"/v1/files/{done['output_file_id']}/content").text


def batch(call: "Call", answer: "Answer") -> None:
    told = answer.json()
    assert (told["id"], told["object"], told["endpoint"]) == (call.made["batch_"], "batch", CHAT)
    assert told["input_file_id"] == call.made["file-"]


def content(call: "Call", answer: "Answer") -> None:
    answer.check("application/octet-stream")
    assert answer.text == LINE


def listed(kind: str) -> Callable[["Call", "Answer"], None]:
    def check(call: "Call", answer: "Answer") -> None:
        told = answer.json()
        assert told["object"] == "list" and call.made[kind] in [one["id"] for one in told["data"]]

    return check


def file(call: "Call", answer: "Answer") -> None:
    assert (answer.json()["id"], answer.json()["bytes"]) == (call.made["file-"], len(LINE))


def deleted(call: "Call", answer: "Answer") -> None:
    assert answer.json() == {"id": call.made["file-"], "object": "file", "deleted": True}
    assert call.api.http.get(f"/v1/files/{call.made['file-']}").status_code == 404


CHECKS: dict[str, tuple[Callable[..., None], Callable[..., Any] | None]] = {
    "GET /jobs": (jobs, a_finished_job),
    "GET /jobs/{job}": (job, a_finished_job),
    "GET /jobs/{job}/result": (result, a_finished_job),
    "POST /jobs/{job}/cancel": (cancelled, a_long_job),
    "GET /queue": (queue, a_finished_job),
    "GET /status": (status, None),
    "POST /v1/files": (uploaded, None),
    "GET /v1/files": (listed("file-"), a_file),
    "GET /v1/files/{file}": (file, a_file),
    "GET /v1/files/{file}/content": (content, a_file),
    "DELETE /v1/files/{file}": (deleted, a_file),
    "POST /v1/batches": (batch_started, a_file),
    "GET /v1/batches": (listed("batch_"), a_batch),
    "GET /v1/batches/{batch}": (batch, a_batch),
    "POST /v1/batches/{batch}/cancel": (batch, a_batch),
}
"""The check of each operation, and what is done before."""
