"""What analyzers look at, indexed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from meltemi.analyze.messages import MESSAGES
from meltemi.model import kubernetes as k8s
from meltemi.model.config import Config, Key
from meltemi.model.destination_rule import DestinationRule
from meltemi.model.mesh import DEFAULT_MESH_CONFIG, MeshConfig
from meltemi.model.names import resolve_short_name
from meltemi.model.origin import Finding
from meltemi.model.service import Service, Workload
from meltemi.registry.from_kubernetes import RegistrySettings
from meltemi.registry.index import Registry
from meltemi.registry.store import RegistryStore


@dataclass
class Analysis:
    """All objects by kind, the services they define, and the findings so far.

    ``whole``: the objects are all of a cluster's, so that what is missing here does not exist. Otherwise (files) checks that need
    pods or Secrets stay silent.
    """

    kinds: Mapping[str, list[Config[Any]]]
    registry: Registry
    mesh: MeshConfig = DEFAULT_MESH_CONFIG
    whole: bool = False
    domain: str = "cluster.local"
    findings: list[Finding] = field(default_factory=list)

    def of(self, kind: str) -> list[Config[Any]]:
        """Objects of a kind, oldest first: Istio's precedence."""
        return self.kinds.get(kind, [])

    def find(self, kind: str, namespace: str, name: str) -> Config[Any] | None:
        """One object by name."""
        return self._named.get(Key(kind, namespace, name))

    @cached_property
    def _named(self) -> Mapping[Key, Config[Any]]:
        return {config.key: config for group in self.kinds.values() for config in group}

    def rules_for(self, hostname: str) -> Iterator[Config[DestinationRule]]:
        """DestinationRules for a full host name, wildcards included."""
        exact, wild = self._rules
        yield from exact.get(hostname, ())
        for tail, config in wild:
            if hostname.endswith(tail):
                yield config

    @cached_property
    def _rules(
        self,
    ) -> tuple[dict[str, list[Config[DestinationRule]]], list[tuple[str, Config[DestinationRule]]]]:
        """DestinationRules by full host name; those with a wildcard, by what follows it."""
        exact: dict[str, list[Config[DestinationRule]]] = {}
        wild: list[tuple[str, Config[DestinationRule]]] = []
        for config in self.of("DestinationRule"):
            host = self.hostname(config.spec.host, config.meta.namespace)
            if host.startswith("*"):
                wild.append((host[1:], config))
            else:
                exact.setdefault(host, []).append(config)
        return exact, wild

    def add(
        self, code: str, config: Config[Any], path: str = "", remedy: str = "", **values: Any
    ) -> None:
        """Record a finding; ``values`` fill the message's text."""
        message = MESSAGES[code]
        text = message.text.format(**values)
        self.findings.append(
            Finding(code, message.level, text, config.origin(path or "metadata.name"), remedy)
        )

    def hostname(self, host: str, namespace: str) -> str:
        """A host as written -> full name."""
        return resolve_short_name(host, namespace, self.domain)

    def services_for(self, host: str, namespace: str) -> tuple[Service, ...]:
        """Services that a host names, by name or by the wildcard of a ServiceEntry."""
        full = self.hostname(host, namespace)
        exact = self.registry.services.get(full) or self.registry.services.get(host)
        if exact:
            return exact
        if full.startswith("*"):
            tail = full[1:]
            return tuple(s for s in self.registry.all_services if s.hostname.endswith(tail))
        return tuple(
            service
            for service in self.registry.all_services
            if service.hostname.startswith("*") and full.endswith(service.hostname[1:])
        )

    def workloads(self, namespace: str, labels: Mapping[str, str]) -> list[Workload]:
        """Workloads with all of the labels; in every namespace when ``namespace`` is ''."""
        return [
            workload
            for workload in self._workloads
            if (not namespace or workload.namespace == namespace)
            and all(workload.labels.get(key) == value for key, value in labels.items())
        ]

    @cached_property
    def _workloads(self) -> list[Workload]:
        """Every workload once, by name."""
        groups = self.registry.workloads.values()
        found = {(w.namespace, w.name): w for group in groups for w in group}
        return [found[key] for key in sorted(found)]


def build_context(
    configs: Iterable[Config[Any]],
    registry: Registry | None,
    mesh: MeshConfig,
    whole: bool,
    domain: str,
) -> Analysis:
    """Index the objects; make the registry from them when none is given."""
    kinds: dict[str, list[Config[Any]]] = {}
    for config in configs:
        kinds.setdefault(config.kind, []).append(config)
    for group in kinds.values():
        group.sort(key=lambda c: (c.meta.created, c.meta.name, c.meta.namespace))
    if registry is None:
        store = RegistryStore(RegistrySettings(domain=domain, trust_domain=mesh.trust_domain))
        for kind in ("Node", "Service", "Pod", "EndpointSlice"):
            for config in kinds.get(kind, []):
                if isinstance(config.spec, k8s.K8s):
                    store.put(config.spec)
        store.put_configs((*kinds.get("ServiceEntry", []), *kinds.get("WorkloadEntry", [])))
        registry = store.snapshot()
    return Analysis(kinds, registry, mesh, whole, domain)
