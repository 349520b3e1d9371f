"""Every way in which Counterfoil says no. `apiv1.errors` turns these into OpenAI's error object.

GatewayError
├── InvalidRequest        400  the request breaks the contract (code and param say where)
├── InvalidApiKey         401  the one answer to every refused key, whatever the reason
├── MissingApiKey         401  no Authorization header
├── TenantSuspended       401  the secret matched, but its tenant is suspended or closed
├── PermissionDenied      403
├── NotFound              404  unknown route
├── ModelNotFound         404  unknown, or not for this key: one answer for both
├── MethodNotAllowed      405
├── BodyTooLarge          413
├── RateLimited           429  our limits, or the upstream's own 429 passed through
├── InternalError         500  a defect of ours; the message is generic
├── UpstreamError         502  the provider failed; nothing of the provider's leaks
│   └── UpstreamTimeout   504
└── Unavailable           503  overloaded, draining, or the database is away; has retry-after
"""

from __future__ import annotations

from typing import Literal

# How far a call to a provider had come when it failed: the request was not sent, was sent, its status and headers
# were here, the first byte of the body was.
Phase = Literal["connect", "sent", "head", "body"]

CLIENT_LEFT = 499  # nginx's status for a client that closed the connection; for logs and books, nobody is told it
# What a server that stops cancels its last requests with: else they would look like clients that left.
STOPPED = "the server stops"


class GatewayError(Exception):
    """An answer that is not 200. The four fields are those of OpenAI's error object.

    `headers` are added to the response (`retry-after`, `x-should-retry`, `allow`).
    """

    status = 500
    type = "server_error"
    code: str | None = None
    upstream_status: int | None = None  # the provider's own, if it gave one

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        status: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers or {}
        if code is not None:
            self.code = code
        if type is not None:
            self.type = type
        if status is not None:
            self.status = status


class InvalidRequest(GatewayError):
    status = 400
    type = "invalid_request_error"


class MalformedBody(InvalidRequest):
    """Not JSON, or not an object: 400 as OpenAI, or what FORMAT_ERROR_STATUS says."""


class InvalidApiKey(GatewayError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class MissingApiKey(GatewayError):
    status = 401
    type = "invalid_request_error"


class TenantSuspended(GatewayError):
    status = 401
    type = "invalid_request_error"
    code = "tenant_suspended"


class PermissionDenied(GatewayError):
    status = 403
    type = "invalid_request_error"


class NotFound(GatewayError):
    status = 404
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(GatewayError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_supported"


class BodyTooLarge(GatewayError):
    status = 413
    type = "server_error"


class RateLimited(GatewayError):
    status = 429
    type = "requests"
    code = "rate_limit_exceeded"


class InternalError(GatewayError):
    status = 500

    def __init__(self) -> None:
        super().__init__(
            "The server had an error while processing your request. Sorry about that! "
            "Please contact support with the x-request-id of this response if it persists."
        )


class UpstreamError(GatewayError):
    """The provider failed."""

    status = 502
    ours = False  # nobody could be asked for want of something here: files, ports
    phase: Phase = "body"


class UpstreamTimeout(UpstreamError):
    status = 504


class Unavailable(GatewayError):
    status = 503

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, headers={"retry-after": str(retry_after)})
