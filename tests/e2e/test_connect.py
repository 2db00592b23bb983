"""`sluice connect` on the cluster: from an empty home to the first answer of a real model, and what comes after that.

Neither the laptop nor the login node reaches a package index: their networks are namespaces that end at each other.
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from gateway.settings import environment_of_a_child
from orchestrator import __version__
from orchestrator.database import HEAD
from tests.chaos.traffic import getting, prompting, streaming, traffic
from tests.cluster.cluster import Cluster, login_listens
from tests.e2e.deployment import FAKE, REPOSITORY, Api, laptop_api, shared_python, site_config, wait_for
from tests.e2e.test_link import SECOND_PORT, another_sshd, configured
from tests.test_migrations import NEXT
from tests.vllm import make

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

QUESTION = "Which city is the capital of France?"
FIRST = ["--run", "inference/llamacpp-cpu", "--set", "resources.cpu=1", "--prompt", QUESTION]
LATER = f"{__version__}.post1"
PASSWORD, CODE = "correct horse", "246 813"


@dataclass
class Laptop:
    """`sluice` of this checkout, or of another folder with the packages, as a user types it."""

    cluster: Cluster
    cache: Path
    ssh_config: Path
    program: Path = REPOSITORY
    transport: str = "asyncssh"
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-c", "from gateway.cli import main; main()"]

    @property
    def environment(self) -> dict[str, str]:
        return environment_of_a_child(
            GATEWAY_SSH_CONFIG=str(self.ssh_config), XDG_CACHE_HOME=str(self.cache), XDG_CONFIG_HOME="/nonexistent",
            GATEWAY_TRANSPORT=self.transport, PYTHONPATH=str(self.program), TERM="dumb",
        )  # fmt: skip

    def sluice(self, *words: str, seconds: float = 180) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *words], env=self.environment, cwd="/", capture_output=True, text=True, timeout=seconds
        )

    @contextmanager
    def connecting(self, *words: str) -> Iterator["Screen"]:
        """`sluice connect`, which stays; it is ended as by Ctrl-C."""
        master, terminal = os.openpty()
        process = subprocess.Popen(
            ["setsid", "--ctty", *self.command, "connect", self.cluster.alias, *words],
            env=self.environment, cwd="/", stdin=terminal, stdout=subprocess.PIPE, stderr=terminal,
        )  # fmt: skip
        os.close(terminal)
        screen = Screen(master, process)
        try:
            yield screen
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            finally:
                process.kill()
                screen.close()


class Screen:
    """What the terminal has shown; what was written to stdout is the `answer`, at the end."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master, self.process, self.text, self.answer = master, process, "", ""
        fcntl.fcntl(master, fcntl.F_SETFL, os.O_NONBLOCK)

    def shows(self, text: str, seconds: float = 120) -> None:
        def shown() -> bool:
            self._read()
            if self.process.poll() is not None and text not in self.text:
                raise AssertionError(f"it ended with {self.process.returncode}: {self.text}")
            return text in self.text

        try:
            wait_for(shown, f"the terminal shows {text!r}", seconds)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.text}") from None

    def types(self, line: str) -> None:
        os.write(self._master, f"{line}\n".encode())

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):  # nothing new; or the process has ended
            while data := os.read(self._master, 65536):
                self.text += data.decode(errors="replace")

    def close(self) -> None:
        self._read()
        assert self.process.stdout is not None
        self.answer = self.process.stdout.read().decode()
        self.process.stdout.close()
        os.close(self._master)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The laptop's, kept from test to test: an archive of the packages is made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def person(laptop: Cluster, cache: Path) -> Iterator[Laptop]:
    """Somebody whose home on the cluster is empty, but for what ssh needs."""
    left = [path.name for path in laptop.home.iterdir() if path.name != ".ssh"]
    for name in left:
        laptop.run("login", ["rm", "-rf", str(laptop.home / name)], user=True, check=True)
    one = Laptop(laptop, cache, laptop.ssh_config)
    try:
        yield one
    finally:
        one.sluice("disconnect")
        stop(laptop)
        laptop.run("login", ["scancel", f"--user={laptop.user}"])
        wait_for(lambda: not laptop.run("login", ["squeue", "-h"]).stdout.strip(), "no job is left")
        laptop.run("login", ["rm", "-rf", str(laptop.home / ".sluicegate")], user=True)


