"""The clients and the commands against both halves as processes, with plain processes as jobs."""

import asyncio
import json
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest
from typer.testing import CliRunner, Result

from gateway.child import Child
from gateway.cli import app
from gateway.client import ApiError, AsyncClient, Client, Ended, NotReachable, TookTooLong
from gateway.settings import environment_of_a_child
from tests.gateway.sshd import free_port
from tests.test_process import Home, a_home, until

pytestmark = [pytest.mark.system, pytest.mark.beside]

JSON = dict[str, Any]
SMALL: JSON = {"gpu": None, "cpu": 1, "memory": "1G"}
RECIPE = "inference/vllm-single-node"
ASLEEP = {"recipe": "inference/llamacpp-cpu", "slot": "main"}
LITTLE = ["--gpus", "0", "--set", "cpu=1", "--set", "memory=1G"]

home = pytest.fixture(a_home, name="home", scope="module")
Sluice = Callable[..., Result]


@pytest.fixture(scope="module")
def url(home: Home) -> Iterator[str]:
    """The gateway's, in front of an orchestrator that looks five times a second."""
    models, port = home.folder / "models.yaml", free_port()
    models.write_text(json.dumps({"models": {"asleep": ASLEEP}}))
    home.variables |= {"ORCHESTRATOR_MODELS": str(models), "ORCHESTRATOR_POLL_SECONDS": "0.2"}
    home.variables |= {"ORCHESTRATOR_DRAIN_SECONDS": "1", "HF_HUB_OFFLINE": "1"}
    home.serve()
    with _gateway(home, port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _gateway(home: Home, port: int, **settings: str) -> Iterator[None]:
    environment = environment_of_a_child(
        GATEWAY_PORT=str(port),
        GATEWAY_LOCAL_SOCKET=str(home.socket),
        GATEWAY_MODELS_FILE=str(home.folder / f"models-{port}.json"),
        **settings,
    )
    with Child("gateway", environment, home.folder / f"gateway-{port}.log") as gateway:
        until(lambda: _is_ready(gateway, port))
        yield


def _is_ready(gateway: Child, port: int) -> bool:
    gateway.check()
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/ready", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as opened:
        yield opened


@pytest.fixture(scope="module")
def running(url: str) -> str:
    """The id of a service that answers."""
    with Client(url) as client:
        started = client.start(RECIPE, SMALL | {"model": "gpt2"})
        return client.wait(started["id"], every=0.1, timeout=60)["id"]


@pytest.fixture
def sluice(url: str, monkeypatch: pytest.MonkeyPatch) -> Sluice:
    """Run a command in a pipe."""
    monkeypatch.setenv("GATEWAY_URL", url)
    return lambda *words, text=None: CliRunner().invoke(app, list(words), input=text, catch_exceptions=False)


def test_from_start_to_end(client: Client) -> None:
    seen: list[str] = []
    started = client.start(RECIPE, SMALL | {"model": "one", "environment": {"FAKE_LOAD_SECONDS": "0.5"}})
    ready = client.wait(started["id"], every=0.05, on_progress=lambda look: seen.append(look["status"]))
    assert (ready["status"], ready["model"], seen[-1]) == ("running", "one", "running")
    assert set(seen) - {"running"}
    assert client.status(started["id"]) == {"status": "running"}
    assert client.cancel(started["id"])["status"] == "cancelled"
    with pytest.raises(Ended, match="cancelled"):
        client.wait(started["id"])


def test_a_start_sent_twice_is_one_service(client: Client) -> None:
    first, second = (client.start(RECIPE, SMALL | {"model": "twice"}, idempotency_key="k") for _ in range(2))
    assert first["id"] == second["id"]
    with pytest.raises(TookTooLong):
        client.wait(first["id"], timeout=0)
    client.cancel(first["id"])


def test_what_a_client_asks(client: Client, running: str) -> None:
    assert client.prompt(running, "hello there")["text"]
    assert "".join(client.chat("gpt2", [{"role": "user", "content": "hello"}]))
    chunks = list(client.chat_chunks("gpt2", [{"role": "user", "content": "hello"}], max_tokens=2))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {"gpt2", "asleep"} <= {model["id"] for model in client.models()["data"]}
    assert running in {service["id"] for service in client.services(status="running")}
    assert RECIPE in {recipe["path"] for recipe in client.recipes()}
    assert client.recipe("vllm-single-node")["path"] == RECIPE
    assert client.logs(running, tail=5)["logs"]
    assert [slot["name"] for slot in client.slots()] == ["main"]
    assert client.slot("main")["loaded"] is None
    assert client.costs(group_by="model")["group_by"] == "model"
    assert client.service_costs(running)["service_id"] == running
    assert client.preflight("gpt2")["engine"] == "vllm"
    assert client.render(RECIPE, SMALL)["script"].startswith("#!")
    assert client.health()["status"] == "healthy"


def test_a_request_that_is_answered_later(client: Client, running: str) -> None:
    job = client.chat_later("gpt2", [{"role": "user", "content": "hello"}])["job_id"]
    until(lambda: client.job(job)["status"] == "done")
    assert client.job_result(job)["choices"]
    assert job in {one["job_id"] for one in client.jobs(status="done")}
    assert client.cancel_job(job)["cancelled"] is False


def test_a_group(client: Client) -> None:
    config = {"gpu": 2, "cpu": 1, "memory": "1G", "model": "shared", "base_port": free_port()}
    group = client.start("inference/vllm-replicas", config)["id"]
    until(lambda: client.group_status(group)["overall_status"] == "healthy")
    assert (client.group(group)["healthy_replicas"], [one["id"] for one in client.groups()]) == (2, [group])
    assert client.prompt(group, "hello")["group_id"] == group
    assert client.cancel_group(group)["replicas_updated"] == 2


def test_a_vector_database(client: Client) -> None:
    database = client.start("vector-db/qdrant-embedded", SMALL | {"volume": "books"})["id"]
    client.wait(database, every=0.1, timeout=60)
    client.create_collection(database, "books", 2)
    assert client.upsert(database, "books", [{"id": 1, "vector": [0.5, 1], "payload": {"title": "Faust"}}])["success"]
    assert client.search(database, "books", [0.5, 1], limit=1)["results"][0]["payload"] == {"title": "Faust"}
    assert client.collections(database)["collections"] == ["books"]
    assert [one["id"] for one in client.vector_dbs()["vector_db_services"]] == [database]
    client.delete_collection(database, "books")
    client.cancel(database)


def test_a_log_is_followed_to_its_end(client: Client) -> None:
    started = client.start(RECIPE, SMALL | {"model": "followed", "environment": {"FAKE_EXIT_AFTER": "1"}})
    text = "".join(client.follow(started["id"]))
    assert set(client.logs(started["id"])["logs"].splitlines()) <= set(text.splitlines())
    with pytest.raises(Ended, match="sluice logs"):
        client.wait(started["id"])


def test_what_is_refused(client: Client) -> None:
    with pytest.raises(ApiError) as unknown:
        client.service("999999")
    assert unknown.value.status == 404
    with pytest.raises(ApiError) as wrong:
        client.start(RECIPE, {"gpus": 1})
    assert (wrong.value.status, "gpu" in wrong.value.detail) == (422, True)
    with pytest.raises(ApiError) as nobody:
        list(client.chat("nobody", [{"role": "user", "content": "hello"}]))
    assert (nobody.value.status, "nobody" in nobody.value.detail) == (404, True)
    with Client(f"http://127.0.0.1:{free_port()}") as nowhere:
        with pytest.raises(NotReachable, match="sluice gateway"):
            nowhere.health()
        with pytest.raises(NotReachable):
            next(nowhere.chat("m", []))


def test_the_same_awaited(url: str, running: str) -> None:
    async def ask() -> None:
        async with AsyncClient(url) as client:
            started = await client.start(RECIPE, SMALL | {"model": "awaited"})
            looks: list[str] = []
            ready = await client.wait(started["id"], every=0.1, on_progress=lambda look: looks.append(look["status"]))
            assert (ready["model"], looks[-1]) == ("awaited", "running")
            words = [word async for word in client.chat("awaited", [{"role": "user", "content": "hello"}])]
            assert words
            assert len(await asyncio.gather(*(client.prompt(running, f"hello {n}") for n in range(5)))) == 5
            assert (await client.cancel(started["id"]))["status"] == "cancelled"
            assert [text async for text in client.follow(started["id"])]
            with pytest.raises(ApiError):
                await client.service("999999")
        async with AsyncClient(f"http://127.0.0.1:{free_port()}") as nowhere:
            with pytest.raises(NotReachable):
                await nowhere.health()

    asyncio.run(ask())


def test_run_ps_show_stop(sluice: Sluice, client: Client) -> None:
    ran = sluice("run", "org/name", *LITTLE, "--name", "short", "--set", "FAKE_LOAD_SECONDS=0.3")
    assert ran.exit_code == 0, ran.stderr
    service_id = ran.stdout.strip()
    service = client.service(service_id)
    assert (service["status"], service["model"]) == ("running", "org/name")
    assert "ready at http://" in ran.stderr
    assert f"{service_id}\trunning\t{RECIPE}\torg/name\t" in sluice("ps").stdout
    assert sluice("show", service_id, "--json").stdout == json.dumps(service, indent=1, ensure_ascii=False) + "\n"
    assert f"endpoint\t{service['endpoint']}\n" in sluice("show", service_id).stdout
    assert sluice("chat", "short", text="hello").stdout.strip()
    assert sluice("stop", service_id).stdout == f"Service {service_id} status updated to cancelled\n"
    assert service_id not in {line.partition("\t")[0] for line in sluice("ps").stdout.splitlines()}
    assert f"{service_id}\tcancelled" in sluice("ps", "--all").stdout
    assert service_id in {one["id"] for one in json.loads(sluice("ps", "--status", "cancelled", "--json").stdout)}


def test_a_run_that_fails(sluice: Sluice) -> None:
    ran = sluice("run", "vllm-single-node", *LITTLE, "--set", "model=dies", "--set", "FAKE_EXIT_AFTER=0.1")
    assert (ran.exit_code, ran.stdout) == (1, "")
    told = re.search(r"sluice: service (\d+) has ended \(failed\): .*sluice logs \d+", ran.stderr)
    assert told, ran.stderr
    assert re.search(r"diagnosis\t.+\nadvice\t", sluice("show", told[1]).stdout)
    again = sluice("retry", told[1], "--set", "FAKE_EXIT_AFTER=60")
    assert again.exit_code == 0, again.stderr
    assert sluice("show", again.stdout.strip()).stdout.count("running") == 1
    assert (sluice("retry", again.stdout.strip()).exit_code, sluice("retry", told[1], "--set", "x").exit_code) == (1, 2)
    sluice("stop", again.stdout.strip())


def test_a_gateway_that_wants_a_key(home: Home, running: str, sluice: Sluice, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with _gateway(home, port, GATEWAY_API_KEY="secret"):
        assert sluice("ps", "--url", address).exit_code == 5
        monkeypatch.setenv("GATEWAY_API_KEY", "secret")
        assert running in sluice("ps", "--url", address).stdout
        with Client(address, key="secret") as client:
            assert client.status(running) == {"status": "running"}
        with Client(address) as client, pytest.raises(ApiError) as refused:
            client.services()
    assert refused.value.status == 401


def test_the_shell_completes() -> None:
    program = "import sys; sys.argv = ['sluice']; from gateway.cli import main; main()"
    asked = {"_SLUICE_COMPLETE": "complete_bash", "COMP_WORDS": "sluice re", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | asked, capture_output=True, text=True, check=False, timeout=30
    )
    assert set(done.stdout.split()) == {"recipes", "render", "retry"}, done


def test_run_detached(sluice: Sluice, client: Client) -> None:
    ran = sluice("run", RECIPE, *LITTLE, "--set", "model=away", "--detach", "--json")
    started = json.loads(ran.stdout)
    assert (ran.exit_code, started["status"], started["config"]["model"]) == (0, "pending", "away")
    client.cancel(started["id"])


def test_what_the_other_commands_say(sluice: Sluice, running: str, url: str) -> None:
    said = {
        ("prompt", running, "hello"): r"\S+",
        ("prompt", running, "--max-tokens", "3", "--json"): r'"success": true',
        ("chat", "gpt2"): r"\S+",
        ("chat", running): r"\S+",
        ("chat", "gpt2", "--json"): r"chat.completion.chunk",
        ("logs", running, "--tail", "3"): r"\S+",
        ("logs", running, "--json"): r'"stderr"',
        ("models",): r"gpt2\trunning\t-\n",
        ("models", "list", "--json"): r'"object": "list"',
        ("recipes",): rf"{RECIPE}\tvllm\t",
        ("recipes", "vllm-single-node"): r"VLLM_MODEL\t",
        ("preflight", "gpt2"): r"\t",
        ("render", "org/name", "--gpus", "0", "--time", "30"): r"(?s)#SBATCH --time=30\n.*org/name",
        ("costs",): r"total\t",
        ("costs", running): rf"{running}\t",
        ("slots",): r"main\t\S+\t-\tasleep \(sleeping\)\t/slots/main/v1\n",
        ("slots", "list", "--json"): r'"phase"',
        ("slots", "switch", "main"): r"main\t",
        ("jobs", "--status", "queued", "--json"): r"\[\]",
        ("open",): rf"{url}/\n",
    }
    for words, pattern in said.items():
        done = sluice(*words, text="hello")
        assert re.search(pattern, done.stdout), (words, done.stdout, done.stderr)


def test_jobs(sluice: Sluice, client: Client, running: str) -> None:
    job = client.chat_later("gpt2", [{"role": "user", "content": "hello"}])["job_id"]
    until(lambda: "status\tdone\n" in sluice("jobs", "show", job).stdout)
    assert f"{job}\tdone\tgpt2\t/v1/chat/completions\t" in sluice("jobs").stdout
    assert json.loads(sluice("jobs", "result", job).stdout)["choices"]
    assert "had already ended" in sluice("jobs", "cancel", job).stdout


def test_exit_statuses(sluice: Sluice, client: Client) -> None:
    before = len(client.services())
    assert sluice("chat", text="hello").exit_code == 2, "there are two"
    statuses = {
        ("show", "999999"): 4,
        ("stop", "999999", "999998"): 4,
        ("run", "inference/vllm-singel-node"): 4,
        ("run", "gpt2", "--set", "gpus=1"): 1,
        ("run", "gpt2", "--set", "gpus"): 2,
        ("run", "gpt2", "--gpus", "-1"): 2,
        ("chat", "nobody"): 4,
        ("logs", "999999", "-f", "--json"): 2,
        ("logs", "999999", "-f"): 4,
        ("ps", "--url", f"http://127.0.0.1:{free_port()}"): 3,
    }
    for words, status in statuses.items():
        done = sluice(*words, text="hello")
        assert (done.exit_code, done.stdout, bool(done.stderr)) == (status, "", True), (words, done.output)
    assert len(client.services()) == before


def test_every_command_of_the_documentation(sluice: Sluice, client: Client, running: str) -> None:
    """As it stands in docs/cli.md, but for ids, and for GPUs, which this machine has not."""
    text = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]
    assert len(lines) > 15
    for line in lines:
        before, _, command = line.partition("sluice ")
        words = [running if word == "3652098" else word for word in shlex.split(command)]
        if words[0] == "models" and len(words) > 2:  # they want a hub: see tests/test_fetching.py
            continue
        if words[0] == "run":
            words = ["run", words[1], "--detach", *words[2:]]
        if words[0] == "stop":
            words[1] = client.start(RECIPE, SMALL | {"model": "stopped"})["id"]
        done = sluice(*words, text=before or None)
        # That the hub is away, which preflight says, is no error.
        assert (done.exit_code, done.stderr if words[0] != "run" else "") == (0, ""), (line, done.output, done.stderr)
        if words[0] == "run":
            client.cancel(done.stdout.strip())


def test_the_program_of_the_documentation(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(program.replace("Client()", f"Client({url!r})"), "docs/cli.md", "exec"), {})
    assert re.search(r"(?s)^(pending|configuring) .*\nrunning \n\S+", capsys.readouterr().out)


class Terminal:
    """`sluice` on a terminal of its own."""

    def __init__(self, url: str, *words: str) -> None:
        self._near, far = pty.openpty()
        program = "from gateway.cli import main; main()"
        environment = environment_of_a_child(GATEWAY_URL=url, TERM="xterm", COLUMNS="200")
        command = [sys.executable, "-c", program, *words]
        self._process = subprocess.Popen(
            command, stdin=far, stdout=far, stderr=far, env=environment, start_new_session=True,
            preexec_fn=_own_the_terminal, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        os.close(far)
        self.shown = ""

    def until(self, pattern: str) -> None:
        deadline = time.monotonic() + 30
        while not re.search(pattern, self.shown):
            assert time.monotonic() < deadline, self.shown
            if select.select([self._near], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self._near, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    assert re.search(pattern, self.shown), self.shown

    def type(self, text: str) -> None:
        os.write(self._near, text.encode())

    def end(self) -> int:
        return self._process.wait(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._near)


def _own_the_terminal() -> None:
    """So that Ctrl-C on it is a signal to the command."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize(("answer", "status"), [("n", "cancelled"), ("y", "configuring")])
def test_ctrl_c_asks_on_a_terminal(url: str, client: Client, answer: str, status: str) -> None:
    with Terminal(url, "run", "slow", *LITTLE, "--set", "FAKE_LOAD_SECONDS=60") as terminal:
        terminal.until(r"(starting|loading) on")
        service_id = client.services(limit=1)[0]["id"]
        terminal.type("\x03")
        terminal.until(rf"Leave service {service_id} running\?")
        terminal.type(f"{answer}\n")
        assert terminal.end() == 130
    assert client.status(service_id) == {"status": status}
    client.cancel(service_id)


def test_a_table_and_a_conversation_on_a_terminal(url: str, running: str) -> None:
    with Terminal(url, "ps") as terminal:
        terminal.until(rf"ID[\s\S]*\n{running} [\s\S]+running[\s\S]+ gpt2 ")
        assert terminal.end() == 0
    with Terminal(url, "chat", "gpt2") as terminal:
        terminal.until("Ctrl-D ends")
        for words in ("one", "two"):
            terminal.until("> $")
            terminal.type(f"{words}\n")
            terminal.until(rf"{words}\r\n[\s\S]+\n> $")
        terminal.type("\x04")
        assert terminal.end() == 0
