"""Every path has one of a few names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.telemetry import routes


@pytest.fixture(autouse=True)
def prefix() -> Iterator[None]:
    yield
    routes.configure("/v1")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/chat/completions", "chat.completions"),
        ("/v1/chat/completions/", "chat.completions"),
        ("/v1/models", "models"),
        ("/v1/models/some-model", "models"),
        ("/v1/usage", "usage"),
        ("/v1/whatever/you/like", "api"),
        ("/v1", "other"),
        ("/", "index"),
        ("/admin/", "admin"),
        ("/admin/ledger/usagerecord/", "admin"),
        ("/api/usage/", "finance"),
        ("/livez", "health"),
        ("/readyz", "health"),
        ("/metrics", "metrics"),
        ("/static/x.css", "static"),
        ("/wp-login.php", "other"),
        ("", "other"),
    ],
)
def test_a_path_has_a_kind(path: str, kind: str) -> None:
    assert routes.kind(path) == kind


@pytest.mark.parametrize("prefix", ["/api/v1", "/openai/v1"])
def test_the_prefix_is_the_settings(prefix: str) -> None:
    routes.configure(prefix)
    assert routes.inference(f"{prefix}/chat/completions") == "chat.completions"
    assert routes.inference("/v1/chat/completions") is None
    assert routes.kind(f"{prefix}/models") == "models"
    assert routes.kind("/api/usage/") == "finance"
