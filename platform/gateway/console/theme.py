"""Unfold's settings. Pure data: `gateway.settings` imports this before any app is loaded."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static


def stylesheet(request: HttpRequest) -> str:
    return static("console/console.css")


def icon(request: HttpRequest) -> str:
    return static("console/icon.svg")


UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "Counterfoil",
    "SITE_HEADER": "Counterfoil",
    "SITE_SUBHEADER": "Every answer leaves one",
    "SITE_SYMBOL": "receipt_long",
    "SITE_URL": None,
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": icon}],
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "SHOW_BACK_BUTTON": True,
    "BORDER_RADIUS": "6px",
    "STYLES": [stylesheet],
    "SIDEBAR": {
        "show_search": True,
        "show_all_applications": False,
        "navigation": "gateway.console.navigation.groups",
    },
    "COLORS": {
        "primary": {
            "50": "oklch(97.1% .014 190)",
            "100": "oklch(94.5% .033 190)",
            "200": "oklch(89.2% .058 190)",
            "300": "oklch(81.5% .085 190)",
            "400": "oklch(70.5% .1 190)",
            "500": "oklch(60.0% .098 190)",
            "600": "oklch(51.0% .086 190)",
            "700": "oklch(43.5% .073 190)",
            "800": "oklch(37.2% .06 190)",
            "900": "oklch(32.0% .05 190)",
            "950": "oklch(22.5% .036 190)",
        },
    },
}
