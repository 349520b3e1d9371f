"""Daphne, tuned, and the way of a request from the socket to a Django view and back.

master.py      what `manage.py serve` becomes: keeps N processes on one socket; slots.py workers.py sizes.py
__main__.py    python -m gateway.server: one of them
pulse.py       tells the master that it is ready, and that its event loop turns
books.py       what a process starts with and stops last
reactor.py     Twisted's asyncio reactor, without a logging context around every event
port.py        the listening socket: a few connections at a time, none above the limit (descriptors.py)
factory.py     the open connections, their number and time-outs
channel.py     a TCP connection: limits, time-outs, refusals, back-pressure   (Twisted's HTTPChannel); unsent.py
exchange.py    one request and its response as ASGI                            (Daphne's WebRequest)
daphne.py      listening, draining, stopping                                   (Daphne's Server)
lean.py        ASGI handler of the inference POSTs; Django's own serves the rest
observed.py    metrics and traces of the process
middleware.py  the same for the rest: request id, envelope, log line
pages.py       /health, /livez; readiness.py: /readyz and what it looks at
"""
