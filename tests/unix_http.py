"""`requests` through a UNIX socket, for tools that speak nothing else."""

import socket
from pathlib import Path
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool


class UnixAdapter(HTTPAdapter):
    """To be mounted on a session: every request goes to the socket at `path`, whatever its URL says."""

    def __init__(self, path: Path) -> None:
        super().__init__()

        class Connection(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                connection.connect(str(path))
                return connection

        class Pool(HTTPConnectionPool):
            ConnectionCls = Connection

        self._pool = Pool("orchestrator", maxsize=4)

    def get_connection_with_tls_context(self, *request: Any, **more: Any) -> HTTPConnectionPool:
        return self._pool

    def close(self) -> None:
        super().close()
        self._pool.close()
