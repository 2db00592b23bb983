"""`python -m gateway`: serve until a signal. Messages go to stderr."""

import argparse
import errno
import logging
import os
import socket
import sys
from pathlib import Path

import uvicorn

from gateway.app import create_app, listener_of
from gateway.settings import Settings, SettingsError, read_settings
from orchestrator.journal import open_journal
from orchestrator.limits import raise_open_files
from orchestrator.wire.listener import bound

log = logging.getLogger("gateway")

_GRACE_SECONDS = 5  # that running answers get to end after a signal


class PortError(Exception):
    """The address cannot be listened on; the text says what to choose instead."""


def main(argv: list[str] | None = None) -> int:
    """Parse `argv` (default: the process's) and serve. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gateway", description="Serve the gateway on this machine.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file; GATEWAY_* in the environment wins")
    return serve(parser.parse_args(argv).config)


def serve(config: Path | None) -> int:
    """Serve until SIGTERM or SIGINT. Returns 1, after one message on stderr, when it cannot start."""
    try:
        settings = read_settings(config)
        listener = listen(settings)
    except (SettingsError, PortError) as exc:
        sys.stderr.write(f"sluice gateway: {exc}\n")
        return 2 if isinstance(exc, SettingsError) else 1  # a port may be free later
    os.umask(0o077)
    raise_open_files()
    with listener, open_journal(settings.log_level, settings.log_format):
        return _serve(settings, listener)


def _serve(settings: Settings, listener: socket.socket) -> int:
    for noisy in ("httpx2", "httpcore2", "asyncssh"):  # one line for each request, or for each SSH channel
        logging.getLogger(noisy).setLevel(logging.DEBUG if settings.log_level == "debug" else logging.WARNING)
    host, port = listener.getsockname()[:2]
    log.info("http://%s:%s leads to %s", f"[{host}]" if ":" in host else host, port, settings.cluster or "this machine")
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            http=listener_of(settings),  # type: ignore[arg-type] # it makes protocols, as their classes do
            log_config=None,
            access_log=settings.log_level == "debug",
            ws="none",
            server_header=False,  # the relayed answer's own Server and Date are passed on
            date_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises the signal again after its clean end
        return 0
    return 0 if server.started else 1


def listen(settings: Settings) -> socket.socket:
    """A socket bound to the address of the settings; raises PortError."""
    try:
        return bound(settings.host, settings.port)
    except OSError as exc:
        raise PortError(_why_not(exc, settings)) from exc


def _why_not(exc: OSError, settings: Settings) -> str:
    if exc.errno == errno.EADDRINUSE:
        return (
            f"port {settings.port} on {settings.host} is taken, perhaps by another gateway; choose another one, for "
            f"example GATEWAY_PORT={settings.port + 1}, or `port = {settings.port + 1}` in the settings file"
        )
    return f"cannot listen on {settings.host} port {settings.port} ({exc.strerror}); set GATEWAY_HOST and GATEWAY_PORT"


if __name__ == "__main__":
    sys.exit(main())
