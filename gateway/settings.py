"""What can be set, read once: `GATEWAY_*` in the environment before the TOML file before the defaults.

The only module of the package that looks at the environment.
"""

import hashlib
import ipaddress
import os
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from orchestrator.keys import Key, Keys, Scope, hash_of, now
from orchestrator.settings import SettingsError, explain, read_toml
from orchestrator.settings import read_settings as read_orchestrator_settings

__all__ = ["Settings", "SettingsError", "address", "cache_folder", "environment_of_a_child", "is_loopback", "is_public",
           "keys_of", "keys_path", "read_settings"]  # fmt: skip


# Ends of names that mean something on this machine or behind its own router only (RFC 6761, 6762, 8375, and ICANN's
# .internal, below which Docker and Podman have theirs).
_PRIVATE = (".internal", ".local", ".localhost", ".home.arpa")


class Settings(BaseSettings):
    """The gateway's settings. Each field is `GATEWAY_<NAME>` in the environment, `<name>` in the file."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", extra="forbid", frozen=True)

    config: Path | None = None
    # One key beside those of the file; with all scopes, unless there is one for the admin too: then without that scope.
    api_key: SecretStr | None = None
    admin_api_key: SecretStr | None = None
    keys_file: Path | None = None  # of `sluice keys`; None: keys.json in the folder sluicegate of ~/.config
    loopback_open: bool = False  # on loopback no request needs a key, whatever keys there are
    host: str = "127.0.0.1"
    port: int = Field(default=8001, ge=0, le=65535)  # 0: any free port
    # Further names by which clients may call a gateway on loopback, e.g. host.docker.internal. One that others can
    # know, such as myhost.tailnet.ts.net, is that of a proxy which brings their requests: that wants a key.
    allowed_hosts: Annotated[list[str], NoDecode] = []
    url: str | None = None  # where `sluice ps` and the like find the gateway; None: at the port above, on this machine
    cluster: str | None = None  # a Host of the SSH configuration; None: the orchestrator of this machine
    # Who speaks SSH: asyncssh in this process, or the system's ssh beside it, which honours all of your configuration.
    transport: Literal["asyncssh", "openssh"] = "asyncssh"
    ssh_config: Path | None = None  # None: ~/.ssh/config
    remote_socket: str = ".sluicegate/orchestrator.sock"  # on the login node; a relative path is below its home
    local_socket: Path | None = None  # without a cluster; None: where this machine's orchestrator has it
    # Which models there were, for when the orchestrator is away; None: in the folder sluicegate of ~/.cache.
    models_file: Path | None = None
    connect_seconds: float = Field(default=15, gt=0)
    # So many seconds without a word: a keep-alive. After so many unanswered ones the connection is dead: 40 s in all.
    keepalive_seconds: float = Field(default=10, gt=0)
    keepalive_count: int = Field(default=3, ge=1)
    hold_seconds: float = Field(default=30, ge=0, le=600)  # that a request waits for a link that is down; 0: not at all
    backoff_min_seconds: float = Field(default=1, gt=0)
    backoff_max_seconds: float = Field(default=60, gt=0)
    max_connections: int = Field(default=4096, ge=1)  # of clients at once; at most half of the files that may be open
    probe_seconds: float = Field(default=2, gt=0)  # time limit of the questions behind /health and /ready
    sample_seconds: float = Field(default=15, ge=1, le=15)  # between two samples for the charts of the dashboard
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "text", "json"] = "auto"  # of stderr; auto: text on a terminal, else JSON

    @field_validator("api_key", "admin_api_key", "cluster", "url", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("cluster")
    @classmethod
    def _cluster_is_a_name(cls, value: str | None) -> str | None:
        if value is not None and (value.startswith("-") or any(char.isspace() for char in value)):
            raise ValueError("it must be one Host of your SSH configuration, what you would type behind `ssh`")
        return value

    @field_validator("url")
    @classmethod
    def _url_is_one(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("it begins with http:// or https://")
        return value

    @property
    def keys_path(self) -> Path:
        return self.keys_file or _config_folder() / "keys.json"

    @property
    def models_path(self) -> Path:
        """One for each orchestrator: what another one had to offer says nothing of this one."""
        where = f"{self.cluster or ''}\n{self.remote_socket}\n{self.local_socket or ''}"
        return self.models_file or cache_folder() / f"models-{hashlib.sha256(where.encode()).hexdigest()[:16]}.json"

    @field_validator("config", "ssh_config", "local_socket", "keys_file", "models_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings  # the environment wins over the file, whose values are given to __init__


def read_settings(config: Path | None = None) -> Settings:
    """Settings from the environment and from `config`, else the file of GATEWAY_CONFIG, else none.

    Without a cluster, `local_socket` is always set in the result. Raises SettingsError with a sentence that names the
    setting, where it came from and what is allowed; also for an address or a name by which others reach it while there
    is no key.
    """
    settings = _read(config)
    keys = keys_of(settings)
    if keys.trouble:
        raise SettingsError(keys.trouble)
    if not is_loopback(settings.host) and not keys.live:
        raise SettingsError(
            f"others can reach {settings.host}, and every request would run as you on the cluster, but there is no "
            f"key. Make one: sluice keys create me --scope admin --file {shlex.quote(str(settings.keys_path))}\n"
            "Or set GATEWAY_API_KEY, or leave GATEWAY_HOST at 127.0.0.1."
        )
    _check_names(settings, keys)
    return settings


def _check_names(settings: Settings, keys: Keys) -> None:
    """Raises SettingsError for a name by which a proxy brings the requests of others, while they need no key."""
    names = [name for name in settings.allowed_hosts if is_public(name)]
    if not names or not is_loopback(settings.host):
        return
    if settings.loopback_open:
        raise SettingsError(
            f"GATEWAY_ALLOWED_HOSTS has {names[0]}, by which a proxy brings the requests of others; with "
            "GATEWAY_LOOPBACK_OPEN none of them would need a key. Unset one of the two."
        )
    if not keys.live:
        raise SettingsError(
            f"GATEWAY_ALLOWED_HOSTS has {names[0]}, by which a proxy brings the requests of others, but there is "
            f"no key, and each of them would run as you. Make one: sluice keys create me --scope admin --file "
            f"{shlex.quote(str(settings.keys_path))}\nOr set GATEWAY_API_KEY."
        )


def address(config: Path | None = None) -> tuple[str, str | None]:
    """The gateway's base URL, and the key for it or None: of the commands that talk to one. Raises SettingsError.

    A gateway that listens on all addresses is asked on loopback.
    """
    settings = _given(config)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    url = settings.url or f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    key = settings.api_key or settings.admin_api_key
    return url, None if key is None else key.get_secret_value()


def is_public(name: str) -> bool:
    """True for a name or an address that may mean this machine elsewhere too, also in a tailnet."""
    return ("." in name or ":" in name) and not is_loopback(name) and not name.lower().endswith(_PRIVATE)


def keys_path() -> Path:
    """Where the gateway of this user has its keys."""
    return _read(None).keys_path


def keys_of(settings: Settings) -> Keys:
    """The keys that a gateway takes."""
    return Keys(settings.keys_path, fixed_keys(settings))


def fixed_keys(settings: Settings) -> list[Key]:
    """Those of them that are no file's: of the environment or the TOML file."""
    usual = Scope.ADMIN if settings.admin_api_key is None else Scope.MANAGE
    given = {
        "GATEWAY_API_KEY": (settings.api_key, usual),
        "GATEWAY_ADMIN_API_KEY": (settings.admin_api_key, Scope.ADMIN),
    }
    return [
        Key(name, scope, hash_of(secret.get_secret_value().encode()), now())
        for name, (secret, scope) in given.items()
        if secret is not None
    ]


def _read(config: Path | None) -> Settings:
    settings = _given(config)
    if settings.cluster is None and settings.local_socket is None:
        return settings.model_copy(update={"local_socket": read_orchestrator_settings().socket_path})
    return settings


def _given(config: Path | None) -> Settings:
    path = config or (Path(named) if (named := os.environ.get("GATEWAY_CONFIG")) else None)
    values = read_toml(path) if path else {}
    try:
        return Settings(**(values | {"config": path} if path else values))
    except ValidationError as exc:
        raise SettingsError(explain(exc, "GATEWAY_", path)) from exc


def is_loopback(host: str) -> bool:
    """True for localhost and the loopback addresses. Other names are not looked up: they count as open."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def environment_of_a_child(**settings: str) -> dict[str, str]:
    """This process's environment with exactly these settings: the user's own, meant for other runs, are left out."""
    foreign = ("ORCHESTRATOR_", "GATEWAY_", "VAST_", "CONTROL_API_KEY")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | settings


def _config_folder() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "sluicegate"


def cache_folder() -> Path:
    """Where is kept what outlives a demo or a gateway, and can be had again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sluicegate"
