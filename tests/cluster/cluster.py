"""A real two-node Slurm cluster behind a real sshd, on one Linux machine, for the tests. Needs root; see install.sh.

    laptop ──── login (sshd, slurmctld) ──┬── switch ──┬── node1 (slurmd, 4 GPUs)
                                          └────────────┴── node2 (slurmd, 4 GPUs)

Each host, and the switch, is a network namespace with a name of this run; the machine's own namespace gets no
interface, route or address, so nothing can leave it. The file system is shared, as on a cluster. Everything about a run
follows from its id (`describe`), so that `down` needs nothing else and works for what a killed run left behind.

As a program: cluster.py up [--id ID] | down --id ID | down --all-stale | run --id ID HOST [--user] -- COMMAND...
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

HOSTS = ("laptop", "login", "node1", "node2")
NODES = ("node1", "node2")
GPUS = 4
ALIAS = "cluster"
PREFIX = "/tmp/sluice-cluster-"
RUN_ID = re.compile("[a-z0-9]{0,7}[a-wyz0-9]")
NETNS = Path("/run/netns")
LOCK = Path("/run/sluice-cluster.lock")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DAEMONS = ("slurmctld", "slurmd", "munged", "sshd")
PROGRAMS = (*DAEMONS, "sbatch", "ssh", "ssh-keygen", "ip", "nsenter", "unshare", "setpriv", "useradd")
SCATTERED = ("/tmp", "/var/tmp", "/dev/shm")
CLONE_NEWNET = 0x40000000

# What a command's first shell does in its own mount and UTS namespace: $1 is the host's name, $2 its /etc/hosts.
ENTER = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'

# Two nodes that claim more than there is (config_overrides), and no accounting.
SLURM_CONF = """\
ClusterName={cluster.user}
SlurmctldHost=login({login})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={cluster.root}/munge/socket
StateSaveLocation={cluster.root}/state
SlurmdSpoolDir={cluster.root}/spool-%n
SlurmctldPidFile={cluster.root}/state/slurmctld.pid
SlurmdPidFile={cluster.root}/spool-%n/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=2,bf_interval=2
MinJobAge={min_job_age}
KillWait={kill_wait}
InactiveLimit=0
OverTimeLimit=0
SlurmdTimeout={slurmd_timeout}
ReturnToService=2
MailProg=/bin/true
GresTypes=gpu
{nodes}PartitionName=gpu Nodes=node1,node2 Default=YES MaxTime=02:00:00 DefaultTime=00:10:00 State=UP
"""

# cgroup/v1 is named so that slurmd does not look for the machine's cgroups: with linuxproc it needs none.
CGROUP_CONF = "CgroupPlugin=cgroup/v1\n"

SSH_CONFIG = """\
Host {cluster.alias}
    HostName {cluster.hosts[login]}
    Port 22
    User {cluster.user}
    IdentityFile {laptop}/key
    IdentitiesOnly yes
    UserKnownHostsFile {laptop}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    UpdateHostKeys no
    BatchMode yes
    ConnectTimeout 10
