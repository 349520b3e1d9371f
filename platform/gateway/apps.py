"""Wires what must be wired once per process: logs, system checks, the rule for upstream addresses."""

from __future__ import annotations

from importlib import import_module

from django.apps import AppConfig
from django.conf import settings

from gateway import logs
from gateway.telemetry import routes
from gateway.upstreams import addresses


class GatewayConfig(AppConfig):
    name = "gateway"
    label = "gateway"

    def ready(self) -> None:
        logs.configure()
        import_module("gateway.checks")
        import_module("gateway.telemetry.checks")
        # Upstreams know no Django, so the settings are handed to them.
        addresses.configure(
            allow_private=settings.UPSTREAM_ALLOW_PRIVATE, allow_loopback=settings.UPSTREAM_ALLOW_LOOPBACK
        )
        routes.configure(settings.API_PREFIX)  # as telemetry
