"""The rendered script, run by bash with an engine that says what reached it (tests/recording_engine.py).

A running engine is waited for by reading its one line of output: no polling, no sleeping.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config import resolve
from orchestrator.errors import Invalid
from orchestrator.recipes import Parameter, Recipe, RecipeBook, builtin_recipes
from orchestrator.runs import RunFolder
from orchestrator.script import Target, render
from orchestrator.settings import Engine, Site

pytestmark = [pytest.mark.system, pytest.mark.beside]

BOOK = RecipeBook([builtin_recipes()])
VLLM = BOOK.find("vllm-single-node")
RECORDER = [sys.executable, "-I", "-S", "-X", "utf8", str(Path(__file__).with_name("recording_engine.py"))]
PATH = os.environ["PATH"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def at(path: str, value: Any) -> dict[str, Any]:
    """`config.a.b` and a value as the config {"a": {"b": value}}."""
    for key in reversed(path.split(".")[1:]):
        value = {key: value}
    return dict(value)


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(one[key], other[key]) for key in one.keys() & other.keys()}
    return one | other | both


@dataclass(frozen=True)
class Ended:
    code: int
    engines: list[dict[str, Any]]  # what each start of the engine recorded
    said: str  # stderr


@dataclass
class Running:
    """A started script. `engine()` returns when the engine has said what reached it."""

    process: subprocess.Popen[str]
    engines: list[dict[str, Any]] = field(default_factory=list)

    def engine(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        record: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.engines.append(record)
        return record

    def end(self) -> Ended:
        out, err = self.process.communicate(timeout=60)
        return Ended(self.process.returncode, self.engines + [json.loads(line) for line in out.splitlines()], err)


@dataclass
class Bench:
    """A folder of run folders, and the processes to end afterwards."""

    root: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def script(
        self,
        mode: str,
        config: dict[str, Any] | None = None,
        *,
        recipe: Recipe = VLLM,
        site: Site = Site(),  # noqa: B008 - frozen
        name: str = "run",
        secrets: dict[str, str] | None = None,
    ) -> RunFolder:
        """A run folder whose engine is the recorder in this mode."""
        engine = site.engines.get(recipe.engine, Engine(image="image"))
        if not engine.command:
            engine = engine.model_copy(update={"command": [*RECORDER, mode]})
        site = site.model_copy(update={"engines": {recipe.engine: engine}})
        folder = RunFolder(self.root / name)
        cache = Path(site.cache_dir or self.root / "cache")
        target = Target("sluice-1", "sluicegate:1", folder, "127.0.0.1", site.python or sys.executable, cache)
        plan = resolve(recipe, config or {}, site)
        if plan.port == recipe.ports[0]:
            plan = plan.model_copy(update={"port": free_port()})
        folder.write(render(recipe, plan, site, target), secrets or {})
        return folder

    def start(self, folder: RunFolder, *, job: str = "17", fds: tuple[int, ...] = (), **environment: str) -> Running:
        known = {"PATH": PATH, "HOME": str(self.root), "LANG": "C.UTF-8", "SLUICE_JOB_ID": job}
        process = subprocess.Popen(
            ["bash", str(folder.script)],
            cwd="/",
            env=known | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            umask=0o022,
            start_new_session=True,
            pass_fds=fds,
        )
        self.started.append(process)
        return Running(process)

    def run(self, folder: RunFolder, *, job: str = "17", **environment: str) -> Ended:
        return self.start(folder, job=job, fds=(), **environment).end()

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            with process:  # closes its pipes
                process.wait()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.end()


@pytest.fixture(scope="module", autouse=True)
def stubborn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunFolder, Running]]:
    """A container whose engine ignores SIGTERM, told to end. That takes 10 s, during which the other tests run."""
    bench = Bench(tmp_path_factory.mktemp("stubborn"))
    folder = bench.script("stubborn", {"gpu": None}, site=Site(runtime="docker"))
    running = bench.start(folder, PATH=f"{container_program(bench.root, 'docker', 'stubborn')}:{PATH}")
    running.engine()
    running.process.send_signal(signal.SIGTERM)
    yield folder, running
    bench.end()


def container_program(root: Path, name: str, mode: str) -> Path:
    """A folder with a program of this name that records its own words as the engine does; `rm` it writes down."""
    folder = root / "bin"
    folder.mkdir()
    program = folder / name
    recorder = shlex.join([*RECORDER, mode])
    program.write_text(f'#!/bin/bash\nif [ "$1" = rm ]; then echo "$*" >removed; exit; fi\nexec {recorder} "$@"\n')
    program.chmod(0o755)
    return folder


def option(engine: dict[str, Any], name: str) -> str:
    words: list[str] = engine["argv"]
    return words[words.index(name) + 1]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- how it ends


@pytest.mark.parametrize(("mode", "code"), [("record", 0), ("exit-7", 7), ("exit-255", 255)])
def test_the_engines_exit_code_is_the_scripts(bench: Bench, mode: str, code: int) -> None:
    folder = bench.script(mode)
    ended = bench.run(folder)
    left = folder.read_exit()
    assert left is not None
    assert (ended.code, left.exit_code, left.signal, left.job_id) == (code, code, "", "17")
    assert f"the engine ended with exit code {code}" in ended.said
    assert len(ended.engines) == 1


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGTERM, 143, "TERM"), (signal.SIGINT, 130, "INT"), (signal.SIGHUP, 129, "HUP")],
)
def test_a_signal_ends_the_engine_and_is_written_down(
    bench: Bench, number: signal.Signals, code: int, name: str
) -> None:
    folder = bench.script("wait")
    running = bench.start(folder)
    engine = running.engine()
    running.process.send_signal(number)
    ended, left = running.end(), folder.read_exit()
    assert left is not None
    assert (ended.code, left.exit_code, left.signal) == (code, code, name)
    assert not alive(engine["pid"])


def test_an_engine_that_cannot_be_started_is_a_failed_job(bench: Bench) -> None:
    folder = bench.script("", site=Site(engines={"vllm": Engine(command=["/no such/engine"])}))
    ended, left = bench.run(folder), folder.read_exit()
    assert left is not None and ended.code == left.exit_code == 127
    assert "/no such/engine: No such file or directory" in ended.said


def test_a_run_folder_may_have_a_blank_in_its_path(bench: Bench) -> None:
    folder = bench.script("record", name="a b/run")
    assert bench.run(folder).code == 0
    assert folder.read_exit() is not None and folder.read_endpoints() is not None


def test_nothing_that_it_writes_can_be_read_by_others(bench: Bench) -> None:
    folder = bench.script("record", secrets={"VLLM_API_KEY": "key"})
    ended = bench.run(folder)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder.path, *folder.path.rglob("*"))}
    files = {"claim", "claim.17", "job.sh", "secrets.env", "endpoints.json", "exit.json", "sluicegate_guard.py"}
    assert modes == {"run": 0o700, "guard": 0o700} | dict.fromkeys(files, 0o600)
    assert ended.engines[0]["umask"] == 0o077


# --- the port and where it is told


def test_the_endpoint_is_on_disk_before_the_engine_starts(bench: Bench) -> None:
    folder = bench.script("wait")
    running = bench.start(folder, SLURMD_NODENAME="node1", SLURM_RESTART_COUNT="2", CUDA_VISIBLE_DEVICES="GPU-a,GPU-b")
    port = int(option(running.engine(), "--port"))
    assert json.loads((folder.path / "endpoints.json").read_text()) == {
        "job_id": "17",
        "node": "node1",
        "restarts": 2,
        "endpoints": [{"replica": 0, "port": port, "gpus": "GPU-a,GPU-b", "starts": 1, "state": "up"}],
    }
    found = folder.read_endpoints()
    assert found is not None and (found.all[0].node, found.all[0].port) == ("node1", port)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_port_on_which_somebody_listens_is_passed_over(bench: Bench, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        taken = listener.getsockname()[1]
        folder = bench.script("record", {"replica_port": taken})
        (engine,) = bench.run(folder).engines
    found = folder.read_endpoints()
    assert found is not None and found.all[0].port == int(option(engine, "--port"))
    assert taken < found.all[0].port < taken + 500


def test_a_port_that_is_the_near_end_of_a_connection_is_passed_over(bench: Bench) -> None:
    """Nobody listens there, but nobody can."""
    with socket.create_server(("127.0.0.1", 0)) as far, socket.create_connection(far.getsockname()) as near:
        taken: int = near.getsockname()[1]
        folder = bench.script("record", {"replica_port": taken})
        (engine,) = bench.run(folder).engines
    assert taken < int(option(engine, "--port")) < taken + 500


def test_jobs_that_start_at_the_same_moment_get_different_ports(bench: Bench) -> None:
    wish = free_port()
    folders = [bench.script("wait", {"replica_port": wish}, name=f"run-{n}") for n in range(5)]
    running = [bench.start(folder, job=str(n)) for n, folder in enumerate(folders)]  # none of them ever listens
    ports = {int(option(one.engine(), "--port")) for one in running}
    assert len(ports) == 5 and min(ports) >= wish


def test_a_node_without_flock_passes_over_a_port_in_use_too(bench: Bench) -> None:
    tools = bench.root / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "date", "grep", "mkdir", "mv", "rm", "sleep"):
        (tools / name).symlink_to(str(shutil.which(name)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        (engine,) = bench.run(bench.script("record", {"replica_port": taken}), PATH=str(tools)).engines
    assert int(option(engine, "--port")) > taken


def test_a_port_is_free_again_when_its_job_has_ended(bench: Bench) -> None:
    wish = free_port()
    for name in ("first", "second"):
        (engine,) = bench.run(bench.script("record", {"replica_port": wish}, name=name)).engines
        assert int(option(engine, "--port")) == wish


def test_an_engine_that_lost_its_port_is_started_again_on_the_next(bench: Bench) -> None:
    with ExitStack() as open_ends:
        reading, writing = os.pipe()
        open_ends.callback(os.close, writing)
        folder = bench.script("robbed")
        running = bench.start(folder, fds=(reading,), THIEF_PIPE=str(reading))
        os.close(reading)
        ended = running.end()
    first, second = (int(option(engine, "--port")) for engine in ended.engines)
    found = folder.read_endpoints()
    assert found is not None and found.all[0].port == second > first
    assert ended.code == 0 and f"port {first} was taken by another process" in ended.said


def test_an_engine_that_fails_by_itself_is_not_started_again(bench: Bench) -> None:
    assert len(bench.run(bench.script("exit-1")).engines) == 1


# --- the claim


def test_a_second_job_of_the_same_submission_ends_without_an_engine(bench: Bench) -> None:
    folder = bench.script("exit-3")
    assert bench.run(folder, job="17").code == 3
    before = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    second = bench.run(folder, job="18")
    assert (second.code, second.engines) == (0, [])
    assert "job 17 already serves this submission; job 18 ends" in second.said
    assert {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()} == before


def test_the_same_job_goes_on_after_a_requeue(bench: Bench) -> None:
    folder = bench.script("exit-3")
    assert [len(bench.run(folder, job="17").engines) for _ in range(2)] == [1, 1]


def test_of_jobs_that_start_at_the_same_moment_one_starts_the_engine(bench: Bench) -> None:
    folder = bench.script("record")
    running = [bench.start(folder, job=str(n)) for n in range(5)]
    ended = [one.end() for one in running]
    assert [one.code for one in ended] == [0] * 5
    assert sum(len(one.engines) for one in ended) == 1


@pytest.mark.parametrize("hard_links", [True, False], ids=["linked", "without hard links"])
def test_of_two_jobs_one_serves_and_goes_on_after_a_requeue(bench: Bench, hard_links: bool) -> None:
    """The claims of many rounds, at the same moment as near as can be: both wait for one word."""
    for n in range(60):
        folder = bench.root / f"round {n}"
        folder.mkdir()
        program = claim_of(bench, folder, hard_links=hard_links)
        both = [claiming(bench, program, job) for job in ("17", "18")]
        for one in both:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        said = [one.communicate(timeout=60) for one in both]
        assert sorted(out for out, _ in said) == ["", "serves\n"], (n, said)
        assert [one.returncode for one in both] == [0, 0] or not hard_links, (n, said)
        for job, (before, _) in zip(("17", "18"), said, strict=True):
            again, _ = claiming(bench, program, job).communicate("go\n", timeout=60)
            assert again == before, "after a requeue the other one serves"


def claim_of(bench: Bench, folder: Path, *, hard_links: bool) -> str:
    """The script up to the end of its claim, which waits for a line before it and says `serves` after it."""
    text = bench.script("record").script.read_text().replace(f"RUN={bench.root}/run\n", f"RUN='{folder}'\n")
    lines = text[: text.index("# Written by rename")].replace('if [ -n "$PART" ]', 'read -r\nif [ -n "$PART" ]')
    return ("" if hard_links else "ln() { return 1; }\n") + lines + "echo serves\n"


def claiming(bench: Bench, program: str, job: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        ["bash", "-c", program], env={"PATH": PATH, "SLUICE_JOB_ID": job}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    bench.started.append(process)
    return process


def test_a_job_whose_claim_was_emptied_by_a_crash_goes_on_after_a_requeue(bench: Bench) -> None:
    """The node lost power: the link is there, what was in it is not."""
    folder = bench.script("exit-3")
    assert bench.run(folder, job="17").code == 3
    with (folder.path / "claim").open("w"):
        pass
    again = bench.run(folder, job="17")
    assert (again.code, len(again.engines)) == (3, 1), again.said
    other = bench.run(folder, job="18")
    assert (other.code, other.engines) == (73, []), "ended as if it had served"
    assert "does not say which job serves" in other.said


@pytest.mark.parametrize("left", [["claim.17"], ["claim"]], ids=["not linked yet", "of a copied folder"])
def test_a_claim_of_its_own_that_was_left_behind_is_its_own(bench: Bench, left: list[str]) -> None:
    folder = bench.script("exit-3")
    for name in left:
        (folder.path / name).write_text("17\n")
    assert (bench.run(folder, job="18").engines == []) is (left == ["claim"])
    (folder.path / "claim").unlink()
    for name in left:
        (folder.path / name).write_text("17\n")
    ended = bench.run(folder, job="17")
    assert (ended.code, len(ended.engines)) == (3, 1), ended.said


def test_a_job_that_cannot_write_its_claim_has_not_completed(bench: Bench) -> None:
    folder = bench.script("exit-3")
    (folder.path / "claim.17").symlink_to("/dev/full")
    full = bench.run(folder, job="17")
    assert (full.code, full.engines) == (73, [])
    assert "No space left on device" in full.said and f"cannot write {folder.path}/claim.17" in full.said
    assert not (folder.path / "claim").exists()
    (folder.path / "claim.17").unlink()
    assert len(bench.run(folder, job="17").engines) == 1


def test_a_link_whose_answer_was_lost_is_made_all_the_same(bench: Bench) -> None:
    """NFS sends a request again whose answer did not come, and then says that the name is taken."""
    folder = bench.script("exit-3")
    text = folder.script.read_text()
    folder.script.write_text(
        text.replace("set -uo pipefail\n", 'set -uo pipefail\nln() { command ln "$@"; return 1; }\n')
    )
    ended = bench.run(folder, job="17")
    assert (ended.code, len(ended.engines)) == (3, 1), ended.said
    assert bench.run(folder, job="18").engines == []


# --- GPUs, keys, modules


@pytest.mark.parametrize(
    ("chosen", "allocated", "used"),
    [
        ("0,1", "GPU-aaa,GPU-bbb,GPU-ccc", "GPU-aaa,GPU-bbb"),
        ("2", "4,5,6", "6"),
        ("1,0", "2,3", "3,2"),
        ("0", "MIG-1/2/3", "MIG-1/2/3"),
        ("0,10", "a,b,c,d,e,f,g,h,i,j,k", "a,k"),
        ("0,1", "", "0,1"),  # no scheduler has allocated any: the machine's own
    ],
)
def test_chosen_gpus_are_places_in_the_allocated_list(bench: Bench, chosen: str, allocated: str, used: str) -> None:
    folder = bench.script("record", {"environment": {"CUDA_VISIBLE_DEVICES": chosen}})
    (engine,) = bench.run(folder, CUDA_VISIBLE_DEVICES=allocated).engines
    found = folder.read_endpoints()
    assert found is not None
    assert engine["environment"]["CUDA_VISIBLE_DEVICES"] == found.all[0].gpus == used
    assert option(engine, "--tensor-parallel-size") == str(len(chosen.split(",")))


@pytest.mark.parametrize(("chosen", "missing"), [("2", "2"), ("0,2", "2"), ("99", "99")])
def test_a_chosen_gpu_that_the_job_does_not_have_is_told(bench: Bench, chosen: str, missing: str) -> None:
    folder = bench.script("record", {"environment": {"CUDA_VISIBLE_DEVICES": chosen}})
    ended, left = bench.run(folder, CUDA_VISIBLE_DEVICES="GPU-aaa,GPU-bbb"), folder.read_exit()
    assert f"CUDA_VISIBLE_DEVICES asks for GPU {missing}, but this job has 2: GPU-aaa,GPU-bbb" in ended.said
    assert left is not None and (ended.code, left.exit_code, ended.engines) == (1, 1, [])


def test_keys_reach_the_engine_and_stand_nowhere_else(bench: Bench) -> None:
    secrets = {"VLLM_API_KEY": "k'e y$(id)`\\\"#", "HF_TOKEN": "hf_\nabc"}
    folder = bench.script("record", secrets=secrets)
    ended = bench.run(folder)
    (engine,) = ended.engines
    assert {name: engine["environment"][name] for name in secrets} == secrets == folder.read_secrets()
    for secret in ("k'e y", "hf_"):
        assert secret not in folder.script.read_text() + " ".join(engine["argv"]) + ended.said


@pytest.mark.parametrize("key", ["k'e y$(id)`\\\"#: [", "0x1e5", ""])
def test_sglang_reads_its_key_from_a_private_file(bench: Bench, key: str) -> None:
    folder = bench.script("record", recipe=BOOK.find("sglang-single-node"), secrets={"VLLM_API_KEY": key})
    ended = bench.run(folder)
    path = Path(option(ended.engines[0], "--config"))
    assert path == folder.path / "sglang.yaml" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert yaml.safe_load(path.read_text()) == ({"api-key": key} if key else {})
    assert not key or key not in folder.script.read_text() + " ".join(ended.engines[0]["argv"]) + ended.said


def test_several_nodes_without_slurm_are_refused_in_words(bench: Bench) -> None:
    folder = bench.script("record", recipe=BOOK.find("vllm-multi-node"))
    tools = bench.root / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "date", "mkdir", "mv", "rm"):
        (tools / name).symlink_to(str(shutil.which(name)))
    ended = bench.run(folder, PATH=str(tools))
    assert (ended.code, ended.engines) == (1, [])
    assert "an engine on 2 nodes needs Slurm's srun, and localhost has none; ask for one node" in ended.said


INIT = """
printf '%s\\n' "$NEVER_SET" # as the real ones do
module() {
  [ "$2" != missing ] || return 1
  printf '%s\\0' "$@" >>loaded
}
"""


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ({"modules": ["vLLM"]}, "this shell has no command `module`: set [site] module_init"),
        ({"module_init": "{root}/init.sh", "modules": ["missing"]}, "cannot load a module of [site] modules: missing"),
        ({"module_init": "{root}/no.sh"}, "cannot read [site] module_init: {root}/no.sh"),
    ],
)
def test_a_module_that_cannot_be_loaded_fails_loudly(bench: Bench, site: dict[str, Any], says: str) -> None:
    (bench.root / "init.sh").write_text(INIT)
    text = json.dumps(site).replace("{root}", str(bench.root))
    folder = bench.script("record", site=Site.model_validate_json(text))
    running = bench.start(folder)
    assert running.process.stdout is not None
    out, err = running.process.communicate(timeout=60)
    left = folder.read_exit()
    assert says.replace("{root}", str(bench.root)) in err and "argv" not in out
    assert left is not None and running.process.returncode == left.exit_code == 1


# --- every value arrives literally

PLAIN = ["'", '"', "a b", " a  b ", "", "é日本🙂", "\u2028", "a=b", "A=$(touch MARK)", "-x", "--port", "-", "--"]
PLAIN += ["$(touch MARK)", "`touch MARK`", "; touch MARK", "&& touch MARK", "| touch MARK", "& touch MARK", "> MARK"]
PLAIN += [
    "'; touch MARK; '",
    '"; touch MARK; "',
    "$HOME",
    "${HOME}",
    "$(",
    "$((1+1))",
    "${",
    "$'\\n'",
    "<(id)",
    "<<EOF",
]
PLAIN += ["*", "?", "[a-z]*", "{a,b}", "~", "~/x", "!", "!!", "%", "%j", "\\", "a\\", "\\n", "#", "a #b", "(", ")"]
PLAIN += ["{{ 7*7 }}", "{% raw %}", "{% endblock %}", "{## x ##}", "{# x #}", "{{ ''.__class__ }}"]
CONTROL = ["a\nb", "\n", "a\n#SBATCH --account=x", "a\ntouch MARK", "a\rb", "a\0b", "a\tb", "\x1b[31m", "a\x7f"]

OPTIONS = {
    "VLLM_MODEL": "--model",
    "VLLM_SERVED_MODEL_NAME": "--served-model-name",
    "VLLM_HOST": "--host",
    "LLAMACPP_MODEL": "--served-model-name",
    "LLAMACPP_WEIGHTS": "--weights",
    "SGLANG_MODEL": "--model-path",
    "SGLANG_SERVED_MODEL_NAME": "--served-model-name",
    "SGLANG_HOST": "--host",
}


def places(recipe: Recipe) -> dict[str, Parameter | None]:
    """Every path of a config at which this recipe takes a value, with the parameter that it sets."""
    found: dict[str, Parameter | None] = {"config.environment.MINE": None, "config.account": None}
    for key in ("nodes", "cpu", "memory", "gpu", "time_limit"):
        found |= {f"config.{key}": None, f"config.resources.{key}": None}
    for name, p in recipe.parameters.items():
        found |= {f"config.environment.{spelling}": p for spelling in (name, *p.also)}
        if p.alias:
            found[f"config.{p.alias}"] = p
    return found


def accepted(bench: Bench, recipe: Recipe, value: str) -> list[str]:
    """The places that take this value. All others refuse it with an Invalid that names them."""
    found = []
    for path, parameter in places(recipe).items():
        given: Any = [value] if parameter is not None and parameter.type == "words" else value
        try:
            bench.script("record", at(path, given), recipe=recipe)
            found.append(path)
        except Invalid as exc:
            assert exc.status == 422 and path in str(exc) and str(exc).isprintable(), path
    return found


def arrived(recipe: Recipe, path: str, engine: dict[str, Any]) -> str:
    """What came out at the engine of a value that went in at this path."""
    parameter = places(recipe)[path]
    if parameter is None:
        return str(engine["environment"][path.removeprefix("config.environment.")])
    if parameter.type == "words":
        return str(engine["argv"][-1])
    (name,) = (name for name, p in recipe.parameters.items() if p is parameter)
    return option(engine, OPTIONS[name])


# Every value in every field of one recipe; of the others, whose base is the same, each a third of them in turn.
RUNS = [
    pytest.param(recipe, value, id=f"{recipe.name}-{value}")
    for n, recipe in enumerate(BOOK.all())
    for k, value in enumerate(PLAIN)
    if recipe.full_name == VLLM.full_name or (n + k) % 3 == 0
]


@pytest.mark.parametrize(("recipe", "value"), RUNS)
def test_a_value_arrives_literally_or_is_refused_by_name(bench: Bench, recipe: Recipe, value: str) -> None:
    marker = bench.root / "MARK"
    value = value.replace("MARK", str(marker))
    taken = accepted(bench, recipe, value)
    assert "config.environment.MINE" in taken
    one: dict[str, Any] = {"max_restarts": 0, "resources": {"gpu": 1}}  # of a group only one replica, and once
    config = one if recipe.gpus_per_replica_parameter else {"nodes": 1}  # of several nodes one: there is no srun here
    for path in taken:
        parameter = places(recipe)[path]
        config = merged(config, at(path, [value] if parameter is not None and parameter.type == "words" else value))
    folder = bench.script("record", config, recipe=recipe)
    ended = bench.run(folder)
    (engine,) = ended.engines
    assert {path: arrived(recipe, path, engine) for path in taken} == dict.fromkeys(taken, value)
    assert ended.code == 0 and not marker.exists()
    names = {"claim", "claim.17", "endpoints.json", "exit.json", "job.sh", "secrets.env"}
    own = {"qdrant.yaml", "sglang.yaml", "models", "guard"}  # what a recipe's own `setup` makes
    assert {path.name for path in folder.path.iterdir()} - own == names


@pytest.mark.parametrize("recipe", BOOK.all(), ids=lambda recipe: recipe.name)
def test_a_value_with_a_control_character_is_refused_everywhere(bench: Bench, recipe: Recipe) -> None:
    assert {value: accepted(bench, recipe, value) for value in CONTROL} == {value: [] for value in CONTROL}


def test_a_list_of_words_arrives_word_by_word(bench: Bench) -> None:
    (engine,) = bench.run(bench.script("record", {"vllm_args": PLAIN})).engines
    assert engine["argv"][-len(PLAIN) :] == PLAIN
    text = "--a 'b c' \"d'e\" f\\ g # $(id) *"
    (engine,) = bench.run(bench.script("record", {"vllm_args": text}, name="text")).engines
    assert engine["argv"][-7:] == ["--a", "b c", "d'e", "f g", "#", "$(id)", "*"]


@pytest.mark.parametrize("value", [*PLAIN, *CONTROL])
def test_no_such_value_is_a_name(value: str) -> None:
    with pytest.raises(Invalid, match=r"config.environment: .* is not a name|not allowed"):
        resolve(VLLM, {"environment": {value: "x"}}, Site())
    with pytest.raises(Invalid, match=r"config: unknown key|config.resources: unknown key"):
        resolve(VLLM, {value: "x"}, Site())


@pytest.mark.parametrize("value", [value for value in PLAIN if value])
def test_a_value_of_the_site_arrives_literally(bench: Bench, value: str) -> None:
    marker = bench.root / "MARK"
    value = value.replace("MARK", str(marker))
    (bench.root / "it's init.sh").write_text(INIT)
    cache = str(Path(f"/cache/{value}"))
    site = Site(
        runtime="docker",
        module_init=f"{bench.root}/it's init.sh",
        modules=[value],
        bind=[f"/data/{value}:/data"],
        cache_dir=cache,
        environment={"SITE_VALUE": value},
        engines={"vllm": Engine(image=value, modules=["second"], environment={"ENGINE_VALUE": value}, command=[value])},
    )
    folder = bench.script("", site=site)
    programs = container_program(bench.root, "docker", "record")
    running = bench.start(folder, PATH=f"{programs}:{PATH}", NEVER_SET="")
    assert running.process.stdout is not None and running.process.stdout.readline() == "\n"  # of INIT
    (engine,) = running.end().engines
    words, environment = engine["argv"], engine["environment"]
    assert (folder.path / "loaded").read_text().split("\0") == ["load", value, "load", "second", ""]
    assert (environment["SITE_VALUE"], environment["ENGINE_VALUE"]) == (value, value)
    assert environment["HF_HOME"] == f"{cache}/huggingface"
    assert [f"/data/{value}:/data", f"{cache}:{cache}"] == [w for w in words if w.startswith(("/data/", "/cache/"))][
        ::-1
    ]
    started = words[words.index(value, words.index("HF_TOKEN")) :]
    assert started[:3] == [value, "bash", "-c"]  # the image
    assert started[4:7] == ["guarded", str(folder.path / "guard"), value]  # the command
    assert not marker.exists()


def test_the_interpreter_of_the_site_may_have_quotes_in_its_path(bench: Bench) -> None:
    python = bench.root / "it's a $python"
    python.write_text(f'#!/bin/bash\nexec {shlex.join(RECORDER)} record "$0" "$@"\n')
    python.chmod(0o755)
    recipe = BOOK.find("llamacpp-cpu")
    folder = RunFolder(bench.root / "run")
    target = Target("sluice-1", "c:1", folder, "127.0.0.1", str(python), bench.root)
    folder.write(render(recipe, resolve(recipe, {"replica_port": free_port()}, Site()), Site(), target), {})
    (engine,) = bench.run(folder).engines
    assert engine["argv"][:2] == [str(python), str(recipe.folder / "serve.py")]


def names_bash_keeps() -> set[str]:
    """The variables that bash has by itself, of this machine's bash."""
    done = subprocess.run(["bash", "--norc", "-c", "compgen -v"], env={}, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def names_of_the_scripts(bench: Bench) -> set[str]:
    """The variables that the scripts of all recipes set for themselves."""
    found: set[str] = set()
    for recipe in BOOK.all():
        config = {"environment": {"CUDA_VISIBLE_DEVICES": "0"}} if "CUDA_VISIBLE_DEVICES" in recipe.parameters else {}
        text = bench.script("record", config, recipe=recipe).script.read_text()
        text = re.sub(r"(?s)<<'END_OF_GUARD'.*^END_OF_GUARD$", "", text, flags=re.MULTILINE)  # that is Python
        for line in re.findall(r"(?m)^\s*(?:[A-Z_]+(?:\[\S+\])?\+?=\S+\s*)+$", text):  # several on one line
            found |= set(re.findall(r"(?:^|\s)([A-Z_]+)(?:\[\S+\])?\+?=", line))
        for pattern in (r"(?m)^\s*(?:local )?", r"\bfor (?:\(\()?", r"\bexec \{", r"\bread .*-a "):
            found |= set(re.findall(pattern + r"([A-Za-z_]\w*)(?==|\+=| in\b| = |\}| <<<)", text))
    given = {name for recipe in BOOK.all() for name in recipe.parameters}  # to the engine, by the recipe
    return {name for name in found - given if not name.startswith("QDRANT__")}


def test_no_name_of_the_script_can_be_set(bench: Bench) -> None:
    names = names_of_the_scripts(bench)
    assert {"RUN", "NODE", "JOB", "PORT", "ENGINES", "CLAIMS", "FAILURES", "ALLOCATED", "code"} <= names
    for name in names:
        with pytest.raises(Invalid, match=f"config.environment.{name} is not allowed"):
            resolve(VLLM, {"environment": {name: "7"}}, Site())


def test_a_name_that_bash_keeps_arrives_literally_or_is_refused(bench: Bench) -> None:
    free = {}
    for name in names_bash_keeps() | {"POSIXLY_CORRECT", "TMOUT", "EXECIGNORE", "GLOBIGNORE", "CDPATH", "FUNCNEST"}:
        try:
            resolve(VLLM, {"environment": {name: "7"}}, Site())
            free[name] = "7"
        except Invalid as exc:
            assert f"config.environment.{name} is not allowed" in str(exc)
    (engine,) = bench.run(bench.script("record", {"environment": free})).engines
    assert {name: engine["environment"].get(name) for name in free} == free


# --- containers


@pytest.mark.parametrize(
    ("visible", "word"),
    [("0,1", '--gpus="device=0,1"'), ("GPU-a", '--gpus="device=GPU-a"'), ("", "--gpus=all")],
)
def test_docker_gets_the_jobs_gpus_in_the_quotes_that_it_wants(bench: Bench, visible: str, word: str) -> None:
    folder = bench.script("", site=Site(runtime="docker"))
    programs = container_program(bench.root, "docker", "record")
    (engine,) = bench.run(folder, PATH=f"{programs}:{PATH}", CUDA_VISIBLE_DEVICES=visible).engines
    assert [w for w in engine["argv"] if w.startswith("--gpus")] == [word]
    assert f"--user={os.getuid()}:{os.getgid()}" in engine["argv"]


def test_secrets_reach_an_engine_in_a_container_by_name_and_stand_in_no_command_line(bench: Bench) -> None:
    site = Site(runtime="docker", environment={"SITE_TOKEN": "planted"})
    config = {"environment": {"WANDB_API_KEY": "planted", "MINE": "shown"}}
    kept = {"WANDB_API_KEY": "planted 'one'", "SITE_TOKEN": "planted $(two)", "VLLM_API_KEY": "k"}
    folder = bench.script("", config, site=site, secrets=kept)
    assert "planted" not in folder.script.read_text()
    programs = container_program(bench.root, "docker", "record")
    (engine,) = bench.run(folder, PATH=f"{programs}:{PATH}").engines
    words = engine["argv"]
    assert {"WANDB_API_KEY", "SITE_TOKEN", "VLLM_API_KEY", "MINE"} <= set(words)
    assert [word for word in words if "planted" in word] == []
    assert {name: engine["environment"][name] for name in kept} == kept


def test_podman_keeps_the_users_id_and_passes_the_jobs_gpus(bench: Bench) -> None:
    folder = bench.script("", {"environment": {"CUDA_VISIBLE_DEVICES": "1"}}, site=Site(runtime="podman"))
    programs = container_program(bench.root, "podman", "record")
    (engine,) = bench.run(folder, PATH=f"{programs}:{PATH}", CUDA_VISIBLE_DEVICES="2,3").engines
    assert {"--userns=keep-id", "--device=nvidia.com/gpu=all", "CUDA_VISIBLE_DEVICES"} <= set(engine["argv"])
    assert engine["environment"]["CUDA_VISIBLE_DEVICES"] == "3"


@pytest.mark.parametrize("gpu", [None, 1])
def test_apptainer_gets_gpus_only_where_some_were_asked_for(bench: Bench, gpu: int | None) -> None:
    folder = bench.script("record", {"gpu": gpu, "model": "/data/my model"}, site=Site(runtime="apptainer"))
    programs = container_program(bench.root, "apptainer", "record")
    (engine,) = bench.run(folder, PATH=f"{programs}:{PATH}").engines
    assert ("--nv" in engine["argv"]) == (gpu is not None)
    assert "/data/my model:/data/my model:ro" in engine["argv"]


# --- a recipe of one's own, as docs/recipes.md tells to write one

OWN_RECIPE = """
name: echo
category: tools
description: Says what it was given.
engine: echo
command: ["{python}", "-I", "{recipe_dir}/serve.py"]
ports: [18000]
parameters:
  ECHO_WORDS: {description: Words., type: words, default: [one, two words], alias: words}
  ECHO_LOUD: {description: Loud., type: boolean, default: false}
"""
OWN_JOB = """{% extends "base.sh.j2" %}
{## how many words: bash counts them ##}
{% block setup %}
words=({{ p.ECHO_WORDS }})
[ "${#words[@]}" -gt 0 ] || fail "no words"
export COUNT="${#words[@]}"
{% endblock %}
{% block command -%}
{{ command }} --port "$PORT" --first "${words[0]}" {% if p.ECHO_LOUD %}--loud {% endif %}{{ p.ECHO_WORDS }}
{%- endblock %}
"""
OWN_SERVER = 'import json, os, sys\nprint(json.dumps({"argv": sys.argv[1:], "environment": dict(os.environ)}))\n'


@pytest.mark.parametrize(
    ("config", "count", "words"),
    [
        ({}, "2", ["--first", "one", "one", "two words"]),
        ({"words": "'$(id)' b"}, "2", ["--first", "$(id)", "$(id)", "b"]),
        ({"words": ["{{ 7*7 }}"]}, "1", ["--first", "{{ 7*7 }}", "{{ 7*7 }}"]),
        ({"environment": {"ECHO_LOUD": "yes"}, "words": "a"}, "1", ["--first", "a", "--loud", "a"]),
    ],
)
def test_a_recipe_of_ones_own_runs(bench: Bench, config: dict[str, Any], count: str, words: list[str]) -> None:
    ended = run_own_recipe(bench, config)
    (engine,) = ended.engines
    assert (ended.code, engine["argv"][2:], engine["environment"]["COUNT"]) == (0, words, count)


def test_a_recipe_of_ones_own_may_fail_with_a_message(bench: Bench) -> None:
    ended = run_own_recipe(bench, {"words": []})
    assert (ended.code, ended.engines) == (1, []) and "sluicegate: no words\n" in ended.said


def run_own_recipe(bench: Bench, config: dict[str, Any]) -> Ended:
    own = bench.root / "my recipes" / "tools" / "echo"
    own.mkdir(parents=True)
    for name, content in (("recipe.yaml", OWN_RECIPE), ("job.sh.j2", OWN_JOB), ("serve.py", OWN_SERVER)):
        (own / name).write_text(content)
    recipe = RecipeBook([bench.root / "my recipes", builtin_recipes()]).find("echo")
    folder = RunFolder(bench.root / "run")
    target = Target("sluice-1", "c:1", folder, "127.0.0.1", sys.executable, bench.root)
    folder.write(render(recipe, resolve(recipe, config, Site()), Site(), target), {})
    return bench.run(folder)


# --- the test that began first


def test_an_engine_that_ignores_sigterm_is_killed_after_the_grace(stubborn: tuple[RunFolder, Running]) -> None:
    folder, running = stubborn
    ended, left = running.end(), folder.read_exit()
    assert left is not None and (ended.code, left.exit_code, left.signal) == (143, 143, "TERM")
    assert "an engine ignored SIGTERM for 10 s; killing it" in ended.said
    assert not alive(ended.engines[0]["pid"])
    assert (folder.path / "removed").read_text() == "rm --force sluice-1-0\n"  # the container would outlive its client
