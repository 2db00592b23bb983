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
    """This TOML file; `--config` wins over the variable."""
    api_key: SecretStr | None = None
    """A key that is asked of clients, beside those of `sluice keys`: with all scopes, or with `manage` where there is
    GATEWAY_ADMIN_API_KEY too."""
    admin_api_key: SecretStr | None = None
    """A second one, with the scope `admin`."""
    keys_file: Path | None = None
    """The file of `sluice keys`. Unset: `~/.config/sluicegate/keys.json`."""
    loopback_open: bool = False
    """On loopback no request needs a key, whatever keys there are."""
    host: str = "127.0.0.1"
    """The address on which clients reach the gateway. Others than loopback want a key."""
    port: int = Field(default=8001, ge=0, le=65535)
    """Its port; 0 is any that is free."""
    allowed_hosts: Annotated[list[str], NoDecode] = []
    """Further names by which clients may call a gateway on loopback, such as `host.docker.internal`; in the variable
    with commas between them. One that others can know, such as `myhost.tailnet.ts.net`, is that of a proxy which brings
    their requests: it wants a key."""
    url: str | None = None
    """Where `sluice run`, `ps` and the like find the gateway. Unset: on this machine, at the port above."""
    cluster: str | None = None
    """A Host of your SSH configuration: what you would type behind `ssh`. Unset: the orchestrator of this machine."""
    transport: Literal["asyncssh", "openssh"] = "asyncssh"
    """Who speaks SSH: asyncssh within the gateway, or the system's `ssh`, with all of your configuration
    (ControlMaster, security keys) and half the CPU."""
    ssh_config: Path | None = None
    """The SSH configuration. Unset: `~/.ssh/config`."""
    remote_socket: str = ".sluicegate/orchestrator.sock"
    """The orchestrator's socket on the login node; a relative path is below your home there."""
    local_socket: Path | None = None
    """The same without a cluster. Unset: where the orchestrator of this machine has it."""
    models_file: Path | None = None
    """Which models there were, for when the orchestrator is away. Unset: a file in `~/.cache/sluicegate`."""
    connect_seconds: float = Field(default=15, gt=0)
    """How long a login may take; a person who is asked gets 120 s."""
    keepalive_seconds: float = Field(default=10, gt=0)
    """So long without a word, and a keep-alive is sent."""
    keepalive_count: int = Field(default=3, ge=1)
    """So many unanswered ones, and the connection is dead: 40 s in all."""
    hold_seconds: float = Field(default=30, ge=0, le=600)
    """How long a request waits for a link that is down before it gets a 503; 0: not at all."""
    backoff_min_seconds: float = Field(default=1, gt=0)
    """Between the first two tries to connect."""
    backoff_max_seconds: float = Field(default=60, gt=0)
    """Between two tries at the most."""
    max_connections: int = Field(default=4096, ge=1)
    """Clients at once; never more than half of the files that the process may have open."""
    probe_seconds: float = Field(default=2, gt=0)
    """The time limit of the questions behind /health and /ready."""
    sample_seconds: float = Field(default=15, ge=1, le=15)
    """Between two samples for the charts of the dashboard."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """Of stderr; `auto` is text on a terminal and JSON elsewhere."""

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
