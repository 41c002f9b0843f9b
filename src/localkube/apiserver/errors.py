"""API errors as Kubernetes reports them.

In: what went wrong, in the API's own words. Out: `ApiError`, which renders as a `metav1.Status`
object of the same shape, reason and code that kube-apiserver sends, so that kubectl and client
libraries print and classify it as usual. Leaves to the HTTP side how the Status is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FieldError:
    """One problem with one field; becomes a cause in the Status.

    `reason` is a `metav1.CauseType` such as FieldValueInvalid, `message` the text after the
    field's path ("Invalid value: -1: must be greater than or equal to 0"), `field` the path.
    """

    field: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class ApiError(Exception):
    """A request that ends in a Status with an error code.

    `list_metadata` becomes the Status' metadata (an expired list carries a continue token there).
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = None if details is None else dict(details)
        self.list_metadata: dict[str, Any] = {}

    def status(self) -> dict[str, Any]:
        """Return the `metav1.Status` object for this error."""
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.list_metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details is not None:
            status["details"] = self.details
        status["code"] = self.code
        return status


def qualified(plural: str, group: str) -> str:
    """Return `plural.group`, or the plural alone in the core group."""
    return f"{plural}.{group}" if group else plural


def _details(
    kind: str, group: str = "", name: str = "", causes: Iterable[FieldError] = (), **more: Any
) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if name:
        details["name"] = name
    if group:
        details["group"] = group
    if kind:
        details["kind"] = kind
    details.update({key: value for key, value in more.items() if value})
    rendered = [
        {"reason": cause.reason, "message": cause.message, "field": cause.field} for cause in causes
    ]
    if rendered:
        details["causes"] = rendered
    return details


def not_found(plural: str, name: str, group: str = "") -> ApiError:
    """The named object does not exist; `plural` is the resource ("pods")."""
    return ApiError(
        404,
        "NotFound",
        f'{qualified(plural, group)} "{name}" not found',
        details=_details(plural, group, name),
    )


def no_such_path() -> ApiError:
    """The path names nothing that is served.

    The details are there, though empty: kubectl looks into them without asking.
    """
    return ApiError(404, "NotFound", "the server could not find the requested resource", details={})


def already_exists(plural: str, name: str, group: str = "") -> ApiError:
    """An object of this name exists already."""
    return ApiError(
        409,
        "AlreadyExists",
        f'{qualified(plural, group)} "{name}" already exists',
        details=_details(plural, group, name),
    )


def conflict(
    plural: str,
    name: str,
    group: str = "",
    why: str = (
        "the object has been modified; please apply your changes to the latest version and try again"
    ),
    causes: Sequence[FieldError] = (),
) -> ApiError:
    """The request is about a state of the object that is no longer (or not yet) so."""
    return ApiError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {qualified(plural, group)} "{name}": {why}',
        details=_details(plural, group, name, causes),
    )


def apply_conflict(message: str, causes: Sequence[FieldError]) -> ApiError:
    """Server-side apply would change fields that other managers own."""
    return ApiError(409, "Conflict", message, details=_details("", causes=causes))


def invalid(kind: str, name: str, causes: Sequence[FieldError], group: str = "") -> ApiError:
    """The object breaks its kind's rules; `causes` says where and why."""
    texts = [str(cause) for cause in causes]
    listed = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    return ApiError(
        422,
        "Invalid",
        f'{qualified(kind, group)} "{name}" is invalid: {listed}',
        details=_details(kind, group, name, causes),
    )


def forbidden(plural: str, name: str, why: str, group: str = "") -> ApiError:
    """The user may not do this, or the object's state does not allow it."""
    subject = qualified(plural, group)
    quoted = f' "{name}"' if name else ""
    message = f"{subject}{quoted} is forbidden: {why}" if subject else f"forbidden: {why}"
    return ApiError(403, "Forbidden", message, details=_details(plural, group, name))


def unauthorized(message: str = "Unauthorized") -> ApiError:
    """The credentials are missing or wrong; the message never says which."""
    return ApiError(401, "Unauthorized", message)


def bad_request(message: str) -> ApiError:
    """The request cannot be understood."""
    return ApiError(400, "BadRequest", message)


def gone(message: str) -> ApiError:
    """The asked resourceVersion or continue token is older than what is kept."""
    return ApiError(410, "Expired", message)


def resource_version_too_large(asked: int, current: int) -> ApiError:
    """The asked resourceVersion lies in the future; clients retry after a second."""
    return ApiError(
        504,
        "Timeout",
        f"Too large resource version: {asked}, current: {current}",
        details={
            "causes": [
                {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
            ],
            "retryAfterSeconds": 1,
        },
    )


def too_large(limit_bytes: int) -> ApiError:
    """The request's body is over the limit."""
    return ApiError(
        413, "RequestEntityTooLarge", f"Request entity too large: limit is {limit_bytes}"
    )


def unsupported_media_type(given: str, accepted: Sequence[str]) -> ApiError:
    """The body's media type is not one that this path reads."""
    return ApiError(
        415,
        "UnsupportedMediaType",
        f"the body of the request was in an unknown format ({given or 'no Content-Type'}) - "
        f"accepted media types include: {', '.join(accepted)}",
    )


def not_acceptable(accepted: Sequence[str]) -> ApiError:
    """None of the media types that the client accepts can be made."""
    return ApiError(
        406,
        "NotAcceptable",
        f"only the following media types are accepted: {', '.join(accepted)}",
    )


def method_not_allowed(plural: str, verb: str, group: str = "") -> ApiError:
    """The resource does not support this verb."""
    return ApiError(
        405,
        "MethodNotAllowed",
        f"{verb} is not supported on resources of kind {qualified(plural, group)!r}".replace(
            "'", '"'
        ),
        details=_details(plural, group),
    )


def too_many_requests(message: str, retry_after_s: int, cause: str = "") -> ApiError:
    """The request may succeed later (an eviction that a disruption budget holds back).

    0 seconds: it is the caller who decides when. With a number, client libraries wait and repeat
    the request by themselves, in silence.
    """
    details: dict[str, Any] = {"retryAfterSeconds": retry_after_s} if retry_after_s else {}
    if cause:
        details["causes"] = [{"reason": "DisruptionBudget", "message": cause}]
    return ApiError(429, "TooManyRequests", message, details=details)


def unavailable(message: str) -> ApiError:
    """A part that the request needs cannot be reached now."""
    return ApiError(503, "ServiceUnavailable", message)


def insufficient_storage(message: str) -> ApiError:
    """The state directory is full; nothing was written and nothing is lost."""
    return ApiError(507, "InsufficientStorage", message)


def internal(message: str) -> ApiError:
    """The server failed; the message is safe to show."""
    return ApiError(500, "InternalError", f"Internal error occurred: {message}")
