"""Daphne, tuned, and the way of a request from the socket to a Django view and back.

reactor.py     Twisted's asyncio reactor, without a logging context around every event
channel.py     a TCP connection: limits, time-outs, refusals, back-pressure   (Twisted's HTTPChannel)
exchange.py    one request and its response as ASGI                            (Daphne's WebRequest)
daphne.py      listening, draining, stopping                                   (Daphne's Server)
lean.py        ASGI handler of the inference POSTs; Django's own serves the rest
observed.py    metrics and traces of the process
middleware.py  the same for the rest: request id, envelope, log line
health.py      /health, /livez, /readyz and what they look at
__main__.py    python -m gateway.server
"""
