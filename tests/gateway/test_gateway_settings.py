"""Settings: where they come from, and what is said when they are wrong."""

import re
from pathlib import Path

import pytest

from gateway.settings import SettingsError, is_loopback, read_settings


def test_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    settings = read_settings()
    assert (settings.host, settings.port, settings.cluster) == ("127.0.0.1", 8001, None)
    assert settings.local_socket == tmp_path / "orchestrator.sock"
    assert settings.remote_socket == ".sluicegate/orchestrator.sock"
    assert settings.keepalive_seconds * (settings.keepalive_count + 1) <= 45, "a dead link is noticed in time"


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('port = 9000\ncluster = "meluxina"\n')
    monkeypatch.setenv("GATEWAY_CONFIG", str(file))
    monkeypatch.setenv("GATEWAY_PORT", "9001")
    settings = read_settings()
    assert (settings.port, settings.cluster) == (9001, "meluxina")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_open_address_wants_a_key(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("GATEWAY_HOST", host)
    monkeypatch.setenv("GATEWAY_API_KEY", "")
    with pytest.raises(SettingsError, match="GATEWAY_API_KEY"):
        read_settings()
    monkeypatch.setenv("GATEWAY_API_KEY", "secret")
    settings = read_settings()
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("GATEWAY_PORT", "70000", "port: .*65535.*70000"),
        ("GATEWAY_CLUSTER", "-oProxyCommand=x", "cluster: .*Host of your SSH configuration"),
        ("GATEWAY_LOG_LEVEL", "loud", "log_level: .*'debug'"),
        ("GATEWAY_CONFIG", "/nowhere.toml", "/nowhere.toml"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, text: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert re.search(text, str(caught.value))


def test_an_unknown_key_of_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("prot = 9000\n")
    with pytest.raises(SettingsError, match="prot"):
        read_settings(file)


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.com", ""))