def stop(cluster: Cluster) -> None:
    """What the orchestrator's own holder file names."""
    holder = cluster.home / ".sluicegate" / "orchestrator.holder"
    with contextlib.suppress(FileNotFoundError):
        pid = re.search(r'"pid": (\d+)', holder.read_text())
        if pid:
            cluster.run("login", ["kill", pid[1]], user=True)
            wait_for(lambda: not holder.exists(), "the orchestrator has ended")


def test_from_an_empty_home_to_the_first_answer_by_one_command(person: Laptop) -> None:
    """The file is shown and confirmed at the terminal. Then: it runs already; ended and again; repaired; undone."""
    cluster, began = person.cluster, time.monotonic()
    with person.connecting(*FIRST) as screen:
        screen.shows("Write this file there? It is yours to change afterwards. [Y/n]")
        assert 'scheduler = "slurm"' in screen.text and "partition" in screen.text
        screen.types("")
        screen.shows("since the command was given")
        print(f"\nfrom an empty home to the first answer: {time.monotonic() - began:.1f} s\n{screen.text}")
        screen.shows("End: Ctrl-C")
        with laptop_api() as api:
            assert api.get("/health")["tunnel"]["via"] == "unix-socket"
            told = api.get("/orchestrator/status")
            assert (told["state"], told["version"], told["started_by"]) == ("running", __version__, "detached")
            assert told["running"] == told["installed"] and told["since"]
            (service,) = api.get("/api/v1/services", status="running")
            again = person.sluice("connect", cluster.alias)
            assert (again.returncode, "already" in again.stderr) == (0, True), again.stderr
            assert stopped_and_started(api, told["pid"])
            api.until(service["id"], "running")
    assert screen.process.returncode == 0, screen.text
    assert "Paris" in screen.answer
    state = cluster.home / ".sluicegate"
    (state / "site.toml").write_text((state / "site.toml").read_text() + "# a line of the user's\n")
    begun = time.monotonic()
    known = person.sluice("connect", cluster.alias, *FIRST, "--once")
    assert (known.returncode, "Paris" in known.stdout) == (0, True), known.stderr
    assert "To do:" not in known.stderr and "a line of the user's" in (state / "site.toml").read_text()
    print(f"again: {time.monotonic() - begun:.1f} s")
    repaired(person)


def stopped_and_started(api: Api, pid: int) -> bool:
    """By API; jobs go on."""
    stopped = api.http.post("/orchestrator/stop").json()
    assert (stopped["state"], stopped["message"]) == ("stopped", "The orchestrator was stopped; jobs go on.")
    assert api.http.get("/ready").status_code == 503
    assert api.http.post("/orchestrator/stop").json()["message"] == "No orchestrator runs."
    started = api.http.post("/orchestrator/start").json()
    assert (started["state"], started["started_by"]) == ("running", "detached")
    assert api.http.post("/orchestrator/start").json()["message"].startswith("The orchestrator runs already")
    wait_for(api.ready, "it is ready again")
    assert "orchestrator.sock" in api.get("/orchestrator/endpoint")["endpoint"]
    return bool(started["pid"] != pid)


def repaired(person: Laptop) -> None:
    """An installation that was damaged, an orchestrator that was killed and has left its socket behind."""
    cluster = person.cluster
    state = cluster.home / ".sluicegate"
    pid = re.search(r'"pid": (\d+)', (state / "orchestrator.holder").read_text())
    assert pid is not None
    cluster.run("login", ["kill", "-KILL", pid[1]], user=True, check=True)
    next(state.glob("versions/*/lib/python*/site-packages/orchestrator/app.py")).unlink()
    (state / "packages" / ".half.part").mkdir()
    mended = person.sluice("connect", cluster.alias, "--detach")
    assert mended.returncode == 0, mended.stderr
    assert "is damaged, and is installed again" in mended.stderr
    assert "To do: start the orchestrator." in mended.stderr
    with laptop_api() as api:
        assert api.ready()
    assert list(state.glob("*/.*.part")) == []
    ended = person.sluice("disconnect", "--stop")
    assert (ended.returncode, "jobs go on" in ended.stderr) == (0, True), ended.stderr
    assert not (state / "orchestrator.holder").exists()
    with laptop_api() as api, pytest.raises(httpx2.ConnectError):
        api.http.get("/health")
    assert person.sluice("disconnect").returncode == 4


