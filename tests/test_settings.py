"""Settings: the environment before the file before the defaults, and sentences for what is wrong."""

import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.settings import Settings, SettingsError, Vast, read_settings


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "SOCKET", "CONFIG", "SCHEDULER", "SITE", "RECIPES", "POLL_SECONDS", "LOG_LEVEL"):
        monkeypatch.delenv(f"ORCHESTRATOR_{name}", raising=False)
    for name in ("CONTROL_API_KEY", *(f"VAST_{field.upper()}" for field in Vast.model_fields)):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "site.toml"


def test_the_defaults() -> None:
    settings = read_settings()
    assert settings.home == Path.home() / ".sluicegate"
    assert settings.socket_path == settings.home / "orchestrator.sock"
    assert (settings.scheduler, settings.poll_interval, settings.python) == ("slurm", 10, sys.executable)
    assert Settings(scheduler="local").poll_interval == 0.5


def test_the_environment_wins_over_the_file_which_wins_over_the_defaults(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('home = "/from/file"\nscheduler = "local"\npoll_seconds = 3\n[site]\npartition = "gpu"\n')
    monkeypatch.setenv("ORCHESTRATOR_HOME", "/from/environment")
    monkeypatch.setenv("ORCHESTRATOR_SITE", '{"account": "p200"}')
    settings = read_settings(file)
    assert (str(settings.home), settings.scheduler, settings.poll_interval) == ("/from/environment", "local", 3)
    assert (settings.site.partition, settings.site.account) == ("gpu", "p200"), "sites are merged key by key"
    assert settings.config == file


def test_the_file_may_be_named_in_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('scheduler = "local"\n')
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", str(file))
    assert read_settings().scheduler == "local"


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above all ORCHESTRATOR_HOME: the empty path is the current folder, which would be made private."""
    for name in ("HOME", "SOCKET", "CONFIG", "SCHEDULER", "SITE", "RECIPES", "POLL_SECONDS"):
        monkeypatch.setenv(f"ORCHESTRATOR_{name}", "")
    assert read_settings() == Settings()
    assert read_settings().home == Path.home() / ".sluicegate"


def test_paths_are_made_absolute_and_lists_are_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATOR_HOME", "state")
    monkeypatch.setenv("ORCHESTRATOR_SOCKET", "~/x.sock")
    monkeypatch.setenv("ORCHESTRATOR_RECIPES", "/a:b::")
    settings = read_settings()
    assert (settings.home, settings.socket_path) == (tmp_path / "state", Path.home() / "x.sock")
    assert settings.recipes == [Path("/a"), Path("b")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('scheduler = "pbs"', ["scheduler", "'slurm' or 'local'", "(it is 'pbs')"]),
        ("poll_seconds = 0", ["poll_seconds", "greater than 0"]),
        ('grace_seconds = "soon"', ["grace_seconds", "'soon'"]),
        ("pol_seconds = 1", ["pol_seconds", "not permitted"]),
        ("[site]\npartitions = 'x'", ["site.partitions", "not permitted"]),
        ("[site]\nextra_directives = ['exclusive']", ["extra_directives", "--exclusive"]),
        ('[site]\nextra_directives = ["--x\\n#SBATCH --uid=0"]', ["extra_directives", "one line"]),
        ("[site.engines.vllm]\ncomand = ['x']", ["site.engines.vllm.comand"]),
        ("[site]\nmax_time_limit = 0", ["site.max_time_limit", "greater than or equal to 1"]),
        ("scheduler = ]", ["cannot read the settings file", "line 1"]),
        ("\xff", ["cannot read the settings file"]),
    ],
)
def test_what_is_wrong_in_the_file_is_named(file: Path, content: str, words: list[str]) -> None:
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(SettingsError) as caught:
        read_settings(file)
    assert [word for word in [*words, str(file)] if word not in str(caught.value)] == []


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read the settings file .*site\.toml"):
        read_settings(file)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SCHEDULER", "pbs", ["scheduler", "'pbs'", "ORCHESTRATOR_*"]),
        ("SITE", "{not json", ["site", "Expecting property name"]),
        ("SITE", "[]", ["site"]),
        ("POLL_SECONDS", "nan", ["poll_seconds"]),
        ("LOG_LEVEL", "loud", ["log_level", "'debug', 'info'"]),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: list[str]
) -> None:
    monkeypatch.setenv(f"ORCHESTRATOR_{name}", value)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("settings", "cache"),
    [({"site": {"cache_dir": "~/c"}}, Path.home() / "c"), ({}, Path("/xdg/sluicegate"))],
)
def test_the_cache_is_the_sites_or_the_users(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], cache: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert Settings(**settings).cache_path == cache


@pytest.mark.parametrize(
    "site",
    ['{"environment": {"HF_TOKEN": ["planted"]}}', '{"environment": "HF_TOKEN=planted"}', '"HF_TOKEN=planted"',
     '{"environment": [{"HF_TOKEN": "planted"}]}'],
)  # fmt: skip
def test_a_wrong_setting_that_is_secret_is_not_repeated(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_SITE", site)
    with pytest.raises(SettingsError, match="site") as caught:
        read_settings()
    assert "planted" not in str(caught.value)


def test_a_rented_machine_is_set_up_by_the_names_of_its_document(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    given = {
        "VAST_API_KEY": "vast-key", "VAST_INSTANCE_ID": "12345", "CONTROL_API_KEY": "control-key",
        "VAST_HEALTH_PORT": "8002", "VAST_HEALTH_PATH": "/up", "VAST_WAIT_TIMEOUT_S": "60",
        "VAST_AUTO_SHUTDOWN": "false", "VAST_AUTO_SHUTDOWN_MINUTES": "5",
        "VAST_STATE_PATH": "/s.json", "VAST_AUDIT_PATH": "/a.log",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    vast = read_settings().vast
    assert (vast.instance_id, vast.health_port, vast.health_path, vast.wait_timeout_s) == (12345, 8002, "/up", 60)
    assert (vast.auto_shutdown, vast.auto_shutdown_minutes) == (False, 5)
    assert (str(vast.state_path), str(vast.audit_path)) == ("/s.json", "/a.log")
    assert vast.missing == []
    assert "vast-key" not in repr(vast) and "control-key" not in repr(vast)
    file.write_text('[vast]\ninstance_id = 7\nhealth_port = 9000\nengine_key = "e"\n')
    merged = read_settings(file).vast
    assert (merged.instance_id, merged.health_port, merged.engine_key is not None) == (12345, 8002, True)


def test_the_defaults_of_a_rented_machine() -> None:
    vast = read_settings().vast
    assert (vast.health_port, vast.health_path, vast.engine_port, vast.wait_timeout_s) == (8001, "/health", 8001, 600)
    assert (vast.auto_shutdown, vast.auto_shutdown_minutes, vast.check_seconds) == (True, 30, 60)
    assert (vast.api_url, vast.local) == ("https://console.vast.ai/api/v0", False)
    assert vast.missing == ["VAST_API_KEY", "VAST_INSTANCE_ID", "CONTROL_API_KEY"]


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:9/api/v0", True),
        ("http://localhost:9", True),
        ("http://[::1]:9/", True),
        ("http://10.0.0.1", False),
    ],
)
def test_an_api_on_this_machine(url: str, local: bool) -> None:
    assert Vast(api_url=url).local is local


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("VAST_INSTANCE_ID", "my-gpu", ["vast.instance_id, VAST_INSTANCE_ID in the environment", "'my-gpu'"]),
        ("VAST_HEALTH_PORT", "0", ["VAST_HEALTH_PORT"]),
        ("VAST_HEALTH_PATH", "health", ["VAST_HEALTH_PATH"]),
        ("VAST_API_URL", "https://key@console.vast.ai", ["VAST_API_URL"]),
    ],
)
def test_what_is_wrong_of_a_rented_machine_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: list[str]
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("table", ['vast = "x"', "vast = [1]"])
def test_a_table_that_is_none(file: Path, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(table)
    monkeypatch.setenv("VAST_API_KEY", "planted")
    with pytest.raises(SettingsError, match="vast") as caught:
        read_settings(file)
    assert "planted" not in str(caught.value)
