"""What each operation of the HTTP API promises, checked on the answer that the real curl got.

`PROMISES` has one entry for each operation; a command without one is an error, so that no document can drift away.
"""

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs

from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.cluster import Cluster
from tests.curls import DOCUMENTS, Curl, curls
from tests.e2e import later
from tests.e2e.deployment import Api, wait_for

JSON = "application/json"
TEXT = "text/plain"
MODEL = "gpt2"  # of the services that run
WHOLE = "Qwen/Qwen2.5-0.5B-Instruct"  # of the hub, with contents
EVENTS = "text/event-stream"
SPEECH = bytes(range(256)) * 1000  # the recording of the documents
# What the documents write where a reader writes an id of their own: 3652098, sg-3652098, 3652098:8002.
PLACE = re.compile(r"(?<=/)(?P<alias>sg-)?\d{5,}(?P<port>:\d+)?(?=[/?]|$)")
# And what they write for ids that are ours: job_…, file-…, batch_…, pull_….
OURS = re.compile(r"\b(job_|file-|batch_|pull_)[0-9a-f]{32}\b")
# Environment names of the documents, and the engine's option that each becomes.
OPTIONS = {
    "VLLM_MODEL": "--model",
    "VLLM_HOST": "--host",
    "VLLM_PORT": "--port",
    "VLLM_MAX_MODEL_LEN": "--max-model-len",
    "VLLM_TENSOR_PARALLEL_SIZE": "--tensor-parallel-size",
    "VLLM_GPU_MEMORY_UTILIZATION": "--gpu-memory-utilization",
}


@dataclass(frozen=True)
class Answer:
    """What curl printed, taken apart. `text` is the body."""

    status: int
    headers: dict[str, str]
    text: str

    @classmethod
    def parse(cls, printed: str) -> "Answer":
        head, _, text = printed.partition("\n\n")
        first, *lines = head.splitlines()
        pairs = (line.partition(":") for line in lines)
        return cls(int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}, text)

    def json(self, status: int = 200) -> Any:
        self.check(JSON, status)
        return json.loads(self.text)

    def metrics(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """The samples of a Prometheus text, by name."""
        self.check(TEXT)
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
        return found

    def check(self, kind: str, status: int = 200) -> None:
        assert self.status == status, f"{self.status} instead of {status}: {self.text}"
        assert self.headers["content-type"].partition(";")[0] == kind, self.headers


@dataclass(frozen=True)
class Call:
    """A command with the ids of services that run. `id`: that of its own path; `running`: vllm, group and qdrant.

    `made`: what has been made for it, by the beginning of its id.
    """

    curl: Curl
    api: Api
    cluster: Cluster
    running: dict[str, str]
    id: str = ""
    made: dict[str, str] = field(default_factory=dict)

    @property
    def asked(self) -> Any:
        return json.loads(self.curl.body or "null")

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.curl.query).items()}

    @property
    def name(self) -> str:
        """What the path names beside a service: a collection, a recipe, a model."""
        return self.curl.path.partition("/collections/")[2].split("/")[0] or self.curl.path.rpartition("/")[2]

    @property
    def endpoint(self) -> str:
        return str(self.api.show(self.id)["endpoint"])

    def run(self, during: "During | None" = None) -> Answer:
        """The very command, with an id of ours, where its file is, and with the head of the answer printed too."""
        url = PLACE.sub(rf"\g<alias>{self.id}", self.curl.url)
        words = (url if word == self.curl.url else word for word in self.curl.argv[1:])
        words = (OURS.sub(lambda found: self.made[found[1]], word) for word in words)
        with NamedTemporaryFile() as printed, NamedTemporaryFile() as trouble, TemporaryDirectory() as here:
            Path(here, "speech.wav").write_bytes(SPEECH)
            Path(here, "requests.jsonl").write_text(later.LINE)
            process = subprocess.Popen(["curl", "-q", "-sS", "-i", *words], stdout=printed, stderr=trouble, cwd=here)
            try:
                if during:
                    during(self, Path(printed.name))
                assert process.wait(30) == 0, Path(trouble.name).read_text()
            finally:
                process.kill()
                process.wait()
            return Answer.parse(Path(printed.name).read_text())


During = Callable[[Call, Path], None]


@dataclass(frozen=True)
class Promise:
    """`targets`: the kinds of service that the id in the path may be of; each is tried.

    `ends`: the command ends its service, so it gets one of its own. `before` makes it possible; `during` is done while
    the command runs, and can read what it has printed so far.
    """

    check: Callable[[Call, Answer], None]
    targets: tuple[str, ...] = ("",)
    ends: bool = False
    before: Callable[[Call], None] | None = None
    during: During | None = None


# Services


def started(call: Call, answer: Answer) -> None:
    """What was asked for is in the answer, with Slurm and with the engine, which comes to run. Then it is stopped."""
    shown, config = answer.json(), call.asked.get("config", {})
    recipe = call.api.get(f"/api/v1/recipes/{call.asked['recipe_name']}")
    full_name = f"{recipe['category']}/{recipe['name']}"
    try:
        assert (shown["recipe_name"], shown["config"], shown["status"]) == (full_name, config, "pending")
        assert shown["name"] == f"{full_name}-{'group' if shown['type'] else shown['id']}"
        assert datetime.fromisoformat(shown["created_at"]).tzinfo
        call.api.until(shown["id"], "running")
        resources = recipe["resources"] | {k: v for k, v in config.items() if k in recipe["resources"]}
        check_job(call.cluster, shown["id"], resources | config.get("resources", {}))
        if recipe["category"] == "inference":
            check_engines(call, shown, config, recipe["parameters"])
        if shown["type"]:
            check_replicas(call, shown, config, resources | config.get("resources", {}))
        if any(header.startswith("Idempotency-Key:") for header in call.curl.headers):
            assert call.run().json()["id"] == shown["id"], "a second service"
    finally:
        call.api.cancel(shown["id"])
    ended(call, shown["id"])