def test_where_forwarding_is_forbidden(person: Laptop) -> None:
    """From the empty home again, by the system's ssh, and from a script: nobody is there to be asked."""
    cluster = person.cluster
    person.ssh_config = configured(cluster, "strict", port=SECOND_PORT)
    with another_sshd(cluster, "DisableForwarding yes"):
        asked = person.sluice("connect", cluster.alias)
        assert (asked.returncode, "--yes" in asked.stderr) == (1, True), asked.stderr
        assert not (cluster.home / ".sluicegate").exists(), "nothing was changed before the answer"
        with person.connecting("--yes", *FIRST) as screen:
            screen.shows("End: Ctrl-C")
            with laptop_api() as api:
                assert api.get("/health")["tunnel"]["via"] == "bridge"
    assert "Paris" in screen.answer


def test_a_password_and_a_second_factor_are_asked_for_once(person: Laptop, tmp_path: Path) -> None:
    cluster = person.cluster
    log = cluster.home / "asked"
    with second_factor(cluster, log):
        person.ssh_config = interactive(cluster)
        with person.connecting("--yes", *FIRST) as screen:
            screen.shows("Password: ")
            screen.types(PASSWORD)
            screen.shows("Code: ")
            screen.types(CODE)
            screen.shows("End: Ctrl-C")
            assert log.read_text().split() == ["asked", "in"]
    assert "Paris" in screen.answer
    assert PASSWORD not in screen.text and CODE not in screen.text
    log.unlink()


@contextmanager
def second_factor(cluster: Cluster, log: Path) -> Iterator[None]:
    program, key = cluster.root / "second_factor_site.py", cluster.root / "second_factor_key"
    shutil.copy(Path(__file__).with_name("second_factor_site.py"), program)
    shutil.copy(cluster.root / "secret" / "host_key", key)
    shutil.chown(key, cluster.user)
    python = shared_python(make.cache())
    address = cluster.hosts["login"]
    words = [str(python), str(program), address, str(SECOND_PORT), str(key), str(log), PASSWORD, CODE]
    with cluster.log("second-factor").open("ab") as out:
        process = cluster.popen("login", words, user=True, stderr=out.fileno())
    try:
        wait_for(lambda: login_listens(cluster, address, SECOND_PORT), "the site listens")
        yield
    finally:
        process.terminate()
        process.wait(10)
        key.unlink()


def interactive(cluster: Cluster) -> Path:
    config = configured(cluster, "interactive", port=SECOND_PORT)
    text = config.read_text().replace("BatchMode yes", "BatchMode no")
    text = re.sub(r"(?m)^    Identit.*\n", "", text)
    config.write_text(
        text + "    IdentityFile none\n    PreferredAuthentications keyboard-interactive\n    PubkeyAuthentication no\n"
    )
    return config


