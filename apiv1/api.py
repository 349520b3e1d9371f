"""The wire: one NinjaAPI under API_PREFIX. Every path below it answers in OpenAI's form, errors included.

A new endpoint is a file with a `router`, added at the end of this one.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern, URLResolver, path, re_path
from django.utils.functional import SimpleLazyObject
from ninja import NinjaAPI, Swagger
from ninja.openapi.urls import get_openapi_urls
from ninja.operation import AsyncOperation, PathView
from ninja.utils import replace_path_param_notation

from apiv1 import chat, limits, models, usage
from apiv1.auth import Bearer
from apiv1.error_rates import error_rates
from apiv1.errors import invalid_url, respond, wrong_method
from gateway import __version__
from gateway.errors import GatewayError

View = Callable[..., Coroutine[Any, Any, HttpResponseBase]]


class Wire(NinjaAPI):
    """Ninja's API with OpenAI's manners: no redirects, no HTML, an envelope for routes and methods that are not."""

    def set_default_exception_handlers(self) -> None:
        for kind in (Exception, GatewayError):
            self.add_exception_handler(kind, respond)

    def create_temporal_response(self, request: HttpRequest) -> HttpResponse:
        """Made when somebody looks at it: our views answer with responses of their own, and it costs 25 us."""
        return cast(HttpResponse, SimpleLazyObject(partial(super().create_temporal_response, request)))

    def _get_urls(self) -> list[URLResolver | URLPattern]:
        urls: list[URLResolver | URLPattern] = list(get_openapi_urls(self))
        for bound in self._get_bound_routers():
            for route, operations in bound.path_operations.items():
                methods = {method for operation in operations.operations for method in operation.methods}
                view = guarded(view_of(operations), methods)
                plain = replace_path_param_notation("/".join([bound.prefix, route])).replace("//", "/").strip("/")
                name = self.get_operation_url_name(operations.operations[0], bound.template)
                # With and without the slash: a redirect would turn a POST into a GET. The slash first, since
                # `<path:model>` would take it for a part of the id.
                urls += [path(f"{plain}/", view), path(plain, view, name=name)]
        # "api-root" is what Ninja builds the documentation's URLs on.
        return [*urls, path("", unknown_route, name="api-root"), re_path("", unknown_route)]


def view_of(operations: PathView) -> View:
    """Where there is one operation, that itself: Ninja would look for it by the method, and the guard has done so."""
    first, *others = operations.operations
    if isinstance(first, AsyncOperation) and not others:
        return first.run
    view = operations.get_view()
    return view if operations.is_async else sync_to_async(view)


def guarded(view: View, methods: set[str]) -> View:
    """The view for its methods; HEAD goes with GET, OPTIONS is answered, the others are refused."""
    extra = {"HEAD", "OPTIONS"} if "GET" in methods else {"OPTIONS"}
    allowed = sorted(methods | extra)

    async def guard(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.method == "HEAD" and "GET" in methods:
            request.method = "GET"  # the server sends no body for a HEAD
        if request.method not in methods:
            if request.method == "OPTIONS":
                return HttpResponse(status=204, headers={"Allow": ", ".join(allowed)})
            return respond(request, wrong_method(request, allowed))
        response = await view(request, *args, **kwargs)
        await error_rates.add(request, response)
        return response

    guard.csrf_exempt = True  # type: ignore[attr-defined]
    return guard


async def unknown_route(request: HttpRequest) -> HttpResponse:
    return respond(request, invalid_url(request))


unknown_route.csrf_exempt = True  # type: ignore[attr-defined]

api = Wire(
    title="Counterfoil",
    version=__version__,
    description="The OpenAI API. Every answer leaves a record.",
    urls_namespace="v1",
    auth=Bearer(),
    # Assets are local; the validator badge would call a public service.
    docs=Swagger(settings={"validatorUrl": None}),
)
api.add_router("", chat.router)
api.add_router("", models.router)
api.add_router("", usage.router)
api.add_router("", limits.router)