def check_job(cluster: Cluster, job: str, resources: dict[str, Any]) -> None:
    """Slurm's own record of the job has the resources that were asked for."""
    record = cluster.run("login", ["scontrol", "-o", "show", "job", job], check=True).stdout
    fields = dict(word.partition("=")[::2] for word in record.split())
    hours, minutes, _ = fields["TimeLimit"].split(":")
    assert 60 * int(hours) + int(minutes) == int(resources["time_limit"]), record
    assert (fields["NumNodes"], fields["NumCPUs"]) == (str(resources["nodes"]), str(resources["cpu"])), record
    assert fields["MinMemoryNode"] == resources["memory"], record
    gpus = int(resources["gpu"] or 0)
    assert fields.get("TresPerNode", "").rpartition(":")[2] == (str(gpus) if gpus else ""), record


def check_engines(call: Call, shown: dict[str, Any], config: dict[str, Any], parameters: dict[str, Any]) -> None:
    """The engines' own command lines and environments have what the config says."""
    asked = config.get("environment", {})
    model = config.get("model") or asked.get("VLLM_MODEL") or parameters["VLLM_MODEL"]["default"]
    assert call.api.get(f"/api/v1/vllm/{shown['id']}/models")["models"] == [model]
    engines = engines_of(call.cluster, shown["id"])
    assert len(engines) == (shown["total_replicas"] or 1)
    for words, environment in engines:
        assert words[words.index("--model") + 1] == model
        for name, option in OPTIONS.items():
            assert name not in asked or words[words.index(option) + 1] == str(asked[name]), words
        assert asked.get("CUDA_VISIBLE_DEVICES") in (None, environment.get("CUDA_VISIBLE_DEVICES"))


def engines_of(cluster: Cluster, job: str) -> list[tuple[list[str], dict[str, str]]]:
    """The words and the environment of each engine of a job."""
    found = []
    for pid in cluster.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        environment = dict(entry.partition("=")[::2] for entry in entries)
        if environment.get("SLURM_JOB_ID") == job and words[1:2] == [str(cluster.root / "fake_engine.py")]:
            found.append((words, environment))
    return found


def check_replicas(call: Call, shown: dict[str, Any], config: dict[str, Any], resources: dict[str, Any]) -> None:
    """All of a group's replicas come to answer, on the ports that were asked for."""
    count = int(resources["gpu"]) // int(config.get("gpu_per_replica", 1))
    assert (shown["type"], shown["total_replicas"], shown["replicas_per_node"]) == ("replica_group", count, count)
    health = f"/api/v1/service-groups/{shown['id']}/status"
    wait_for(lambda: call.api.get(health)["overall_status"] == "healthy", "all replicas answer")
    replicas = call.api.get(health)["replica_statuses"]
    first = int(config.get("base_port", 8001))
    assert [replica["port"] for replica in replicas] == [first + n for n in range(count)]


def broken(call: Call) -> None:
    """The service's engine ends, and the service with it."""
    call.api.http.post(f"/api/v1/vllm/{call.id}/prompt", json={"prompt": "please die now"})
    wait_for(lambda: call.api.status(call.id) == "failed", "the service has failed")
    diagnosis = call.api.show(call.id)["diagnosis"]
    assert (diagnosis["name"], diagnosis["changes"]) == ("unknown", {})
    assert "exit code 9" in diagnosis["sentence"]


def retried(call: Call, answer: Answer) -> None:
    """A new service like the failed one, but for what was asked to be changed."""
    shown, before = answer.json(), call.api.show(call.id)
    try:
        assert shown["id"] != call.id
        assert (shown["recipe_name"], shown["config"]) == (
            before["recipe_name"],
            before["config"] | call.asked["changes"],
        )
        call.api.until(shown["id"], "running")
        ((words, _),) = engines_of(call.cluster, shown["id"])
        assert words[words.index("--max-model-len") + 1] == str(call.asked["changes"]["max_model_len"])
    finally:
        call.api.cancel(shown["id"])
    assert before["status"] == "failed"


def ended(call: Call, service_id: str) -> None:
    """The service is cancelled, its record is kept, and Slurm has ended the job."""
    assert call.api.status(service_id) == "cancelled"
    wait_for(lambda: call.api.show(service_id)["job"]["state"] == "CANCELLED", "the job has ended")
    assert f"{service_id}|" not in call.cluster.run("login", ["squeue", "-h", "-o", "%i|"], check=True).stdout


def listed(call: Call, answer: Answer) -> None:
    services, query = answer.json(), call.query
    assert len(services) <= int(query.get("limit", 10_000))
    assert int(answer.headers["x-total-count"]) >= len(services)
    for service in services:
        assert query.get("status") in (None, service["status"])
        assert service["recipe_name"].endswith(query.get("recipe", ""))
    wanted = {call.running["vllm"]} if query else set(call.running.values())
    assert wanted <= {service["id"] for service in services}


