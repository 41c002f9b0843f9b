"""What the control plane knows, as JSON: the pages under ``/debug`` and the answers to ``istio.io/debug``.

In: a page's name and its parameters. Out: plain values. Secrets' keys are never in them. Names of pages and of
fields that scripts read (``/debug/syncz``, ``adsz``, ``configz`` ...) are Istio's.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from google.protobuf import json_format

from meltemi.adapters.discovery_connections import Connection
from meltemi.adapters.discovery_grpc import SHORT
from meltemi.adapters.pipeline import Pipeline
from meltemi.discovery.watch import Watch
from meltemi.inject import InjectionConfig
from meltemi.model.config import AnyConfig
from meltemi.model.names import (
    CDS_TYPE,
    EDS_TYPE,
    LDS_TYPE,
    NDS_TYPE,
    RDS_TYPE,
    SDS_TYPE,
    node_id,
)
from meltemi.model.resource import Resource
from meltemi.protos import nds_pb2

Params = Mapping[str, str]
ADMIN = "type.googleapis.com/envoy.admin.v3."
_MESSAGES: Mapping[str, Any] = {
    CDS_TYPE: cluster_pb2.Cluster,
    EDS_TYPE: endpoint_pb2.ClusterLoadAssignment,
    LDS_TYPE: listener_pb2.Listener,
    RDS_TYPE: route_pb2.RouteConfiguration,
    SDS_TYPE: secret_pb2.Secret,
    NDS_TYPE: nds_pb2.NameTable,
}
_SYNC = ((CDS_TYPE, "cluster"), (LDS_TYPE, "listener"), (RDS_TYPE, "route"), (EDS_TYPE, "endpoint"))
REDACTED = "[redacted]"


class NoSuchPage(Exception):
    """There is no page or proxy of that name; the text says what there is."""


@dataclass(frozen=True, slots=True)
class Page:
    """One debug page."""

    text: str
    make: Callable[[Params], Any]


class DebugPages:
    """All pages of one control plane."""

    def __init__(
        self, pipeline: Pipeline, version: str, injection: Callable[[], InjectionConfig]
    ) -> None:
        self._pipeline = pipeline
        self._world = pipeline.world
        self._version = version
        self._injection = injection
        self.pages: dict[str, Page] = {
            "syncz": Page("Whether each proxy has what it was sent", self._syncz),
            "adsz": Page("Connected proxies and their subscriptions", self._adsz),
            "connections": Page("Connected proxies", self._connections),
            "edsz": Page("Endpoints of each cluster of a proxy (?proxyID=)", self._edsz),
            "configz": Page("Configuration objects in use", self._configz),
            "registryz": Page("Services", self._registryz),
            "endpointz": Page("Endpoints by service", self._endpointz),
            "ndsz": Page("Names that a proxy's DNS answers (?proxyID=)", self._ndsz),
            "endpointShardz": Page("Endpoints by service and source", self._shardz),
            "instancesz": Page("Workloads by address", self._instancesz),
            "config_dump": Page("Envoy's view of a proxy's configuration (?proxyID=)", self._dump),
            "sidecarz": Page("The class of a proxy and what it sees (?proxyID=)", self._sidecarz),
            "resourcesz": Page("Subscribed resources by proxy", self._resourcesz),
            "push_status": Page("Objects that are not used, and refused pushes", self._push_status),
            "pushcontext": Page("The current snapshot", self._pushcontext),
            "mesh": Page("Mesh configuration", self._mesh),
            "inject": Page("Injection settings", self._inject),
            "networkz": Page("Networks of the mesh", self._networkz),
            "clusterz": Page("Clusters watched", self._clusterz),
            "authorizationz": Page("Authorization policies", self._kind("AuthorizationPolicy")),
            "telemetryz": Page("Telemetry settings", self._kind("Telemetry")),
            "list": Page("Names of these pages", lambda _: sorted(self.pages)),
        }

    def render(self, request: str) -> bytes:
        """The JSON of ``config_dump?proxyID=x``. Raises NoSuchPage."""
        name, _, query = request.partition("?")
        page = self.pages.get(name.strip("/").removeprefix("debug/"))
        if page is None:
            raise NoSuchPage(f"no debug page {name!r}; there are {', '.join(sorted(self.pages))}")
        made = page.make(dict(parse_qsl(query, keep_blank_values=True)))
        return msgspec.json.format(msgspec.json.encode(made, enc_hook=_encode), indent=2)

    # --- proxies ------------------------------------------------------------------------------------

    def _connection(self, params: Params) -> Connection:
        wanted = params.get("proxyID", "")
        found = self._pipeline.connections.of_proxy(wanted)
        if found is None:
            names = sorted({c.proxy.id for c in self._pipeline.connections})[:20]
            raise NoSuchPage(
                f"proxy {wanted!r} is not connected to this istiod; write ?proxyID=<pod>.<namespace>, "
                f"connected are: {', '.join(names) or 'none'}"
            )
        return found

    def _syncz(self, _: Params) -> Any:
        return [self._sync(c) for c in self._pipeline.connections if not c.is_agents]

    def _sync(self, connection: Connection) -> dict[str, Any]:
        proxy = connection.proxy
        status: dict[str, Any] = {
            "cluster_id": proxy.cluster_id,
            "proxy": proxy.id,
            "proxy_type": proxy.type.value,
            "proxy_version": proxy.version,
            "istio_version": self._version,
            "connected_at": _time(connection.connected_at),
        }
        for type_url, name in _SYNC:
            watch = connection.stream.watches.get(type_url)
            status[f"{name}_sent"] = watch.last_nonce if watch else ""
            status[f"{name}_acked"] = watch.acked_nonce if watch else ""
            status[f"{name}_status"] = watch.state.value if watch else "NOT SENT"
        refused = {SHORT.get(t, t): r.message for t, r in connection.rejections.items()}
        if refused:
            status["rejections"] = refused
        return status

    def _adsz(self, _: Params) -> Any:
        clients = [
            {
                "connectionId": c.id,
                "connectedAt": _time(c.connected_at),
                "address": c.peer,
                "identity": c.identity.spiffe if c.identity else "",
                "mode": c.stream.mode.value,
                "labels": dict(c.proxy.labels),
                "locality": c.proxy.locality,
                "node": node_id(c.proxy),
                "watches": {
                    SHORT.get(t, t): _watch(watch) for t, watch in c.stream.watches.items()
                },
            }
            for c in self._pipeline.connections
        ]
        return {"totalClients": len(clients), "clients": clients}

    def _connections(self, _: Params) -> Any:
        return [
            {"connectionId": c.id, "connectedAt": _time(c.connected_at), "address": c.peer}
            for c in self._pipeline.connections
        ]

    def _resourcesz(self, _: Params) -> Any:
        return {
            c.id: {t: sorted(w.names) or ["*"] for t, w in c.stream.watches.items()}
            for c in self._pipeline.connections
        }

    def _edsz(self, params: Params) -> Any:
        chosen = [self._connection(params)] if "proxyID" in params else self._pipeline.connections
        found: dict[str, Any] = {}
        for connection in chosen:
            assignments = connection.snapshot.types.get(EDS_TYPE, {})
            found.update({n: _message(EDS_TYPE, r) for n, r in assignments.items()})
        return list(found.values())

    def _ndsz(self, params: Params) -> Any:
        names = self._connection(params).snapshot.types.get(NDS_TYPE, {})
        return [_message(NDS_TYPE, resource) for resource in names.values()]

    def _sidecarz(self, params: Params) -> Any:
        view = self._pipeline.view_of(self._connection(params))
        if view is None:
            raise NoSuchPage("the proxy has no configuration yet")
        return {
            "class": view.proxy_class,
            "clusters": sorted(view.types[CDS_TYPE]),
            "listeners": sorted(view.types[LDS_TYPE]),
            "routes": sorted(view.types[RDS_TYPE]),
            "findings": [str(finding) for finding in view.ir.findings],
        }

    def _dump(self, params: Params) -> Any:
        connection = self._connection(params)
        types = connection.snapshot.types

        def entries(type_url: str, field: str) -> list[dict[str, Any]]:
            return [
                {"version_info": r.version, field: _message(type_url, r)}
                for r in types.get(type_url, {}).values()
            ]

        listeners = [
            {"name": entry["listener"].get("name", ""), "active_state": entry}
            for entry in entries(LDS_TYPE, "listener")
        ]
        return {
            "configs": [
                {
                    "@type": f"{ADMIN}ClustersConfigDump",
                    "version_info": connection.snapshot.version,
                    "dynamic_active_clusters": entries(CDS_TYPE, "cluster"),
                },
                {
                    "@type": f"{ADMIN}ListenersConfigDump",
                    "version_info": connection.snapshot.version,
                    "dynamic_listeners": listeners,
                },
                {
                    "@type": f"{ADMIN}RoutesConfigDump",
                    "dynamic_route_configs": entries(RDS_TYPE, "route_config"),
                },
                {
                    "@type": f"{ADMIN}EndpointsConfigDump",
                    "dynamic_endpoint_configs": entries(EDS_TYPE, "endpoint_config"),
                },
                {
                    "@type": f"{ADMIN}SecretsConfigDump",
                    "dynamic_active_secrets": [
                        {"name": r.name, "version_info": r.version, "secret": _message(SDS_TYPE, r)}
                        for r in types.get(SDS_TYPE, {}).values()
                    ],
                },
            ]
        }

    # --- the world ----------------------------------------------------------------------------------

    def _configz(self, _: Params) -> Any:
        return [_config(config) for _, config in sorted(self._world.configs.items())]

    def _kind(self, kind: str) -> Callable[[Params], Any]:
        def page(_: Params) -> Any:
            return [
                _config(c) for key, c in sorted(self._world.configs.items()) if key.kind == kind
            ]

        return page

    def _registryz(self, _: Params) -> Any:
        return list(self._world.registry.snapshot().all_services)

    def _endpointz(self, _: Params) -> Any:
        index = self._world.registry.endpoints
        return [
            {"svc": key.hostname, "namespace": key.namespace, "ep": index.endpoints(*key)}
            for key in sorted(index.shards())
        ]

    def _shardz(self, _: Params) -> Any:
        shards = self._world.registry.endpoints.shards()
        return {f"{key.hostname}/{key.namespace}": held for key, held in sorted(shards.items())}

    def _instancesz(self, _: Params) -> Any:
        return self._world.registry.snapshot().workloads

    def _push_status(self, _: Params) -> Any:
        return {
            "objects": {
                f"{key.kind}/{key.namespace}/{key.name}": [str(f) for f in found]
                for key, found in sorted(self._world.findings.items())
            },
            "rejections": {
                c.id: {SHORT.get(t, t): {"message": r.message, "resources": r.names}}
                for c in self._pipeline.connections
                for t, r in c.rejections.items()
            },
        }

    def _pushcontext(self, _: Params) -> Any:
        context = self._pipeline.context
        if context is None:
            return {}
        return {
            "version": context.version,
            "services": len(context.services),
            "configs": {kind: len(members) for kind, members in context.configs.items()},
            "namespaces": len(context.namespaces),
            "classes": len(self._pipeline.views),
            "pendingPods": sorted(self._world.registry.pending_pods),
        }

    def _mesh(self, _: Params) -> Any:
        return self._world.mesh

    def _inject(self, _: Params) -> Any:
        return self._injection()

    def _networkz(self, _: Params) -> Any:
        shards = self._world.registry.endpoints.shards()
        return sorted({e.network for held in shards.values() for es in held.values() for e in es})

    def _clusterz(self, _: Params) -> Any:
        return [{"id": self._world.settings.cluster_id, "syncStatus": "synced"}]


def _watch(watch: Watch) -> dict[str, Any]:
    return {
        "wildcard": watch.wildcard,
        "names": len(watch.names),
        "sent": len(watch.sent),
        "nonce": watch.last_nonce,
        "acked": watch.acked_nonce,
        "state": watch.state.value,
        "error": watch.error,
    }


def _config(config: AnyConfig) -> dict[str, Any]:
    meta = config.meta
    return {
        "kind": config.kind,
        "metadata": {
            "name": meta.name,
            "namespace": meta.namespace,
            "labels": dict(meta.labels),
            "annotations": dict(meta.annotations),
            "resourceVersion": meta.resource_version,
            "generation": meta.generation,
        },
        "spec": config.spec,
    }


def _message(type_url: str, resource: Resource) -> dict[str, Any]:
    """A resource for people. Types that this process does not know are shown as bytes."""
    message = _MESSAGES[type_url].FromString(resource.body)
    if type_url == SDS_TYPE and message.HasField("tls_certificate"):
        message.tls_certificate.private_key.inline_string = REDACTED
    try:
        shown: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    except (TypeError, ValueError, json_format.Error) as error:
        data = base64.b64encode(resource.body).decode() if type_url != SDS_TYPE else REDACTED
        shown = {"name": resource.name, "unreadable": str(error), "bytes": data}
    return {"@type": type_url, **shown}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _encode(value: Any) -> Any:
    """What msgspec cannot encode by itself."""
    if isinstance(value, Mapping):
        return {_key(k): v for k, v in value.items()}
    if isinstance(value, Iterable):
        return list(value)
    return str(value)


def _key(key: Any) -> str:
    return (
        key
        if isinstance(key, str)
        else "/".join(map(str, key))
        if isinstance(key, tuple)
        else str(key)
    )
