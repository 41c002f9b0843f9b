"""``PushContext``: everything that translation may read, frozen at one moment.

In: the mesh configuration, the registry, the valid configuration objects, secrets. Out: an immutable snapshot with
indexes. Promises: order is Istio's precedence (oldest first, then name, then namespace); equal inputs give an
equal ``version``; nothing in it refers to a clock or a connection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from meltemi.model.config import AnyConfig, Config
from meltemi.model.destination_rule import DestinationRule
from meltemi.model.extensions import EnvoyFilter
from meltemi.model.mesh import MeshConfig, MeshNetworks
from meltemi.model.security import PeerAuthentication
from meltemi.model.service import Endpoint, Service
from meltemi.model.topology import Gateway, Sidecar
from meltemi.model.traffic import VirtualService
from meltemi.push.discovered import configs_of, discovered, registry_of
from meltemi.push.facts import NO_FACTS, EndpointFacts, derive_facts
from meltemi.push.issuer_keys import NO_ISSUER_KEYS, IssuerKeys
from meltemi.push.networks import NO_NETWORKS, Networks, derive_networks
from meltemi.push.secrets import SecretData
from meltemi.registry.index import Registry

ServiceKey = tuple[str, str]  # hostname, namespace


class EndpointSource(Protocol):
    """What the context needs of the endpoint index."""

    def endpoints(self, hostname: str, namespace: str) -> Iterable[Endpoint]:
        """All endpoints of a service."""
        ...


@dataclass(frozen=True, eq=False)
class PushContext:
    """One frozen view of the world. ``memo`` holds results of pure functions of this very context."""

    mesh: MeshConfig
    registry: Registry = field(default_factory=Registry)
    services: tuple[Service, ...] = ()
    facts: Mapping[ServiceKey, EndpointFacts] = field(default_factory=dict)
    configs: Mapping[str, tuple[AnyConfig, ...]] = field(default_factory=dict)
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    secrets: Mapping[ServiceKey, SecretData] = field(default_factory=dict)
    networks: Networks = NO_NETWORKS
    issuer_keys: IssuerKeys = NO_ISSUER_KEYS
    version: str = ""
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def root_namespace(self) -> str:
        """Where mesh-wide policies live."""
        return self.mesh.root_namespace

    @property
    def virtual_services(self) -> tuple[Config[VirtualService], ...]:
        """In order of precedence."""
        return self.configs.get("VirtualService", ())

    @property
    def destination_rules(self) -> tuple[Config[DestinationRule], ...]:
        """In order of precedence."""
        return self.configs.get("DestinationRule", ())

    @property
    def gateways(self) -> tuple[Config[Gateway], ...]:
        """In order of precedence."""
        return self.configs.get("Gateway", ())

    @property
    def sidecars(self) -> tuple[Config[Sidecar], ...]:
        """In order of precedence."""
        return self.configs.get("Sidecar", ())

    @property
    def peer_authentications(self) -> tuple[Config[PeerAuthentication], ...]:
        """In order of precedence."""
        return self.configs.get("PeerAuthentication", ())

    @property
    def envoy_filters(self) -> tuple[Config[EnvoyFilter], ...]:
        """In order of precedence."""
        return self.configs.get("EnvoyFilter", ())

    def facts_of(self, service: Service) -> EndpointFacts:
        """What is known about a service's endpoints."""
        return self.facts.get((service.hostname, service.namespace), NO_FACTS)


def precedence(config: AnyConfig) -> tuple[float, str, str]:
    """Istio's order: oldest first, then by name, then by namespace. Unknown age (0) comes first."""
    return (config.meta.created, config.meta.name, config.meta.namespace)


def _service_order(service: Service) -> tuple[float, str, str]:
    return (service.meta.created, service.hostname, service.namespace)


def _digest(services: Iterable[Service], configs: Iterable[AnyConfig], seed: str) -> str:
    """A version that two replicas with the same objects agree on."""
    state = hashlib.blake2b(digest_size=8)
    state.update(seed.encode())
    for service in services:
        state.update(
            f"{service.hostname}/{service.namespace}@{service.meta.resource_version};".encode()
        )
    for config in configs:
        meta = config.meta
        state.update(
            f"{config.kind}/{meta.namespace}/{meta.name}@{meta.resource_version or meta.generation};".encode()
        )
    return state.hexdigest()


def _told(keys: IssuerKeys) -> str:
    """In an order of its own: replicas hear of issuers in any."""
    return repr((sorted(keys.addresses.items()), sorted(keys.sets.items())))


def build_push_context(
    mesh: MeshConfig,
    registry: Registry,
    configs: Iterable[AnyConfig],
    secrets: Mapping[ServiceKey, SecretData] | None = None,
    previous: PushContext | None = None,
    *,
    endpoints: EndpointSource | None = None,
    namespaces: Mapping[str, Mapping[str, str]] | None = None,
    networks: MeshNetworks | None = None,
    issuer_keys: IssuerKeys = NO_ISSUER_KEYS,
) -> PushContext:
    """A new snapshot.

    ``previous`` lends its indexes of the kinds that did not change. ``endpoints`` gives the facts; without it
    services have none (every identity is accepted, DNS services stay empty).
    """
    counts = discovered(mesh, namespaces or {})
    if counts is not None:
        registry, configs = registry_of(registry, counts), configs_of(configs, counts)
    services = tuple(
        sorted(
            (service for group in registry.services.values() for service in group),
            key=_service_order,
        )
    )
    by_kind: dict[str, list[AnyConfig]] = {}
    for config in configs:
        by_kind.setdefault(config.kind, []).append(config)
    indexed: dict[str, tuple[AnyConfig, ...]] = {}
    for kind, members in by_kind.items():
        ordered = tuple(sorted(members, key=precedence))
        known = previous.configs.get(kind, ()) if previous is not None else ()
        indexed[kind] = known if known == ordered else ordered
    facts = {}
    if endpoints is not None:
        for service in services:
            derived = derive_facts(
                service, endpoints.endpoints(service.hostname, service.namespace)
            )
            if derived != NO_FACTS:
                facts[(service.hostname, service.namespace)] = derived
    everything = [config for kind in sorted(indexed) for config in indexed[kind]]
    return PushContext(
        mesh=mesh,
        registry=registry,
        services=services,
        facts=facts,
        configs=indexed,
        namespaces=namespaces or {},
        secrets=secrets or {},
        networks=derive_networks(networks or MeshNetworks(), services),
        issuer_keys=issuer_keys,
        version=_digest(services, everything, f"{mesh!r}{networks!r}{_told(issuer_keys)}"),
    )
