"""`sluice orchestrator` = `python -m orchestrator`: serve on a UNIX socket until SIGTERM. Jobs go on running."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvicorn

from orchestrator.app import create_app, listener_of, store_of
from orchestrator.journal import open_journal
from orchestrator.keys import Keys
from orchestrator.limits import raise_open_files
from orchestrator.lock import held, this_process
from orchestrator.schedulers import Scheduler
from orchestrator.schedulers.local import Local
from orchestrator.schedulers.slurm import Slurm, clean_environment
from orchestrator.settings import Settings, SettingsError, read_settings
from orchestrator.wire.listener import bound

log = logging.getLogger("orchestrator")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sluice orchestrator", description=__doc__)
    parser.add_argument(
        "--config", type=Path, help="settings file (TOML); ORCHESTRATOR_* in the environment wins over it"
    )
    return serve(parser.parse_args(argv).config)


def serve(config: Path | None) -> int:
    """Run until SIGTERM or SIGINT; the exit status. What is wrong with the settings is said on stderr."""
    os.umask(0o077)
    raise_open_files()
    # uvicorn ends cleanly on SIGTERM and then raises the signal again, which would kill us before our own clean end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        settings = read_settings(config)
        with (
            _home(settings),
            _journal(settings),
            _listening(settings.socket_path) as listener,
            _reachable(settings) as further,
        ):
            asyncio.run(_prepared(settings))
            app = create_app(settings, scheduler_of(settings), lost=_end)
            server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    http=listener_of(app),  # type: ignore[arg-type] # it makes protocols, as their classes do
                    log_config=None,
                    access_log=False,
                    timeout_graceful_shutdown=5,
                    server_header=False,
                    date_header=False,
                    lifespan="on",
                )
            )
            places = " and ".join(filter(None, (str(settings.socket_path), settings.address)))
            log.info("listening on %s, scheduler %s", places, settings.scheduler)
            server.run(sockets=[listener, *further])
            return 0 if server.started else 1
    except SettingsError as exc:
        sys.stderr.write(f"sluice orchestrator: {exc}\n")
        return 2
    except KeyboardInterrupt:  # uvicorn has ended cleanly and raises the signal again
        return 130


async def _prepared(settings: Settings) -> None:
    """The database, made or migrated: here, where its errors can be said in a sentence."""
    async with store_of(settings):
        pass


@contextmanager
def _journal(settings: Settings) -> Iterator[None]:
    file = settings.home / "orchestrator.log"
    for chatty in ("httpx2", "uvicorn", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with ExitStack() as opened:
        try:
            opened.enter_context(open_journal(settings.log_level, settings.log_format, file, settings.log_megabytes))
        except OSError as exc:
            raise SettingsError(f"cannot write the log {file}: {exc}; see ORCHESTRATOR_HOME") from exc
        yield


def scheduler_of(settings: Settings) -> Scheduler:
    if settings.scheduler == "local":
        return Local(settings.home)
    environment = clean_environment(os.environ, settings.site.slurm_environment)
    return Slurm(timeout=settings.command_seconds, environment=environment)


@contextmanager
def _home(settings: Settings) -> Iterator[None]:
    """The state folder, private, held by one orchestrator at a time."""
    home, mine = settings.home, this_process(settings.job, settings.socket_path)
    with ExitStack() as stack:
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            home.chmod(0o700)
            stack.enter_context(held(home, mine, _end))
        except OSError as exc:
            raise SettingsError(f"cannot use the state folder {home}: {exc}; see ORCHESTRATOR_HOME") from exc
        yield


def _end(why: str) -> None:
    """Two must not follow the same jobs: the other one does now."""
    log.error("%s: this orchestrator ends", why)
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A UNIX socket of mode 0600. Bound here, because uvicorn would open its own to everybody."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        listener.listen(1024)
    except OSError as exc:
        listener.close()
        raise SettingsError(f"cannot listen on {path}: {exc}; see ORCHESTRATOR_SOCKET (at most 107 bytes)") from exc
    finally:
        os.umask(old)
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


@contextmanager
def _reachable(settings: Settings) -> Iterator[list[socket.socket]]:
    """The TCP port for jobs of the cluster, where there is to be one. Not without a key: nobody could use it."""
    if settings.host is None:
        yield []
        return
    keys = Keys(settings.keys_path)
    if keys.trouble or not keys.live:
        raise SettingsError(
            keys.trouble
            or f"ORCHESTRATOR_HOST={settings.host} opens a TCP port, for which every request needs a key, "
            "but there is none. Make one on this machine: sluice keys create jobs --orchestrator"
        )
    try:
        listener = bound(settings.host, settings.port)
    except OSError as exc:
        raise SettingsError(
            f"cannot listen on {settings.host} port {settings.port}: {exc.strerror or exc}; choose another one, for "
            f"example ORCHESTRATOR_PORT={settings.port + 1}, or leave ORCHESTRATOR_HOST away"
        ) from exc
    with listener:
        yield [listener]


def _remove_stale(path: Path) -> None:
    """Remove the socket of an orchestrator that was killed. Anything else stays, and bind() says that it is there."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
