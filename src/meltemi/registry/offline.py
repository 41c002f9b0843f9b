"""Objects from files, completed as a cluster would complete them: pods, addresses, endpoints.

In: YAML texts. Out: ``OfflineMesh``: the mesh's own objects, Kubernetes objects (those written, and the pods, cluster
addresses and EndpointSlices that a cluster's controllers would have made), the mesh configuration, and the
proxies that would run. Promises: pure and deterministic; a wrong object is a finding and leaves the others; objects
without a namespace are in ``default``; without creation times, objects are as old as their place in the input says.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from meltemi.config.decode import RawObject, load, parse_yaml
from meltemi.config.ingress import convert_ingresses
from meltemi.config.mesh import parse_mesh_config, proxy_config_findings
from meltemi.config.proxy_config import ANNOTATION, own_settings
from meltemi.model import ingress as net
from meltemi.model import kubernetes as k8s
from meltemi.model.config import AnyConfig, Key
from meltemi.model.frozen import EMPTY_MAP, FrozenMap
from meltemi.model.mesh import DEFAULT_MESH_CONFIG, MeshConfig
from meltemi.model.names import BOOTSTRAP_XDS
from meltemi.model.origin import Finding, Level, Origin
from meltemi.registry.from_kubernetes import TLS_MODE
from meltemi.registry.from_service_entry import entry_labels
from meltemi.registry.offline_slices import add_slices, container_ports, holds

CONTROLLERS = frozenset(
    {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"}
)
_META = "ISTIO_META_"
INJECT = "sidecar.istio.io/inject"
NAMESPACE_INJECT = "istio-injection"
MESH_CONFIG_MAP = "istio"
_CLUSTER_SCOPED = frozenset({"Namespace", "Node", "IngressClass"})
_READY = (k8s.PodCondition("Ready", "True"),)
REPLICAS_MAX = 32


@dataclass(frozen=True, slots=True)
class AddressPlan:
    """Which addresses pods and Services get when the objects give none: functions of (namespace, name)."""

    pod: Callable[[str, str], str]
    service: Callable[[str, str], str]
    # Where the rig has to place pods itself, their own addresses are replaced.
    replace_pods: bool = False


def counted_addresses() -> AddressPlan:
    """Pods from 10.244.0.0/16, Services from 10.96.0.0/12, in order of appearance."""
    given: dict[tuple[str, str, str], str] = {}
    counts = {"pod": 0, "service": 0}

    def give(kind: str, base: tuple[int, int], where: tuple[str, str]) -> str:
        key = (kind, *where)
        if key not in given:
            counts[kind] += 1
            number = counts[kind]
            first, second = base
            given[key] = f"{first}.{second + number // 65536}.{number // 256 % 256}.{number % 256}"
        return given[key]

    return AddressPlan(
        pod=lambda namespace, name: give("pod", (10, 244), (namespace, name)),
        service=lambda namespace, name: give("service", (10, 96), (namespace, name)),
    )


@dataclass(frozen=True, slots=True)
class OfflineProxy:
    """One pod or WorkloadEntry, and whether a proxy runs beside it."""

    name: str  # the pod's
    workload: str  # the Deployment's, the WorkloadEntry's
    kind: str
    namespace: str
    address: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str] = EMPTY_MAP
    service_account: str = "default"
    router: bool = False
    injected: bool = True
    ports: tuple[tuple[str, int], ...] = ()
    node: str = ""
    # Its own ProxyConfig, as JSON (see ``config.proxy_config``).
    settings: Mapping[str, Any] = EMPTY_MAP
    origin: Origin = field(default_factory=Origin, compare=False)

    @property
    def id(self) -> str:
        """``pod.namespace``."""
        return f"{self.name}.{self.namespace}"

    @property
    def metadata(self) -> dict[str, str]:
        """What the proxy tells of itself because its settings say so: ISTIO_META_* variables, by their names."""
        given = self.settings.get("proxyMetadata")
        return {
            name.removeprefix(_META): str(value)
            for name, value in (given.items() if isinstance(given, Mapping) else ())
            if name.startswith(_META) or name == BOOTSTRAP_XDS
        }


@dataclass(slots=True)
class OfflineMesh:
    """Everything that the files say and imply."""

    mesh: MeshConfig = DEFAULT_MESH_CONFIG
    configs: dict[Key, AnyConfig] = field(default_factory=dict)
    natives: dict[Key, k8s.K8s] = field(default_factory=dict)
    proxies: list[OfflineProxy] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    places: dict[Key, Origin] = field(default_factory=dict)
    services: dict[Key, AnyConfig] = field(default_factory=dict)  # as written, with their lines

    def namespaces(self) -> dict[str, Mapping[str, str]]:
        """Labels of the namespaces that were written."""
        return {
            value.metadata.name: k8s.labels_of(value.metadata)
            for value in self.natives.values()
            if isinstance(value, k8s.Namespace)
        }

    def of_kind(self, kind: type[Any]) -> list[Any]:
        """Kubernetes objects of one type, in order."""
        return [value for value in self.natives.values() if isinstance(value, kind)]

    def place(self, origin: Origin) -> Origin:
        """The origin with its file and line, where the object came from a file."""
        if origin.source or not origin.kind:
            return origin
        known = self.places.get(Key(origin.kind, origin.namespace, origin.name))
        return replace(origin, source=known.source, line=known.line) if known else origin


@dataclass(slots=True)
class _Template:
    """A workload before its pods are made."""

    raw: RawObject
    key: Key
    pod: k8s.Pod
    replicas: int
    hostnames: bool = False


def read_objects(texts: Iterable[tuple[str, str]]) -> tuple[list[RawObject], list[Finding]]:
    """All objects of (text, source name) pairs."""
    raws: list[RawObject] = []
    findings: list[Finding] = []
    for text, source in texts:
        found, wrong = parse_yaml(text, source)
        raws += found
        findings += wrong
    return raws, findings


def complete(
    raws: Iterable[RawObject],
    plan: AddressPlan | None = None,
    *,
    namespace: str = "default",
    mesh_config: str = "",
    read: Callable[[RawObject], tuple[AnyConfig | None, list[Finding]]] = load,
) -> OfflineMesh:
    """The mesh that these objects make. A later object with the same name replaces an earlier one.

    ``mesh_config`` is the YAML of a MeshConfig; it wins over one among the objects. ``read`` decodes one object.
    """
    made = OfflineMesh()
    plan = plan or counted_addresses()
    templates: dict[Key, _Template] = {}
    ingresses: dict[Key, AnyConfig] = {}
    for position, raw in enumerate(raws, 1):
        where = "" if raw.kind in _CLUSTER_SCOPED else raw.namespace or namespace
        key = Key(raw.kind, where, raw.name)
        if raw.kind in CONTROLLERS:
            _take_controller(made, templates, raw, key)
            continue
        if raw.kind == "Secret":
            raw = _with_data(raw)
        config, findings = read(raw)
        made.findings += findings
        if config is None:
            continue
        made.places[key] = config.origin("metadata.name")
        config = _placed(config, where, position)
        if isinstance(config.spec, net.Ingress | net.IngressClass):
            ingresses[key] = config
        elif isinstance(config.spec, k8s.Pod):
            templates[key] = _Template(raw, key, config.spec, 1)
        elif isinstance(config.spec, k8s.K8s):
            made.natives.pop(key, None)
            made.natives[key] = config.spec
            if raw.kind == "Service":
                made.services[key] = config
        else:
            made.configs.pop(key, None)
            made.configs[key] = config
    made.mesh = _mesh_settings(made, mesh_config)
    _give_cluster_addresses(made, plan)
    _convert(made, ingresses)
    _check_annotations(made, templates)
    _make_pods(made, templates, plan)
    _make_gateways(made, plan)
    _add_entries(made)
    add_slices(made.natives)
    return made


def _with_data(raw: RawObject) -> RawObject:
    """A Secret whose ``stringData`` has become ``data``, as an API server stores it."""
    plain = raw.body.get("stringData")
    if not isinstance(plain, Mapping):
        return raw
    known = raw.body.get("data")
    data = dict(known) if isinstance(known, Mapping) else {}
    data |= {str(k): base64.b64encode(str(v).encode()).decode() for k, v in plain.items()}
    return replace(raw, body={**raw.body, "data": data})


def _placed(config: AnyConfig, namespace: str, position: int) -> AnyConfig:
    meta = replace(config.meta, namespace=namespace, created=config.meta.created or float(position))
    spec = config.spec
    if isinstance(spec, k8s.K8s):
        metadata = msgspec.structs.replace(spec.metadata, namespace=namespace)  # type: ignore[attr-defined]
        spec = msgspec.structs.replace(spec, metadata=metadata)
    return replace(config, meta=meta, spec=spec)


def _take_controller(
    made: OfflineMesh, templates: dict[Key, _Template], raw: RawObject, key: Key
) -> None:
    """A Deployment or the like: keep its template."""
    spec = raw.spec if isinstance(raw.spec, Mapping) else {}
    template = spec.get("template")
    line, column = raw.source_map.lines.get("spec.template", (0, 0))
    origin = Origin(raw.kind, key.namespace, key.name, "", raw.source_map.source, line, column)
    first = raw.source_map.lines.get("metadata.name", raw.source_map.lines.get("kind", (line, 0)))
    made.places[key] = replace(origin, line=first[0], column=first[1])
    try:
        pod = msgspec.convert(template or {}, k8s.Pod, strict=False)
    except (msgspec.ValidationError, RecursionError) as error:
        text = str(error).replace("`$", "`spec.template")
        made.findings.append(Finding("MLT0002", Level.ERROR, text, origin))
        return
    count = spec.get("replicas", 1)
    count = count if isinstance(count, int) and not isinstance(count, bool) else 1
    if count > REPLICAS_MAX:
        text = f"{count} replicas; offline, {REPLICAS_MAX} of them exist"
        made.findings.append(Finding("MLT0003", Level.INFO, text, origin))
    owner = k8s.OwnerReference("apps/v1", raw.kind, key.name, True)
    metadata = msgspec.structs.replace(
        pod.metadata, name=key.name, namespace=key.namespace, owner_references=(owner,)
    )
    pod = msgspec.structs.replace(pod, metadata=metadata)
    stateful = raw.kind == "StatefulSet"
    templates[key] = _Template(raw, key, pod, max(0, min(count, REPLICAS_MAX)), stateful)


# --- settings ---------------------------------------------------------------------------------------


def _mesh_settings(made: OfflineMesh, given: str) -> MeshConfig:
    """The mesh configuration: as given, else of ConfigMap ``istio``, else of an IstioOperator."""
    text, source = given, "mesh configuration"
    if not text:
        for key, value in made.natives.items():
            if isinstance(value, k8s.ConfigMap) and key.name == MESH_CONFIG_MAP:
                text, source = (value.data or {}).get("mesh", ""), "ConfigMap istio, key mesh"
    if not text:
        for key, config in made.configs.items():
            if key.kind == "IstioOperator" and config.spec.mesh_config:
                text = msgspec.json.encode(config.spec.mesh_config).decode()
                source = f"IstioOperator {key.name}, spec.meshConfig"
    if not text:
        return DEFAULT_MESH_CONFIG
    mesh, findings = parse_mesh_config(text, source)
    made.findings += findings
    return mesh


def _give_cluster_addresses(made: OfflineMesh, plan: AddressPlan) -> None:
    for key, value in made.natives.items():
        if not isinstance(value, k8s.Service) or value.spec.cluster_ip:
            continue
        if value.spec.type == "ExternalName":
            continue
        address = plan.service(key.namespace, key.name)
        spec = msgspec.structs.replace(value.spec, cluster_ip=address)
        made.natives[key] = msgspec.structs.replace(value, spec=spec)


def _convert(made: OfflineMesh, ingresses: Mapping[Key, AnyConfig]) -> None:
    """Ingresses become Gateways and VirtualServices."""
    specs = [config.spec for config in ingresses.values()]
    if not specs:
        return

    def number(namespace: str, service: str, port: str) -> int | None:
        found = made.natives.get(Key("Service", namespace, service))
        ports = found.spec.ports or () if isinstance(found, k8s.Service) else ()
        return next((entry.port for entry in ports if entry.name == port), None)

    converted = convert_ingresses(
        [spec for spec in specs if isinstance(spec, net.Ingress)],
        [spec for spec in specs if isinstance(spec, net.IngressClass)],
        made.mesh,
        number,
    )
    made.findings += converted.findings
    for config in converted.configs:
        made.configs.setdefault(config.key, config)


# --- pods -------------------------------------------------------------------------------------------


def _is_injected(made: OfflineMesh, metadata: k8s.ObjectMeta, host_network: bool) -> bool:
    """Whether the pod would get a proxy. Offline every namespace has injection unless it says otherwise."""
    labels, notes = k8s.labels_of(metadata), k8s.annotations_of(metadata)
    wanted = labels.get(INJECT, notes.get(INJECT, "")).lower()
    if host_network or wanted == "false":
        return False
    space = made.natives.get(Key("Namespace", "", metadata.namespace))
    marks = k8s.labels_of(space.metadata) if isinstance(space, k8s.Namespace) else EMPTY_MAP
    return wanted == "true" or marks.get(NAMESPACE_INJECT) != "disabled"


def _gateway_selectors(made: OfflineMesh) -> list[Mapping[str, str]]:
    return [
        config.spec.selector
        for key, config in made.configs.items()
        if key.kind == "Gateway" and config.spec.selector
    ]


def _is_router(made: OfflineMesh, pod: k8s.Pod) -> bool:
    """A gateway: its pod runs the gateway template, or a Gateway selects it and it runs nothing of its own."""
    notes, labels = k8s.annotations_of(pod.metadata), k8s.labels_of(pod.metadata)
    if "gateway" in notes.get("inject.istio.io/templates", "").split(","):
        return True
    names = [container.name for container in pod.spec.containers or ()]
    own = [name for name in names if name != "istio-proxy"]
    return not own and any(holds(selector, labels) for selector in _gateway_selectors(made))


def _check_annotations(made: OfflineMesh, templates: Mapping[Key, _Template]) -> None:
    """What templates say of their proxies: the injector refuses what is wrong, and nobody else would tell of the rest."""
    for key, template in templates.items():
        text = k8s.annotations_of(template.pod.metadata).get(ANNOTATION, "")
        if text:
            above = "" if key.kind == "Pod" else "spec.template."
            place = replace(made.places[key], path=f"{above}metadata.annotations[{ANNOTATION}]")
            made.findings += proxy_config_findings(text, place, made.mesh.default_config)


def _make_pods(made: OfflineMesh, templates: Mapping[Key, _Template], plan: AddressPlan) -> None:
    for key, template in templates.items():
        single = key.kind == "Pod"
        for index in range(template.replicas):
            suffix = index if template.hostnames else index + 1
            name = key.name if single else f"{key.name}-{suffix}"
            _make_pod(made, template, name, plan)


def _make_pod(made: OfflineMesh, template: _Template, name: str, plan: AddressPlan) -> None:
    pod, key = template.pod, template.key
    injected = _is_injected(made, pod.metadata, pod.spec.host_network)
    router = _is_router(made, pod)
    labels = dict(pod.metadata.labels or {})
    if injected and not router:
        labels.setdefault(TLS_MODE, "istio")
    metadata = msgspec.structs.replace(pod.metadata, name=name, labels=labels)
    address = pod.status.pod_ip
    if not address or plan.replace_pods:
        address = plan.pod(key.namespace, name)
    status = k8s.PodStatus("Running", address, (k8s.PodIP(address),), "", _READY)
    spec = pod.spec
    if template.hostnames:
        spec = msgspec.structs.replace(spec, hostname=name)
    made.natives[Key("Pod", key.namespace, name)] = k8s.Pod(metadata, spec, status)
    made.proxies.append(
        OfflineProxy(
            name=name,
            workload=key.name,
            kind=key.kind,
            namespace=key.namespace,
            address=address,
            labels=FrozenMap(labels),
            annotations=k8s.annotations_of(pod.metadata),
            service_account=spec.service_account_name or "default",
            router=router,
            injected=injected or router,
            ports=container_ports(spec),
            node=spec.node_name,
            settings=own_settings(
                made.mesh,
                made.configs.values(),
                key.namespace,
                labels,
                k8s.annotations_of(pod.metadata),
            ),
            origin=made.places[key],
        )
    )


def _make_gateways(made: OfflineMesh, plan: AddressPlan) -> None:
    """A gateway for every Gateway whose selector selects no pod: its installation is not among the files."""
    for key, config in list(made.configs.items()):
        if key.kind != "Gateway" or not config.spec.selector:
            continue
        selector = config.spec.selector
        chosen = [proxy for proxy in made.proxies if holds(selector, proxy.labels)]
        if chosen:
            continue
        name = selector.get("istio") or selector.get("app") or config.meta.name
        name = name if name.startswith("istio-") else f"istio-{name}"
        space = made.mesh.root_namespace
        labels = {"app": name, **selector}
        address = plan.pod(space, f"{name}-1")
        account = f"{name}-service-account"
        owner = k8s.OwnerReference("apps/v1", "Deployment", name, True)
        made.natives[Key("Pod", space, f"{name}-1")] = k8s.Pod(
            k8s.ObjectMeta(f"{name}-1", space, labels=labels, owner_references=(owner,)),
            k8s.PodSpec((k8s.Container("istio-proxy"),), service_account_name=account),
            k8s.PodStatus("Running", address, (k8s.PodIP(address),), "", _READY),
        )
        made.proxies.append(
            OfflineProxy(
                name=f"{name}-1",
                workload=name,
                kind="Deployment",
                namespace=space,
                address=address,
                labels=FrozenMap(labels),
                service_account=account,
                router=True,
                settings=own_settings(made.mesh, made.configs.values(), space, labels, {}),
                origin=config.origin("spec.selector"),
            )
        )


def _add_entries(made: OfflineMesh) -> None:
    """WorkloadEntries are machines with a proxy, like VMs, when they say that they speak mTLS."""
    for key, config in made.configs.items():
        if key.kind != "WorkloadEntry":
            continue
        spec = config.spec
        labels = entry_labels(config)
        made.proxies.append(
            OfflineProxy(
                name=key.name,
                workload=key.name,
                kind="WorkloadEntry",
                namespace=key.namespace,
                address=spec.address,
                labels=labels,
                service_account=spec.service_account or "default",
                injected=labels.get(TLS_MODE) == "istio" or bool(spec.service_account),
                ports=tuple(spec.ports.items()),
                settings=own_settings(
                    made.mesh, made.configs.values(), key.namespace, labels, config.meta.annotations
                ),
                origin=config.origin("spec"),
            )
        )


def secret_bytes(secret: k8s.Secret) -> dict[str, bytes]:
    """A Secret's values; what is not base64 is left out."""
    found = {}
    for name, text in (secret.data or {}).items():
        try:
            found[name] = base64.b64decode(text, validate=True)
        except ValueError:
            continue
    return found
