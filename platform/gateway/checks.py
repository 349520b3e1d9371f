"""What can be wrong with the settings, each with an id and a hint. `manage.py check`, and every server's start.

    counterfoil.E001  a value that cannot be read          counterfoil.W010  a key of API_KEYS is short or twice
    counterfoil.E002  secrets missing in production        counterfoil.W011  VALKEY_URL missing in production
    counterfoil.E003  FORMAT_ERROR_STATUS                  counterfoil.W012  one role owns and writes the ledger
    counterfoil.E004  ENCRYPTION_KEYS                      counterfoil.W013  DEFAULT_MODEL cannot be called
    counterfoil.E005  ALLOWED_HOSTS empty in production    counterfoil.W014  short KEY_PEPPER
    counterfoil.E006  CORS_ORIGINS
    counterfoil.E007  API_PREFIX
    counterfoil.E008  a stored credential cannot be read
    counterfoil.E030  METRICS_PORT (telemetry.checks)       counterfoil.W031  short METRICS_TOKEN
    counterfoil.E031  METRICS_TOKEN                         counterfoil.W032  traces are asked for and cannot be sent
    counterfoil.E032  METRICS_DIR

Those that ask the database run with `check --database default` only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from cryptography.fernet import Fernet
from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.models import Q

from gateway import environment

MAKE_FERNET_KEY = 'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
MAKE_SECRET = 'python -c "import secrets; print(secrets.token_urlsafe(48))"'
SHORTEST_API_KEY = 16
TAKEN = ("admin", "health", "livez", "metrics", "readyz", "static", "ws")
SHORTEST_PEPPER = 32


@register(Tags.security)
def check_environment(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    return [
        Error(f"{name}: {problem}.", hint="Correct it in the environment or in .env.", id="counterfoil.E001")
        for name, problem in environment.problems
    ]


@register(Tags.security)
def check_secrets(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    return list(_secrets())


def _secrets() -> Iterator[CheckMessage]:
    for name in settings.MISSING_SECRETS:
        make = MAKE_FERNET_KEY if name == "ENCRYPTION_KEYS" else MAKE_SECRET
        yield Error(
            f"{name} is not set, and with DATABASE_URL it is not made up.",
            hint=f"Make one with `{make}`, keep it safe, and give the same to every process.",
            id="counterfoil.E002",
        )
    for position, key in enumerate(settings.ENCRYPTION_KEYS, 1):
        try:
            Fernet(key)
        except ValueError:
            yield Error(
                f"ENCRYPTION_KEYS: number {position} is not a Fernet key.",
                hint=f"Make one with `{MAKE_FERNET_KEY}`. The first encrypts, all of them decrypt.",
                id="counterfoil.E004",
            )
    if settings.KEY_PEPPER and len(settings.KEY_PEPPER) < SHORTEST_PEPPER:
        yield Warning(
            f"KEY_PEPPER has fewer than {SHORTEST_PEPPER} characters.",
            hint=f"Make one with `{MAKE_SECRET}`. Changing it makes every API key invalid.",
            id="counterfoil.W014",
        )


@register(Tags.urls)
def check_wire(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    return list(_wire())


def _wire() -> Iterator[CheckMessage]:
    if settings.FORMAT_ERROR_STATUS not in (400, 422):
        yield Error(
            f"FORMAT_ERROR_STATUS is {settings.FORMAT_ERROR_STATUS}.",
            hint="400, as OpenAI answers malformed requests, or 422 for clients that expect it.",
            id="counterfoil.E003",
        )
    taken = settings.API_PREFIX.split("/")[1] in TAKEN
    if taken or not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", settings.API_PREFIX):
        yield Error(
            f"API_PREFIX {settings.API_PREFIX!r} is not a path such as /v1.",
            hint="Segments of letters, digits and . _ ~ -; the root, /health, /admin and /static are taken.",
            id="counterfoil.E007",
        )
    for origin in settings.CORS_ORIGINS:
        parts = urlsplit(origin)
        if origin != "*" and (parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query):
            yield Error(
                f"CORS_ORIGINS: {origin!r} is not an origin.",
                hint="Scheme, host and port only, such as https://app.example.com; or * for every site.",
                id="counterfoil.E006",
            )


@register(Tags.security)
def check_imported_keys(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Never shows a key: it says which one by its place."""
    found: list[CheckMessage] = []
    counts = Counter(settings.API_KEYS)
    for position, key in enumerate(settings.API_KEYS, 1):
        problem = f"has fewer than {SHORTEST_API_KEY} characters" if len(key) < SHORTEST_API_KEY else ""
        if counts[key] > 1:
            problem = "stands there more than once"
        if problem:
            found.append(
                Warning(
                    f"API_KEYS: number {position} {problem}.",
                    hint="Keys that can be guessed are no keys: manage.py issue_key makes good ones.",
                    id="counterfoil.W010",
                )
            )
    return found


@register(Tags.security)
def check_production(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if settings.PRODUCTION and not settings.ALLOWED_HOSTS:
        return [
            Error(
                "ALLOWED_HOSTS is empty, so every request is refused.",
                hint="The names that clients use, such as ALLOWED_HOSTS=api.example.com,admin.example.com.",
                id="counterfoil.E005",
            )
        ]
    return []


@register(Tags.security, deploy=True)
def check_deployment(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if settings.PRODUCTION and not environment.text("VALKEY_URL"):
        found.append(
            Warning(
                "VALKEY_URL is not set: worker and live feed look for a Valkey under COUNTERFOIL_HOME.",
                hint="Such as VALKEY_URL=redis://valkey:6379/0.",
                id="counterfoil.W011",
            )
        )
    return found


@register(Tags.database)
def check_catalogue(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    from gateway.catalogue.models import Model, Provider

    if (
        "default" not in (databases or [])
        or Model._meta.db_table not in connections["default"].introspection.table_names()
    ):
        return []
    found: list[CheckMessage] = []
    name = settings.DEFAULT_MODEL
    if name and not Model.objects.filter(Q(public_id=name) | Q(aliases__contains=[name]), enabled=True).exists():
        found.append(
            Warning(
                f"DEFAULT_MODEL {name!r} is no enabled model of the catalogue.",
                hint="Requests that name no model get a 404 until there is one.",
                id="counterfoil.W013",
            )
        )
    try:
        list(Provider.objects.values_list("credential", flat=True))
    except ImproperlyConfigured as error:
        found.append(Error(str(error), hint="See ENCRYPTION_KEYS in docs/operations.md.", id="counterfoil.E008"))
    return found


@register(Tags.database)
def check_roles(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Asked of the database, since a web container knows the application's URL alone."""
    if "default" not in (databases or []) or not settings.PRODUCTION:
        return []
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_tables WHERE tablename = 'ledger_usagerecord' AND tableowner = current_user")
        owned = cursor.fetchone() is not None
    if not owned:
        return []
    return [
        Warning(
            "The application's database role also owns the tables, so it could change the ledger.",
            hint="Give DATABASE_URL a role of its own, and the owner's to `migrate` in MIGRATION_DATABASE_URL.",
            id="counterfoil.W012",
        )
    ]
