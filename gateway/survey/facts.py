"""What can be known of a login node. Absent facts are None, "" or empty: nothing here is guessed.

Sizes are in bytes, times in minutes, versions tuples of numbers such as (3, 11, 2).
"""

from dataclasses import dataclass

Version = tuple[int, ...]

OLDEST_PYTHON: Version = (3, 11)  # of the orchestrator


@dataclass(frozen=True)
class Python:
    """An interpreter. `module`: what must be loaded for it, then there is no path and nothing more is known of it."""

    path: str
    version: Version
    module: str = ""
    venv: bool = True  # it has venv and ensurepip; Debian's has not without python3-venv
    whole: bool = True  # ssl, sqlite3 and ctypes can be imported

    @property
    def usable(self) -> bool:
        """The orchestrator runs under it; `venv` says whether a virtual environment can be made without uv."""
        return self.version >= OLDEST_PYTHON and self.whole


@dataclass(frozen=True)
class Program:
    """`version` is the program's own words, such as "apptainer version 1.3.6". `works`: it did what it was asked."""

    name: str
    path: str
    version: str = ""
    works: bool = True


@dataclass(frozen=True)
class Index:
    """The package index that pip uses here, without credentials. `words`: an HTTP status, or what went wrong."""

    url: str
    reachable: bool
    words: str


@dataclass(frozen=True)
class Gpus:
    """GPUs of one type in a node of a partition, the most there are. `type` is "" where Slurm has none."""

    type: str
    per_node: int


@dataclass(frozen=True)
class Partition:
    """As `sinfo` shows it to this user. `states`: node state → nodes, such as {"idle": 3} as pairs."""

    name: str
    default: bool = False
    up: bool = True
    max_minutes: int | None = None  # None: unlimited, or not told
    nodes: int = 0
    states: tuple[tuple[str, int], ...] = ()
    gpus: tuple[Gpus, ...] = ()
    cpus_per_node: int | None = None
    memory_per_node: int | None = None
    features: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()  # that may use it; (): all
    denied_accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()  # that may be used in it; (): all
    groups: tuple[str, ...] = ()  # of UNIX that may use it; (): all

    @property
    def usable_nodes(self) -> int:
        """Those that are neither down nor drained."""
        bad = ("down", "drain", "fail", "maint", "inval", "unknown", "planned_down")
        return sum(count for state, count in self.states if not state.startswith(bad))

    @property
    def gpus_per_node(self) -> int:
        """Of the nodes with the most."""
        return max((one.per_node for one in self.gpus), default=0)


@dataclass(frozen=True)
class Account:
    """What the user may charge. `partition`: "" where it counts for all."""

    name: str
    default: bool = False
    partition: str = ""
    qos: tuple[str, ...] = ()
    default_qos: str = ""


@dataclass(frozen=True)
class Qos:
    name: str
    max_minutes: int | None = None


@dataclass(frozen=True)
class Slurm:
    """`answers`: the controller did. `accounts_from`: the command that told of the accounts, "" when none did."""

    version: Version
    answers: bool
    cluster: str = ""
    partitions: tuple[Partition, ...] = ()
    accounts: tuple[Account, ...] = ()
    accounts_from: str = ""
    qos: tuple[Qos, ...] = ()
    accounting: bool | None = None  # jobs that have ended are found by sacct; None: nobody says
    enforced: tuple[str, ...] = ()  # AccountingStorageEnforce: "associations" means that a job needs an account
    select_type: str = ""  # "select/cons_tres" and the like
    words: str = ""  # why it does not answer


@dataclass(frozen=True)
class Modules:
    """`kind`: "lmod" or "environment-modules". `init`: the file that makes `module` known to a shell, "" if unknown.

    `names`: those that look like python, cuda, apptainer, singularity, vllm or uv, as `module load` takes them.
    """

    kind: str
    version: str
    init: str = ""
    names: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()  # known to `module spider` only: something else has to be loaded before them


@dataclass(frozen=True)
class Quota:
    """`limit`: soft where there is one, else hard; None: none. `of`: "user", "group x" or "project 17"."""

    of: str
    used: int
    limit: int | None
    files: int | None = None
    files_limit: int | None = None
    told_by: str = ""

    @property
    def free(self) -> int | None:
        return None if self.limit is None else max(0, self.limit - self.used)