"""

# For the user alone, with keys alone; its sessions find the cluster.
SSHD_CONFIG = """\
ListenAddress {cluster.hosts[login]}
Port 22
HostKey {host_key}
PidFile none
UsePAM no
UseDNS no
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile .ssh/authorized_keys
AllowUsers {cluster.user}
AllowTcpForwarding yes
LogLevel VERBOSE
AllowStreamLocalForwarding yes
PrintMotd no
PrintLastLog no
SetEnv SLURM_CONF={cluster.slurm_conf}
Subsystem sftp internal-sftp
"""

# Programs that this process started, by pid: they must be waited for, or they stay as zombies.
_children: dict[int, subprocess.Popen[bytes]] = {}

# The file descriptor of the machine's lock, while this process holds it.
_lock: list[int] = []


class ClusterError(Exception):
    """The cluster cannot be brought up, or did not do what was waited for."""


@dataclass(frozen=True)
class Cluster:
    """One run. `hosts` maps a host's name to its address; the login node's is the one that the laptop sees.

    `user` is an ordinary user without a password, home `home` (0700), who may log in with the key that `ssh_config`
    names for the host `alias`; `other` is a second one, with the home `other_home`, who may not.
    """

    id: str
    root: Path
    hosts: Mapping[str, str]
    user: str
    home: Path
    other: str
    other_home: Path
    ssh_config: Path
    slurm_conf: Path
    alias: str = ALIAS

    def netns(self, host: str) -> Path:
        """The file of a host's network namespace; `switch` is one too."""
        return NETNS / f"sg-{self.id}-{host}"

    def environment(self, user: str | None) -> dict[str, str]:
        """What a command sees: a clean environment for an ordinary user, ours for root; both know the cluster."""
        here = {"SLURM_CONF": str(self.slurm_conf)}
        if user is None:
            return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{PATH}", **here}
        home = str(self.home if user == self.user else self.other_home)
        person = {"HOME": home, "USER": user, "LOGNAME": user, "SHELL": "/bin/bash"}
        return {**person, "PATH": PATH, "LANG": "C.UTF-8", **here}

    def command(self, host: str, argv: Sequence[str], user: str | None = None) -> list[str]:
        """The command line that runs `argv` on a host, in mount and UTS namespaces of its own that go with it.

        Not `ip netns exec`: it remounts /sys, and then slurmd finds no cgroups.
        """
        enter = ["nsenter", f"--net={self.netns(host)}", "unshare", "-m", "-u", "/bin/sh", "-c", ENTER, "sh"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"] if user else []
        return [*enter, host, str(self.root / "etc-hosts"), *become, *argv]

    def popen(
        self,
        host: str,
        argv: Sequence[str],
        *,
        user: bool | str = False,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command on a host, in a session of its own; its pid is the command's own.

        `user`: False is root, True the cluster's user (in their home, unless `cwd`), a string the user of that name.
        """
        name = self.user if user is True else user or None
        if cwd is None and name:
            cwd = self.home if name == self.user else self.other_home
        return subprocess.Popen(
            self.command(host, argv, name),
            env={**self.environment(name), **(env or {})},
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        user: bool | str = False,
        timeout: float = 30,
        check: bool = False,
        input: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end; with `check`, a failure is a ClusterError with what it printed."""
        pipe = subprocess.PIPE
        process = self.popen(host, argv, user=user, env=env, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe)
        try:
            out, err = process.communicate(input.encode(), timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        done = subprocess.CompletedProcess(
            list(argv), process.returncode, out.decode(errors="replace"), err.decode(errors="replace")
        )
        if check and done.returncode:
            raise ClusterError(f"{host}: {argv} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def ssh(self, *argv: str, timeout: float = 30, input: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command on login as the user, from the laptop, with the system's ssh. The user's shell parses it."""
        return self.run("laptop", ["ssh", "-F", str(self.ssh_config), self.alias, *argv], timeout=timeout, input=input)

    def squeue(self) -> str:
        """All jobs that Slurm still knows, a line each: id|name|state|reason|nodes|user."""
        return self.run("login", ["squeue", "-a", "-t", "all", "-h", "-o", "%i|%j|%T|%r|%N|%u"], check=True).stdout

    def stop_controller(self, *, crash: bool = False) -> None:
        """End slurmctld: in order, or (`crash`) with SIGKILL. Jobs go on; Slurm's commands fail after about 9 s."""
        end(read_pid(self, "slurmctld"), signal.SIGKILL if crash else signal.SIGTERM)

    def start_controller(self) -> None:
        """Start slurmctld again with the state it had, and wait until it answers."""
        start(self, "slurmctld", "login", ["slurmctld", "-D", "-f", str(self.slurm_conf)])
        wait_for(lambda: controller_answers(self), "slurmctld answers", self)

    def pids(self) -> list[int]:
        """The processes that live on the hosts now: daemons, sessions, jobs; without the caller and its parents."""
        return sorted(pid for pid, _ in residents(self))

    def log(self, name: str) -> Path:
        """The log of a daemon: munged, slurmctld, sshd, slurmd-node1, slurmd-node2."""
        return self.root / "log" / f"{name}.log"


def describe(run_id: str) -> Cluster:
    """Everything about a run follows from its id: 1 to 8 lower-case letters or digits.

    The last one is not x: that would be another run's second user.
    """
    if not RUN_ID.fullmatch(run_id):
        raise ClusterError(f"not a run id (1 to 8 of a-z and 0-9, the last not x): {run_id!r}")
    root = Path(PREFIX + run_id)
    digest = hashlib.sha256(run_id.encode()).digest()
    net = f"10.{64 + digest[0] % 64}.{digest[1]}"
    hosts = {"laptop": f"{net}.130", "login": f"{net}.129", "node1": f"{net}.11", "node2": f"{net}.12"}
    return Cluster(
        id=run_id,
        root=root,
        hosts=hosts,
        user=f"sg{run_id}",
        home=root / "home",
        other=f"sg{run_id}x",
        other_home=root / "home-other",
        ssh_config=root / "laptop" / "ssh_config",
        slurm_conf=root / "etc" / "slurm.conf",
    )


def login_inside(cluster: Cluster) -> str:
    """The login node's address on the cluster's own network, which the laptop cannot reach."""
    return cluster.hosts["node1"].rpartition(".")[0] + ".1"


def missing() -> str | None:
    """Why no cluster can come up here, or None when one can."""
    if sys.platform != "linux":
        return "not Linux"
    if os.geteuid() != 0:
        return "not root"
    absent = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    if absent:
        return f"not installed: {', '.join(absent)} (tests/cluster/install.sh installs them)"
    tried = subprocess.run(["unshare", "-n", "-m", "-u", "true"], capture_output=True, text=True, timeout=10)
    return f"no new namespaces: {tried.stderr.strip()}" if tried.returncode else None


def call(*argv: str, input: str = "", timeout: float = 30) -> str:
    """Run a command of the machine itself; a failure is a ClusterError.

    It inherits the machine's lock where its caller has it: when the caller is killed, others wait for its end.
    """
    environment = {**os.environ, "PATH": PATH, "LC_ALL": "C"}
    done = subprocess.run(
        argv, input=input, capture_output=True, text=True, timeout=timeout, env=environment, pass_fds=_lock
    )
    if done.returncode:
        raise ClusterError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
    return done.stdout


def account(*argv: str, timeout: float = 30) -> None:
    """Run useradd or userdel, again while another program holds the lock of /etc/passwd.

    A killed one's lock counts as held until its parent has taken note of its end.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            call(*argv)
            return
        except ClusterError as error:
            if "cannot lock" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def wait_for(true: Callable[[], bool], what: str, cluster: Cluster, timeout: float = 20) -> None:
    """Ask again and again; after the timeout, a ClusterError with the end of each daemon's log."""
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            tails = [
                f"--- {log.name}\n{log.read_text(errors='replace')[-1000:]}"
                for log in sorted(cluster.root.glob("log/*"))
            ]
            raise ClusterError(f"not after {timeout} s: {what}\n" + "\n".join(tails))
        time.sleep(0.05)


@contextmanager
def machine_lock(timeout: float = 60) -> Iterator[None]:
    """One run at a time adds or removes users and namespaces: useradd fails when another one holds its lock."""
    with LOCK.open("a") as file:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ClusterError(f"{LOCK} stays locked") from None
                time.sleep(0.02)
        _lock.append(file.fileno())
        try:
            yield
        finally:
            _lock.remove(file.fileno())


# Processes


def started_at(pid: int) -> str:
    """When a process started, in clock ticks: with its pid, its identity. Empty when it is gone, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def start(cluster: Cluster, name: str, host: str, argv: Sequence[str]) -> None:
    """Start a daemon in the foreground, its output in its log, and write down its pid and start time."""
    with cluster.log(name).open("ab") as log:
        process = cluster.popen(host, argv, stdout=log.fileno(), stderr=log.fileno(), cwd=cluster.root)
    _children[process.pid] = process
    (cluster.root / "pids" / name).write_text(f"{process.pid} {started_at(process.pid)}")


def read_pid(cluster: Cluster, name: str) -> int:
    """The pid of a daemon that `start` started and that still runs; a ClusterError when it does not."""
    pid, _, when = (cluster.root / "pids" / name).read_text().partition(" ")
    if not when or started_at(int(pid)) != when:
        raise ClusterError(f"{name} does not run")
    return int(pid)


def end(pid: int, number: signal.Signals, timeout: float = 20) -> None:
    """Signal a process and wait until it is gone."""
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, number)
    finally:
        os.close(handle)
    deadline = time.monotonic() + timeout
    while started_at(pid):
        if time.monotonic() > deadline:
            raise ClusterError(f"process {pid} does not end")
        time.sleep(0.02)
    reap()


def reap() -> None:
    """Take note of our daemons that have ended."""
    for pid, process in list(_children.items()):
        if process.poll() is not None:
            del _children[pid]


def lineage() -> set[int]:
    """This process and all above it: a test runner inside a laptop's namespace must not end itself."""
    pid, found = os.getpid(), set()
    while pid > 0:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def residents(cluster: Cluster) -> list[tuple[int, int]]:
    """(pid, inode of its network namespace) for each process on the run's hosts, but for the caller and its parents."""
    ours = set()
    for host in (*HOSTS, "switch"):
        if cluster.netns(host).exists():
            ours.add(cluster.netns(host).stat().st_ino)
    pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()} - lineage()
    return [(pid, inode) for pid in pids if (inode := network_of(pid)) in ours]


def network_of(pid: int) -> int:
    """The inode of a process's network namespace; 0 when it is gone."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except (FileNotFoundError, ProcessLookupError):
        return 0


def kill(pid: int, network: int) -> None:
    """SIGKILL for a process that is still in this network namespace: the pid may have been given to another one."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if network_of(pid) == network:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


def kill_residents(cluster: Cluster, timeout: float = 15) -> None:
    """End all processes on the run's hosts, again and again until no new one shows up."""
    deadline = time.monotonic() + timeout
    while found := residents(cluster):
        if time.monotonic() > deadline:
            raise ClusterError(f"processes of run {cluster.id} do not end: {found}")
        for pid, network in found:
            kill(pid, network)
        reap()
        time.sleep(0.02)
    reap()


# Up


def up(
    run_id: str | None = None,
    *,
    min_job_age: int = 60,
    kill_wait: int = 3,
    slurmd_timeout: int = 300,
    kept: bool = False,
) -> Cluster:
    """Bring a cluster up and return it when both nodes are idle; on a failure, take it down again.

    `min_job_age`, `kill_wait` and `slurmd_timeout` are Slurm's MinJobAge (how long an ended job is remembered),
    KillWait and SlurmdTimeout (after how long a silent node is down), in seconds.
    The run belongs to this process, and counts as stale when that ends without `down`; unless it is `kept`.
    """
    if reason := missing():
        raise ClusterError(f"no cluster here: {reason}")
    cluster = describe(run_id or secrets.token_hex(3))
    with machine_lock():
        for stale in stale_runs():
            remove(stale)
        if cluster.root.exists():
            raise ClusterError(f"run {cluster.id} is up already, or its leftovers are (down --id {cluster.id})")
        claim(cluster)
    with ExitStack() as undo:
        undo.callback(down, cluster)
        with machine_lock():
            add_users(cluster)
            add_network(cluster)
        write_files(cluster, min_job_age=min_job_age, kill_wait=kill_wait, slurmd_timeout=slurmd_timeout)
        start_daemons(cluster)
        undo.pop_all()
    if kept:
        with machine_lock():
            (cluster.root / "owner").write_text("kept")
    return cluster


def claim(cluster: Cluster) -> None:
    """Make the run's folders, first of all the note of which process it belongs to."""
    cluster.root.mkdir(mode=0o755)
    cluster.root.chmod(0o755)
    (cluster.root / "owner").write_text(f"{os.getpid()} {started_at(os.getpid())}")
    for name in ("etc", "log", "pids", "munge", "state", "spool-node1", "spool-node2", "dev"):
        (cluster.root / name).mkdir(mode=0o755)
    for name in ("secret", "laptop"):
        (cluster.root / name).mkdir(mode=0o700)


def add_users(cluster: Cluster) -> None:
    """The two ordinary users: '*' is no password but, unlike '!', no locked account for sshd either."""
    for name, home in ((cluster.user, cluster.home), (cluster.other, cluster.other_home)):
        account("useradd", "-M", "-U", "-p", "*", "-s", "/bin/bash", "-d", str(home), name)
        entry = pwd.getpwnam(name)
        home.mkdir(mode=0o700)
        os.chown(home, entry.pw_uid, entry.pw_gid)


def add_network(cluster: Cluster) -> None:
    """The namespaces and their links: laptop to login; login and the nodes to a bridge in the switch's namespace."""
    name = {host: cluster.netns(host).name for host in (*HOSTS, "switch")}
    tag, inner = f"sg{cluster.id}", {"login": login_inside(cluster), **{node: cluster.hosts[node] for node in NODES}}
    ip(None, [f"netns add {one}" for one in name.values()])
    ip("switch", [f"link add {tag}-br type bridge", f"link set {tag}-br up"], cluster)
    for number, host in enumerate(inner):
        port = f"{tag}-p{number}"
        ip("switch", [f"link add {port} type veth peer name {tag}-in netns {name[host]}"], cluster)
        ip("switch", [f"link set {port} master {tag}-br", f"link set {port} up"], cluster)
    ip("login", [f"link add {tag}-out type veth peer name {tag}-out netns {name['laptop']}"], cluster)
    for host in HOSTS:
        off = "for f in /proc/sys/net/ipv4/ip_forward; do [ $(cat $f) = 0 ] || echo 0 >$f; done"
        call("nsenter", f"--net={cluster.netns(host)}", "sh", "-c", off)
        lines = ["link set lo up"]
        if host in inner:
            lines += [f"addr add {inner[host]}/25 dev {tag}-in", f"link set {tag}-in up"]
        if host in ("laptop", "login"):
            lines += [f"addr add {cluster.hosts[host]}/25 dev {tag}-out", f"link set {tag}-out up"]
        ip(host, lines, cluster)


def ip(host: str | None, lines: Sequence[str], cluster: Cluster | None = None) -> None:
    """Run `ip` commands in a host's namespace, or the machine's own."""
    where = ["-n", cluster.netns(host).name] if cluster and host else []
    call("ip", *where, "-batch", "-", input="\n".join(lines) + "\n")


def write_files(cluster: Cluster, **timing: int) -> None:
    """Keys, configuration and device files. `timing`: what `up` is told of Slurm's."""
    hosts = {**cluster.hosts, "login": login_inside(cluster)}
    names = "".join(f"{address} {host}\n" for host, address in hosts.items())
    (cluster.root / "etc-hosts").write_text(f"127.0.0.1 localhost\n{names}")
    for node in NODES:
        (cluster.root / "dev" / node).mkdir()
        for number in range(GPUS):
            # Slurm wants character devices: with plain files the node is invalid. These are /dev/null's numbers.
            os.mknod(cluster.root / "dev" / node / f"nvidia{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (cluster.root / "secret" / "munge.key").write_bytes(secrets.token_bytes(128))
    (cluster.root / "secret" / "munge.key").chmod(0o600)
    write_slurm_conf(cluster, timing)
    write_ssh(cluster)


def write_slurm_conf(cluster: Cluster, timing: Mapping[str, int]) -> None:
    """slurm.conf, gres.conf and cgroup.conf: two nodes with 16 CPUs, 400 GB and 4 GPUs each."""
    etc = cluster.root / "etc"
    size = f"CPUs=16 RealMemory=400000 Gres=gpu:{GPUS}"
    lines = [f"NodeName={node} NodeHostname={node} NodeAddr={cluster.hosts[node]} {size}\n" for node in NODES]
    facts = {"cluster": cluster, "login": login_inside(cluster), "nodes": "".join(lines), **timing}
    (etc / "slurm.conf").write_text(SLURM_CONF.format(**facts))
    files = f"nvidia[0-{GPUS - 1}]"
    lines = [
        f"NodeName={node} Name=gpu Flags=nvidia_gpu_env File={cluster.root}/dev/{node}/{files}\n" for node in NODES
    ]
    (etc / "gres.conf").write_text("AutoDetect=off\n" + "".join(lines))
    (etc / "cgroup.conf").write_text(CGROUP_CONF)


def write_ssh(cluster: Cluster) -> None:
    """sshd's configuration and host key, and the laptop's folder: key, known_hosts, ssh_config."""
    root, laptop, address = cluster.root, cluster.root / "laptop", cluster.hosts["login"]
    host_key, client_key = root / "secret" / "host_key", laptop / "key"
    for key in (host_key, client_key):
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"sg{cluster.id}", "-f", str(key))
    entry = pwd.getpwnam(cluster.user)
    folder = cluster.home / ".ssh"
    folder.mkdir(mode=0o700)
    (folder / "authorized_keys").write_text(client_key.with_suffix(".pub").read_text())
    (folder / "authorized_keys").chmod(0o600)
    for path in (folder, folder / "authorized_keys"):
        os.chown(path, entry.pw_uid, entry.pw_gid)
    (laptop / "known_hosts").write_text(f"{address} {host_key.with_suffix('.pub').read_text()}")
    cluster.ssh_config.write_text(SSH_CONFIG.format(cluster=cluster, laptop=laptop))
    (root / "etc" / "sshd_config").write_text(SSHD_CONFIG.format(cluster=cluster, host_key=host_key))


def start_daemons(cluster: Cluster) -> None:
    """munged, slurmctld, sshd, and a slurmd on each node; returns when both nodes are idle and sshd listens."""
    root, conf = cluster.root, str(cluster.slurm_conf)
    sshd = shutil.which("sshd", path=PATH) or "sshd"
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd locks its unprivileged half in
    munged = ["munged", "--foreground", f"--socket={root}/munge/socket", f"--key-file={root}/secret/munge.key"]
    munged += [f"--{name}={root}/munge/{name}" for name in ("pid-file", "seed-file", "log-file")]
    start(cluster, "munged", "login", munged)
    start(cluster, "sshd", "login", [sshd, "-D", "-e", "-f", f"{root}/etc/sshd_config"])
    wait_for((root / "munge" / "socket").exists, "munged listens", cluster)
    start(cluster, "slurmctld", "login", ["slurmctld", "-D", "-c", "-f", conf])
    wait_for(lambda: controller_answers(cluster), "slurmctld answers", cluster)
    for node in NODES:
        start(cluster, f"slurmd-{node}", node, ["slurmd", "-D", "-N", node, "-f", conf])
    wait_for(lambda: node_states(cluster) == ["idle"] * len(NODES), "both nodes are idle", cluster)
    wait_for(lambda: login_listens(cluster, cluster.hosts["login"], 22), "sshd listens", cluster)


def node_states(cluster: Cluster) -> list[str]:
    """The nodes' states, in Slurm's words."""
    return cluster.run("login", ["sinfo", "-h", "-N", "-o", "%T"]).stdout.split()


def controller_answers(cluster: Cluster) -> bool:
    """Does slurmctld listen and answer? The port first: a client of a dead controller waits for seconds."""
    return (
        login_listens(cluster, login_inside(cluster), 6817)
        and cluster.run("login", ["scontrol", "ping"]).returncode == 0
    )


def login_listens(cluster: Cluster, address: str, port: int) -> bool:
    """Does the login node take connections on a port of one of its addresses?"""
    with namespace(cluster, "login"), socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex((address, port)) == 0


# Into a namespace


def set_network(handle: int) -> None:
    """Move the calling thread into a network namespace (os.setns is new in Python 3.12)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(handle, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def namespace(cluster: Cluster, host: str) -> Iterator[None]:
    """Move the calling thread onto a host's network, and back at the end.

    Sockets that it makes, and processes and threads that it starts meanwhile, are there and stay there; other threads
    are not, so no thread pool of before. Names are still the machine's own (/etc/hosts): use addresses.
    """
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        inside = os.open(cluster.netns(host), os.O_RDONLY | os.O_CLOEXEC)
        try:
            set_network(inside)
        finally:
            os.close(inside)
        try:
            yield
        finally:
            set_network(before)
    finally:
        os.close(before)


@contextmanager
def laptop_namespace(cluster: Cluster) -> Iterator[None]:
    """Move the calling thread onto the laptop's network, and back at the end; see `namespace`."""
    with namespace(cluster, "laptop"):
        yield


# Down


def stale_runs() -> list[Cluster]:
    """The runs whose owner has died, or that were kept and have no process left. Other users' folders are not ours."""
    found = []
    for root in Path(PREFIX).parent.glob(Path(PREFIX).name + "*"):
        run_id = str(root).removeprefix(PREFIX)
        if root.is_symlink() or not root.is_dir() or root.stat().st_uid != 0 or not RUN_ID.fullmatch(run_id):
            continue
        cluster = describe(run_id)
        owner = (root / "owner").read_text() if (root / "owner").exists() else ""
        pid, _, when = owner.partition(" ")
        alive = bool(residents(cluster)) if owner == "kept" else bool(when) and started_at(int(pid)) == when
        if not alive:
            found.append(cluster)
    return found


def down(cluster: Cluster) -> None:
    """Remove all of a run: processes, namespaces with their interfaces and mounts, users, files. Twice is fine."""
    with machine_lock():
        remove(cluster)


def remove(cluster: Cluster) -> None:
    """What `down` does, for a caller who holds the lock. The folder goes last: it is how leftovers are found."""
    kill_residents(cluster)
    for host in (*HOSTS, "switch"):
        if cluster.netns(host).exists():
            call("ip", "netns", "del", cluster.netns(host).name)
    for entry in pwd.getpwall():
        if entry.pw_name in (cluster.user, cluster.other):
            remove_scattered(entry.pw_uid)
            account("userdel", "-f", entry.pw_name)
    if cluster.root.exists():
        shutil.rmtree(cluster.root)


def remove_scattered(uid: int) -> None:
    """Remove what a user left in the shared folders for temporary files: the next run's user gets the same uid."""
    for folder in SCATTERED:
        for path in Path(folder).iterdir():
            try:
                owner = path.lstat().st_uid
            except FileNotFoundError:
                continue
            if owner == uid and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif owner == uid:
                path.unlink(missing_ok=True)


# As a program


def summary(cluster: Cluster) -> str:
    """The run as JSON."""
    fields = ("id", "root", "user", "home", "other", "other_home", "ssh_config", "slurm_conf", "alias")
    facts = {name: str(getattr(cluster, name)) for name in fields}
    return json.dumps({**facts, "hosts": dict(cluster.hosts), "pids": cluster.pids()}, indent=2)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="A Slurm cluster in network namespaces, for the tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    bring = commands.add_parser("up", help="bring one up, print it as JSON, and leave it up")
    bring.add_argument("--id")
    bring.add_argument("--min-job-age", type=int, default=60)
    take = commands.add_parser("down", help="remove all of it")
    which = take.add_mutually_exclusive_group(required=True)
    which.add_argument("--id")
    which.add_argument("--all-stale", action="store_true", help="what killed runs left behind")
    inside = commands.add_parser("run", help="run a command on a host: laptop, login, node1, node2")
    inside.add_argument("--id", required=True)
    inside.add_argument("--user", action="store_true", help="as the ordinary user, not as root")
    inside.add_argument("host", choices=HOSTS)
    inside.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    if os.geteuid() != 0:
        raise ClusterError("needs root")
    if options.command == "up":
        print(summary(up(options.id, min_job_age=options.min_job_age, kept=True)))
    elif options.command == "down" and options.all_stale:
        with machine_lock():
            for cluster in stale_runs():
                remove(cluster)
                print(f"removed {cluster.id}")
    elif options.command == "down":
        down(describe(options.id))
    else:
        user, words = options.user, list(options.argv)
        if words[:1] == ["--user"]:  # argparse gives all that follows the host to the command
            user, words = True, words[1:]
        words = words[1:] if words[:1] == ["--"] else words
        return describe(options.id).popen(options.host, words, user=user, stdin=None).wait()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ClusterError as error:
        sys.exit(f"cluster: {error}")
