"""What can be set, read once: `ORCHESTRATOR_*` in the environment before the TOML file before the defaults.

The only module of the package that looks at the environment.
"""

import ipaddress
import os
import re
import socket
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableError

from orchestrator.confidential import masked, redacted
from orchestrator.errors import OrchestratorError

Runtime = Literal["none", "apptainer", "docker", "podman"]


class Engine(BaseModel):
    """How one engine (`vllm`, `llamacpp`, `qdrant`, …) is started at this site."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: list[str] = []
    """The words before the recipe's own arguments. Empty: what the recipe says."""
    image: str | None = None
    """A `.sif` path or `docker://` reference for Apptainer, an image's name for Docker and Podman."""
    runtime: Runtime | None = None
    """The container runtime of this engine. Unset: the site's."""
    environment: dict[str, str] = {}
    """Exported in the jobs of this engine."""
    modules: list[str] = []
    """Loaded in its jobs, behind the site's."""


class Site(BaseModel):
    """The facts of one cluster or workstation. Nothing of a cluster is written in code: all of it is here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    account: str | None = None
    """The Slurm account that jobs are charged to; a service's `config.account` wins."""
    partition: str | None = None
    """Slurm's partition."""
    cpu_partition: str | None = None
    """The partition of jobs without GPUs. Unset: `partition`."""
    qos: str | None = None
    """Slurm's quality of service."""
    constraint: str | None = None
    """Features that nodes must have, as sbatch takes them."""
    extra_directives: list[str] = []
    """Further options of sbatch, behind ours, such as `["--exclusive", "--mail-type=FAIL"]`."""
    gpu_request: Literal["gres", "gpus-per-node", "gpus"] = "gres"
    """How GPUs are asked for: `--gres=gpu:N`, `--gpus-per-node=N` or `--gpus=N`."""
    gpu_type: str | None = None
    """The GPUs' type, such as `a100`: `--gres=gpu:a100:N`."""
    gpu_memory_gb: float | None = Field(default=None, gt=0, le=10_000)
    """The memory of one GPU, for POST /preflight. Unset: what `gpu_type` usually has."""
    request_memory: bool = True
    """False for sites that refuse `--mem`."""
    max_time_limit: int = Field(default=7 * 24 * 60, ge=1)
    """The longest `time_limit` that is taken, in minutes."""
    modules: list[str] = []
    """Loaded in each job."""
    module_init: str | None = None
    """A file to source before `module load`, where batch shells do not know `module`."""
    runtime: Runtime = "none"
    """What runs engines: plain programs, or containers."""
    bind: list[str] = []
    """Further folders that containers see: `path` or `path:path:ro`."""
    cache_dir: str | None = None
    """Models and compile caches, on a file system that the compute nodes see. Unset: `~/.cache/sluicegate`."""
    image_dir: str | None = None
    """Where `sluice images pull` puts images for apptainer, and recipes look for them."""
    python: str | None = None
    """The interpreter of Python engines on the compute nodes. Unset: the orchestrator's own."""
    environment: dict[str, str] = {}
    """Exported in every job."""
    slurm_environment: list[str] = []
    """Names of further variables that Slurm's commands get, and so does each job."""
    token_file: str | None = None
    """A file with a Hugging Face token, read when a service is started."""
    engines: dict[str, Engine] = {}
    """What is special about one engine: `[site.engines.NAME]`."""

    @property
    def image_folder(self) -> Path | None:
        return None if self.image_dir is None else Path(self.image_dir).expanduser().absolute()

    @field_validator("extra_directives")
    @classmethod
    def _directives_are_long_options(cls, value: list[str]) -> list[str]:
        for line in value:
            if not line.startswith("--") or "\n" in line or "\r" in line:
                raise ValueError(f'{line!r} is not an sbatch option on one line; write it like "--exclusive"')
        return value


class Prices(BaseModel):
    """What an hour costs. Without a price it costs nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    currency: str = Field(default="EUR", pattern=r"^[^\x00-\x20\x7f]{1,16}$")
    """What the numbers are."""
    gpu_hour: float = Field(default=0, ge=0, allow_inf_nan=False)
    """Of one GPU for an hour."""
    core_hour: float = Field(default=0, ge=0, allow_inf_nan=False)
    """Of one CPU core for an hour."""
    gpu_types: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    """The same as `gpu_hour` for the GPUs of a type, `[site] gpu_type` at the service's start."""


