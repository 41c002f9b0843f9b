"""Run the configured admission webhooks for one operation.

In: the stored Mutating- and ValidatingWebhookConfigurations and an operation. Out: the operation's
object as the mutating webhooks leave it, warnings, or ApiError for a denial or, by its failure
policy, a webhook that cannot be called. Promises: mutating webhooks run one after another in name
order, again once where reinvocationPolicy asks for it; validating ones run at the same time; what a
webhook changed is decoded and defaulted like what a client sends.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jsonpatch
import msgspec
import structlog

from localkube.apiserver import errors
from localkube.apiserver.admission_client import CallError, WebhookClient
from localkube.apiserver.admission_matching import (
    ConditionError,
    Match,
    Versions,
    build_request,
    is_exempt,
    match_webhook,
)

if TYPE_CHECKING:
    from localkube.apiserver.admission_contract import Object, ObjectReader, Operation

GROUP = "admissionregistration.k8s.io"
MUTATING = "mutatingwebhookconfigurations"
VALIDATING = "validatingwebhookconfigurations"
_REVIEW_VERSIONS = ("v1", "v1beta1")
_WARNING_CHARS_MAX = 4096

Redecode = Callable[["Operation", "Object"], "Object"]
"""(operation, object as a webhook left it) -> the object, pruned and defaulted."""


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    webhook: Object
    mutating: bool


class Webhooks:
    """Calls webhooks through a WebhookClient."""

    def __init__(
        self,
        reader: ObjectReader,
        client: WebhookClient,
        versions: Versions,
        redecode: Redecode,
    ) -> None:
        self._reader = reader
        self._client = client
        self._versions = versions
        self._redecode = redecode
        self._log = structlog.get_logger("localkube.admission")

    async def mutate(self, operation: Operation) -> None:
        """Run the mutating webhooks; sets `operation.object`. Raises ApiError."""
        if is_exempt(operation):
            return
        invoked: list[int] = []
        again: set[int] = set()
        calls = self._calls(MUTATING)
        for index, call in enumerate(calls):
            called, changed = await self._mutate_once(call, operation)
            if changed:
                again.update(invoked)
            if called and call.webhook.get("reinvocationPolicy") == "IfNeeded":
                invoked.append(index)
        for index in sorted(again):
            await self._mutate_once(calls[index], operation)

    async def validate(self, operation: Operation) -> None:
        """Run the validating webhooks, all at the same time. Raises ApiError."""
        if is_exempt(operation):
            return
        calls = self._calls(VALIDATING)
        if not calls:
            return
        outcomes = await asyncio.gather(
            *(self._call(call, operation) for call in calls), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _calls(self, plural: str) -> list[_Call]:
        return [
            _Call(str(webhook.get("name", "")), webhook, plural == MUTATING)
            for configuration in sorted(
                self._reader.read_all(GROUP, plural), key=lambda c: str(c["metadata"]["name"])
            )
            for webhook in configuration.get("webhooks") or ()
        ]

    async def _mutate_once(self, call: _Call, operation: Operation) -> tuple[bool, bool]:
        """(whether it was called, whether it changed the object)."""
        response = await self._call(call, operation)
        if response is None:
            return False, False
        patch = response.get("patch")
        if not patch or operation.object is None:
            return True, False
        before = operation.object
        try:
            patched = _apply_patch(before, response)
        except CallError as error:
            self._fail(call, str(error))
            return True, False
        if patched == before:
            return True, False
        patched["apiVersion"] = before.get("apiVersion", patched.get("apiVersion"))
        operation.object = self._redecode(operation, patched)
        return True, True

    async def _call(self, call: _Call, operation: Operation) -> Object | None:
        """The webhook's `response`; None when it does not match or its failure is ignored."""
        webhook = call.webhook
        try:
            match = match_webhook(webhook, operation, self._reader, self._versions)
        except ConditionError as error:
            self._fail(call, str(error))
            return None
        if match is None:
            return None
        if operation.dry_run and webhook.get("sideEffects") not in ("None", "NoneOnDryRun"):
            raise errors.bad_request(f'admission webhook "{call.name}" does not support dry run')
        try:
            response = await self._ask(call, operation, match)
        except CallError as error:
            self._fail(call, f"failed to call webhook: {error}")
            return None
        for warning in response.get("warnings") or ():
            operation.warnings.append(str(warning)[:_WARNING_CHARS_MAX])
        if response.get("allowed") is not True:
            raise _denial(call.name, response.get("status"))
        return response

    async def _ask(self, call: _Call, operation: Operation, match: Match) -> Object:
        webhook = call.webhook
        accepted = webhook.get("admissionReviewVersions") or _REVIEW_VERSIONS
        version = next((v for v in accepted if v in _REVIEW_VERSIONS), None)
        if version is None:
            raise CallError(f"webhook does not accept known AdmissionReview versions {accepted}")
        uid = str(uuid.uuid4())
        api_version = f"admission.k8s.io/{version}"
        review = {
            "kind": "AdmissionReview",
            "apiVersion": api_version,
            "request": build_request(operation, uid, match.version),
        }
        timeout_s = int(webhook.get("timeoutSeconds") or 10)
        answer = await self._client.call(webhook.get("clientConfig") or {}, review, timeout_s)
        response = answer.get("response")
        if not isinstance(response, dict):
            raise CallError("received a webhook response without `response`")
        if version == "v1":
            if (answer.get("apiVersion"), answer.get("kind")) != (api_version, "AdmissionReview"):
                raise CallError(
                    f"expected webhook response of {api_version}, Kind=AdmissionReview, got "
                    f"{answer.get('apiVersion') or ''}, Kind={answer.get('kind') or ''}"
                )
            if response.get("uid") != uid:
                raise CallError(f'expected response.uid="{uid}", got "{response.get("uid") or ""}"')
        return response

    def _fail(self, call: _Call, text: str) -> None:
        """A webhook could not decide: reject (Fail) or go on (Ignore)."""
        message = f'failed calling webhook "{call.name}": {text}'
        if call.webhook.get("failurePolicy", "Fail") == "Ignore":
            self._log.warning("webhook_failure_ignored", webhook=call.name, error=text)
            return
        self._log.warning("webhook_failed", webhook=call.name, error=text)
        raise errors.internal(message)


