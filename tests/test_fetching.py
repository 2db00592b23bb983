"""The commands that fetch, and the one that waits for what loads: as processes, before both halves and a small hub."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.model_cache import ModelCache
from tests.fake_hub import TINY, FakeHub, fake_hub, whole
from tests.gateway.sshd import free_port
from tests.test_client import LITTLE, _gateway
from tests.test_process import Home, a_home

pytestmark = [pytest.mark.system, pytest.mark.beside]

MODEL = "tiny/whole"
Done = subprocess.CompletedProcess[str]
Sluice = Callable[..., Done]

home = pytest.fixture(a_home, name="home", scope="module")


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        hub.models = [whole(name, TINY) for name in (MODEL, "tiny/laptop")]
        yield hub


@pytest.fixture(scope="module")
def url(home: Home, hub: FakeHub) -> Iterator[str]:
    """The gateway's."""
    home.variables |= {"HF_ENDPOINT": hub.url, "HOME": str(home.folder), "NO_PROXY": "*"}
    home.variables |= {"ORCHESTRATOR_POLL_SECONDS": "0.2"}
    home.serve()
    port = free_port()
    with _gateway(home, port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def sluice(url: str, hub: FakeHub, tmp_path: Path) -> Sluice:
    """Run a command on a laptop whose home is empty, in a pipe."""
    program = [sys.executable, "-c", "from gateway.cli import main; main()"]
    laptop = {"HOME": str(tmp_path), "HF_ENDPOINT": hub.url, "GATEWAY_URL": url, "NO_PROXY": "*"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GATEWAY_", "XDG_"))}

    def run(*words: str) -> Done:
        return subprocess.run([*program, *words], env=kept | laptop, capture_output=True, text=True, timeout=100)

    return run


def there(home: Home) -> ModelCache:
    return ModelCache(home.folder / ".cache" / "huggingface" / "hub")


def test_pulled(sluice: Sluice, home: Home) -> None:
    done = sluice("models", "pull", MODEL)
    assert done.returncode == 0, done
    first, last = done.stderr.splitlines()[0], done.stderr.splitlines()[-1]
    assert first.startswith(f"{MODEL}: "), done
    assert re.fullmatch(rf"{MODEL}: done, (307\.\d kB|0\.3 MB) of .* \(100 %\), after \d+ s", last), done
    assert there(home).has(MODEL)
    listed = sluice("models", "pulls").stdout.splitlines()
    assert [line.split("\t")[:3] for line in listed] == [[done.stdout.strip(), "done", MODEL]]
    (shown,) = json.loads(sluice("models", "pulls", "--json").stdout)
    assert shown["percent"] == 100
    cancelled = sluice("models", "cancel", shown["id"])
    assert (cancelled.returncode, cancelled.stdout) == (0, f"{shown['id']} is done\n")
    detached = sluice("models", "pull", MODEL, "--detach", "--include", "*.json")
    assert (detached.returncode, detached.stdout[:5], detached.stderr) == (0, "pull_", "")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("models", "pull", "tiny/nothing"), 4, "does not exist"),
        (("models", "pull", f"{MODEL}@v9"), 4, "no such revision"),
        (("models", "cancel", "pull_0"), 4, "there is no pull"),
        (("models", "push", "tiny/nothing"), 1, "does not exist"),
        (("models", "push", MODEL, "--name", "x"), 2, "is for a folder"),
        (("images", "pull", "docker://a/b"), 1, "image_dir"),
    ],
)
def test_refused(sluice: Sluice, words: tuple[str, ...], status: int, said: str) -> None:
    done = sluice(*words)
    assert (done.returncode, done.stdout, said in done.stderr) == (status, "", True), done


def test_pushed(sluice: Sluice, home: Home, hub: FakeHub, tmp_path: Path) -> None:
    done = sluice("models", "push", "tiny/laptop")
    assert (done.returncode, done.stdout) == (0, "tiny/laptop\n"), done
    snapshot = there(home).snapshot("tiny/laptop")
    assert snapshot is not None and there(home).has("tiny/laptop")
    assert (snapshot / "model.safetensors").read_bytes() == TINY["model.safetensors"]
    assert ModelCache(tmp_path / ".cache" / "huggingface" / "hub").has("tiny/laptop"), "and here"
    hub.requests.clear()
    again = sluice("models", "push", "tiny/laptop")
    assert (again.returncode, "0.0 kB sent" in again.stderr) == (0, True), again
    assert not [path for path in hub.requests if path.endswith(".safetensors")]


def test_a_folder_is_pushed_under_a_name(sluice: Sluice, home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "config").write_text("not a file of the model")
    for name, content in TINY.items():
        (folder / name).write_bytes(content)
    done = sluice("models", "push", str(folder), "--name", "me/mine")
    assert (done.returncode, done.stdout) == (0, "me/mine\n"), done
    snapshot = there(home).snapshot("me/mine")
    assert snapshot is not None
    assert {path.name for path in snapshot.iterdir()} == TINY.keys() - {"pytorch_model.bin"}
    rendered = sluice("render", "me/mine", *LITTLE).stdout
    assert "export HF_HUB_OFFLINE=1\n" in rendered


def test_the_commands_of_the_documentation(sluice: Sluice) -> None:
    """Those of docs/cli.md that tests/test_client.py leaves out."""
    text = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    lines = re.findall(r"^sluice (models \S+ .*)$", text, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        done = sluice(*shlex.split(line))
        assert done.returncode == 0, (line, done)


def test_run_tells_how_far_the_engine_is(sluice: Sluice) -> None:
    shards = r"\rLoading safetensors checkpoint shards:  50% Completed | 1/2 [00:02<00:02,  2.55s/it]\n"
    says = ["--set", f"environment.FAKE_SAYS={shards}", "--set", "environment.FAKE_LOAD_SECONDS=4"]
    done = sluice("run", "gpt2", *LITTLE, *says)
    assert done.returncode == 0, done
    assert re.search(r"\nloading on .*: Loading safetensors checkpoint shards 1/2, 50 % \(\d", done.stderr), done
    assert re.search(r"ready at http://\S+, after \d+ s \(.*loading \d+ s\)\n", done.stderr), done
    sluice("stop", done.stdout.strip())
