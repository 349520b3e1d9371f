"""What can be wrong with the settings of metrics and traces (ids in gateway.checks)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from gateway.telemetry import traces

SHORTEST_TOKEN = 16


@register(Tags.security)
def check_metrics(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    return [*_port(), *_token(), *_folder()]


@register(Tags.compatibility)
def check_traces(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    problem = traces.problem()
    if problem is None:
        return []
    message, hint = problem
    return [Warning(message, hint=hint, id="counterfoil.W032")]


def _port() -> Iterator[CheckMessage]:
    if settings.METRICS_PORT and settings.METRICS_PORT == settings.PORT:
        yield Error(
            f"METRICS_PORT is {settings.METRICS_PORT}, as PORT is.",
            hint="Choose another, such as 9464; or set METRICS_TOKEN instead, for /metrics on the main port.",
            id="counterfoil.E030",
        )


def _token() -> Iterator[CheckMessage]:
    token = settings.METRICS_TOKEN
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        yield Error(
            "METRICS_TOKEN cannot be sent in a header.",
            hint='Make one with `python -c "import secrets; print(secrets.token_urlsafe(32))"`.',
            id="counterfoil.E031",
        )
    elif token and len(token) < SHORTEST_TOKEN:
        yield Warning(
            f"METRICS_TOKEN has fewer than {SHORTEST_TOKEN} characters.",
            hint='Make one with `python -c "import secrets; print(secrets.token_urlsafe(32))"`.',
            id="counterfoil.W031",
        )


def _folder() -> Iterator[CheckMessage]:
    if not settings.METRICS_DIR:
        return
    folder = Path(settings.METRICS_DIR)
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        yield Error(
            f"METRICS_DIR {settings.METRICS_DIR!r} cannot be written.",
            hint="A folder of this machine that the web processes share; `manage.py serve` makes one by itself.",
            id="counterfoil.E032",
        )
