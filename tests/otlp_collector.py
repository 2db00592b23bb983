"""A collector of traces: takes OTLP over HTTP, and writes each span to stdout as a line of JSON.

    python -m tests.otlp_collector PORT

{"service", "name", "kind", "trace", "span", "parent", "state", "error", "attributes", "events"}; ids in hex, `error` is
the words of a status ERROR, None for any other. Needs opentelemetry-proto, which the extra `otel` brings.
"""

import gzip
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

PATH = "/v1/traces"


def spans_in(body: bytes) -> list[dict[str, Any]]:
    """All spans of a request, in its order."""
    found = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = values(resource.resource.attributes)["service.name"]
        found += [told(service, span) for scope in resource.scope_spans for span in scope.spans]
    return found


def told(service: str, span: Any) -> dict[str, Any]:
    return {
        "service": service,
        "name": span.name,
        "kind": Span.SpanKind.Name(span.kind),
        "trace": span.trace_id.hex(),
        "span": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "state": span.trace_state,
        "error": span.status.message if span.status.code == Status.STATUS_CODE_ERROR else None,
        "attributes": values(span.attributes),
        "events": [event.name for event in span.events],
    }


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


class Collector(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        for span in spans_in(body) if self.path == PATH else ():
            print(json.dumps(span), flush=True)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200 if self.path == PATH else 404)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: stdout is for spans."""


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Collector).serve_forever()
