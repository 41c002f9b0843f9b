"""The validating webhook's decision.

In: an AdmissionReview (admission.k8s.io/v1) as parsed JSON. Out: the AdmissionReview that answers it. Total: whatever comes in,
an answer comes out. Errors refuse the object with all mistakes in one message; warnings are shown by kubectl.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meltemi.config.decode import load
from meltemi.config.kinds import KINDS
from meltemi.model.origin import Finding, Level

# kubectl cuts longer warnings; the API server drops all of them beyond 4096 bytes together.
_MAX_WARNING = 240
_MAX_WARNINGS = 4000


def validate_review(review: Any) -> dict[str, Any]:
    """Answer one AdmissionReview. Deletions, status updates and kinds of others are allowed."""
    request = review.get("request") if isinstance(review, Mapping) else None
    if not isinstance(request, Mapping):
        text = "the request is not an AdmissionReview of admission.k8s.io/v1"
        return _answer("", False, text, 400, "BadRequest", [])
    uid = request.get("uid")
    uid = uid if isinstance(uid, str) else ""
    body = request.get("object")
    watched = request.get("operation") in ("CREATE", "UPDATE") and not request.get("subResource")
    if not watched or not isinstance(body, Mapping) or body.get("kind") not in KINDS:
        return _answer(uid, True, "", 200, "", [])
    metadata = body.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    if metadata.get("deletionTimestamp"):  # finalizers must be removable from any object
        return _answer(uid, True, "", 200, "", [])
    if not metadata.get("namespace") and isinstance(request.get("namespace"), str):
        body = {**body, "metadata": {**metadata, "namespace": request["namespace"]}}
    _, findings = load(body)
    errors = [finding for finding in findings if finding.level is Level.ERROR]
    warnings = [_line(finding) for finding in findings if finding.level is Level.WARNING]
    if not errors:
        return _answer(uid, True, "", 200, "", warnings)
    text = f"configuration is invalid: {'; '.join(map(_line, errors))}"
    return _answer(uid, False, text, 422, "Invalid", warnings)


def _line(finding: Finding) -> str:
    """``spec.http[0].timeout: "10" is not a duration (write ...)``."""
    remedy = f" ({finding.remedy})" if finding.remedy else ""
    return f"{finding.origin.path}: {finding.text}{remedy}"


def _answer(
    uid: str, allowed: bool, text: str, code: int, reason: str, warnings: list[str]
) -> dict[str, Any]:
    response: dict[str, Any] = {"uid": uid, "allowed": allowed}
    if not allowed:
        response["status"] = {
            "status": "Failure",
            "message": text,
            "reason": reason,
            "code": code,
        }
    shown: list[str] = []
    for warning in warnings:
        line = warning if len(warning) <= _MAX_WARNING else warning[: _MAX_WARNING - 3] + "..."
        if sum(map(len, shown)) + len(line) <= _MAX_WARNINGS:
            shown.append(line)
    if shown:
        response["warnings"] = shown
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
