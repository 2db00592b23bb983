"""Whether requests are traced: by `orchestrator.spans`, which needs the extra `otel` and is imported only then."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.settings import traces_wanted
from orchestrator.wire import Around, Handle

log = logging.getLogger(__name__)


def untraced(handle: Handle) -> Handle:
    return handle


@asynccontextmanager
async def open_tracing(name: str) -> AsyncIterator[Around]:
    """What puts a span around each request, where that is wanted. What has not been sent by the end is sent then.

    `name`: of the process, where OTEL_SERVICE_NAME says nothing else.
    """
    if not traces_wanted():
        yield untraced
        return
    try:
        from orchestrator import spans  # OpenTelemetry is installed only where it is wanted
    except ImportError as exc:
        # Not an end: the variables are often set for all programs of a machine.
        log.warning(
            "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, but there will be none (%s); "
            "install what they need with: pip install 'sluicegate[otel]'",
            exc,
        )
        yield untraced
        return
    async with spans.exported(name) as traced:
        yield traced
