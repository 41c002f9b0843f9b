"""From files to what each proxy would be told: the control plane's own path, offline.

In: an ``OfflineMesh``. Out: per proxy its intermediate representation and its encoded resources. Nothing here decides
anything: push, translate and envoy do, as in istiod.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import msgspec

from meltemi.analyze.analysis import analyze
from meltemi.ir.proxy import ProxyIR
from meltemi.model import kubernetes as k8s
from meltemi.model.config import EMPTY
from meltemi.model.frozen import FrozenMap
from meltemi.model.names import CDS_TYPE, EDS_TYPE, LDS_TYPE, RDS_TYPE, SDS_TYPE
from meltemi.model.origin import Finding, Level
from meltemi.model.proxy import NodeType, Proxy
from meltemi.model.resource import Resource
from meltemi.push.classes import class_key
from meltemi.push.context import PushContext, build_push_context
from meltemi.push.secrets import secret_from_data
from meltemi.registry.from_kubernetes import RegistrySettings
from meltemi.registry.index import EndpointIndex, Registry
from meltemi.registry.offline import OfflineMesh, OfflineProxy, secret_bytes
from meltemi.registry.store import RegistryStore
from meltemi.translate import overlay_for, translate

_REGISTERED = (k8s.Service, k8s.Node, k8s.Pod, k8s.EndpointSlice)


@dataclass(frozen=True)
class Compiled:
    """One proxy's configuration."""

    proxy: OfflineProxy
    ir: ProxyIR
    endpoints: EndpointIndex

    @property
    def resources(self) -> Mapping[str, tuple[Resource, ...]]:
        """What Envoy would be sent, by type URL."""
        return self._encoded[0]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong or doubtful, patches that cannot be applied included."""
        return self.ir.findings + (self._encoded[1] if self.ir.patches else ())

    @cached_property
    def _encoded(self) -> tuple[Mapping[str, tuple[Resource, ...]], tuple[Finding, ...]]:
        # Here and not above: Envoy's message types take a third of a second to import, and people often read the IR alone.
        from meltemi.envoy import PatchRecord, encode, encode_endpoints

        hidden = overlay_for(self.ir, self.proxy.address)
        record = PatchRecord()
        found: dict[str, tuple[Resource, ...]] = dict(encode(self.ir, record))
        found[LDS_TYPE] = tuple(r for r in found[LDS_TYPE] if r.name not in hidden)
        found[EDS_TYPE] = tuple(
            encode_endpoints(need, self.endpoints.endpoints(need.hostname, need.namespace))
            for need in self.ir.endpoint_needs
        )
        return found, record.findings


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

    def findings(self) -> list[Finding]:
        """What is wrong across objects: references to nothing, conflicts. istiod uses them all the same."""
        objects = (*self.mesh.configs.values(), *self.mesh.services.values())
        found = analyze(objects, self.context.registry, self.mesh.mesh)
        return [finding for finding in found if finding.level is not Level.INFO]

    def proxies(self) -> list[OfflineProxy]:
        """Everything that runs a proxy, by namespace and name."""
        found = [proxy for proxy in self.mesh.proxies if proxy.injected]
        return sorted(found, key=lambda proxy: (proxy.namespace, proxy.name))

    def compile(self, proxy: OfflineProxy) -> Compiled:
        """What istiod would send to one proxy."""
        ir = translate(self.context, class_key(self.context, self._node(proxy)))
        return Compiled(proxy, ir, self._store.endpoints)

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
            metadata={
                **proxy.metadata,
                **({"NODE_NAME": proxy.node} if proxy.node else {}),
                "PROXY_CONFIG": proxy.settings,
            },
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
    entry["findings"] = [finding_json(finding) for finding in made.findings]
    return entry


def json_text(value: Mapping[str, Any]) -> str:
    """JSON for people and programs. Below the first level keys are sorted: the order in protobuf's maps differs from run to run."""
    # A large mesh has megabytes of it, which msgspec writes ten times faster than the standard library.
    parts = {
        name: msgspec.Raw(msgspec.json.encode(part, order="sorted")) for name, part in value.items()
    }
    return msgspec.json.format(msgspec.json.encode(parts), indent=2).decode()
