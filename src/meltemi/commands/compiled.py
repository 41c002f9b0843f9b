"""From files to what each proxy would be told: the control plane's own path, offline.

In: an ``OfflineMesh``. Out: per proxy its intermediate representation and its encoded resources. Nothing here decides
anything: push, translate and envoy do, as in istiod.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from meltemi.envoy import encode, encode_endpoints
from meltemi.ir.proxy import ProxyIR
from meltemi.model import kubernetes as k8s
from meltemi.model.config import EMPTY
from meltemi.model.frozen import FrozenMap
from meltemi.model.names import CDS_TYPE, EDS_TYPE, LDS_TYPE, RDS_TYPE, SDS_TYPE
from meltemi.model.proxy import NodeType, Proxy
from meltemi.model.resource import Resource
from meltemi.push.classes import class_key
from meltemi.push.context import PushContext, build_push_context
from meltemi.push.secrets import secret_from_data
from meltemi.registry.from_kubernetes import RegistrySettings
from meltemi.registry.index import Registry
from meltemi.registry.offline import OfflineMesh, OfflineProxy, secret_bytes
from meltemi.registry.store import RegistryStore
from meltemi.translate import overlay_for, translate

_REGISTERED = (k8s.Service, k8s.Node, k8s.Pod, k8s.EndpointSlice)


@dataclass(frozen=True, slots=True)
class Compiled:
    """One proxy's configuration. ``resources`` by type URL."""

    proxy: OfflineProxy
    ir: ProxyIR
    resources: Mapping[str, tuple[Resource, ...]]


class Compiler:
    """A mesh, ready to be asked for proxies."""

    def __init__(self, mesh: OfflineMesh) -> None:
        self.mesh = mesh
        self._store = RegistryStore(RegistrySettings(trust_domain=mesh.mesh.trust_domain))
        for kind in _REGISTERED:
            for value in mesh.of_kind(kind):
                self._store.put(value)
        self._store.put_configs(mesh.configs.values())
        self.context = self._context()

    def _context(self) -> PushContext:
        mesh = self.mesh
        secrets = {
            (value.metadata.namespace, value.metadata.name): secret_from_data(secret_bytes(value))
            for value in mesh.of_kind(k8s.Secret)
        }
        return build_push_context(
            mesh.mesh,
            self._located(self._store.snapshot()),
            mesh.configs.values(),
            secrets,
            endpoints=self._store.endpoints,
            namespaces=mesh.namespaces(),
        )

    def _located(self, registry: Registry) -> Registry:
        """Services that know their file and line, not only their name."""
        services = FrozenMap(
            (host, tuple(replace(s, origin=self.mesh.place(s.origin)) for s in group))
            for host, group in registry.services.items()
        )
        return replace(registry, services=services)

    def proxies(self) -> list[OfflineProxy]:
        """Everything that runs a proxy, by namespace and name."""
        found = [proxy for proxy in self.mesh.proxies if proxy.injected]
        return sorted(found, key=lambda proxy: (proxy.namespace, proxy.name))

    def compile(self, proxy: OfflineProxy) -> Compiled:
        """What istiod would send to one proxy."""
        ir = translate(self.context, class_key(self.context, self._node(proxy)))
        hidden = overlay_for(ir, proxy.address)
        found: dict[str, tuple[Resource, ...]] = dict(encode(ir))
        found[LDS_TYPE] = tuple(r for r in found[LDS_TYPE] if r.name not in hidden)
        index = self._store.endpoints
        found[EDS_TYPE] = tuple(
            encode_endpoints(need, index.endpoints(need.hostname, need.namespace))
            for need in ir.endpoint_needs
        )
        return Compiled(proxy, ir, found)

    def _node(self, proxy: OfflineProxy) -> Proxy:
        workload = self._store.workload(proxy.namespace, proxy.name)
        return Proxy(
            id=proxy.id,
            type=NodeType.ROUTER if proxy.router else NodeType.SIDECAR,
            addresses=(proxy.address,),
            namespace=proxy.namespace,
            labels=proxy.labels or EMPTY,
            service_account=proxy.service_account,
            workload_name=proxy.workload,
            locality=workload.locality if workload is not None else "",
            network=workload.network if workload is not None else "",
            metadata={**proxy.metadata, **({"NODE_NAME": proxy.node} if proxy.node else {})},
        )


def choose(proxies: Iterable[OfflineProxy], wanted: str) -> list[OfflineProxy]:
    """Proxies of ``POD.NAMESPACE``; a workload's name means all of its pods, and the namespace may be left out."""
    return [
        proxy
        for proxy in proxies
        if wanted in (proxy.id, proxy.name, f"{proxy.workload}.{proxy.namespace}", proxy.workload)
    ]


_TYPES = (
    ("listeners", LDS_TYPE),
    ("routes", RDS_TYPE),
    ("clusters", CDS_TYPE),
    ("endpoints", EDS_TYPE),
)


def as_json(made: Compiled) -> dict[str, Any]:
    """The proxy's entry of ``-o json``; secrets by name only."""
    from meltemi.commands.validate import as_json as finding_json
    from meltemi.envoy.json_form import message_of, to_json

    entry: dict[str, Any] = {"id": made.proxy.id, "workload": made.proxy.workload}
    for name, type_url in _TYPES:
        entry[name] = [to_json(message_of(type_url, r.body)) for r in made.resources[type_url]]
    entry["secrets"] = [resource.name for resource in made.resources[SDS_TYPE]]
    entry["findings"] = [finding_json(finding) for finding in made.ir.findings]
    return entry


def findings_of(compiled: Iterable[Compiled]) -> Iterator[Any]:
    """Findings of all proxies, each once."""
    yield from dict.fromkeys(finding for made in compiled for finding in made.ir.findings)
