"""Everything that the control plane knows, kept by one task, and what each event changed.

In: objects as watches and files give them (decoded), the mesh configuration. Out: ``Change`` to whoever
listens. Promises: storing an equal value changes nothing (a new resourceVersion alone is equal); a wrong object
is left out with its findings, and no other is touched. Single writer: the event loop that owns it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from meltemi.adapters.ingresses import IngressBook
from meltemi.model import kubernetes as k8s
from meltemi.model.config import AnyConfig, Key
from meltemi.model.mesh import DEFAULT_MESH_CONFIG, MeshConfig, MeshNetworks
from meltemi.model.origin import Finding, Level
from meltemi.push.issuer_keys import NO_ISSUER_KEYS, IssuerKeys
from meltemi.push.secrets import SecretData, secret_from_data
from meltemi.registry.from_kubernetes import RegistrySettings
from meltemi.registry.index import ServiceKey
from meltemi.registry.store import Changes, RegistryStore

log = structlog.get_logger("world")
Name = tuple[str, str]  # (namespace, name)
REGISTRY_KINDS = frozenset({"Service", "EndpointSlice", "Pod", "Node"})


@dataclass(frozen=True, slots=True)
class Change:
    """What one event changed. Empty: nothing to do.

    ``keys``: objects and host names, for a new snapshot; ``endpoints``: services of which only endpoints
    differ; ``workloads``: pods whose own configuration may differ.
    """

    keys: frozenset[Key | str] = frozenset()
    endpoints: frozenset[ServiceKey] = frozenset()
    workloads: frozenset[Name] = frozenset()
    everything: bool = False
    reason: str = "config"

    def __bool__(self) -> bool:
        return bool(self.keys or self.endpoints or self.workloads or self.everything)


@dataclass(eq=False)
class World:
    """See the module. ``listener`` hears of every change, in order, and ``watchers`` after it."""

    settings: RegistrySettings = field(default_factory=RegistrySettings)
    mesh: MeshConfig = DEFAULT_MESH_CONFIG
    networks: MeshNetworks = field(default_factory=MeshNetworks)
    listener: Callable[[Change], None] = lambda change: None
    watchers: list[Callable[[Change], None]] = field(default_factory=list)
    issuer_keys: IssuerKeys = NO_ISSUER_KEYS
    configs: dict[Key, AnyConfig] = field(default_factory=dict)
    namespaces: dict[str, Mapping[str, str]] = field(default_factory=dict)
    secrets: dict[Name, SecretData] = field(default_factory=dict)
    findings: dict[Key, tuple[Finding, ...]] = field(default_factory=dict)
    registry: RegistryStore = field(init=False)
    ingresses: IngressBook = field(init=False)
    _native: dict[str, set[Name]] = field(default_factory=dict)
    _converted: set[Key] = field(default_factory=set)
    _listing: bool = False
    _unconverted: bool = False

    def __post_init__(self) -> None:
        self.registry = RegistryStore(self.settings)
        self.ingresses = IngressBook(self.settings.domain)

    # --- mesh-wide ----------------------------------------------------------------------------------

    def set_mesh(self, mesh: MeshConfig) -> None:
        """The mesh configuration is this now."""
        if mesh == self.mesh:
            return
        self.mesh = mesh
        self._convert_ingresses()
        self.ingresses.changed()
        self._tell(Change(everything=True, reason="global"))

    def set_networks(self, networks: MeshNetworks) -> None:
        """The mesh's networks are these now."""
        if networks == self.networks:
            return
        self.networks = networks
        self._tell(Change(everything=True, reason="networks"))

    def set_issuer_keys(self, found: IssuerKeys) -> None:
        """The issuers' keys are these now."""
        if found == self.issuer_keys:
            return
        self.issuer_keys = found
        rules = frozenset(key for key in self.configs if key.kind == "RequestAuthentication")
        self._tell(Change(rules, reason="jwks"))

    # --- Kubernetes' own kinds ----------------------------------------------------------------------

    def put_native(self, value: k8s.K8s) -> None:
        """A Service, EndpointSlice, Pod, Node, Namespace, Secret, Ingress or IngressClass was added or changed."""
        kind = type(value).__name__
        metadata: k8s.ObjectMeta = value.metadata  # type: ignore[attr-defined]
        self._native.setdefault(kind, set()).add((metadata.namespace, metadata.name))
        if self.ingresses.put(value):
            self._ingresses_changed()
        if kind in REGISTRY_KINDS:
            self._tell_registry(self.registry.put(value))
        elif isinstance(value, k8s.Namespace):
            self._put_namespace(metadata.name, k8s.labels_of(metadata))
        elif isinstance(value, k8s.Secret):
            self._put_secret((metadata.namespace, metadata.name), value)

    def drop_native(self, kind: str, namespace: str, name: str) -> None:
        """It is gone."""
        self._native.get(kind, set()).discard((namespace, name))
        if self.ingresses.drop(kind, (namespace, name)):
            self._ingresses_changed()
        if kind in REGISTRY_KINDS:
            self._tell_registry(self.registry.drop(kind, namespace, name))
        elif kind == "Namespace" and self.namespaces.pop(name, None) is not None:
            self._tell(Change(frozenset({Key("Namespace", "", name)})))
        elif kind == "Secret" and self.secrets.pop((namespace, name), None) is not None:
            self._tell(Change(frozenset({Key("Secret", namespace, name)}), reason="secret"))

    def replace_native(self, kind: str, values: Mapping[Name, k8s.K8s]) -> None:
        """These are all objects of a kind."""
        self._listing = True
        for namespace, name in self._native.get(kind, set()) - values.keys():
            self.drop_native(kind, namespace, name)
        for value in values.values():
            self.put_native(value)
        self._listing = False
        if self._unconverted:
            self._convert_ingresses()

    def _put_namespace(self, name: str, labels: Mapping[str, str]) -> None:
        if self.namespaces.get(name) != labels:
            self.namespaces[name] = labels
            self._tell(Change(frozenset({Key("Namespace", "", name)})))

    def _put_secret(self, where: Name, value: k8s.Secret) -> None:
        try:
            data = {n: base64.b64decode(t, validate=True) for n, t in (value.data or {}).items()}
        except (binascii.Error, ValueError):
            log.error("secret is not base64", namespace=where[0], name=where[1])
            data = {}
        secret = secret_from_data(data)
        if secret == SecretData():
            if self.secrets.pop(where, None) is None:
                return
        elif self.secrets.get(where) == secret:
            return
        else:
            self.secrets[where] = secret
        self._tell(Change(frozenset({Key("Secret", *where)}), reason="secret"))

    # --- the mesh's kinds ---------------------------------------------------------------------------

    def put_config(
        self, key: Key, config: AnyConfig | None, findings: Iterable[Finding] = ()
    ) -> None:
        """An object was added or changed. ``config`` None: it cannot be used, ``findings`` say why."""
        found = tuple(findings)
        if found:
            if self.findings.get(key) != found:
                _log_findings(key, found, used=config is not None)
            self.findings[key] = found
        else:
            self.findings.pop(key, None)
        if config is None:
            self._remove_config(key)
            return
        before = self.configs.get(key)
        self.configs[key] = config
        changes = self.registry.put_config(config)
        if before is None or not _same(before, config):
            self._tell(_from_registry(changes, frozenset({key}), "config"))
        else:
            self._tell_registry(changes)

    def drop_config(self, key: Key) -> None:
        """It is gone."""
        self.findings.pop(key, None)
        self._remove_config(key)

    def replace_configs(
        self, kind: str, values: Mapping[Name, tuple[AnyConfig | None, tuple[Finding, ...]]]
    ) -> None:
        """These are all objects of a kind."""
        known = {key for key in (*self.configs, *self.findings) if key.kind == kind}
        for key in known - self._converted:
            if (key.namespace, key.name) not in values:
                self.drop_config(key)
        for where, (config, findings) in values.items():
            self.put_config(Key(kind, *where), config, findings)

    def _ingresses_changed(self) -> None:
        """Convert them anew: at once, or at the end of a list."""
        self._unconverted = True
        if not self._listing:
            self._convert_ingresses()

    def _convert_ingresses(self) -> None:
        """Put what the Ingresses mean into the place of what they meant before."""
        self._unconverted = False
        made = self.ingresses.convert(self.mesh)
        found: dict[Key, list[Finding]] = {}
        for finding in made.findings:
            place = finding.origin
            found.setdefault(Key(place.kind, place.namespace, place.name), []).append(finding)
        for key in [key for key in self.findings if key.kind == "Ingress" and key not in found]:
            del self.findings[key]
        for key, findings in found.items():
            if self.findings.get(key) != tuple(findings):
                _log_findings(key, tuple(findings), used=True)
            self.findings[key] = tuple(findings)
        fresh = {config.key: config for config in made.configs}
        for key in self._converted - fresh.keys():
            self._remove_config(key)
        self._converted = set(fresh)
        for key, config in fresh.items():
            self.put_config(key, config)

    def _remove_config(self, key: Key) -> None:
        if self.configs.pop(key, None) is not None:
            changes = self.registry.drop_config(key)
            self._tell(_from_registry(changes, frozenset({key}), "config"))

    # --- telling ------------------------------------------------------------------------------------

    def _tell_registry(self, changes: Changes) -> None:
        self._tell(
            _from_registry(changes, frozenset(), "service" if changes.services else "endpoint")
        )

    def _tell(self, change: Change) -> None:
        if change:
            self.listener(change)
            for watcher in self.watchers:
                watcher(change)


def _from_registry(changes: Changes, keys: frozenset[Key | str], reason: str) -> Change:
    return Change(keys | changes.services, changes.endpoints, changes.workloads, reason=reason)


def _same(before: AnyConfig, after: AnyConfig) -> bool:
    """Equal in what translation reads."""
    old, new = before.meta, after.meta
    return (
        before.spec == after.spec
        and old.labels == new.labels
        and old.annotations == new.annotations
        and old.created == new.created
    )


def _log_findings(key: Key, findings: tuple[Finding, ...], used: bool) -> None:
    worst = any(finding.level is Level.ERROR for finding in findings)
    text: dict[str, Any] = {"kind": key.kind, "namespace": key.namespace, "name": key.name}
    report = log.error if worst else log.warning
    report("object is wrong", used=used, findings=[str(f) for f in findings[:5]], **text)
