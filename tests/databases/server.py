"""Debian's PostgreSQL, started as an ordinary user in a folder of its own. Only its UNIX socket can be reached."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

PASSWORD = "planted-p@ss"
# Whose name is `secretive` needs the password, everybody else comes in.
_WHO = "local all secretive scram-sha-256\nlocal all all trust\n"


def programs() -> Path | None:
    """The folder of the newest server that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[4]))
    return found[-1].parent if found else None


def missing() -> str | None:
    """Why no server can be started here, or None when one can."""
    return None if programs() else "not installed: postgresql (tests/cluster/install.sh installs it)"


class Server:
    def __init__(self, folder: Path, user: str | None) -> None:
        """`user`: whose processes they are; None: ours."""
        self.folder = folder
        self.data = folder / "data"
        self._as: dict[str, Any] = {}
        if user is not None:
            account = pwd.getpwnam(user)
            self._as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(folder, account.pw_uid, account.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def make(self) -> None:
        words = [f"--pgdata={self.data}", "--username=super", "--encoding=UTF8", "--no-locale", "--no-sync"]
        subprocess.run(
            [self._program("initdb"), *words], check=True, capture_output=True, timeout=60, cwd=self.folder, **self._as
        )
        (self.data / "pg_hba.conf").write_text(_WHO)

    def start(self) -> None:
        words = [f"--unix_socket_directories={self.folder}", "--listen_addresses=", "--fsync=off"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program("postgres"), "-D", str(self.data), *words],
                stdout=log, stderr=log, cwd=self.folder, **self._as,
            )  # fmt: skip
        self._until_it_answers()

    def _until_it_answers(self) -> None:
        asking = [self._program("pg_isready"), "--quiet", f"--host={self.folder}", "--dbname=postgres"]
        for _ in range(3000):
            assert self._process is not None and self._process.poll() is None, (self.folder / "log").read_text()
            if subprocess.run(asking, timeout=10).returncode == 0:
                return
        raise AssertionError((self.folder / "log").read_text())

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: sessions end at once. SIGQUIT: as in a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=30)
            self._process = None

    def signal_all(self, number: signal.Signals) -> None:
        """To the server and the processes of its sessions."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            os.kill(pid, number)

    @contextmanager
    def away(self, how: signal.Signals = signal.SIGINT) -> Iterator[None]:
        """Stopped for a while."""
        self.stop(how)
        try:
            yield
        finally:
            self.start()

    def database(self, more: str = "") -> str:
        """A new one; its URL."""
        self._databases += 1
        name = f"d{self._databases}"
        self.execute(f"CREATE DATABASE {name} {more}")
        return self.url(name)

    def emptied(self) -> str:
        """One that is used again and again, which takes less than a new one; its URL."""
        self.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'again'")
        if not self.execute("SELECT 1 FROM pg_database WHERE datname = 'again'"):
            self.execute("CREATE DATABASE again")
        self.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT ALL ON SCHEMA public TO PUBLIC", "again")
        return self.url("again")

    def url(self, database: str, user: str = "ordinary", password: str = "") -> str:
        return f"postgresql://{user}{password and ':' + password}@/{database}?host={self.folder}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """As the superuser."""
        return execute(self.url(database, "super"), statement)

    def make_users(self) -> None:
        self.execute("CREATE ROLE ordinary LOGIN; GRANT ordinary TO super")
        password = sql.Literal(PASSWORD).as_string()
        self.execute(f"CREATE ROLE secretive LOGIN PASSWORD {password}")
        # Databases are everybody's, as those are that a user was given.
        self.execute("GRANT ALL ON SCHEMA public TO PUBLIC", "template1")

    def _program(self, name: str) -> str:
        folder = programs()
        assert folder is not None
        return str(folder / name)


def execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        done = connection.execute(statement.encode())
        return done.fetchall() if done.description else []


@contextmanager
def running() -> Iterator[Server]:
    """A server that ends with the block. initdb refuses to be root."""
    folder = Path(tempfile.mkdtemp(prefix="sg-pg-"))
    server = Server(folder, "nobody" if os.geteuid() == 0 else None)
    try:
        server.make()
        server.start()
        server.make_users()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(folder)
