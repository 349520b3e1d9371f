"""The finance API: `GET /api/usage/` (JSON) and `GET /api/usage/export/` (CSV), for users with a token.

The same lines as `manage.py export_usage` and the admin's export, under the same names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiParameter,
    OpenApiResponse,
    PolymorphicProxySerializer,
    extend_schema,
    inline_serializer,
)
from rest_framework import serializers
from rest_framework.exceptions import APIException, NotFound, ValidationError
from rest_framework.generics import GenericAPIView
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param

from gateway.billing.rollups import LedgerFromElsewhere
from gateway.ledger.models import UsageRecord
from gateway.reports import day_lines, request_lines, snapshot
from gateway.reports.access import BooksView
from gateway.reports.asking import short_query
from gateway.reports.cursors import DayCursor, RequestCursor
from gateway.reports.filters import UsageFilter, asked_by
from gateway.reports.selection import BadSelection, Selection
from gateway.reports.serializers import DayLineSerializer, RequestLineSerializer
from gateway.reports.streaming import csv_response

DEFAULT_LIMIT, MAX_LIMIT = 100, 1000
QUERY_MS = 4_000

_PAGE = inline_serializer(
    "UsagePage",
    {
        "next": serializers.URLField(allow_null=True, help_text="the next page; null on the last"),
        "results": PolymorphicProxySerializer(
            component_name="UsageLine",
            serializers=[RequestLineSerializer, DayLineSerializer],
            resource_type_field_name=None,
            many=True,
        ),
    },
)


class BooksAway(APIException):
    """LedgerFromElsewhere, over HTTP."""

    status_code = 503
    default_code = "books_unavailable"


class UsageView(BooksView, GenericAPIView[Any]):
    """Usage line by line or summed by day, newest first, adjustments as lines of their own."""

    queryset = UsageRecord.objects.none()
    filterset_class = UsageFilter
    pagination_class = None

    @extend_schema(
        operation_id="listUsage",
        filters=True,
        parameters=[
            OpenApiParameter("limit", int, description=f"1 to {MAX_LIMIT}, default {DEFAULT_LIMIT}"),
            OpenApiParameter("cursor", str, description="from `next`"),
        ],
        responses={200: _PAGE},
    )
    def get(self, request: Request) -> Response:
        _, selection = asked_by(request)
        try:
            with short_query(QUERY_MS):
                lines, cursor = _page(selection, _limit(request), request.query_params.get("cursor", ""))
        except BadSelection as problem:
            raise ValidationError({problem.parameter: [str(problem)]}) from None
        except LedgerFromElsewhere as problem:
            raise BooksAway(str(problem)) from None
        here = request.build_absolute_uri()
        shape = RequestLineSerializer if selection.by == "request" else DayLineSerializer
        return Response(
            {
                "next": replace_query_param(here, "cursor", cursor) if cursor else None,
                "results": shape(lines, many=True).data,
            }
        )


class _AnswerAnyway(BaseContentNegotiation):
    """The answer is CSV and a refusal JSON, whatever `Accept` asks for."""

    def select_parser(self, request: Request, parsers: Sequence[object]) -> None:  # type: ignore[override]
        return None

    def select_renderer(  # type: ignore[override]
        self, request: Request, renderers: Sequence[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        return renderers[0], "application/json"


class UsageExportView(BooksView, GenericAPIView[Any]):
    """The same as a CSV file of any length, oldest first, with control totals (docs/finance.md)."""

    queryset = UsageRecord.objects.none()
    filterset_class = UsageFilter
    pagination_class = None
    http_method_names = ["get", "options"]  # a HEAD would make the whole file for nobody
    renderer_classes = [JSONRenderer]
    content_negotiation_class = _AnswerAnyway

    @extend_schema(
        operation_id="exportUsage",
        filters=True,
        responses={(200, "text/csv"): OpenApiResponse(OpenApiTypes.STR, description="UTF-8, comma, header line")},
    )
    def get(self, request: Request) -> StreamingHttpResponse:
        asked, _ = asked_by(request)
        try:
            return csv_response(asked)
        except LedgerFromElsewhere as problem:
            raise BooksAway(str(problem)) from None


class UnknownView(BooksView):
    """Everything else under /api/, in JSON like the rest."""

    name = "Finance API"

    @extend_schema(exclude=True)
    def get(self, request: Request) -> Response:
        raise NotFound("There is nothing here. The API is described under /api/schema/.")


def _page(
    selection: Selection, limit: int, cursor: str
) -> tuple[Sequence[request_lines.RequestLine | day_lines.DayLine], str]:
    """Lines, and the cursor of the next page or ""."""
    if selection.by == "day":
        days, more = day_lines.newest(
            selection, limit=limit, before=DayCursor.read(cursor).before if cursor else None
        )
        return days, DayCursor(more).text() if more else ""
    known = RequestCursor.read(cursor) if cursor else None
    seen = known.snapshot if known else snapshot.take()
    lines, goes_on = request_lines.newest(selection, seen, limit=limit, before=known.before if known else None)
    return lines, RequestCursor(seen, lines[-1].request_id).text() if goes_on else ""


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", str(DEFAULT_LIMIT))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_LIMIT:
        raise BadSelection("limit", f"{text!r} is not a whole number from 1 to {MAX_LIMIT}.")
    return int(text)