def shown(call: Call, answer: Answer) -> None:
    service = answer.json()
    assert (service["id"], service["status"], service["reason"]) == (call.id, "running", "")
    identity, _, port = call.id.partition(":")
    assert service["endpoint"].startswith("http://") and service["endpoint"].endswith(port)
    assert (service["job"]["id"], service["job"]["state"]) == (identity, "RUNNING")
    assert service["nodes"][0] in ("node1", "node2")
    assert datetime.fromisoformat(service["started_at"]) < datetime.fromisoformat(service["ends_at"])
    if port:
        assert (service["group_id"], service["replica_index"]) == (identity, int(port) - 8001)


def status(call: Call, answer: Answer) -> None:
    assert answer.json() == {"status": "running"}


def cancelled(call: Call, answer: Answer) -> None:
    message = f"Service {call.id} status updated to cancelled"
    assert answer.json() == {"message": message, "service_id": call.id, "status": "cancelled"}
    ended(call, call.id)


def stopped(call: Call, answer: Answer) -> None:
    assert call.id in answer.json()["message"]
    assert answer.headers["deprecation"] == "true"
    ended(call, call.id)


def enough_to_cut(call: Call) -> None:
    """The engine writes a line for each prompt."""
    for number in range(int(call.query.get("tail", 0)) + 1):
        call.api.prompt(call.id, f"number {number}")


def logs(call: Call, answer: Answer) -> None:
    written = answer.json()
    assert written["stdout"] in written["logs"] and written["stderr"] in written["logs"]
    assert "listens on" in written["stdout"]
    if "tail" in call.query:
        assert len(written["stderr"].splitlines()) == int(call.query["tail"])
    else:
        assert "starting vllm" in written["stderr"]
    assert "POST /v1/chat/completions" in written["stderr"]


def end_once_followed(call: Call, printed: Path) -> None:
    """End the service when its log has arrived: what is followed is there at once, not only at the end."""
    wait_for(lambda: "starting vllm" in printed.read_text(), "the log is streamed")
    call.api.cancel(call.id)


def followed(call: Call, answer: Answer) -> None:
    answer.check(TEXT)
    assert "starting vllm" in answer.text
    ended(call, call.id)


# Groups


def groups(call: Call, answer: Answer) -> None:
    found = {group["id"]: group for group in answer.json()}
    check_group(call.running["group"], found[call.running["group"]])


def group(call: Call, answer: Answer) -> None:
    check_group(call.id, answer.json())


def check_group(identity: str, told: dict[str, Any]) -> None:
    assert (told["id"], told["type"], told["status"]) == (identity, "replica_group", "running")
    count = (told["num_nodes"], told["replicas_per_node"], told["total_replicas"], told["healthy_replicas"])
    assert count == (1, 2, 2, 2)
    assert (told["starting_replicas"], told["pending_replicas"], told["failed_replicas"]) == (0, 0, 0)
    (node,) = told["node_jobs"]
    assert (node["job_id"], node["node_index"], node["node"]) == (identity, 0, "node1")
    check_members(identity, node["replicas"])


def check_members(identity: str, replicas: list[dict[str, Any]]) -> None:
    assert [replica["id"] for replica in replicas] == [f"{identity}:8001", f"{identity}:8002"]
    assert [(replica["port"], replica["gpu_id"]) for replica in replicas] == [(8001, "0"), (8002, "1")]
    assert all(replica["status"] == "running" and replica["job_id"] == identity for replica in replicas)
    assert all(replica["endpoint"].endswith(f":{replica['port']}") for replica in replicas)


def group_health(call: Call, answer: Answer) -> None:
    told, identity = answer.json(), call.id
    check_members(identity, told.pop("replica_statuses"))
    none = {"starting_replicas": 0, "pending_replicas": 0, "failed_replicas": 0}
    all_well = {"overall_status": "healthy", "total_replicas": 2, "healthy_replicas": 2}
    assert told == {"group_id": identity} | all_well | none


def group_cancelled(call: Call, answer: Answer) -> None:
    message = f"Service group {call.id} status updated to cancelled"
    assert answer.json() == {"success": True, "message": message, "group_id": call.id, "replicas_updated": 2}
    ended(call, call.id)


def group_stopped(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert (told["success"], told["group_id"], told["replicas_stopped"]) == (True, call.id, 2)
    assert told["jobs_cancelled"] == [call.id]
    assert answer.headers["deprecation"] == "true"
    ended(call, call.id)


# Models


def prompted(call: Call, answer: Answer) -> None:
    if call.asked.get("stream"):
        streamed(call, answer)
    else:
        check_text(call, answer.json())


def check_text(call: Call, told: dict[str, Any]) -> None:
    assert (told["success"], told["service_id"], told["response"]) == (True, call.id, told["text"])
    assert call.asked["prompt"] in told["text"]
    assert told["endpoint"].startswith("http://") and told["endpoint_used"]
    assert 0 < told["usage"]["completion_tokens"] <= call.asked.get("max_tokens", 150)
    routed = (told["routed_to"], told["group_id"], told["total_replicas"])
    if call.id != call.running["group"]:
        assert routed == (None, None, None)
    else:
        assert routed[0] in (f"{call.id}:8001", f"{call.id}:8002")
        assert routed[1:] == (call.id, 2)


def streamed(call: Call, answer: Answer) -> None:
    answer.check(EVENTS)
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    words = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events]
    assert len(words) > 3, "it comes in pieces"
    assert call.asked["prompt"] in "".join(words)


