"""Ingress -> Gateway and VirtualService."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from meltemi.config.decode import validate
from meltemi.config.ingress import Converted, convert_ingresses, is_ours
from meltemi.model.ingress import Ingress, IngressClass
from meltemi.model.mesh import MeshConfig

CLASS = msgspec.convert(
    {"metadata": {"name": "istio"}, "spec": {"controller": "istio.io/ingress-controller"}},
    IngressClass,
)


def backend(service: str = "web", **port: Any) -> dict[str, Any]:
    return {"service": {"name": service, "port": port or {"number": 80}}}


def ingress(spec: dict[str, Any], name: str = "shop", **meta: Any) -> Ingress:
    metadata = {"name": name, "namespace": "b", **meta}
    return msgspec.convert(
        {"metadata": metadata, "spec": {"ingressClassName": "istio", **spec}}, Ingress
    )


def rule(host: str, *paths: tuple[str, str]) -> dict[str, Any]:
    entries = [{"path": path, "pathType": kind, "backend": backend()} for kind, path in paths]
    return {"host": host, "http": {"paths": entries}}


def convert(*ingresses: Ingress) -> Converted:
    def number(_: str, service: str, port: str) -> int | None:
        return {("web", "http"): 8080}.get((service, port))

    return convert_ingresses(ingresses, [CLASS], MeshConfig(), number)


def test_paths_in_order_of_precedence() -> None:
    paths = (("Prefix", "/"), ("Prefix", "/foo/"), ("Exact", "/foo"), ("Prefix", "/foo/bar"))
    made = convert(ingress({"rules": [rule("a.example.com", *paths)]}))
    gateway, routes = made.configs
    assert made.findings == ()
    assert [validate(config) for config in made.configs] == [[], []]
    uris = [[(m.uri.exact, m.uri.prefix) for m in http.match] for http in routes.spec.http]  # type: ignore[union-attr]
    assert uris == [
        [("/foo", None)],
        [("/foo/bar", None), (None, "/foo/bar/")],
        [("/foo", None), (None, "/foo/")],
        [(None, "/")],
    ]
    assert routes.spec.gateways == (f"istio-system/{gateway.meta.name}",)  # type: ignore[union-attr]
    assert routes.origin("spec.http[0]").kind == "Ingress"


def test_tls_default_backend_and_named_ports() -> None:
    tls = [{"hosts": ["a.example.com"], "secretName": "cert"}]
    made = convert(ingress({"tls": tls, "defaultBackend": backend(name="grpc")}, "one"))
    assert made.findings[0].origin.path == "spec.defaultBackend.service.port"
    spec = {"defaultBackend": backend(name="http"), "tls": tls}
    gateway, routes = convert(ingress(spec)).configs
    https, http = gateway.spec.servers  # type: ignore[union-attr]
    assert (https.port.number, https.tls.credential_name) == (443, "cert")
    assert http.hosts == ("*",)
    target = routes.spec.http[0].route[0].destination  # type: ignore[union-attr]
    assert (target.host, target.port.number) == ("web.b.svc.cluster.local", 8080)


def test_one_wrong_rule_does_not_stop_the_others() -> None:
    rules = [rule("a b", ("Prefix", "/")), rule("ok.example.com", ("Prefix", "x"), ("Exact", "/y"))]
    made = convert(ingress({"rules": rules}))
    assert [f.origin.path for f in made.findings] == [
        "spec.rules[0].host",
        "spec.rules[1].http.paths[0].path",
    ]
    assert len(made.configs[1].spec.http) == 1  # type: ignore[union-attr]


def test_hosts_of_two_ingresses_are_joined() -> None:
    one = ingress(
        {"rules": [rule("a.com", ("Exact", "/1"))]}, "one", creationTimestamp="2026-01-01T00:00:00Z"
    )
    two = ingress(
        {"rules": [rule("a.com", ("Exact", "/2"))]}, "two", creationTimestamp="2026-01-02T00:00:00Z"
    )
    made = convert(two, one)
    (routes,) = [config for config in made.configs if config.kind == "VirtualService"]
    assert [http.match[0].uri.exact for http in routes.spec.http] == ["/1", "/2"]  # type: ignore[union-attr]
    assert len(routes.spec.gateways) == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("mode", "named", "annotation", "ours"),
    [
        ("STRICT", "istio", None, True),
        ("STRICT", None, None, False),
        ("DEFAULT", None, None, True),
        ("STRICT", "nginx", None, False),
        ("STRICT", None, "istio", True),
        ("STRICT", "istio", "nginx", False),
        ("OFF", "istio", None, False),
    ],
)
def test_classes(mode: Any, named: str | None, annotation: str | None, ours: bool) -> None:
    annotations = {"kubernetes.io/ingress.class": annotation} if annotation else {}
    found = ingress({"ingressClassName": named}, annotations=annotations)
    mesh = MeshConfig(ingress_controller_mode=mode)
    assert is_ours(found, [CLASS], mesh) is ours