def next_release(folder: Path) -> Path:
    """What a user installs in the place of this one: another version, whose database has a revision more."""
    for name in ("gateway", "orchestrator", "recipes", "openapi"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    package = folder / "orchestrator"
    (package / "migrations/versions/9999_next.py").write_text(NEXT.format(head=HEAD, then="pass"))
    for file, old, new in (("__init__.py", __version__, LATER), ("database.py", f'HEAD = "{HEAD}"', 'HEAD = "9999"')):
        text = (package / file).read_text()
        assert text.count(old) == 1
        (package / file).write_text(text.replace(old, new))
    return folder


@pytest.mark.parametrize(("how", "transport"), [("detached", "asyncssh"), ("job", "openssh")])
def test_an_upgrade_fails_no_request(person: Laptop, tmp_path: Path, how: str, transport: str) -> None:
    """Both halves become the next release, while prompts, lists and short streams go on. A job of its own is kept."""
    cluster, person.transport = person.cluster, transport
    engine = cluster.root / "fake_engine.py"
    engine.write_bytes(FAKE.read_bytes())
    engine.chmod(0o755)
    site = tmp_path / "site.toml"
    site.write_text(site_config(cluster, ["/usr/bin/python3", str(engine)]))
    first = person.sluice("connect", cluster.alias, "--site", str(site), "--how", how, "--yes", "--detach")
    assert first.returncode == 0, first.stderr
    with laptop_api() as api:
        before = api.get("/orchestrator/status")
        service = str(api.start("vllm-single-node", {"resources": {"gpu": 1, "cpu": 1, "memory": "1G"}})["id"])
        api.until(service, "running")
        assert api.get("/health")["version"] == __version__
    later = Laptop(cluster, person.cache, person.ssh_config, next_release(tmp_path / "later"), transport)
    began = time.monotonic()
    with (
        traffic(getting("/api/v1/services")) as listed,
        traffic(prompting(service, "delay 0.03 hello"), clients=4) as prompted,
        traffic(streaming(service)) as streamed,
    ):
        prompted.more(30)
        second = later.sluice("connect", cluster.alias, "--detach")
        took = time.monotonic() - began
        prompted.more(60)
    assert second.returncode == 0, second.stderr
    assert "To do: replace the orchestrator that runs" in second.stderr
    with laptop_api() as api:
        health = api.get("/health")
        assert (health["version"], health["orchestrator"]["version"]) == (LATER, LATER)
        api.until(service, "running")
        after = api.get("/orchestrator/status")
        assert len(after["installed"]) > len(LATER) and after["running"] == after["installed"]
        assert (after["job"], after["started_by"], after["pid"] != before["pid"]) == (before["job"], how, True)
    failed = [*listed.failed(), *prompted.failed(), *streamed.failed()]
    requests = [*listed.outcomes, *prompted.outcomes, *streamed.outcomes]
    worst = max(outcome.seconds for outcome in requests)
    print(f"\nupgraded within {took:.1f} s; {len(requests)} requests, {len(failed)} failed, the slowest {worst:.1f} s")
    assert failed == []
    older = person.sluice("connect", cluster.alias, "--detach")
    assert (older.returncode, "Install the newer version here" in older.stderr) == (1, True), older.stderr


def test_as_a_job_of_its_own(person: Laptop) -> None:
    """It is reached by a step of its job; Slurm starts it again; its end is not that of the services."""
    cluster, began = person.cluster, time.monotonic()
    state = cluster.home / ".sluicegate"
    with person.connecting("--yes", "--how", "job", *FIRST) as screen:
        screen.shows("End: Ctrl-C")
        print(f"\nas a job, to the first answer: {time.monotonic() - began:.1f} s\n{screen.text}")
        with laptop_api() as api:
            told = api.get("/orchestrator/status")
            assert (told["state"], told["started_by"], told["host"]) == ("running", "job", "node1"), told
            assert api.get("/health")["tunnel"]["via"] == "bridge"
            assert not (state / "orchestrator.sock").exists(), "nothing listens where users log in"
            (service,) = api.get("/api/v1/services", status="running")
            again = person.sluice("connect", cluster.alias)
            assert (again.returncode, "already" in again.stderr) == (0, True), again.stderr
            requeued(person, api, told, str(service["id"]))
    assert "Paris" in screen.answer
    detached = person.sluice("connect", cluster.alias, "--detach")
    assert detached.returncode == 0, detached.stderr
    ended = person.sluice("disconnect", "--stop")
    assert (ended.returncode, "jobs go on" in ended.stderr) == (0, True), ended.stderr
    assert not (state / "orchestrator.holder").exists()
    names = [line.split("|")[1] for line in cluster.squeue().splitlines() if "|RUNNING|" in line]
    assert len(names) == 1 and names[0] != "sluicegate-orchestrator", names


def requeued(person: Laptop, api: Api, told: dict[str, object], service: str) -> None:
    """Held in the queue: requests are told so, and the doctor. Then it runs again, in the same job, with the same
    service."""
    cluster, job = person.cluster, str(told["job"])
    cluster.run("login", ["scontrol", "requeuehold", job], user=True, check=True)
    wait_for(lambda: f"{job}|" in cluster.squeue() and "PENDING" in state_of_job(cluster, job), "it is in the queue")
    wait_for(lambda: api.get("/orchestrator/status")["state"] == "queued", "the gateway says so")
    wait_for(lambda: "waits: PENDING" in api.http.get("/api/v1/services").text, "requests are told what they wait for")
    assert api.http.get("/api/v1/services").status_code == 503
    doctor = person.sluice("doctor", cluster.alias)
    assert f"✗ orchestrator it is Slurm job {job}, which waits: PENDING (" in doctor.stdout, doctor.stdout
    cluster.run("login", ["scontrol", "release", job], check=True)
    # Slurm lets a job that was started again wait for two minutes.
    cluster.run("login", ["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    wait_for(api.ready, "it answers again", 60)
    after = api.get("/orchestrator/status")
    assert (after["job"], after["pid"] != told["pid"]) == (job, True)
    api.until(service, "running")


def state_of_job(cluster: Cluster, job: str) -> str:
    return next(line for line in cluster.squeue().splitlines() if line.startswith(f"{job}|"))
