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
    _other(
        "Gateway.servers.tls.caCertCredentialName",
        "names a Secret; ConfigMaps are not read",
        "put the authorities into a Secret",
    ),
    _other(
        "DestinationRule.trafficPolicy.tls.credentialName",
        "is for gateways: sidecars are given no Secrets, whatever the workloadSelector",
        "mount the Secret into the pods and name its files",
    ),
    *(
        _no(
            f"Sidecar.ingress.tls.{name}",
            "is for gateways: sidecars are given no Secrets",
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
            f"{place}.zoneAwareLbSetting",
            "has no effect: Envoy compares zones with those of the caller's own service, which proxies are not told",
            "use localityLbSetting with failover or distribute",
        )
        for place in ("DestinationRule.trafficPolicy.loadBalancer", "MeshConfig")
    ),
    _other(
        "DestinationRule.trafficPolicy.tls.caCertCredentialName",
        "is for gateways, and names a Secret: sidecars are given none, and ConfigMaps are not read",
        "mount the Secret into the pods and name its file in caCertificates",
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
            f"WorkloadGroup.{part}",
            "is only kept: machines do not register themselves here",
            "write a WorkloadEntry for each machine",
        )
        for part in ("metadata", "template", "probe")
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
    """Findings for every limited field that is set somewhere in a decoded spec of a kind; ``path`` is the spec's own."""
    node = _tree(kind)
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
