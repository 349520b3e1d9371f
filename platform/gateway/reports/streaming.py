"""A CSV download that is never in memory whole.

Under ASGI a sync iterator would be collected before the first byte is sent, so the pages come by an async one:
each is made in the request's thread when the client has taken the one before, and between two pages no
database connection is held, however slow the client is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from asgiref.sync import sync_to_async
from django.db import close_old_connections
from django.http import StreamingHttpResponse

from gateway.reports import csv_export
from gateway.reports.asking import Asked

BOM = b"\xef\xbb\xbf"


def csv_response(asked: Asked, *, for_excel: bool = False) -> StreamingHttpResponse:
    """Raises BadSelection and LedgerFromElsewhere here, before anything is sent.

    `for_excel` puts a byte order mark in front: Excel takes UTF-8 for its own code page without one.
    """
    chunks = csv_export.chunks(asked.selection(), described=asked.described())
    head = next(chunks)
    return StreamingHttpResponse(
        _pages(BOM + head if for_excel else head, chunks),
        content_type="text/csv; charset=utf-8",
        headers={
            "Content-Disposition": f'attachment; filename="{asked.filename()}"',
            "Cache-Control": "private, no-store",
            "X-Accel-Buffering": "no",
        },
    )


async def _pages(head: bytes, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    step = sync_to_async(_next)
    while (chunk := await step(chunks)) is not None:
        yield chunk


def _next(chunks: Iterator[bytes]) -> bytes | None:
    try:
        return next(chunks, None)
    finally:
        close_old_connections()