def _apply_patch(obj: Object, response: Object) -> Object:
    """The object with a response's JSONPatch applied, as a new value. Raises CallError."""
    if response.get("patchType") not in (None, "JSONPatch"):
        raise CallError(f"invalid response.patchType, expected JSONPatch: {response['patchType']}")
    try:
        operations = msgspec.json.decode(base64.b64decode(response["patch"]))
        patched: Object = jsonpatch.JsonPatch(operations).apply(
            msgspec.json.decode(msgspec.json.encode(obj))
        )
    except (binascii.Error, msgspec.DecodeError, TypeError) as error:
        raise CallError(f"cannot decode response.patch: {error}") from error
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
        raise CallError(f"cannot apply response.patch: {error}") from error
    if not isinstance(patched, dict) or not isinstance(patched.get("metadata"), dict):
        raise CallError("response.patch leaves no object")
    return patched


def _denial(name: str, status: object) -> errors.ApiError:
    """A denial as Kubernetes words it; never with a code below 400."""
    given = status if isinstance(status, dict) else {}
    denied = f'admission webhook "{name}" denied the request'
    explanation = given.get("message") or given.get("reason")
    message = f"{denied}: {explanation}" if explanation else f"{denied} without explanation"
    code = given.get("code")
    code = code if isinstance(code, int) and code >= 400 else 400
    details = given.get("details")
    return errors.ApiError(
        code,
        str(given.get("reason") or ""),
        message,
        details=details if isinstance(details, dict) else None,
    )