@dataclass(frozen=True)
class Place:
    """A folder. `named`: the variable that names it ("$SCRATCH"), or why it was looked at. `role`: home, scratch or
    project. `type`: the file system's, such as nfs4, lustre, gpfs, ext4."""

    path: str
    role: str
    named: str
    writable: bool
    type: str = ""
    size: int | None = None
    free: int | None = None
    source: str = ""  # what is mounted, such as nfs01:/home
    mount: str = ""
    quotas: tuple[Quota, ...] = ()

    @property
    def shared(self) -> bool:
        """Of a type that several machines see; compute nodes among them, but that is not proven."""
        return self.type.lower().startswith(_SHARED)

    @property
    def room(self) -> int | None:
        """What may still be written: the least of what is free and what each quota leaves."""
        known = [size for size in (self.free, *(quota.free for quota in self.quotas)) if size is not None]
        return min(known, default=None)


_SHARED = ("nfs", "lustre", "gpfs", "mmfs", "beegfs", "ceph", "wekafs", "panfs", "pvfs", "orangefs", "glusterfs",
           "fuse.glusterfs", "afs", "smb", "cifs", "vast", "daos", "fuse.ceph", "gfs2", "ocfs2", "quobyte")  # fmt: skip


@dataclass(frozen=True)
class Sessions:
    """What becomes of a process when its user logs out. None: unknown."""

    systemd_user: bool = False  # `systemctl --user` works
    lingers: bool | None = None
    kills: bool | None = None  # logind's KillUserProcesses
    tmux: bool = False


@dataclass(frozen=True)
class Limits:
    """Of a process here; None: unlimited or unknown."""

    cpu_seconds: int | None = None
    processes: int | None = None
    open_files: int | None = None
    memory: int | None = None  # of one process (ulimit -v), or of all of the user's (cgroup), whichever is less


@dataclass(frozen=True)
class Installed:
    """A `sluice` that is there already. `version`: "" when it did not start."""

    path: str
    version: str


@dataclass(frozen=True)
class Process:
    """An orchestrator that has the state folder, or had it. `alive`: it runs on this machine; `elsewhere`: on another
    one, by a sign of life within two minutes."""

    host: str
    pid: int
    alive: bool
    elsewhere: bool


@dataclass(frozen=True)
class OwnJob:
    """The Slurm job that an orchestrator is, or was. `state`, `node`, `reason`: squeue's words, "" when it has ended.

    `holds`: the orchestrator in it has the state folder. `words`: why squeue does not say how it is, "" when it does.
    """

    id: str
    holds: bool
    state: str = ""
    node: str = ""
    reason: str = ""
    words: str = ""

    @property
    def waits(self) -> str:
        """What it waits for: "PENDING (Priority)"; "" for one that runs, has ended, or is not known."""
        return f"{self.state} ({self.reason})" if self.state not in ("", "RUNNING") else ""


@dataclass(frozen=True)
class Survey:
    """`trouble`: one sentence for each question that got no answer in time. `clock`: there, in seconds since 1970.

    `login_path`: the PATH of a login shell; where `needs_login_shell`, Slurm's commands are found by that one only.
    """

    host: str = ""
    user: str = ""
    home: str = ""
    shell: str = ""
    system: str = ""  # "Debian GNU/Linux 12 (bookworm)"
    machine: str = ""  # "x86_64"
    glibc: Version | None = None
    clock: int | None = None
    cpus: int | None = None
    login_path: str = ""
    needs_login_shell: bool = False
    groups: tuple[str, ...] = ()
    pythons: tuple[Python, ...] = ()
    uv: Program | None = None
    index: Index | None = None
    slurm: Slurm | None = None
    modules: Modules | None = None
    containers: tuple[Program, ...] = ()
    images: tuple[str, ...] = ()  # .sif files that look like vLLM's
    vllm: tuple[Program, ...] = ()
    gpus: tuple[str, ...] = ()  # of this machine, by nvidia-smi: "NVIDIA A100-SXM4-40GB, 40960 MiB"
    token_file: str = ""  # of Hugging Face
    places: tuple[Place, ...] = ()
    sessions: Sessions = Sessions()
    limits: Limits = Limits()
    installed: tuple[Installed, ...] = ()
    socket: str = ""  # of the orchestrator, where there is one in the state folder
    process: Process | None = None
    job: OwnJob | None = None  # instead of a process
    trouble: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """The output was not cut off, and came from the script."""
        return bool(self.user) and not any(line.startswith("the output") for line in self.trouble)
