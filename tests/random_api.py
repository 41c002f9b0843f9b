"""Random objects of the mesh's API, from the shapes that decoding and the CRDs are made from: every field of every kind.

In: kinds. Out: hypothesis strategies of whole objects (plain data). Text is drawn from pools that fit a field's name, so that
much of what is drawn is valid and refers to services that exist; what is not valid, validation has to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from meltemi.config.kinds import KINDS
from meltemi.config.shapes import Choice, ListOf, MapOf, Record, Scalar, Shape, record

# A field is given this often, out of a hundred, so that objects stay small.
_OFTEN = 22
_DEPTH = 8

NAMES = ("reviews", "details", "api", "front", "one")
HOSTS = (
    "reviews",
    "details",
    "reviews.default.svc.cluster.local",
    "details.default.svc.cluster.local",
    "api.example.com",
    "*.example.com",
    "*.default.svc.cluster.local",
)
# Text by the name of the field that holds it.
_TEXT: Mapping[str, tuple[str, ...]] = {
    "host": HOSTS,
    "hosts": HOSTS,
    "name": NAMES,
    "namespace": ("default", "elsewhere"),
    "subset": ("", "v1", "v2", "v9"),
    "gateways": ("mesh", "front", "elsewhere/front"),
    "exportTo": (".", "*", "elsewhere"),
    "address": ("10.9.9.1", "10.9.9.2", "api.example.com"),
    "addresses": ("10.9.8.1", "10.9.8.0/24", "2001:db8::1"),
    "protocol": ("HTTP", "TCP", "TLS", "HTTPS", "GRPC", "HTTP2"),
    "bind": ("", "127.0.0.1", "0.0.0.0"),
    "credentialName": ("cred", "gone"),
    "credentialNames": ("cred",),
    "caCertCredentialName": ("cred", "gone"),
    "sniHosts": ("a.example.com", "*.example.com"),
    "destinationSubnets": ("10.0.0.0/8", "192.168.1.1"),
    "sourceSubnet": ("10.0.0.0/8",),
    "sourceNamespace": ("default", "elsewhere"),
    "scheme": ("http", "https"),
    "authority": ("other.example.com", "reviews:9080"),
    "prefixRewrite": ("/new", "/"),
    "uri": ("/new", "/"),
    "rewrite": (r"/\1", "/x"),
    "retryOn": ("5xx", "connect-failure,refused-stream,503", "gateway-error", "retriable-4xx,409"),
    "grpcStatus": ("UNAVAILABLE", "NOT_FOUND", "14"),
    "allowMethods": ("GET", "POST", "*"),
    "allowHeaders": ("x-one", "x-two"),
    "exposeHeaders": ("x-one",),
    "allowOrigin": ("*", "https://a.example.com"),
    "remove": ("x-gone", "x-also"),
    "httpHeaderName": ("x-user", ":path"),
    "httpQueryParameterName": ("q",),
    "path": ("/", "/shop"),
    "sni": ("", "a.example.com"),
    "subjectAltNames": ("a.example.com", "spiffe://cluster.local/ns/default/sa/reviews"),
    "cipherSuites": ("ECDHE-RSA-AES128-GCM-SHA256", "AES128-SHA", "nonsense"),
    "verifyCertificateSpki": ("NvqYIYSbgK2vCJpQhObf77vv+bQWtc5ek5RIOwPiC9A=",),
    "verifyCertificateHash": (
        "df6ff72fe9116521268f6f2dd4966f51df479883fe7037b39f75916ac3049d1a",
        "E0:F3:C8:CE:5E:2E:A3:05:F0:70:1F:F5:12:E3:6E:2E:"
        "97:92:82:84:A2:28:BC:F7:73:32:D3:39:30:A1:B6:FD",
    ),
    "ecdhCurves": ("P-256", "X25519"),
    "defaultEndpoint": ("127.0.0.1:9080", "unix:///tmp/none.sock", "0.0.0.0:9080"),
    "targetHost": ("target.example.com", "10.1.2.3"),
    "locality": ("eu/west/a", "us"),
    "from": ("eu/west/*", "eu", "us"),
    "to": ("us", "eu"),
    "failoverPriority": ("topology.kubernetes.io/region", "version=v1", "app"),
    "network": ("", "one"),
    "serviceAccount": ("reviews",),
    "issuer": ("https://issuer.example.com",),
    "jwks": ('{"keys": []}',),
    "jwksUri": ("https://issuer.example.com/keys",),
    "audiences": ("shop",),
    "principals": ("cluster.local/ns/default/sa/caller", "*", "*/sa/caller"),
    "requestPrincipals": ("*", "https://issuer.example.com/*"),
    "namespaces": ("default", "e*"),
    "serviceAccounts": ("default/caller",),
    "ipBlocks": ("10.0.0.0/8", "127.0.0.1"),
    "remoteIpBlocks": ("10.0.0.0/8",),
    "trustDomains": ("cluster.local",),
    "ports": ("9080", "9000"),
    "methods": ("GET", "P*"),
    "paths": ("/a", "/a*", "*b", "/{*}/c", "/d/{**}"),
    "key": (
        *("request.headers[x-role]", "source.ip", "source.namespace", "destination.port"),
        *("request.auth.claims[groups]", "connection.sni", "source.principal"),
        "experimental.envoy.filters.network.mysql_proxy[db.table]",
    ),
    "values": ("9080", "default", "10.0.0.0/8"),
    "expression": ("response.code >= 400", "request.method == 'GET'"),
    "header": ("x-claim", "x-user"),
    "claim": ("sub", "realm.name"),
    "prefix": ("a", "/a", "Bearer "),
    "exact": ("a", "/a", "GET", "reviews"),
    "string": ("hello", ""),
    "bytes": ("aGVsbG8=",),
    "proxyVersion": ("1.*",),
    "accessLogFile": ("", "/dev/null", "/dev/stdout"),
    "customConfigFile": ("",),
}
_REGEX = ("a+", "/[a-z]*", ".*", "(a|b)c", r"^/(\w+)$")
_DURATIONS = ("0.05s", "1s", "15s", "1h", "250ms")
_KEYS = {
    "labels": ("app", "version"),
    "matchLabels": ("app", "version"),
    "sourceLabels": ("app", "team"),
    "headers": ("x-a", "x-b", "cookie", ":method"),
    "withoutHeaders": ("x-a", "x-c"),
    "queryParams": ("q", "r"),
    "set": ("x-set", "x-other", "host"),
    "add": ("x-add", "x-more"),
    "ports": ("http", "tcp"),
    "to": ("eu/west/a", "us/*"),
    "distribute": ("eu/west/a",),
    "customTags": ("tag",),
    "tagOverrides": ("request_host",),
    "proxyMetadata": ("ONE",),
}
_LABELS = {
    "app": ("reviews", "details", "caller"),
    "version": ("v1", "v2"),
    "team": ("blue",),
    "istio": ("ingressgateway",),
}
_PORTS = (80, 443, 7070, 8080, 9000, 9080, 9081, 15001)


def _text(name: str) -> st.SearchStrategy[str]:
    return st.sampled_from(_TEXT.get(name, ("one", "two")))


def _number(shape: Scalar, name: str) -> st.SearchStrategy[Any]:
    if shape.type == "number":
        low, high = shape.ge or 0.0, shape.le if shape.le is not None else 100.0
        return st.sampled_from(sorted({low, high, min(max(0.5, low), high)}))
    if shape.le == 65535:
        return st.sampled_from(_PORTS)
    pool = {
        "status": (200, 404, 503),
        "httpStatus": (200, 418, 503),
        "redirectCode": (301, 302, 303, 307, 308),
        "weight": (0, 1, 20, 80),
        "tableSize": (65537, 251, 100),
        "outlierDetectionHttpErrorCodes": (500, 503),
    }.get(name, (0, 1, 5, 100))
    return st.sampled_from(pool)


def _scalar(shape: Scalar, name: str) -> st.SearchStrategy[Any]:
    if shape.format == "duration":
        return st.sampled_from(_DURATIONS)
    if shape.format == "regex":
        return st.sampled_from(_REGEX)
    if shape.format == "free-form":
        return st.just({})
    if shape.format == "any":
        return st.sampled_from(("a", 1, True))
    if shape.type == "boolean":
        return st.booleans()
    if shape.type in ("number", "integer"):
        return _number(shape, name)
    return _text(name)


def _map(shape: MapOf, name: str, depth: int) -> st.SearchStrategy[Any]:
    if shape.integer_keys:
        return st.dictionaries(
            st.sampled_from(("9080", "9000")), value_of(shape.value, name, depth), max_size=2
        )
    keys = st.sampled_from(_KEYS.get(name, ("one",)))

    def filled(chosen: list[str]) -> st.SearchStrategy[Any]:
        return st.fixed_dictionaries(
            {
                key: st.sampled_from(_LABELS[key])
                if key in _LABELS and isinstance(shape.value, Scalar)
                else value_of(shape.value, name, depth)
                for key in chosen
            }
        )

    return st.lists(keys, max_size=2, unique=True).flatmap(filled)


def value_of(shape: Shape, name: str, depth: int = 0) -> st.SearchStrategy[Any]:
    """Values of one shape for a field of this name."""
    if isinstance(shape, Choice):
        return st.sampled_from(shape.values)
    if isinstance(shape, Scalar):
        return _scalar(shape, name)
    if isinstance(shape, ListOf):
        return st.lists(value_of(shape.item, name, depth + 1), min_size=1, max_size=2)
    if isinstance(shape, MapOf):
        return _map(shape, name, depth + 1)
    return fields_of(shape, depth)


@st.composite
def fields_of(draw: st.DrawFn, shape: Record, depth: int) -> dict[str, Any]:
    """A struct: what is required, some of the rest, one of each alternative at most."""
    chosen: dict[str, Any] = {}
    taken: set[tuple[str, ...]] = set()
    for wire, field in shape.fields.items():
        group = next((names for names in shape.one_of if wire in names), ())
        if group in taken and group:
            continue
        often = 100 if wire in shape.required else (_OFTEN if depth < _DEPTH else 5)
        if wire in _ALWAYS:
            often = 90
        if draw(st.integers(1, 100)) > often:
            continue
        chosen[wire] = draw(value_of(field.shape, wire, depth + 1))
        if group:
            taken.add(group)
    return chosen


# Without these most structs mean nothing.
_ALWAYS = frozenset({"host", "hosts", "destination", "number", "protocol", "port", "name", "route"})


@st.composite
def spec_of(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """A spec of a kind, with the few things without which it could not be one."""
    spec = draw(fields_of(record(KINDS[kind].spec), 0))
    if kind == "VirtualService":
        spec.setdefault("hosts", ["reviews"])
        if not any(spec.get(name) for name in ("http", "tls", "tcp")):
            part = draw(st.sampled_from(("http", "http", "tls", "tcp")))
            shape = record(KINDS[kind].spec).fields[part].shape
            spec[part] = draw(value_of(shape, part, 1))
    if kind == "Gateway":
        spec["selector"] = {"istio": "ingressgateway"}
        spec.setdefault(
            "servers",
            draw(value_of(record(KINDS[kind].spec).fields["servers"].shape, "servers", 1)),
        )
    if kind == "ServiceEntry":
        spec.setdefault("hosts", ["api.example.com"])
        spec.setdefault("ports", [{"number": 80, "name": "http", "protocol": "HTTP"}])
    if kind == "DestinationRule":
        spec.setdefault("host", "reviews")
        spec["subsets"] = [
            {**subset, "name": f"v{index + 1}"}
            for index, subset in enumerate(spec.get("subsets", ()))
        ]
    return spec


@st.composite
def object_of(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """A whole object of a kind."""
    info = KINDS[kind]
    return {
        "apiVersion": info.api_version,
        "kind": kind,
        "metadata": {
            "name": draw(st.sampled_from(("one", "two"))),
            "namespace": draw(st.sampled_from(("default", "default", "elsewhere", "istio-system"))),
        },
        "spec": draw(spec_of(kind)),
    }
