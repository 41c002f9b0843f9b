"""A real admission webhook: an aiohttp server over TLS on loopback."""

from __future__ import annotations

import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from localkube.apiserver import pki

Object = dict[str, Any]
Decide = Callable[[Object], Object | Awaitable[Object]]
"""AdmissionReview.request -> the fields of its response beside uid."""


class WebhookServer:
    """One listening webhook; `seen` holds the requests it got."""

    def __init__(self, directory: Path, decide: Decide) -> None:
        self._directory = directory
        self._decide = decide
        self.seen: list[Object] = []
        self.port = 0
        self.ca_bundle = ""

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        review = await request.json()
        self.seen.append(review["request"])
        outcome = self._decide(review["request"])
        if not isinstance(outcome, dict):
            outcome = await outcome
        answer = outcome.pop("__answer__", None)
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.json_response(
            {
                "apiVersion": review["apiVersion"],
                "kind": "AdmissionReview",
                "response": {"uid": review["request"]["uid"], **outcome},
            }
        )

    @contextlib.asynccontextmanager
    async def run(self, *names: str) -> AsyncIterator[WebhookServer]:
        """Serve with a certificate for these names."""
        keys = pki.ensure_pki(self._directory, extra_names=names)
        self.ca_bundle = base64.b64encode(keys.ca_pem()).decode()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(keys.server.cert, keys.server.key)
        app = web.Application()
        app.router.add_post("/{path:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=context)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await runner.cleanup()


def json_patch(*operations: Object) -> Object:
    """An allowing response with this patch."""
    encoded = base64.b64encode(msgspec.json.encode(list(operations))).decode()
    return {"allowed": True, "patchType": "JSONPatch", "patch": encoded}
