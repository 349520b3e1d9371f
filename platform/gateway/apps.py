"""Wires what must be wired once per process: logs, system checks, the rule for upstream addresses."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from django.apps import AppConfig
from django.conf import settings


class GatewayConfig(AppConfig):
    name = "gateway"
    label = "gateway"

    def ready(self) -> None:
        if find_spec("gateway.logs"):
            import_module("gateway.logs").configure()
        if find_spec("gateway.checks"):
            import_module("gateway.checks")
        if find_spec("gateway.upstreams.addresses"):
            import_module("gateway.upstreams.addresses").configure(
                allow_private=settings.UPSTREAM_ALLOW_PRIVATE, allow_loopback=settings.UPSTREAM_ALLOW_LOOPBACK
            )
