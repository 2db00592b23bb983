"""A private sshd on loopback with its own keys: the real one, since its words and its delays are what is tested."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import asyncssh

BINARY = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")


class Sshd:
    """Runs from `start` to `stop`. `home` is $HOME in its sessions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(mode=0o700)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("host", "other", "user"):
            key = asyncssh.generate_private_key("ssh-ed25519")
            key.write_private_key(folder / name)
            (folder / name).chmod(0o600)
            key.write_public_key(folder / f"{name}.pub")
        shutil.copy(folder / "user.pub", folder / "authorized")

    def start(self, *more: str) -> None:
        """With further lines of sshd_config. Returns when the port answers."""
        lines = [
            f"ListenAddress 127.0.0.1:{self.port}", f"HostKey {self.folder}/host", "UsePAM no", "StrictModes no",
            f"AuthorizedKeysFile {self.folder}/authorized", f"PidFile {self.folder}/pid", "PermitRootLogin yes",
            "PasswordAuthentication no", "KbdInteractiveAuthentication no", f"SetEnv HOME={self.home}", *more,
        ]  # fmt: skip
        (self.folder / "sshd_config").write_text("\n".join(lines) + "\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd as root wants to separate its privileges
        assert BINARY is not None
        log = (self.folder / "log").open("ab")
        with log:
            command = [BINARY, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        while self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self) -> None:
        if self._process is not None:
            self.kill_sessions()
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    @property
    def pid(self) -> int:
        """Of the process that listens."""
        assert self._process is not None
        return self._process.pid

    def sessions(self) -> list[int]:
        """The processes of the connections that are open."""
        return [int(child) for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def kill_sessions(self) -> None:
        for pid in self.sessions():
            os.kill(pid, signal.SIGKILL)

    def configure(self, folder: Path, *, known: str = "host", key: str = "user") -> Path:
        """An ssh_config in `folder` that has this sshd as `login`. `known`: the key in known_hosts, "" for none."""
        known_key = (self.folder / f"{known}.pub").read_text() if known else ""
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {known_key}" if known else "")
        lines = [
            "Host login", "HostName 127.0.0.1", f"Port {self.port}", f"User {getpass.getuser()}",
            f"IdentityFile {self.folder}/{key}", "IdentitiesOnly yes", f"UserKnownHostsFile {folder}/known_hosts",
        ]  # fmt: skip
        (folder / "ssh_config").write_text("\n".join(lines) + "\n")
        return folder / "ssh_config"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