def openai_models(call: Call, answer: Answer) -> None:
    listed = answer.json()
    assert listed["object"] == "list"
    assert MODEL in [check_card(card) for card in listed["data"]]


def openai_model(call: Call, answer: Answer) -> None:
    assert check_card(answer.json()) == MODEL


def tags(call: Call, answer: Answer) -> None:
    models = answer.json()["models"]
    assert MODEL in [model["name"] for model in models if model["model"] == model["name"]]
    assert all(datetime.fromisoformat(model["modified_at"]).tzinfo for model in models)


def slots(call: Call, answer: Answer) -> None:
    (only,) = answer.json()
    check_slot(only)


def slot(call: Call, answer: Answer) -> None:
    check_slot(answer.json())


def check_slot(told: dict[str, Any]) -> None:
    assert (told["name"], told["base_url"]) == ("main", "/slots/main/v1")
    assert {model["name"] for model in told["models"]} == {"qwen3-30b", "gpt-oss120"}
    assert {model["state"] for model in told["models"]} <= {"sleeping", "waiting", "loading", "running"}


def slot_models(call: Call, answer: Answer) -> None:
    assert {check_card(card) for card in answer.json()["data"]} == {"qwen3-30b", "gpt-oss120", "main"}


def switched(call: Call, answer: Answer) -> None:
    """The slot's own base URL answers with the model that is loaded now."""
    check_slot(answer.json(202))
    wait_for(lambda: call.api.get("/slots/main")["phase"] == "serving", "the model is loaded", 60)
    body = {"model": "main", "messages": [{"role": "user", "content": "hello"}]}
    answered = call.api.http.post("/slots/main/v1/chat/completions", json=body)
    assert answered.status_code == 200, answered.text
    assert call.api.get("/slots/main")["loaded"] == call.asked["model"]


def check_card(card: dict[str, Any]) -> str:
    assert (card["object"], bool(card["root"]), bool(card["created"])) == ("model", True, True)
    return str(card["id"])


def chatted(call: Call, answer: Answer) -> None:
    if call.asked.get("async"):
        later.queued(call, answer)
        return
    said = call.asked["messages"][0]["content"]
    if call.asked.get("stream"):
        answer.check(EVENTS)
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert events.pop() == "[DONE]"
        text = "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)
    else:
        text = answer.json()["choices"][0]["message"]["content"]
    assert said in text


def completed(call: Call, answer: Answer) -> None:
    assert answer.json()["choices"][0]["text"].startswith(call.asked["prompt"].split()[0])


def embedded(call: Call, answer: Answer) -> None:
    data = answer.json()["data"]
    assert [one["index"] for one in data] == list(range(len(call.asked["input"])))
    assert all(isinstance(number, float) for one in data for number in one["embedding"])


def reranked(call: Call, answer: Answer) -> None:
    results = answer.json()["results"]
    assert sorted(one["index"] for one in results) == list(range(len(call.asked["documents"])))
    scores = [one["relevance_score"] for one in results]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]


def scored(call: Call, answer: Answer) -> None:
    first, second = (one["score"] for one in answer.json()["data"])
    assert first < second


def transcribed(call: Call, answer: Answer) -> None:
    """The engine has got all of the file."""
    assert answer.json()["text"] == f"{len(SPEECH)} bytes of speech"


def responded(call: Call, answer: Answer) -> None:
    (message,) = answer.json()["output"]
    assert message["content"][0]["text"] == call.asked["input"]