class Budget(BaseModel):
    """How much may be spent: money (`limit`) or GPU hours, in a day or month of UTC, or in all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=100)
    """What it is called in refusals and in the audit."""
    applies_to: str = Field(default="all", pattern=r"^(all|(user|key|model|recipe):.+)$")
    """`all`, `user:NAME`, `key:NAME`, `model:NAME` or `recipe:NAME`."""
    period: Literal["day", "month", "total"]
    """A day or a month of UTC, or all time."""
    limit: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Money, in the currency of `[prices]`."""
    gpu_hours: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """GPU hours; a budget has these or `limit`."""
    action: Literal["refuse", "stop"] = "refuse"
    """`refuse` new services; `stop` also ends those that run."""

    @model_validator(mode="after")
    def _has_one_limit(self) -> Self:
        if (self.limit is None) == (self.gpu_hours is None):
            raise ValueError(f"the budget {self.name!r} needs either limit (money) or gpu_hours")
        return self


class Vast(BaseModel):
    """One instance that is rented at vast.ai: `VAST_<NAME>` in the environment, `[vast]` in the file.

    `CONTROL_API_KEY` has no prefix; it is `control_api_key` in the file. Ports are those within the instance.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_key: SecretStr | None = None
    """The key of vast.ai's API."""
    instance_id: int | None = Field(default=None, ge=1)
    """The instance that is started and stopped."""
    control_api_key: SecretStr | None = None
    """Asked of everybody who uses /infra/vast; without it nobody can."""
    api_url: str = Field(default="https://console.vast.ai/api/v0", pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")
    """Where vast.ai's API is."""
    health_port: int = Field(default=8001, ge=1, le=65535)
    """Where its health is asked for; ports are those within the instance."""
    health_path: str = Field(default="/health", pattern=r"^/[!\"$-~]*$")
    """The path of that."""
    engine_port: int = Field(default=8001, ge=1, le=65535)
    """Where OpenAI's API is."""
    engine_key: SecretStr | None = None
    """The API key of its engine, sent as a bearer token."""
    wait_timeout_s: float = Field(default=600, gt=0, le=86400)
    """For a start, until it is healthy."""
    auto_shutdown: bool = True
    """Stop it when nobody uses it."""
    auto_shutdown_minutes: float = Field(default=30, gt=0, le=7 * 24 * 60)
    """After so long without use."""
    state_path: Path | None = None
    """A copy of the state in JSON for other programs; the database is what counts."""
    audit_path: Path | None = None
    """The same of the audit, a line of JSON each."""
    poll_seconds: float = Field(default=2, gt=0, le=60)
    """Between two looks at an instance that is to start or stop."""
    check_seconds: float = Field(default=60, gt=0, le=600)
    """Between two looks at one that does neither."""

    @field_validator("state_path", "audit_path")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @property
    def local(self) -> bool:
        """Whether the API is a program on this machine, which may rent out this machine."""
        host = urlsplit(self.api_url).hostname or ""
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def missing(self) -> list[str]:
        """The settings without which nothing can be rented."""
        wanted = {
            "VAST_API_KEY": self.api_key,
            "VAST_INSTANCE_ID": self.instance_id,
            "CONTROL_API_KEY": self.control_api_key,
        }
        return [name for name, value in wanted.items() if value is None]


class SettingsError(OrchestratorError):
    """A setting or a recipe is missing or wrong; the text names it, its source and what is allowed."""


class Settings(BaseSettings):
    """The orchestrator's settings. Each field is `ORCHESTRATOR_<NAME>` in the environment, `<name>` in the file."""

    model_config = SettingsConfigDict(env_prefix="ORCHESTRATOR_", env_ignore_empty=True, extra="forbid", frozen=True)

    home: Path = Field(default_factory=lambda: Path.home() / ".sluicegate")
    """The state folder: database, run folders, socket. On a file system that the compute nodes see."""
    socket: Path | None = None
    """Where the gateway comes in. Unset: `orchestrator.sock` in the state folder."""
    config: Path | None = None
    """This TOML file; `--config` wins over the variable."""
    job: str = Field(default="", pattern=r"^[0-9A-Za-z_.]{0,40}$")
    """The Slurm job that the orchestrator itself runs in, as `sluice connect --how job` starts it. Unset: none."""
    database_url: SecretStr | None = None
    """`postgresql://USER@HOST/DATABASE`, in libpq's words: services, jobs and events there instead of in SQLite.
    Secret, because it may hold a password."""
    host: str | None = None
    """The address on which jobs of the cluster reach the orchestrator too, by TCP and with a key of `sluice keys create
    NAME --orchestrator`. Unset: none."""
    port: int = Field(default=8010, ge=1024, le=65535)
    """The port there."""
    max_connections: int = Field(default=4096, ge=1)
    """Clients at once; never more than half of the files that the process may have open."""
    scheduler: Literal["slurm", "local"] = "slurm"
    """What runs jobs: Slurm, or plain processes of this machine."""
    recipes: Annotated[list[Path], NoDecode] = []
    """Further recipe folders, in the variable with `:` between them; they are searched before the built-in ones, and
    the first that has a name wins."""
    poll_seconds: float | None = Field(default=None, gt=0, le=3600)
    """Between two calls of squeue. Unset: 10 with Slurm, 0.5 without."""
    probe_seconds: float = Field(default=1.0, gt=0, le=60)
    """Between two health checks of an engine."""
    cluster_seconds: float = Field(default=15, gt=0, le=3600)
    """At least between two questions about the whole cluster and its queue, which are put while somebody looks."""
    grace_seconds: float = Field(default=60, ge=0)
    """How long a job that was recorded but never seen may stay so before it is submitted again (after a crash) or given
    up (after a time-out of sbatch); also how long a job may be unknown to the scheduler before it is lost."""
    models: Path | None = None
    """The list of the models that are started when they are asked for; also MODELS_YAML_PATH. Unset: `models.yaml` in
    the state folder, where there is one."""
    wake_hold_seconds: float = Field(default=20, ge=0, le=3600)
    """How long a request that is not a stream waits for its model to be loaded before it is told to come back."""
    drain_seconds: float = Field(default=30, ge=0, le=3600)
    """How long a cancelled service may finish what it was asked before."""
    max_in_flight: int = Field(default=1024, ge=1, le=100_000)
    """Requests that one replica is sent at once; more are a 429."""
    task_concurrency: int = Field(default=4, ge=1, le=1000)
    """Queued requests (`"async": true`, batches) of one model that engines are sent at once."""
    task_timeout: float = Field(default=24 * 3600, gt=0, le=30 * 24 * 3600)
    """Seconds that a queued request waits before it has expired."""
    inference_timeout: float = Field(default=3600, gt=0, le=7 * 24 * 3600)
    """Seconds that the answer to a queued request may take."""
    task_keep_hours: float = Field(default=72, gt=0, le=24 * 365)
    """How long the result of a queued request is kept."""
    file_megabytes: int = Field(default=200, ge=1, le=10_000)
    """Of one file that is uploaded."""
    files_gigabytes: float = Field(default=10, gt=0)
    """Of all files that are kept; beyond that uploads are a 507."""
    command_seconds: float = Field(default=30, gt=0)
    """The time limit of each external command, and of each question to PostgreSQL."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """Of stderr; `auto` is text on a terminal and JSON elsewhere."""
    log_megabytes: int = Field(default=8, ge=1, le=1024)
    """Of `orchestrator.log` in the state folder; with those before it four times that."""
    idle_minutes: float | None = Field(default=None, ge=0.1, le=525_600)
    """Minutes without a request after which a service is ended that has no `idle_timeout` of its own. Unset: never."""
    prices: Prices = Prices()
    """What an hour costs: `[prices]`."""
    budgets: list[Budget] = []
    """What may be spent: `[[budgets]]`."""
    site: Site = Site()
    """What is special about the site: `[site]`."""
    vast: Vast = Vast()
    """A GPU rented at vast.ai: `[vast]`."""

    @field_validator("recipes", mode="before")
    @classmethod
    def _colon_separated(cls, value: Any) -> Any:
        return [Path(part) for part in value.split(":") if part] if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _of_postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("it is not a URL of PostgreSQL; write it like postgresql://USER@HOST/DATABASE")
        return value

    @field_validator("home", "socket", "config", "models", mode="after")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @property
    def socket_path(self) -> Path:
        return self.socket or self.home / "orchestrator.sock"

    @property
    def models_path(self) -> Path | None:
        """The model list: the file that is named, else HOME/models.yaml where there is one."""
        usual = self.home / "models.yaml"
        return self.models or (usual if usual.is_file() else None)

    @property
    def keys_path(self) -> Path:
        return self.home / "keys.json"

    @property
    def files_path(self) -> Path:
        """What clients have uploaded, and what batches have written."""
        return self.home / "files"

    @property
    def address(self) -> str | None:
        """Of the TCP port, for people and programs on other machines."""
        if self.host is None:
            return None
        name = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}"

    @property
    def poll_interval(self) -> float:
        """Seconds between two questions to the scheduler."""
        if self.poll_seconds is not None:
            return self.poll_seconds
        return 0.5 if self.scheduler == "local" else 10.0

    @property
    def cache_path(self) -> Path:
        """Where models and weights are kept, on a file system that the compute nodes see."""
        if self.site.cache_dir is not None:
            return Path(self.site.cache_dir).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sluicegate"

    @property
    def python(self) -> str:
        return self.site.python or sys.executable

    @property
    def hub_endpoint(self) -> str:
        """The Hugging Face Hub, or the mirror that HF_ENDPOINT names in our environment or in that of the jobs."""
        named = os.environ.get("HF_ENDPOINT") or self.site.environment.get("HF_ENDPOINT")
        return (named or "https://huggingface.co").rstrip("/")

    @property
    def hub_offline(self) -> bool:
        """True when our environment forbids asking the hub. That of the jobs says nothing about the login node."""
        return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads it

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
    """Settings from the environment and from `config`, else the file of ORCHESTRATOR_CONFIG, else none.

    Raises SettingsError with a sentence that names the setting, where it came from and what is allowed.
    """
    path = config or (Path(named) if (named := os.environ.get("ORCHESTRATOR_CONFIG")) else None)
    values = read_toml(path) if path else {}
    if (listed := os.environ.get("MODELS_YAML_PATH")) and "ORCHESTRATOR_MODELS" not in os.environ:
        values["models"] = listed
    if rented := _rented():
        given = values.get("vast", {})
        values |= {"vast": given | rented if isinstance(given, dict) else given}
    try:
        return Settings(**(values | {"config": path} if path else values))
    except ValidationError as exc:
        raise SettingsError(explain(exc, "ORCHESTRATOR_", path)) from exc
    except UnreadableError as exc:  # a variable that must be JSON, such as ORCHESTRATOR_SITE, is not
        raise SettingsError(f"wrong settings: {exc}: {exc.__cause__}") from exc


def _rented() -> dict[str, str]:
    """What the environment says of a rented instance, by the names of `Vast`. Empty variables say nothing."""
    return {field: value for field in Vast.model_fields if (value := os.environ.get(_variable(field)))}


def _variable(field: str) -> str:
    """The variable of a field of `Vast`."""
    return "CONTROL_API_KEY" if field == "control_api_key" else f"VAST_{field.upper()}"


def traces_wanted() -> bool:
    """Whether the environment asks for traces. How they are made and sent is said by further OTEL_* variables: they are
    OpenTelemetry's own, and its SDK reads them."""
    given = os.environ.get
    endpoint = given("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or given("OTEL_EXPORTER_OTLP_ENDPOINT")
    exporters = [name.strip() for name in (given("OTEL_TRACES_EXPORTER") or "otlp").split(",")]
    return bool(endpoint) and "otlp" in exporters and given("OTEL_SDK_DISABLED", "").strip().lower() != "true"


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises SettingsError naming the file and the line that cannot be read."""
    try:
        with path.expanduser().open("rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"cannot read the settings file {path}: {exc}") from exc


def read_token(path: Path) -> str:
    """The Hugging Face token in a file. Raises SettingsError, which never repeats what stands there."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"cannot read the token file {path} of [site] token_file: {exc}") from exc
    if not re.fullmatch(r"[!-~]+", token):
        raise SettingsError(f"the file {path} of [site] token_file does not hold one token on one line")
    return token


def explain(error: ValidationError, prefix: str, path: Path | None) -> str:
    """One line for each wrong setting: its name, the value, what is allowed, and the two places to look."""
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        shown = masked({name.rpartition(".")[2]: item["input"]}).popitem()[1]
        if name.startswith("vast.") and name.count(".") == 1:
            name += f", {_variable(name.removeprefix('vast.'))} in the environment"
        got = "" if item["type"] in ("extra_forbidden", "missing") else f" (it is {redacted(repr(shown))})"
        lines.append(f"{name}: {item['msg']}{got}")
    where = f"{prefix}* in the environment" + (f" and {path}" if path else "")
    return "wrong settings:\n  " + "\n  ".join(lines) + f"\nLook at {where}."
