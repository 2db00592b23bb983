"""The examples for one machine without Slurm: units, settings, proxy, and the programs that read them."""

import os
import re
import shlex
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import app
from gateway.settings import Settings as GatewaySettings
from orchestrator.config import resolve
from orchestrator.models import new_submission_id
from orchestrator.recipes import RecipeBook, builtin_recipes
from orchestrator.runs import RunFolder
from orchestrator.script import Target, render
from orchestrator.settings import Settings, read_settings

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
UNITS = sorted((EXAMPLES / "systemd").glob("*.service"))
SLUICE = "/opt/sluicegate/bin/sluice"


class Unit(ConfigParser):
    """A unit's file. A name that stands there several times has the values one below the other."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False, interpolation=None, delimiters="=", comment_prefixes="#")
        text = re.sub(r"(?m)^(Environment)=(.*)\n\1=(.*)$", r"\1=\2 \3", path.read_text())
        self.read_string(text)

    optionxform = str  # type: ignore[assignment] # as the library says it is done

    @property
    def environment(self) -> dict[str, str]:
        return dict(word.split("=", 1) for word in shlex.split(self["Service"].get("Environment", "")))


@pytest.fixture(params=UNITS, ids=lambda path: path.stem)
def unit(request: pytest.FixtureRequest) -> Unit:
    return Unit(request.param)


def test_both_halves_have_a_unit() -> None:
    assert [path.name for path in UNITS] == ["sluicegate-gateway.service", "sluicegate-orchestrator.service"]


def test_a_unit_starts_what_the_command_has(unit: Unit) -> None:
    program, subcommand, *words = shlex.split(unit["Service"]["ExecStart"])
    helped = CliRunner().invoke(app, [subcommand, "--help"])
    assert (program, helped.exit_code) == (SLUICE, 0), helped.output
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(?<!\S){option}(?!\S)", helped.output), helped.output
    assert unit["Unit"]["Description"].startswith(f"Sluicegate {subcommand}")


def test_what_a_unit_sets_can_be_set(unit: Unit) -> None:
    known = {f"GATEWAY_{name.upper()}" for name in GatewaySettings.model_fields}
    known |= {f"ORCHESTRATOR_{name.upper()}" for name in Settings.model_fields}
    assert unit.environment
    assert set(unit.environment) <= known


def test_units_are_private_and_come_back(unit: Unit) -> None:
    service = unit["Service"]
    assert (service["User"], service["UMask"], service["NoNewPrivileges"]) == ("sluicegate", "0077", "yes")
    assert service["ProtectSystem"] in ("full", "strict")
    # 2 is the exit status for wrong settings: tests/test_process.py, tests/gateway/test_sluice.py.
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("on-failure", "2")


def test_the_two_meet() -> None:
    gateway, orchestrator = (Unit(path) for path in UNITS)
    home = orchestrator.environment["ORCHESTRATOR_HOME"]
    assert gateway.environment["GATEWAY_LOCAL_SOCKET"] == f"{home}/orchestrator.sock"
    assert home == f"%S/{orchestrator['Service']['StateDirectory']}"
    assert orchestrator["Service"]["KillMode"] == "process"  # jobs outlive it
    assert "PrivateTmp" not in orchestrator["Service"]  # they share lock files there
    assert "PrivateDevices" not in orchestrator["Service"]  # and need the GPUs
    assert "sluicegate-orchestrator.service" in gateway["Unit"]["After"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="NO SYSTEMD, so it does not look at the units")
def test_systemd_takes_them(tmp_path: Path) -> None:
    program = tmp_path / "sluice"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for path in UNITS:
        (tmp_path / path.name).write_text(path.read_text().replace(SLUICE, str(program)))
    paths = [str(tmp_path / path.name) for path in UNITS]
    done = subprocess.run(
        ["systemd-analyze", "verify", *paths], capture_output=True, text=True, timeout=30, check=False
    )
    of_ours = [line for line in done.stderr.splitlines() if "sluicegate" in line]
    assert (of_ours, done.returncode) == ([], 0), done.stderr


def test_the_settings_run_engines_in_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ORCHESTRATOR_")]:
        monkeypatch.delenv(name)
    settings = read_settings(EXAMPLES / "sites" / "workstation-docker.toml")
    assert (settings.scheduler, settings.site.runtime) == ("local", "docker")
    assert settings.site.gpu_memory_gb
    book = RecipeBook([builtin_recipes()])
    folder = RunFolder(tmp_path / "runs" / new_submission_id())
    for name, image in (
        ("vllm-single-node", "vllm/vllm-openai:v0.11.2"),
        ("sglang-single-node", "lmsysorg/sglang:v0.5.12"),
        ("ollama", "ollama/ollama"),
    ):
        recipe = book.find(name)
        plan = resolve(recipe, {"gpu": 1}, settings.site)
        target = Target("sluice-x", "x", folder, "127.0.0.1", settings.python, settings.cache_path)
        script = render(recipe, plan, settings.site, target)
        assert "docker run --rm" in script and image in script, name
        assert "/srv/models:/srv/models:ro" in script


def test_the_words_of_the_document_are_those_of_the_command() -> None:
    text = (ROOT / "docs" / "workstation.md").read_text()
    known = {f"GATEWAY_{name.upper()}" for name in GatewaySettings.model_fields}
    assert set(re.findall(r"\bGATEWAY_[A-Z_]+", text)) <= known
    for name in re.findall(r"(?:sites|systemd)/([\w.*-]+\.(?:toml|service))", text):
        assert list(EXAMPLES.glob(f"*/{name}")), name
    for path in UNITS:
        assert path.stem in text


def test_the_proxy_passes_on_streams_as_they_come() -> None:
    text = (EXAMPLES / "proxy" / "Caddyfile").read_text()
    port = GatewaySettings.model_fields["port"].default
    assert f"reverse_proxy 127.0.0.1:{port} {{" in text and "flush_interval -1" in text
    assert "header_up" not in text  # the gateway is to see the name that was asked for


def test_caddy_takes_it(tmp_path: Path) -> None:
    if shutil.which("caddy") is None:
        reason = "NO CADDY, so it does not look at the Caddyfile: apt-get install caddy"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    command = ["caddy", "validate", "--adapter", "caddyfile", "--config", str(EXAMPLES / "proxy" / "Caddyfile")]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
    assert done.returncode == 0, done.stderr