def message_written(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert (told["type"], told["role"]) == ("message", "assistant")
    assert told["content"][0]["text"] == call.asked["messages"][0]["content"]


def tokenized(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert 0 < told["count"] == len(told["tokens"])


def detokenized(call: Call, answer: Answer) -> None:
    assert len(answer.json()["prompt"].split()) == len(call.asked["tokens"])


def version(call: Call, answer: Answer) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", answer.json()["version"])


def vllm_services(call: Call, answer: Answer) -> None:
    found = {service["id"]: service for service in answer.json()["vllm_services"]}
    assert {call.running["vllm"], call.running["group"]} <= set(found)
    assert call.running["qdrant"] not in found
    check_listed(call, found[call.running["vllm"]])


def check_listed(call: Call, listed: dict[str, Any]) -> None:
    whole = call.api.show(listed["id"])
    assert listed == {name: whole[name] for name in ("id", "name", "recipe_name", "endpoint", "status")}
    assert (listed["status"], listed["endpoint"].startswith("http://")) == ("running", True)


def loaded_models(call: Call, answer: Answer) -> None:
    endpoint = call.endpoint
    assert answer.json() == {"success": True, "models": ["gpt2"], "service_id": call.id, "endpoint": endpoint}


def available_models(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert "Qwen2ForCausalLM" in told["supported_architectures"]["text-generation"]
    assert told["examples"]["text-generation"] and told["resource_guidelines"] and told["how_to_find_models"]
    assert told["model_source"].startswith("Hugging Face Hub")


def searched_models(call: Call, answer: Answer) -> None:
    told, query = answer.json(), call.query
    assert 0 < told["total"] == len(told["models"]) <= int(query.get("limit", 20))
    for model in told["models"]:
        assert query.get("query", "").lower() in model["id"].lower()
        assert query.get("architecture") in (None, model["architecture"])
        assert model["downloads"] > 0 and model["vllm_compatible"] is (model["architecture"] is not None)


def one_model(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert (told["id"], told["vllm_compatible"]) == (call.curl.path.partition("/model-info/")[2], True)
    assert (told["architecture"], told["task_type"]) == ("Qwen2ForCausalLM", "text-generation")
    assert told["size_gb"] == round(told["size_bytes"] / 1e9, 2) > 0


def rendered(call: Call, answer: Answer) -> None:
    """The script asks for what the config wants, bash can read it, and nothing is submitted."""
    before = {service["id"] for service in call.api.get("/api/v1/services")}
    script, config = answer.json()["script"], call.asked["config"]
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    assert f"#SBATCH --time={config['time_limit']}\n" in script
    assert config["model"] in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False, timeout=20).returncode == 0
    call.run()
    assert {service["id"] for service in call.api.get("/api/v1/services")} == before


def looked_at(call: Call, answer: Answer) -> None:
    """The real Slurm says when it would start, and has nothing of it afterwards."""
    told, before = answer.json(), {service["id"] for service in call.api.get("/api/v1/services")}
    levels = {verdict["check"]: verdict["level"] for verdict in told["verdicts"]}
    checks = ("model", "architecture", "quantization", "memory", "cache", "script", "scheduler")
    assert (told["ok"], levels) == (True, dict.fromkeys(checks, "ok")), told
    assert (told["model"], told["engine"], told["script_ok"]) == (call.asked["config"]["model"], "vllm", True)
    assert told["memory"]["gpus"] == call.asked["config"]["gpu"] and told["memory"]["fits"] is True
    assert datetime.fromisoformat(told["estimated_start"]).tzinfo
    call.run().json()
    assert {service["id"] for service in call.api.get("/api/v1/services")} == before


def model_options(call: Call, answer: Answer) -> None:
    options = {option["value"]: option["label"] for option in answer.json()}
    assert options["Qwen/Qwen2.5-7B-Instruct"] == "Qwen/Qwen2.5-7B-Instruct (7.6B)"


# Recipes


def recipes(call: Call, answer: Answer) -> None:
    names = {f"{recipe['category']}/{recipe['name']}" for recipe in answer.json()}
    assert {"inference/vllm-single-node", "inference/vllm-replicas", "vector-db/qdrant"} <= names


def recipe(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert told["name"] == call.name
    minutes = {"vllm-single-node": 15, "vllm-replicas": 30}[call.name]
    assert [told["resources"][name] for name in ("nodes", "gpu", "time_limit")] == [1, 4, minutes]
    assert told["ports"] == [8001] and told["version"] and told["description"]
    assert {"path", "image", "category"} <= set(told)
    for parameter in told["parameters"].values():
        assert {"description", "type", "default", "required", "location"} <= set(parameter)
    assert told["parameters"]["VLLM_MODEL"]["default"] == "Qwen/Qwen2.5-0.5B-Instruct"


# Vector databases


def vector_db_services(call: Call, answer: Answer) -> None:
    found = {service["id"]: service for service in answer.json()["vector_db_services"]}
    assert call.running["vllm"] not in found
    check_listed(call, found[call.running["qdrant"]])


def collections_of(call: Call) -> list[str]:
    names: list[str] = call.api.get(f"/api/v1/vector-db/{call.id}/collections")["collections"]
    return names


def size_of(call: Call) -> int:
    """How long the vectors of the path's collection really are."""
    told = call.api.get(f"/api/v1/vector-db/{call.id}/qdrant/collections/{call.name}")
    return int(told["result"]["config"]["params"]["vectors"]["size"])


def check_about_collection(call: Call, told: dict[str, Any]) -> None:
    about = (told["success"], told["service_id"], told["endpoint"], told["collection_name"])
    assert about == (True, call.id, call.endpoint, call.name)


def collections(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert (told["success"], told["service_id"], told["endpoint"]) == (True, call.id, call.endpoint)
    native = call.api.get(f"/api/v1/vector-db/{call.id}/qdrant/collections")["result"]["collections"]
    assert sorted(told["collections"]) == sorted(one["name"] for one in native)


def without_collection(call: Call) -> None:
    """Two documents may create the same one, and a second time is a 409."""
    if call.name in collections_of(call):
        assert call.api.http.delete(f"/api/v1/vector-db/{call.id}/collections/{call.name}").status_code == 200


def collection_created(call: Call, answer: Answer) -> None:
    told = answer.json()
    check_about_collection(call, told)
    assert {"vector_size": told["vector_size"], "distance": told["distance"]} == call.asked
    assert call.name in collections_of(call)
    assert size_of(call) == call.asked["vector_size"]


def collection_shown(call: Call, answer: Answer) -> None:
    told = answer.json()
    check_about_collection(call, told)
    assert told["collection_info"]["config"]["params"]["vectors"]["size"] == size_of(call)
    assert told["collection_info"]["points_count"] > 0


def collection_deleted(call: Call, answer: Answer) -> None:
    check_about_collection(call, answer.json())
    assert call.name not in collections_of(call)


def refused_by_size(call: Call, answer: Answer, given: int) -> bool:
    """True when the vectors do not fit the collection; then the answer must be the engine's own 400."""
    size = size_of(call)
    if given == size:
        return False
    told = answer.json(400)
    assert told["success"] is False and told["error"] == told["detail"]
    assert f"expected dim: {size}, got {given}" in told["error"]
    return True


def points_upserted(call: Call, answer: Answer) -> None:
    points = call.asked["points"]
    if refused_by_size(call, answer, len(points[0]["vector"])):
        return
    told = answer.json()
    check_about_collection(call, told)
    assert told["num_points"] == len(points)
    native = f"/api/v1/vector-db/{call.id}/qdrant/collections/{call.name}/points"
    for point in points:
        assert call.api.get(f"{native}/{point['id']}")["result"]["payload"] == point["payload"]


def points_found(call: Call, answer: Answer) -> None:
    if refused_by_size(call, answer, len(call.asked["query_vector"])):
        return
    told = answer.json()
    check_about_collection(call, told)
    assert 0 < len(told["results"]) == told["num_results"] <= call.asked["limit"]
    assert told["result"] == told["results"]
    native = f"/api/v1/vector-db/{call.id}/qdrant/collections/{call.name}/points/query"
    body = {"query": call.asked["query_vector"], "limit": call.asked["limit"], "with_payload": True}
    points = call.api.http.post(native, json=body).json()["result"]["points"]
    assert told["results"] == [{name: point[name] for name in ("id", "score", "payload")} for point in points]


def native_answer(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert told["status"] == "ok" and told["time"] >= 0 and told["result"]


# A rented GPU


def rented_on(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert (told["status"], told["health_url"]) == ("running", told["health_url"].partition("/health")[0] + "/health")
    assert told["message"].startswith("Instance running and healthy")


def rented_status(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert (told["status"], told["gpu_name"], told["dph_total"]) == ("running", "RTX 3090", 0.45)
    assert told["auto_shutdown_in_minutes"] == 30


def rented_used(call: Call, answer: Answer) -> None:
    assert answer.json()["status"] == "recorded"


def rented_off(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert (told["status"], told["message"].startswith("Instance stopped. Session: ")) == ("stopped", True)


def rented_costs(call: Call, answer: Answer) -> None:
    assert answer.json()["sessions_count"] == 1


def rented_audit(call: Call, answer: Answer) -> None:
    events = [line["event"] for line in answer.json()]
    assert events == ["power_off_complete", "power_off_requested", "power_on_complete", "power_on_requested"]


# The cluster


def cluster(call: Call, answer: Answer) -> None:
    """Two nodes with four GPUs each, of which the group has two."""
    told = answer.json()
    assert (told["scheduler"], told["stale_since"], told["trouble"]) == ("slurm", None, "")
    (gpus,), (partition,) = told["gpus"], told["partitions"]
    assert (gpus["type"], gpus["total"], gpus["free"] + gpus["in_use"]) == ("", 8, 8)
    assert gpus["in_use"] >= 2
    assert (partition["name"], partition["default"], partition["state"]) == ("gpu", True, "up")
    assert (partition["time_limit"], partition["nodes"]["total"], partition["cpus"]["total"]) == (120, 2, 32)
    assert set(call.running.values()) <= {job["service_id"] for job in told["jobs"]}
    assert all(job["partition"] == "gpu" for job in told["jobs"] if job["state"] == "RUNNING")


def usage(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert told["engines"] >= 3  # of the group and of vLLM
    assert told["prompt_tokens"] >= 0 and told["generated_tokens"] >= 0


# Metrics and health


def service_metrics(call: Call, answer: Answer) -> None:
    samples = answer.metrics()
    assert ({"service_id": call.id}, 2.0) in samples["service_status_info"]
    labels, _ = samples["vllm:generation_tokens_total"][0]
    assert labels["service_id"] == call.id


def vllm_metrics(call: Call, answer: Answer) -> None:
    assert answer.metrics()["vllm:generation_tokens_total"]


def qdrant_metrics(call: Call, answer: Answer) -> None:
    assert answer.metrics()["collections_total"]


def orchestrator_metrics(call: Call, answer: Answer) -> None:
    running = [value for labels, value in answer.metrics()["sluice_services"] if labels["status"] == "running"]
    assert len(running) == 1 and running[0] >= len(call.running)


def gateway_metrics(call: Call, answer: Answer) -> None:
    assert ({"state": "up"}, 1.0) in answer.metrics()["sluice_gateway_tunnel"]


def targets(call: Call, answer: Answer) -> None:
    found = {target["labels"]["service_id"]: target for target in answer.json()}
    assert set(call.running.values()) <= set(found)
    one = found[call.running["vllm"]]
    assert one["targets"] == ["localhost:8001"]
    assert one["labels"]["__metrics_path__"] == f"/api/v1/services/{call.running['vllm']}/metrics"


def root(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert (told["name"], told["docs"], told["state"]) == ("Sluicegate gateway", "/docs", "up")


def health(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert (told["status"], told["ready"], told["tunnel"]["state"]) == ("healthy", True, "up")
    assert told["orchestrator"]["watcher"]["late"] is False


def ready(call: Call, answer: Answer) -> None:
    assert answer.json() == {"ready": True}


# The orchestrator itself


def orchestrator_status(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert (told["state"], told["host"], told["tunnel"]["state"]) == ("running", "login", "up")
    assert told["pid"] and told["since"] and told["socket"].endswith("/orchestrator.sock")


def orchestrator_endpoint(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert (told["cluster"], told["state"], told["openai_base_url"]) == (call.cluster.alias, "up", "/v1")
    assert told["endpoint"].endswith(f"orchestrator.sock on {call.cluster.alias}")


def orchestrator_stopped(call: Call, answer: Answer) -> None:
    """Jobs go on, which `orchestrator_started` sees."""
    told = answer.json()
    assert (told["state"], told["message"]) == ("stopped", "The orchestrator was stopped; jobs go on.")
    assert not call.api.ready()


def orchestrator_started(call: Call, answer: Answer) -> None:
    assert answer.json()["state"] == "running"
    wait_for(call.api.ready, "the orchestrator is ready")
    for service in call.running.values():
        call.api.until(service, "running")


# Accounts


def activity(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert told["status"] == "recorded"
    assert call.api.show(call.id)["last_activity"] >= told["last_activity"]


def service_costs(call: Call, answer: Answer) -> None:
    """The job runs, so that its time is what Slurm says of it."""
    told = answer.json()
    assert (told["service_id"], told["sessions_count"], len(told["jobs"])) == (call.id, 1, 1)
    assert told["total_runtime_hours"] > 0
    assert told["jobs"][0]["started_at"] == call.api.show(call.id)["job"]["started_at"]


def costs(call: Call, answer: Answer) -> None:
    told = answer.json()
    assert told["group_by"] == call.query.get("group_by", "service") and told["groups"]
    assert told["total_runtime_hours"] > 0


def audit(call: Call, answer: Answer) -> None:
    entries = answer.json()
    assert entries and [entry["ts"] for entry in entries] == sorted((entry["ts"] for entry in entries), reverse=True)
    assert len(entries) <= int(call.query.get("limit", 50))
    if "event" in call.query:
        assert {entry["event"] for entry in entries} == {call.query["event"]}


# Models and images before their jobs


def a_pull(kind: str, body: dict[str, Any]) -> Callable[[Call], None]:
    def begin(call: Call) -> None:
        call.made["pull_"] = call.api.http.post(f"/api/v1/{kind}/pulls", json=body).json()["id"]

    return begin


a_model_pull = a_pull("models", {"model": WHOLE})
an_image_pull = a_pull("images", {"image": "docker://some/image:1", "size_gb": 0.001})


def pulled(call: Call, answer: Answer) -> None:
    """It comes to its end, and the file is on the cluster."""
    told = answer.json(202)
    path = f"{call.curl.path}/{told['id']}"
    wait_for(lambda: call.api.get(path)["status"] == "done", f"{path} is done")
    done = call.api.get(path)
    assert done["bytes_done"] == done["bytes_total"] > 0
    assert call.cluster.run("login", ["test", "-e", done["path"]], user=True).returncode == 0


def pulls(call: Call, answer: Answer) -> None:
    assert call.made["pull_"] in [one["id"] for one in answer.json()]


def one_pull(call: Call, answer: Answer) -> None:
    assert answer.json()["id"] == call.made["pull_"]


def pull_cancelled(call: Call, answer: Answer) -> None:
    assert answer.json()["status"] in ("cancelled", "done")


def push_begun(call: Call, answer: Answer) -> None:
    (missing,) = answer.json()["missing"]
    assert (missing["path"], missing["have"]) == ("config.json", 0)


def content_received(call: Call, answer: Answer) -> None:
    assert answer.json() == {"have": 8, "complete": True}
    begin = next(one for one in curls("api.md", DOCUMENTS[0].read_text()) if one.path == "/api/v1/models/pushes")
    done = call.api.http.post(begin.path, json=json.loads(begin.body or "")).json()
    assert call.cluster.run("login", ["cat", f"{done['snapshot']}/config.json"], user=True).stdout == '{"a": 1}'


LLM, GROUP, QDRANT = ("vllm",), ("group",), ("qdrant",)
COLLECTION = "/api/v1/vector-db/{id}/collections/{collection}"

PROMISES = {
    "POST /infra/vast/power/on": Promise(rented_on),
    "GET /infra/vast/status": Promise(rented_status),
    "POST /infra/vast/activity": Promise(rented_used),
    "POST /infra/vast/power/off": Promise(rented_off),
    "GET /infra/vast/costs": Promise(rented_costs),
    "GET /infra/vast/audit": Promise(rented_audit),
    "GET /": Promise(root),
    "GET /health": Promise(health),
    "GET /orchestrator/status": Promise(orchestrator_status),
    "GET /orchestrator/endpoint": Promise(orchestrator_endpoint),
    "POST /orchestrator/stop": Promise(orchestrator_stopped),
    "POST /orchestrator/start": Promise(orchestrator_started),
    "GET /metrics": Promise(gateway_metrics),
    "GET /ready": Promise(ready),
    "GET /api/v1/orchestrator/metrics": Promise(orchestrator_metrics),
    "GET /v1/models": Promise(openai_models),
    "GET /v1/models/{model:}": Promise(openai_model),
    "POST /v1/chat/completions": Promise(chatted),
    "POST /v1/completions": Promise(completed),
    "POST /v1/embeddings": Promise(embedded),
    "POST /v1/rerank": Promise(reranked),
    "POST /v1/score": Promise(scored),
    "POST /v1/audio/transcriptions": Promise(transcribed),
    "POST /v1/responses": Promise(responded),
    "POST /v1/messages": Promise(message_written),
    "POST /tokenize": Promise(tokenized),
    "POST /detokenize": Promise(detokenized),
    "GET /version": Promise(version),
    "GET /api/tags": Promise(tags),
    "GET /slots": Promise(slots),
    "GET /slots/{name}": Promise(slot),
    "GET /slots/{name}/v1/models": Promise(slot_models),
    "POST /slots/{name}/switch": Promise(switched),
    "GET /api/v1/services/{id}/v1/models": Promise(openai_models, LLM),
    "POST /api/v1/preflight": Promise(looked_at),
    "POST /api/v1/render": Promise(rendered),
    "POST /api/v1/models/pulls": Promise(pulled),
    "GET /api/v1/models/pulls": Promise(pulls, before=a_model_pull),
    "GET /api/v1/models/pulls/{id:}": Promise(one_pull, before=a_model_pull),
    "DELETE /api/v1/models/pulls/{id:}": Promise(pull_cancelled, before=a_model_pull),
    "POST /api/v1/models/pushes": Promise(push_begun),
    "PUT /api/v1/models/pushes/content": Promise(content_received),
    "POST /api/v1/images/pulls": Promise(pulled),
    "GET /api/v1/images/pulls": Promise(pulls, before=an_image_pull),
    "GET /api/v1/images/pulls/{id:}": Promise(one_pull, before=an_image_pull),
    "DELETE /api/v1/images/pulls/{id:}": Promise(pull_cancelled, before=an_image_pull),
    "GET /api/v1/recipes": Promise(recipes),
    "GET /api/v1/recipes/{name}": Promise(recipe),
    "GET /api/v1/recipes/{category}/{name}": Promise(recipe),
    "GET /api/v1/service-groups": Promise(groups),
    "GET /api/v1/service-groups/{id}": Promise(group, GROUP),
    "DELETE /api/v1/service-groups/{id}": Promise(group_stopped, GROUP, ends=True),
    "GET /api/v1/service-groups/{id}/status": Promise(group_health, GROUP),
    "POST /api/v1/service-groups/{id}/status": Promise(group_cancelled, GROUP, ends=True),
    "POST /api/v1/services": Promise(started),
    "GET /api/v1/services": Promise(listed),
    "GET /api/v1/services/targets": Promise(targets),
    "GET /api/v1/services/{id}": Promise(shown, LLM),
    "DELETE /api/v1/services/{id}": Promise(stopped, LLM, ends=True),
    "GET /api/v1/services/{id}/logs": Promise(logs, LLM, before=enough_to_cut),
    "GET /api/v1/services/{id}/logs?follow": Promise(followed, LLM, ends=True, during=end_once_followed),
    "GET /api/v1/services/{id}/metrics": Promise(service_metrics, LLM),
    "GET /api/v1/services/{id}/status": Promise(status, LLM),
    "POST /api/v1/services/{id}/status": Promise(cancelled, LLM, ends=True),
    "POST /api/v1/services/{id}/retry": Promise(retried, ("vllm",), ends=True, before=broken),
    "POST /api/v1/services/{id}/activity": Promise(activity, (*LLM, *GROUP, *QDRANT)),
    "GET /api/v1/services/{id}/costs": Promise(service_costs, (*LLM, *GROUP, *QDRANT)),
    "GET /api/v1/costs": Promise(costs),
    "GET /api/v1/cluster": Promise(cluster),
    "GET /api/v1/usage": Promise(usage),
    "GET /api/v1/audit": Promise(audit),
    "GET /api/v1/vector-db/services": Promise(vector_db_services),
    "GET /api/v1/vector-db/{id}/collections": Promise(collections, QDRANT),
    f"GET {COLLECTION}": Promise(collection_shown, QDRANT),
    f"PUT {COLLECTION}": Promise(collection_created, QDRANT, before=without_collection),
    f"DELETE {COLLECTION}": Promise(collection_deleted, QDRANT),
    f"PUT {COLLECTION}/points": Promise(points_upserted, QDRANT),
    f"POST {COLLECTION}/points/search": Promise(points_found, QDRANT),
    f"POST {COLLECTION}/search": Promise(points_found, QDRANT),
    "GET /api/v1/vector-db/{id}/metrics": Promise(qdrant_metrics, QDRANT),
    "GET /api/v1/vector-db/{id}/qdrant/{path:}": Promise(native_answer, QDRANT),
    "POST /api/v1/vector-db/{id}/qdrant/{path:}": Promise(native_answer, QDRANT),
    "GET /api/v1/vllm/available-models": Promise(available_models),
    "GET /api/v1/vllm/model-info/{model:}": Promise(one_model),
    "GET /api/v1/vllm/model-options": Promise(model_options),
    "GET /api/v1/vllm/search-models": Promise(searched_models),
    "GET /api/v1/vllm/services": Promise(vllm_services),
    "GET /api/v1/vllm/{id}/metrics": Promise(vllm_metrics, LLM),
    "GET /api/v1/vllm/{id}/models": Promise(loaded_models, LLM),
    "POST /api/v1/vllm/{id}/prompt": Promise(prompted, (*LLM, *GROUP)),
} | {operation: Promise(check, before=before) for operation, (check, before) in later.CHECKS.items()}


def promise_of(curl: Curl) -> Promise:
    """Raises LookupError for an operation without one."""
    follows = "?follow" if "follow" in parse_qs(curl.query) else ""
    for operation, promise in PROMISES.items():
        if re.fullmatch(_pattern(operation), f"{curl.method} {curl.path}{follows}"):
            return promise
    raise LookupError(
        f"{curl.document}:{curl.line}: no promise for {curl.method} {curl.path}: add one to tests/e2e/promises.py"
    )


def _pattern(operation: str) -> str:
    """`{id}` is an id, `{path:}` anything, any other `{name}` one segment."""
    kinds = {"{id}": r"(sg-)?\d+(:\d+)?", "{path:}": ".+", "{model:}": ".+"}
    parts = re.split(r"(\{.*?\})", operation)
    return "".join(kinds.get(part, "[^/]+") if part.startswith("{") else re.escape(part) for part in parts)
