"""What a request to the API server can end with, other than an answer."""

from collections.abc import Mapping
from typing import Any


class ApiStatusError(Exception):
    """The server answered with a metav1.Status (or another body) and an error code.

    `code` is the HTTP status, `reason` the machine-readable word (`NotFound`, `Conflict`,
    `AlreadyExists`, `Invalid`, `Expired`, ...; empty if the server gave none).
    """

    def __init__(
        self, code: int, reason: str, message: str, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(f"{code} {reason}: {message}" if reason else f"{code}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.details: Mapping[str, Any] = details or {}

    @property
    def not_found(self) -> bool:
        """The object, or the resource type itself, does not exist."""
        return self.code == 404

    @property
    def conflict(self) -> bool:
        """The object changed since it was read (409, but not because it already exists)."""
        return self.code == 409 and self.reason != "AlreadyExists"

    @property
    def already_exists(self) -> bool:
        """There is already an object of this name."""
        return self.code == 409 and self.reason == "AlreadyExists"

    @property
    def gone(self) -> bool:
        """The resourceVersion or continue token is too old: list again."""
        return self.code == 410 or self.reason == "Expired"


class ApiConnectionError(Exception):
    """No answer came from the server, after all retries that were safe to make."""


class KubeconfigError(Exception):
    """The kubeconfig cannot be used; the message says what is wrong, where, and what to do."""
