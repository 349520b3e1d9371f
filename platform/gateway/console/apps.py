from django.apps import AppConfig
from django.contrib.admin import apps


class ConsoleConfig(AppConfig):
    name = "gateway.console"
    label = "console"
    default = True
    default_auto_field = "django.db.models.BigAutoField"


class AdminConfig(apps.AdminConfig):
    """Django's admin with our site: Unfold's look, our dashboard, live feed and test pages."""

    default = False  # this module is gateway.console's; settings name this class in full
    default_site = "gateway.console.site.ConsoleSite"
