"""What this mesh does not do as the API says: one table, for the person who writes the field and for ``docs/compatibility.md``.

A ``Limit`` names a field (or a whole struct, or one value of an enumeration) by its path, see ``api_fields``; where a kind uses a
struct again, its limits hold there too. ``report_limits`` finds those that an object
sets. The reasons are facts about the stock Envoy that runs as the proxy, or decisions of this project; whoever makes a field work removes
its line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from meltemi.config.api_fields import places
from meltemi.config.paths import item, join
from meltemi.config.reader import SCHEMA, Report
from meltemi.config.shapes import record
from meltemi.model.fields import Spec
from meltemi.model.origin import Level

UNSERVED = "MLT0011"
DIFFERENT = "MLT0012"


@dataclass(frozen=True, slots=True)
class Limit:
    """One field that is ``refused`` (it has no effect, or the object is not accepted) or that ``differs`` from Istio's.

    ``text`` completes the sentence "<field> ..."; ``remedy`` says what to write instead. ``level`` ERROR refuses the object.
    """

    field: str
    state: Literal["refused", "differs"]
    text: str
    remedy: str = ""
    level: Level = Level.WARNING

    @property
    def code(self) -> str:
        """Refusing an object is validation, as in Istio."""
        if self.level is Level.ERROR:
            return SCHEMA
        return UNSERVED if self.state == "refused" else DIFFERENT


def _no(field: str, text: str, remedy: str = "", level: Level = Level.WARNING) -> Limit:
    return Limit(field, "refused", text, remedy, level)


def _other(field: str, text: str, remedy: str = "", level: Level = Level.INFO) -> Limit:
    return Limit(field, "differs", text, remedy, level)


_HTTP = "VirtualService.http"
_LIMITS = (
    _no(
        f"{_HTTP}.fault.delay.exponentialDelay",
        "is not supported, as in Istio",
        "use fixedDelay",
        Level.ERROR,
    ),
    _no(
        f"{_HTTP}.fault.abort.http2Error",
        "is not supported, as in Istio",
        "use httpStatus or grpcStatus",
        Level.ERROR,
    ),
    _no(
        "Gateway.servers.defaultEndpoint",
        "has no effect, as in Istio",
        "bind a VirtualService to the gateway",
    ),
    *(
        _other(
            f"{place}.tls.caCertCredentialName",
            "names a Secret; ConfigMaps are not read",
            "put the authorities into a Secret",
        )
        for place in ("Gateway.servers", "DestinationRule.trafficPolicy")
    ),
    *(
        _no(
            f"Sidecar.ingress.tls.{name}",
            "is not supported in a Sidecar, as in Istio",
            "mount the Secret into the pods and name its files",
            Level.ERROR,
        )
        for name in ("credentialName", "credentialNames", "caCertCredentialName")
    ),
    _no(
        "Sidecar.ingress.tls.httpsRedirect",
        "has no effect: a sidecar's port speaks one protocol",
        "redirect at a gateway",
    ),
    *(
        _no(
            f"Sidecar.{name}.port.targetPort",
            "has no effect, as in Istio",
            "use defaultEndpoint" if name == "ingress" else "remove it",
        )
        for name in ("ingress", "egress")
    ),
    *(
        _no(
            f"{kind}.{field}.namespace",
            "is not supported, as in Istio: a policy attaches to objects of its own namespace",
            "remove it",
            Level.ERROR,
        )
        for kind in ("AuthorizationPolicy", "RequestAuthentication", "Telemetry", "WasmPlugin")
        for field in ("targetRef", "targetRefs")
    ),
    *(
        _no(
            f"{kind}.targetRefs.namespace",
            "is not supported, as in Istio: it attaches to objects of its own namespace",
            "remove it",
            Level.ERROR,
        )
        for kind in ("EnvoyFilter", "TrafficExtension")
    ),
    *(
        _no(
            f"EnvoyFilter.configPatches.match.waypoint.{name}",
            "selects nothing: this mesh has sidecars and gateways, no waypoints",
            "match listener, routeConfiguration or cluster",
        )
        for name in (
            *("portNumber", "filter.name", "filter.subFilter.name"),
            *("route.name", "route.action"),
        )
    ),
    *(
        _no(f"MeshConfig.{name}", text, remedy)
        for name, text, remedy in (
            ("hboneIdleTimeout", "has no effect: this mesh has no HBONE tunnels", "remove it"),
            (
                "enableEnvoyAccessLogService",
                "has no effect",
                "add an envoyHttpAls extension provider, and a Telemetry that names it",
            ),
            (
                "configSources",
                "has no effect: istiod reads its own API server, or one folder of files",
                "name the folder in istiod's flag --configDir",
            ),
            (
                "certificates",
                "has no effect: istiod makes certificates for proxies and for itself only",
                "let another issuer fill the Secret",
            ),
            (
                "serviceScopeConfigs",
                "has no effect: it is for ambient mode, which this mesh does not have",
                "remove it",
            ),
            (
                "serviceEntryVisibility",
                "has no effect",
                "write exportTo in the ServiceEntries, or set defaultServiceExportTo",
            ),
            (
                "caCertificates.spiffeBundleUrl",
                "has no effect: nothing is fetched from there",
                "put the root into pem",
            ),
        )
    ),
    _no(
        "MeshConfig.meshMTLS.ecdhCurves",
        "has no effect, as in Istio: proxies use Envoy's curves among themselves",
        "use tlsDefaults.ecdhCurves for other TLS",
    ),
    _no(
        "MeshNetworks.networks.gateways.locality",
        "has no effect: what is behind a gateway counts where it runs itself",
        "remove it",
    ),
    _other(
        "MeshConfig.ca.address",
        "is read when istiod starts, and gives way to its environment variable MESH_EXTERNAL_CA_ADDR",
        "restart istiod after a change",
    ),
    _other(
        "MeshConfig.caCertificates.trustDomains",
        "has members of these trust domains accepted; the root itself is only trusted by proxies where it speaks for the mesh's "
        "own trust domains, because they keep one set of roots for all",
        "add the other mesh's root to the Secret cacerts",
    ),
    _other(
        "MeshConfig.defaultConfig.extraStatTags",
        "has no effect: tags that a Telemetry gives to metrics are kept without it",
        "remove it",
    ),
    _other(
        "MeshConfig.verifyCertificateAtClient",
        "has no effect: servers are always verified",
        "set insecureSkipVerify in a DestinationRule to turn that off for one host",
    ),
    *(
        _no(f"MeshConfig.defaultConfig.{name}", text, remedy)
        for name, text, remedy in (
            (
                "tracingServiceName",
                "has no effect: traces name a workload's first Service and its namespace",
                "remove it",
            ),
            (
                "statNameLength",
                "has no effect: Envoy no longer limits the names of statistics",
                "remove it",
            ),
            (
                "proxyBootstrapTemplatePath",
                "has no effect: the start configuration is not made from a template",
                "use the annotation sidecar.istio.io/bootstrapOverride",
            ),
            ("zipkinAddress", "has no effect", "use tracing.zipkin.address"),
            (
                "envoyAccessLogService",
                "has no effect",
                "add an envoyHttpAls extension provider, and a Telemetry that names it",
            ),
            *(
                (name, "has no effect", "have the proxies' metrics collected by Prometheus")
                for name in ("envoyMetricsService", "envoyMetricsServiceAddress")
            ),
            (
                "privateKeyProvider",
                "has no effect: the stock Envoy has no provider of private keys",
                "remove it",
            ),
            (
                "statsCompression",
                "has no effect: statistics are passed on as Envoy writes them",
                "remove it",
            ),
            (
                "proxyHeaders.metadataExchangeHeaders",
                "has no effect: peers are told apart by their certificates, not by headers",
                "remove it",
            ),
            *(
                (
                    f"tracing.{name}",
                    "has no effect: the stock Envoy has no such tracer",
                    "use an opentelemetry extension provider",
                )
                for name in ("lightstep", "stackdriver", "openCensusAgent")
            ),
            *(
                (
                    f"tracing.{name}",
                    "has no effect",
                    "use an extension provider, and a DestinationRule for its host",
                )
                for name in ("tlsSettings", "zipkin.accessToken", "datadog.accessToken")
            ),
        )
    ),
    *(
        _no(
            f"MeshConfig.extensionProviders.{name}",
            "is not used: the stock Envoy has no such tracer",
            "use an opentelemetry provider",
        )
        for name in ("lightstep", "stackdriver", "opencensus")
    ),
    _no(
        "MeshConfig.extensionProviders.sds",
        "is not used: gateways take certificates from Secrets and files",
        "put the certificate into a Secret",
    ),
    _other(
        "MeshConfig.extensionProviders.zipkin.enable64bitTraceId",
        "has no effect: trace ids always have 128 bits",
        "remove it",
    ),
    *(
        _no(f"MeshConfig.extensionProviders.opentelemetry.{name}", "has no effect", remedy)
        for name, remedy in (
            ("dynatraceSampler", "set randomSamplingPercentage in a Telemetry"),
            ("serviceAttributeEnrichment", "add customTags in a Telemetry"),
        )
    ),
)

LIMITS: Mapping[str, Limit] = {limit.field: limit for limit in _LIMITS}


def limit_of(path: str) -> Limit | None:
    """The limit of a field or of a struct that it is in."""
    while path:
        if path in LIMITS:
            return LIMITS[path]
        path = path.rpartition(".")[0]
    return None


@dataclass
class _Node:
    """The limits of one field and, by wire name, of the fields below it."""

    limit: Limit | None = None
    values: dict[str, Limit] = field(default_factory=dict)
    inner: dict[str, _Node] = field(default_factory=dict)


@cache
def _tree(kind: str) -> _Node:
    root = _Node()
    for limit in LIMITS.values():
        path, _, value = limit.field.partition("=")
        if path.partition(".")[0] != kind:
            continue
        for place in places(path):
            node = root
            for name in place.split(".")[1:]:
                node = node.inner.setdefault(name, _Node())
            if value:
                node.values[value] = limit
            else:
                node.limit = limit
    return root


def report_limits(kind: str, spec: Spec, path: str, report: Report) -> None:
    """Findings for every limited field that is set somewhere in a decoded spec; ``path`` is the spec's own.

    ``kind`` is the spec's, or the path of a struct in a kind.
    """
    first, *rest = kind.split(".")
    node = _tree(first)
    for name in rest:
        node = node.inner.get(name) or _Node()
    if node.inner:
        _walk(node, spec, path, report)


def _walk(node: _Node, value: Any, path: str, report: Report) -> None:
    if isinstance(value, tuple):
        for index, entry in enumerate(value):
            _walk(node, entry, item(path, index), report)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            _walk(node, entry, join(path, str(key)), report)
    elif isinstance(value, Spec):
        shape = record(type(value))
        unset = _unset(type(value))
        for wire, below in node.inner.items():
            name = shape.fields[wire].name
            given = getattr(value, name)
            if given != getattr(unset, name):
                _given(below, given, join(path, wire), report)


def _given(node: _Node, value: Any, path: str, report: Report) -> None:
    """A field that was set: its own limit, that of its value, those below it."""
    for limit in (node.limit, node.values.get(value) if isinstance(value, str) else None):
        if limit is not None:
            report.add(
                path, limit.text, limit.remedy, limit.level, limit.code, limit.level is Level.ERROR
            )
    if node.inner:
        _walk(node, value, path, report)


@cache
def _unset(cls: type[Spec]) -> Spec:
    return cls()
