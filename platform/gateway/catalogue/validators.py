"""Form-level checks of the catalogue; `upstreams.addresses` has the rule and applies it again at each call."""

from __future__ import annotations

from django.conf import settings
from django.core.exceptions import ValidationError

from gateway.upstreams.addresses import AddressRefused, check_base_url


def validate_base_url(url: str) -> None:
    try:
        check_base_url(
            url,
            allow_private=settings.UPSTREAM_ALLOW_PRIVATE,
            allow_loopback=settings.UPSTREAM_ALLOW_LOOPBACK,
        )
    except AddressRefused as exc:
        raise ValidationError(str(exc)) from exc
