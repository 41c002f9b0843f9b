"""Serve the admission webhooks on 15017: ``/inject``, ``/validate``, ``/ready``.

In: AdmissionReviews over HTTPS. Out: AdmissionReviews. The decisions are the pure packages'; here are the
transport, the limits and the counts. The certificate is replaced in place when it is renewed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from aiohttp import web

from meltemi.adapters.grpc_server import Serving
from meltemi.adapters.metrics import Metrics
from meltemi.adapters.world import World
from meltemi.config.admission import validate_review
from meltemi.inject import InjectionConfig, inject
from meltemi.kit.clock import Clock

log = structlog.get_logger("webhook")
BODY_S = 10.0  # the API server waits no longer than that either
_DIGITS_MAX = 64
BODY_MAX = 8 * 1024 * 1024  # an object of the API server's own limit, with room for the envelope


class Webhooks:
    """The handlers. ``injection`` gives the settings as they are now."""

    def __init__(
        self,
        world: World,
        injection: Callable[[], InjectionConfig],
        metrics: Metrics,
        clock: Clock,
        ready: Callable[[], bool],
    ) -> None:
        self._world = world
        self._injection = injection
        self._metrics = metrics
        self._clock = clock
        self._ready = ready

    def application(self) -> web.Application:
        """What to serve."""
        app = web.Application(client_max_size=BODY_MAX)
        app.router.add_get("/ready", self._get_ready)
        for path in ("/inject", "/inject/{values:.*}"):
            app.router.add_post(path, self._inject)
        for path in ("/validate", "/validate/{rest:.*}"):
            app.router.add_post(path, self._validate)
        return app

    async def _get_ready(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._ready() else 503)

    async def _inject(self, request: web.Request) -> web.Response:
        started = self._clock.monotonic()
        self._metrics.inject_requests.inc()
        review = await _review(request)
        if isinstance(review, str):
            self._metrics.inject_failure.inc()
            return web.Response(status=400, text=review)
        asked = review["request"]
        labels = self._world.namespaces.get(str(asked.get("namespace", "")), {})
        result = inject(
            asked,
            labels,
            self._injection(),
            self._world.mesh,
            url_values(request.match_info),
            [c for key, c in self._world.configs.items() if key.kind == "ProxyConfig"],
        )
        response: dict[str, Any] = {"uid": asked.get("uid", ""), "allowed": result.allowed}
        if result.warnings:
            response["warnings"] = list(result.warnings)
        if result.error:
            self._metrics.inject_failure.inc()
            response["status"] = {"code": 400, "reason": "BadRequest", "message": result.error}
        elif result.patch:
            self._metrics.inject_success.inc()
            response["patchType"] = "JSONPatch"
            response["patch"] = base64.b64encode(json.dumps(result.patch).encode()).decode()
        else:
            self._metrics.inject_skip.inc()
        self._metrics.inject_time.observe(self._clock.monotonic() - started)
        meta = (asked.get("object") or {}).get("metadata") or {}
        log.info(
            "pod",
            namespace=asked.get("namespace"),
            name=meta.get("name") or meta.get("generateName"),
            injected=bool(result.patch),
            reason=result.error or result.reason,
        )
        return _answer(review, response)

    async def _validate(self, request: web.Request) -> web.Response:
        review = await _review(request)
        if isinstance(review, str):
            self._metrics.validation_http_error.labels("400").inc()
            return web.Response(status=400, text=review)
        answer = validate_review(review)
        resource = review["request"].get("resource") or {}
        labels = [str(resource.get(part, "")) for part in ("group", "version", "resource")]
        if answer["response"].get("allowed"):
            self._metrics.validation_passed.labels(*labels).inc()
        else:
            self._metrics.validation_failed.labels(*labels, "invalid_resource").inc()
            log.info("object refused", status=answer["response"].get("status"))
        return web.json_response(answer)


def url_values(matched: Mapping[str, str]) -> dict[str, str]:
    """``/inject/cluster/c1/net/n1`` -> {cluster: c1, net: n1}. ``--slash--`` stands for ``/``, as in Istio."""
    parts = [p.replace("--slash--", "/") for p in matched.get("values", "").split("/") if p]
    return dict(zip(parts[::2], parts[1::2], strict=False))


async def _review(request: web.Request) -> dict[str, Any] | str:
    """The AdmissionReview, or what is wrong with the call."""
    if not request.content_type.endswith("json"):
        return f"content type {request.content_type}; application/json is needed"
    try:
        async with asyncio.timeout(BODY_S):
            text = await request.text()
        # Long numbers, deep nesting and keys given twice are what a hostile body is made of.
        review = json.loads(text, parse_int=_integer, parse_constant=_not_a_number)
    except TimeoutError:
        return f"the body did not come within {BODY_S:.0f} s"
    except (ValueError, LookupError, RecursionError) as error:
        return f"the body is not JSON: {error}"
    if not isinstance(review, dict) or not isinstance(review.get("request"), dict):
        return "the body is not an AdmissionReview with a request"
    return review


def _integer(text: str) -> int:
    if len(text) > _DIGITS_MAX:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _not_a_number(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def _answer(review: Mapping[str, Any], response: Mapping[str, Any]) -> web.Response:
    version = review.get("apiVersion") or "admission.k8s.io/v1"
    return web.json_response(
        {"apiVersion": version, "kind": "AdmissionReview", "response": response}
    )


def server_context(serving: Serving) -> ssl.SSLContext:
    """TLS settings that show ``serving``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    show(context, serving)
    return context


def show(context: ssl.SSLContext, serving: Serving) -> None:
    """Replace the certificate; connections that are open keep theirs. The key never reaches a disk."""
    with os.fdopen(os.memfd_create("serving"), "wb") as file:
        file.write(serving.chain + b"\n" + serving.key)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
