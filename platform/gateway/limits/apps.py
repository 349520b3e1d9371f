from django.apps import AppConfig


class LimitsConfig(AppConfig):
    name = "gateway.limits"
    label = "limits"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from gateway.catalogue.apply import extensions
        from gateway.limits.stated import LimitStatements
        from gateway.limits.tenancy import check_move
        from tenants.models import move_checks

        extensions.append(LimitStatements())
        move_checks.append(check_move)
