"""What operators see: Prometheus' metrics, OpenTelemetry's traces. No tenant, key, prompt or answer is in either.

families.py    every metric there is: its name, labels, meaning
labels.py      which values a label may have, so that nobody outside can make new series
slots.py       a process's numbers: doubles in memory, or in a file that its neighbours read
gathering.py   the numbers of all processes, added up
exposition.py  as text for Prometheus
metrics.py     what the rest of the house calls: one function for each thing that happens
listener.py    /metrics on a port of its own
page.py        /metrics on the main port, with a token
spans.py       OpenTelemetry's spans and what is in them
traces.py      opens and sends them, if OTEL_EXPORTER_OTLP_ENDPOINT is set and the extra `otel` installed

Only page.py and checks.py import Django.
"""
