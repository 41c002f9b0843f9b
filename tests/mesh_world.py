"""A mesh in a few lines of YAML, for tests: objects in, PushContext, proxies and IR out.

Beside real objects the YAML may hold short ones: pods become endpoints of the Services that select them, with no
need to write EndpointSlices.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from meltemi.config.decode import load, parse_yaml
from meltemi.config.mesh import parse_mesh_networks
from meltemi.envoy import encode, encode_endpoints
from meltemi.ir.proxy import ProxyIR
from meltemi.model import kubernetes as k8s
from meltemi.model.config import Config
from meltemi.model.mesh import MeshConfig
from meltemi.model.origin import Finding
from meltemi.model.proxy import NodeType, Proxy
from meltemi.model.resource import Resource
from meltemi.push.classes import class_key
from meltemi.push.context import PushContext, build_push_context
from meltemi.push.issuer_keys import NO_ISSUER_KEYS, IssuerKeys
from meltemi.push.secrets import secret_from_data
from meltemi.registry.from_kubernetes import RegistrySettings
from meltemi.registry.store import RegistryStore
from meltemi.translate import translate


@dataclass
class World:
    """One mesh."""

    context: PushContext
    store: RegistryStore
    pods: dict[str, k8s.Pod] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def proxy(self, name: str, **changes: Any) -> Proxy:
        """The proxy of a pod: ``name`` or ``name.namespace``."""
        pod = self.pods[name] if name in self.pods else self.pods[f"{name}.default"]
        meta = pod.metadata
        labels = dict(meta.labels or {})
        router = labels.get("istio", "").endswith("gateway")
        known = {
            "id": f"{meta.name}.{meta.namespace}",
            "type": NodeType.ROUTER if router else NodeType.SIDECAR,
            "addresses": (pod.status.pod_ip,),
            "namespace": meta.namespace,
            "labels": labels,
            "service_account": pod.spec.service_account_name or "default",
            "metadata": {},
        }
        return Proxy(**{**known, **changes})

    def ir(self, name: str, **changes: Any) -> ProxyIR:
        """What a pod's proxy shall do."""
        return translate(self.context, class_key(self.context, self.proxy(name, **changes)))

    def resources(self, name: str) -> dict[str, tuple[Resource, ...]]:
        """The encoded configuration of a pod's proxy."""
        return dict(encode(self.ir(name)))

    def endpoints(self, name: str) -> tuple[Resource, ...]:
        """The encoded endpoints of a pod's proxy."""
        return tuple(
            encode_endpoints(need, self.store.endpoints.endpoints(need.hostname, need.namespace))
            for need in self.ir(name).endpoint_needs
        )


def _slices(services: list[k8s.Service], pods: list[k8s.Pod]) -> list[k8s.EndpointSlice]:
    found = []
    for service in services:
        chosen = service.spec.selector or {}
        members = [
            pod
            for pod in pods
            if chosen
            and pod.metadata.namespace == service.metadata.namespace
            and all((pod.metadata.labels or {}).get(k) == v for k, v in chosen.items())
        ]
        if not members:
            continue
        entries = tuple(
            k8s.SliceEndpoint(
                addresses=(pod.status.pod_ip,),
                conditions=k8s.EndpointConditions(ready=True),
                target_ref=k8s.ObjectReference("Pod", pod.metadata.name, pod.metadata.namespace),
            )
            for pod in members
        )
        ports = tuple(
            k8s.EndpointPort(
                name=port.name,
                protocol=port.protocol,
                port=port.target_port if isinstance(port.target_port, int) else port.port,
            )
            for port in service.spec.ports or ()
        )
        meta = service.metadata
        found.append(
            k8s.EndpointSlice(
                metadata=k8s.ObjectMeta(
                    name=f"{meta.name}-1",
                    namespace=meta.namespace,
                    labels={"kubernetes.io/service-name": meta.name},
                ),
                endpoints=entries,
                ports=ports,
            )
        )
    return found


