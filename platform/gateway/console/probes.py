"""Pages that try a provider or a deployment out."""

from django.http import HttpRequest, HttpResponse


def provider_page(request: HttpRequest, pk: int) -> HttpResponse:
    raise NotImplementedError


def deployment_page(request: HttpRequest, pk: int) -> HttpResponse:
    raise NotImplementedError
