"""OpenAI's error object for answers that no endpoint gave: the transport's, Django's and our own defects."""

from __future__ import annotations

from django.conf import settings

from gateway import errors

LONGEST_PATH = 200
# Under a prefix of "/" these are still pages for people.
PAGES = ("/admin", "/static/", "/api/", "/ws/")


def under_api(path: str) -> bool:
    prefix = settings.API_PREFIX
    if prefix == "/":
        return not path.startswith(PAGES)
    return path == prefix or path.startswith(prefix + "/")


def for_status(status: int, method: str = "", path: str = "") -> errors.GatewayError:
    """What Django or the transport says with a bare status."""
    path = path[:LONGEST_PATH]
    match status:
        case 403:
            return errors.PermissionDenied("You are not allowed to make this request.")
        case 404:
            return errors.NotFound(f"Invalid URL ({method} {path})")
        case 405:
            return errors.MethodNotAllowed(f"Not allowed to {method} on {path}.")
        case 408:
            return errors.InvalidRequest("The request took too long to arrive.", status=408)
        case 413:
            return errors.BodyTooLarge(f"Maximum content size limit ({settings.MAX_BODY_BYTES}) exceeded")
        case 431:
            return errors.InvalidRequest("The headers of the request are too large.", status=431)
        case 503:
            return errors.Unavailable("The server is shutting down or overloaded. Please try again.")
        case _ if status < 500:
            return errors.InvalidRequest("The request is malformed.", status=status)
        case _:
            return errors.InternalError()