def _mesh(text: str) -> tuple[MeshConfig, list[Finding]]:
    if not text:
        return MeshConfig(), []
    from meltemi.config.mesh import parse_mesh_config

    return parse_mesh_config(text)


def _placed(config: Config[Any]) -> Config[Any]:
    """The object in namespace default when it names none, and as old as its place in the text says."""
    if config.kind in ("Namespace", "Node"):
        return config
    namespace = config.meta.namespace or "default"
    spec = config.spec
    if isinstance(spec, k8s.K8s):
        meta = msgspec.structs.replace(spec.metadata, namespace=namespace)
        spec = msgspec.structs.replace(spec, metadata=meta)
    return replace(config, meta=replace(config.meta, namespace=namespace), spec=spec)


def build_world(
    text: str,
    *,
    mesh: str = "",
    networks: str = "",
    source: str = "test.yaml",
    issuer_keys: IssuerKeys = NO_ISSUER_KEYS,
) -> World:
    """Build a mesh from YAML documents. Objects are as old as their order in the text."""
    raws, findings = parse_yaml(text, source)
    settings, more = _mesh(mesh)
    findings += more
    configs: list[Config[Any]] = []
    natives: list[k8s.K8s] = []
    for position, raw in enumerate(raws, 1):
        loaded, wrong = load(raw)
        findings += wrong
        if loaded is None:
            continue
        config = _placed(loaded)
        config = replace(config, meta=replace(config.meta, created=float(position)))
        if isinstance(config.spec, k8s.K8s):
            natives.append(config.spec)
        else:
            configs.append(config)
    store = RegistryStore(RegistrySettings(trust_domain=settings.trust_domain))
    pods = [entry for entry in natives if isinstance(entry, k8s.Pod)]
    services = [entry for entry in natives if isinstance(entry, k8s.Service)]
    for entry in (*natives, *_slices(services, pods)):
        store.put(entry)
    store.put_configs(configs)
    secrets = {
        (entry.metadata.namespace, entry.metadata.name): secret_from_data(
            {key: base64.b64decode(value) for key, value in (entry.data or {}).items()}
        )
        for entry in natives
        if isinstance(entry, k8s.Secret)
    }
    context = build_push_context(
        settings,
        store.snapshot(),
        configs,
        secrets,
        endpoints=store.endpoints,
        networks=parse_mesh_networks(networks)[0] if networks else None,
        issuer_keys=issuer_keys,
        namespaces={
            entry.metadata.name: dict(entry.metadata.labels or {})
            for entry in natives
            if isinstance(entry, k8s.Namespace)
        },
    )
    named = {f"{pod.metadata.name}.{pod.metadata.namespace}": pod for pod in pods}
    return World(context, store, named, findings)


def pod(
    name: str,
    ip: str,
    *,
    namespace: str = "default",
    labels: dict[str, str] | None = None,
    account: str = "default",
    mtls: bool = True,
) -> str:
    """A running pod as YAML."""
    marks = {"app": name, **(labels or {})}
    if mtls:
        marks["security.istio.io/tlsMode"] = "istio"
    lines = "".join(f"    {key}: {value}\n" for key, value in marks.items())
    return f"""
---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
  labels:
{lines}spec:
  serviceAccountName: {account}
  containers: [{{name: app}}]
status:
  phase: Running
  podIP: {ip}
  conditions: [{{type: Ready, status: "True"}}]
"""


def service(
    name: str,
    *ports: tuple[str, int] | tuple[str, int, int],
    ip: str = "10.96.0.1",
    namespace: str = "default",
    app: str = "",
) -> str:
    """A Service as YAML; a port is (name, number) or (name, number, target port)."""
    entries = "".join(
        f"  - {{name: {entry[0]}, port: {entry[1]}, targetPort: {entry[-1]}}}\n" for entry in ports
    )
    return f"""
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  clusterIP: {ip}
  selector: {{app: {app or name}}}
  ports:
{entries}"""
