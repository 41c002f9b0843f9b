"""Kubernetes Ingress: served by the mesh's ingress gateway as Kubernetes says."""

from __future__ import annotations

from pathlib import Path

import pytest

from meltemi.testing.client import TlsOptions
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

SAMPLES = Path(__file__).parents[2] / "samples" / "bookinfo" / "platform" / "kube"
CLASS = """
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: istio}
spec: {controller: istio.io/ingress-controller}
"""


def ingress(rules: str, *, name: str = "shop", more: str = "", kind: str = "istio") -> str:
    """An Ingress of class ``istio``."""
    return (
        f"---\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: {name}}}\n"
        f"spec:\n  ingressClassName: {kind}\n  rules:\n{rules}{more}"
    )


def path(text: str, service: str, kind: str = "Prefix", port: str = "number: 9080") -> str:
    """One path of a rule."""
    backend = f"{{service: {{name: {service}, port: {{{port}}}}}}}"
    return f"      - {{path: {text}, pathType: {kind}, backend: {backend}}}\n"


def host(name: str, *paths: str) -> str:
    """The rule of a host."""
    return f'  - host: "{name}"\n    http:\n      paths:\n{"".join(paths)}'


def test_hosts_and_paths(shop: Mesh) -> None:
    shop.apply(
        CLASS,
        ingress(
            host(
                "a.example.com",
                path("/", "details"),
                path("/foo", "reviews"),
                path("/foo/bar", "details", "Exact"),
            )
            + host("*.example.com", path("/", "details", port="name: http-second"))
        ),
    )
    visitor = shop.gateway()
    who = {
        p: visitor.get(f"http://a.example.com{p}").workload[:7]
        for p in ("/", "/foo", "/foo/x", "/foobar", "/foo/bar")
    }
    assert who == {
        "/": "details",
        "/foo": "reviews",
        "/foo/x": "reviews",
        "/foobar": "details",
        "/foo/bar": "details",
    }
    assert visitor.get("http://b.example.com/").json()["port"] == 9081
    assert visitor.get("http://example.org/").status == 404


def test_a_default_backend(shop: Mesh) -> None:
    backend = "  defaultBackend: {service: {name: details, port: {number: 9080}}}\n"
    shop.apply(CLASS, ingress(host("a.example.com", path("/only", "reviews")), more=backend))
    visitor = shop.gateway()
    assert visitor.get("http://anything.example.org/").workload == "details-v1"
    assert visitor.get("http://a.example.com/only").workload.startswith("reviews")


def test_tls_with_the_secret_next_to_the_gateway(shop: Mesh) -> None:
    shop.apply(
        CLASS,
        shop.tls_secret("a-cert", "a.example.com"),
        ingress(
            host("a.example.com", path("/", "details")),
            more="  tls: [{hosts: [a.example.com], secretName: a-cert}]\n",
        ),
    )
    visitor = shop.gateway()
    root = shop.certificate("x")[2]
    answer = visitor.get("https://a.example.com/", tls=TlsOptions(ca=root))
    assert answer.workload == "details-v1"
    assert visitor.get("http://a.example.com/").status == 200


def test_ingresses_of_one_host_are_joined(shop: Mesh) -> None:
    shop.apply(
        CLASS,
        ingress(host("a.example.com", path("/one", "details")), name="one"),
        ingress(host("a.example.com", path("/two", "reviews")), name="two"),
    )
    visitor = shop.gateway()
    assert visitor.get("http://a.example.com/one").workload == "details-v1"
    assert visitor.get("http://a.example.com/two").workload.startswith("reviews")


@pytest.mark.covers("MeshConfig.ingressControllerMode", "MeshConfig.ingressClass")
@pytest.mark.parametrize(
    ("mode", "marked", "served"),
    [
        ("STRICT", "ingressClassName: istio", True),
        ("STRICT", "ingressClassName: nginx", False),
        ("STRICT", "", False),
        ("DEFAULT", "", True),
        ("DEFAULT", "ingressClassName: nginx", False),
        ("OFF", "ingressClassName: istio", False),
        ("STRICT", "annotation", True),
    ],
)
def test_which_ingresses_are_served(shop: Mesh, mode: str, marked: str, served: bool) -> None:
    text = ingress(host("a.example.com", path("/", "details")))
    annotation = 'metadata: {name: shop, annotations: {kubernetes.io/ingress.class: "mine"}}'
    if marked == "annotation":
        text = text.replace("metadata: {name: shop}", annotation)
    text = text.replace("ingressClassName: istio", marked if "Name" in marked else "")
    gateway = (
        "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: other}\n"
        "spec:\n  selector: {istio: ingressgateway}\n  servers:\n"
        "  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [x.example.com]}\n"
    )
    shop.apply(
        CLASS,
        gateway,
        text,
        mesh_config=f'ingressControllerMode: "{mode}"\ningressClass: mine',
    )
    assert shop.gateway().get("http://a.example.com/").status == (200 if served else 404)


@pytest.mark.covers("MeshConfig.ingressSelector", "MeshConfig.ingressService")
@pytest.mark.parametrize(
    "settings",
    ["ingressSelector: front", "{ingressSelector: '', ingressService: front}"],
    ids=["selector", "service"],
)
def test_another_gateway_may_serve_ingresses(shop: Mesh, settings: str) -> None:
    """By its label, or by the name of its Service."""
    shop.apply(CLASS, ingress(host("a.example.com", path("/", "details"))), mesh_config=settings)
    assert shop.gateway("front").get("http://a.example.com/").status == 200


def test_bookinfo_by_ingress(mesh: Mesh) -> None:
    mesh.apply(SAMPLES / "bookinfo.yaml", SAMPLES / "bookinfo-ingress.yaml")
    visitor = mesh.gateway()
    assert visitor.get("http://any.example.com/productpage").workload == "productpage-v1"
    assert visitor.get("http://any.example.com/static/x.css").status == 200
    assert visitor.get("http://any.example.com/api/v1/products/0").status == 200
    assert visitor.get("http://any.example.com/else").status == 404
