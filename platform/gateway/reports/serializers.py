"""Report lines as JSON, under the names of the CSV's columns. Amounts are exact decimal strings."""

from __future__ import annotations

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from gateway.catalogue.pricing import format_amount


@extend_schema_field({"type": "string", "format": "decimal", "example": "0.000495"})
class AmountField(serializers.Field):  # type: ignore[type-arg]
    """Nano-units as a decimal string; null where there is no price."""

    def to_representation(self, value: int) -> str:
        return format_amount(value)


class LineSerializer(serializers.Serializer):  # type: ignore[type-arg]
    """What a line per request and a line per day have in common."""

    line = serializers.ChoiceField(choices=["usage", "adjustment"])
    kind = serializers.CharField(help_text="of an adjustment; empty for usage")
    local_date = serializers.DateField(help_text="the tenant's day in which the request started")
    tenant = serializers.CharField()
    key_id = serializers.CharField()
    key_name = serializers.CharField()
    model = serializers.CharField()
    requests = serializers.IntegerField()
    errors = serializers.IntegerField(  # type: ignore[assignment]  # DRF takes declared fields off the class
        help_text="failed, interrupted or unknown"
    )
    unpriced = serializers.IntegerField(help_text="requests without a price yet: their charge is not in `charge`")
    input_tokens = serializers.IntegerField(help_text="without cached input")
    cached_input_tokens = serializers.IntegerField()
    cache_write_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField(help_text="without reasoning")
    reasoning_tokens = serializers.IntegerField()
    total_tokens = serializers.IntegerField()
    charge_currency = serializers.CharField()
    charge = AmountField(allow_null=True)
    cost_currency = serializers.CharField()
    cost = AmountField(allow_null=True)


class RequestLineSerializer(LineSerializer):
    request_id = serializers.SerializerMethodField(help_text="the x-request-id")
    started_at = serializers.DateTimeField()
    booked_at = serializers.DateTimeField()
    status = serializers.CharField()
    estimated = serializers.BooleanField(allow_null=True)
    http_status = serializers.IntegerField(allow_null=True)
    error_code = serializers.CharField()
    endpoint = serializers.CharField()
    stream = serializers.BooleanField(allow_null=True)
    provider = serializers.CharField()
    client_request_id = serializers.CharField()
    end_user = serializers.CharField()
    reason = serializers.CharField()
    served_model = serializers.CharField(help_text="which model answered, if it was not `model`")

    def get_request_id(self, line: object) -> str:
        return "req_" + str(line.request_id.hex)  # type: ignore[attr-defined]


class DayLineSerializer(LineSerializer):
    adjustments = serializers.IntegerField(help_text="how many adjustments an adjustment line sums")
