"""One external authorizer with both of Envoy's protocols: HTTP and gRPC, one decision."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent import futures
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2
from google.rpc import code_pb2, status_pb2

from envoy_rig import Backend
from mesh_world import pod, service

_HOST = "authz.default.svc.cluster.local"
_SERVICE = "envoy.service.auth.v3.Authorization"
KINDS = ("envoyExtAuthzHttp", "envoyExtAuthzGrpc")
# What a caller sends who shall pass, who shall not, and who shall wait.
OK, NO, SLOW = {"x-pass": "yes"}, {"x-pass": "no"}, {"x-pass": "yes", "x-wait": "yes"}


@dataclass(frozen=True)
class Asked:
    """One question over gRPC. ``raw``: the body came as bytes."""

    path: str
    headers: Mapping[str, str]
    body: str
    raw: bool


class Authorizer:
    """Lets requests with ``x-pass: yes`` pass, and TCP connections of the namespace shop.

    ``x-wait: yes`` gets no answer until the authorizer is closed. ``headers`` come with every answer; over gRPC those that begin with
    ``x-note`` are for the caller of a request that passes, the others for the application.
    """

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        self._headers = dict(headers or {})
        self._over = threading.Event()
        self.http = Backend("authorizer", respond=self._over_http, headers=self._headers)
        self.seen: list[Asked] = []
        handler = grpc.unary_unary_rpc_method_handler(
            self._over_grpc,
            request_deserializer=external_auth_pb2.CheckRequest.FromString,
            response_serializer=external_auth_pb2.CheckResponse.SerializeToString,
        )
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, {"Check": handler}),)
        )
        self._grpc_port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _decide(self, headers: Any, principal: str = "") -> bool:
        if headers.get("x-wait") == "yes":
            self._over.wait(30)
        return headers.get("x-pass") == "yes" or "/ns/shop/" in principal

    def _over_http(self, handler: BaseHTTPRequestHandler) -> int:
        return 200 if self._decide(handler.headers) else 403

    def _over_grpc(
        self, request: external_auth_pb2.CheckRequest, _: grpc.ServicerContext
    ) -> external_auth_pb2.CheckResponse:
        attributes = request.attributes
        asked = attributes.request.http
        body = asked.raw_body.decode(errors="replace") or asked.body
        self.seen.append(Asked(asked.path, dict(asked.headers), body, bool(asked.raw_body)))
        good = self._decide(asked.headers, attributes.source.principal)
        code = code_pb2.OK if good else code_pb2.PERMISSION_DENIED
        made = external_auth_pb2.CheckResponse(status=status_pb2.Status(code=code))
        for name, text in self._headers.items():
            option = base_pb2.HeaderValueOption(header=base_pb2.HeaderValue(key=name, value=text))
            if not good:
                made.denied_response.headers.append(option)
            elif name.startswith("x-note"):
                made.ok_response.response_headers_to_add.append(option)
            else:
                made.ok_response.headers.append(option)
        return made

    def bodies(self, kind: str) -> list[str]:
        """The bodies that it was shown over this protocol."""
        if kind == "envoyExtAuthzGrpc":
            return [asked.body for asked in self.seen]
        return [entry["body"] for entry in self.http.seen]

    def forget(self) -> None:
        """What was asked until now."""
        self.seen.clear()
        self.http.seen.clear()

    def port(self, kind: str) -> int:
        """Where it listens for this kind of provider."""
        return self._grpc_port if kind == "envoyExtAuthzGrpc" else self.http.port

    def mesh(self, kind: str, more: str = "") -> str:
        """The mesh configuration that names it."""
        return provider(kind, self.port(kind), more)

    def objects(self, kind: str) -> str:
        """Its Service and pod."""
        return authorizer("grpc" if kind == "envoyExtAuthzGrpc" else "http", self.port(kind))

    def close(self) -> None:
        """Stop serving; who waits gets an answer."""
        self._over.set()
        self._server.stop(0).wait(5)
        self.http.close()


def authorizer(protocol: str, port: int) -> str:
    """The authorizer's Service and pod."""
    return service("authz", (protocol, port), ip="10.96.0.9") + pod(
        "authz", "127.0.0.1", mtls=False
    )


def provider(kind: str, port: int, more: str = "") -> str:
    """The mesh configuration that names it ``asker``."""
    return (
        f"extensionProviders: [{{name: asker, {kind}: {{service: {_HOST}, port: {port}{more}}}}}]\n"
    )
