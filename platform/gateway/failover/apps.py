from django.apps import AppConfig


class FailoverConfig(AppConfig):
    name = "gateway.failover"
    label = "failover"
    default_auto_field = "django.db.models.BigAutoField"
