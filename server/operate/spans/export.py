"""Where spans go: to a collector, in batches, from a thread of their own."""

import threading

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from megainfer import __version__
from server.operate.spans.requests import RequestSpans

QUEUE = 2048  # spans that wait for the collector; older ones are dropped for newer
BATCH = 512
BATCH_SECONDS = 1.0
POST_SECONDS = 5.0
CLOSING_SECONDS = 1.0


class SpanExport:
    """Sends spans to an OTLP collector over HTTP, as protobuf.

    Nothing that serves waits for the collector: spans that it doesn't take in time are lost, and
    the log says so.
    """

    def __init__(self, endpoint: str, model: str) -> None:
        """endpoint: the whole address, such as http://127.0.0.1:4318/v1/traces."""
        resource = Resource.create({"service.name": "megainfer", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint, timeout=POST_SECONDS),
                max_queue_size=QUEUE,
                schedule_delay_millis=BATCH_SECONDS * 1000,
                max_export_batch_size=BATCH,
                export_timeout_millis=POST_SECONDS * 1000,
            )
        )
        self.observer = RequestSpans(self._provider.get_tracer("megainfer", __version__), model)

    def close(self) -> None:
        """Send what is left, for a second at most."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSING_SECONDS)
