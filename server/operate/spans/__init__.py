"""OpenTelemetry: a span for each request. Imported only where `--otlp-traces-endpoint` is given."""
