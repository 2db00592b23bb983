"""The way to the login node, as far as it goes without a login: the SSH configuration, names, the first port."""

import asyncio
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gateway.doctor.seen import Way
from gateway.settings import Settings

_SECONDS = 5.0  # for a name, and for a port


async def way(settings: Settings, alias: str) -> Way:
    """Never raises: what does not work is told."""
    found = await _configured(settings, alias)
    if found.trouble or found.by_command:
        return found
    return await _tried(found)


async def _configured(settings: Settings, alias: str) -> Way:
    import asyncssh  # a third of a second, only for those who have a cluster

    config = [str(settings.ssh_config)] if settings.ssh_config else _usual()
    try:
        options = await asyncssh.SSHClientConnectionOptions.construct(config=config, host=alias)
        jump = options.tunnel if isinstance(options.tunnel, str) else ""
        first, first_port = options.host or alias, options.port
        if jump:
            before = await _jump(config, jump.split(",")[0])
            first, first_port = before
    except (OSError, asyncssh.Error, ValueError) as exc:
        return Way(trouble=f"the SSH configuration for {alias} cannot be used: {exc}")
    return Way(
        host=options.host or alias,
        port=options.port,
        user=options.username,
        first=first,
        first_port=first_port,
        by_command=bool(options.proxy_command) and not jump,
    )


def _usual() -> Sequence[str]:
    """What asyncssh reads by itself: a path that is given must be there."""
    path = Path.home() / ".ssh" / "config"
    return [str(path)] if path.is_file() else []


async def _jump(config: Sequence[str], text: str) -> tuple[str, int]:
    """Host and port of a ProxyJump: [user@]host[:port], where the host may be a Host of the configuration too."""
    import asyncssh

    name, _, port = text.rpartition("@")[2].partition(":")
    options = await asyncssh.SSHClientConnectionOptions.construct(config=config, host=name)
    return options.host or name, int(port) if port.isdigit() else options.port


async def _tried(found: Way) -> Way:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_SECONDS):
            told = await loop.getaddrinfo(found.first, found.first_port, type=socket.SOCK_STREAM)
    except TimeoutError:
        return replace(found, no_address=f"no answer within {_SECONDS:g} s")
    except OSError as exc:
        return replace(found, no_address=exc.strerror or str(exc))
    addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in told))
    began = time.perf_counter()
    try:
        async with asyncio.timeout(_SECONDS):
            _, writer = await asyncio.open_connection(found.first, found.first_port)
    except TimeoutError:
        return replace(found, addresses=addresses, closed=f"no answer within {_SECONDS:g} s")
    except OSError as exc:
        return replace(found, addresses=addresses, closed=exc.strerror or str(exc))
    writer.transport.abort()
    return replace(found, addresses=addresses, milliseconds=(time.perf_counter() - began) * 1000)
