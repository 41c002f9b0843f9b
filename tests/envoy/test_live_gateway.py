"""An ingress gateway on a real Envoy: HTTP, HTTPS from a Secret and its rotation, redirect, 404, TLS pass-through, TCP."""

from __future__ import annotations

import base64
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from envoy_rig import Backend, Envoy, TcpBackend, ask, fetch, free_port, wait_for
from mesh_world import World, build_world, pod, service
from pki import Authority, make_authority, write_identity

pytestmark = pytest.mark.envoy


def _secret(name: str, chain: bytes, key: bytes, ca: bytes = b"") -> str:
    fields = {"tls.crt": chain, "tls.key": key} | ({"ca.crt": ca} if ca else {})
    lines = "".join(f"  {k}: {base64.b64encode(v).decode()}\n" for k, v in fields.items())
    return (
        "\n---\napiVersion: v1\nkind: Secret\n"
        f"metadata: {{name: {name}, namespace: istio-system}}\ntype: kubernetes.io/tls\ndata:\n{lines}"
    )


RULES = """
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: web}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: ["*"]
  - port: {number: 81, name: http-redirect, protocol: HTTP}
    hosts: ["secure.example"]
    tls: {httpsRedirect: true}
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: ["secure.example"]
    tls: {mode: SIMPLE, credentialName: web-cert}
  - port: {number: 443, name: https-mutual, protocol: HTTPS}
    hosts: ["mutual.example"]
    tls: {mode: MUTUAL, credentialName: mutual-cert}
  - port: {number: 443, name: https-missing, protocol: HTTPS}
    hosts: ["missing.example"]
    tls: {mode: SIMPLE, credentialName: no-such-secret}
  - port: {number: 31400, name: tcp, protocol: TCP}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: app}
spec:
  hosts: ["*"]
  gateways: [web]
  http:
  - match: [{uri: {exact: /productpage}}, {uri: {prefix: /static}}]
    route: [{destination: {host: app, port: {number: 9080}}}]
  tcp:
  - match: [{port: 31400}]
    route: [{destination: {host: tcp, port: {number: 9000}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: second}
spec:
  hosts: ["*"]
  gateways: [web]
  http:
  - match: [{uri: {prefix: /second}}]
    route: [{destination: {host: app}}]
"""


class Edge:
    """A gateway and the applications behind it."""

    def __init__(self, folder: Path) -> None:
        self.authority: Authority = make_authority("public")
        self.app = Backend("app")
        self.tcp = TcpBackend("tcp")
        self.http, self.redirect, self.https, self.stream = (free_port() for _ in range(4))
        self.envoy = Envoy(
            folder,
            {
                "0.0.0.0_8080": [("127.0.0.1", self.http)],
                "0.0.0.0_8081": [("127.0.0.1", self.redirect)],
                "0.0.0.0_8443": [("127.0.0.1", self.https)],
                "0.0.0.0_31400": [("127.0.0.1", self.stream)],
            },
        )
        write_identity(
            self.envoy.certificates, make_authority(), "spiffe://cluster.local/ns/i/sa/g"
        )

    def world(self) -> World:
        chain, key = self.authority.issue("secure.example")
        mutual_chain, mutual_key = self.authority.issue("mutual.example")
        return build_world(
            service("app", ("http", 9080, self.app.port))
            + pod("app", "127.0.0.1", mtls=False)
            + service("tcp", ("tcp", 9000, self.tcp.port), ip="10.96.0.2")
            + pod("tcp", "127.0.0.1", mtls=False)
            + service(
                "istio-ingressgateway",
                ("http2", 80, 8080),
                ("http3", 81, 8081),
                ("https", 443, 8443),
                ip="10.96.0.9",
                namespace="istio-system",
                app="gw",
            )
            + pod("gw", "10.1.0.9", namespace="istio-system", labels={"istio": "ingressgateway"})
            + _secret("web-cert", chain, key)
            + _secret("mutual-cert", mutual_chain, mutual_key, self.authority.root)
            + RULES
        )

    def apply(self) -> World:
        world = self.world()
        self.envoy.load(world.resources("gw.istio-system"), world.endpoints("gw.istio-system"))
        return world

    def tls(self, host: str, *, identity: tuple[Path, Path] | None = None) -> tuple[int, bytes]:
        """(status, the server's certificate) of a request over TLS."""
        context = ssl.create_default_context(cadata=self.authority.root.decode())
        if identity is not None:
            context.load_cert_chain(*identity)
        with (
            socket.create_connection(("127.0.0.1", self.https), 10) as raw,
            context.wrap_socket(raw, server_hostname=host) as secure,
        ):
            request = f"GET /productpage HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            secure.sendall(request.encode())
            answer = secure.makefile("rb").readline()
            return int(answer.split()[1]), secure.getpeercert(binary_form=True) or b""

    def close(self) -> None:
        for part in (self.envoy, self.app, self.tcp):
            part.close()


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """One gateway for all tests of this file."""
    made = Edge(tmp_path_factory.mktemp("edge"))
    try:
        made.apply()
        made.envoy.start()
        yield made
    finally:
        made.close()


def test_http_reaches_the_application(edge: Edge) -> None:
    """What a VirtualService routes is served, and the application is told who asked and how."""
    answer = fetch(edge.http, "/productpage", host="whatever.example:8080")
    assert answer.status == 200
    seen = answer.json["headers"]
    assert seen["x-forwarded-proto"] == "http"
    assert seen["x-forwarded-for"]
    assert answer.headers["server"] == "istio-envoy"


def test_two_virtual_services_of_one_host_are_merged(edge: Edge) -> None:
    """The second one's routes are there as well."""
    assert fetch(edge.http, "/second/x").status == 200


def test_what_nobody_routes_is_404(edge: Edge) -> None:
    """An unknown path gives 404."""
    assert fetch(edge.http, "/nothing").status == 404


def test_the_edge_cleans_what_clients_send(edge: Edge) -> None:
    """Paths are normalized, forged certificates dropped, ambiguous header names refused."""
    assert fetch(edge.http, "/static/../productpage").json["path"] == "/productpage"
    forged = {"x-forwarded-client-cert": "By=spiffe://a;URI=spiffe://b"}
    assert (
        "x-forwarded-client-cert"
        not in fetch(edge.http, "/productpage", headers=forged).json["headers"]
    )
    assert fetch(edge.http, "/productpage", headers={"x_y": "1"}).status == 400


def test_https_redirect(edge: Edge) -> None:
    """Plain HTTP is sent to HTTPS."""
    answer = fetch(edge.redirect, "/productpage", host="secure.example")
    assert answer.status == 301
    assert answer.headers["location"] == "https://secure.example/productpage"


def test_https_with_the_certificate_of_a_secret_and_its_rotation(edge: Edge) -> None:
    """TLS ends with the Secret's certificate; a new one is used without a restart."""
    status, before = edge.tls("secure.example")
    assert status == 200
    edge.apply()

    def rotated() -> bool:
        status, after = edge.tls("secure.example")
        return status == 200 and after != before

    wait_for("the new certificate", rotated)


def test_mutual_tls_at_the_edge(edge: Edge, tmp_path: Path) -> None:
    """Without a client certificate the handshake fails; with one it works."""
    with pytest.raises((ssl.SSLError, ConnectionError, IndexError)):
        edge.tls("mutual.example")
    chain, key = edge.authority.issue("spiffe://someone/ns/a/sa/b")
    files = tmp_path / "c.pem", tmp_path / "k.pem"
    files[0].write_bytes(chain)
    files[1].write_bytes(key)
    assert edge.tls("mutual.example", identity=files)[0] == 200


def test_a_missing_secret_stops_only_its_own_server(edge: Edge) -> None:
    """The others serve; the finding names the Secret."""
    with pytest.raises((ssl.SSLError, ConnectionError, OSError)):
        edge.tls("missing.example")
    assert edge.tls("secure.example")[0] == 200
    findings = edge.world().ir("gw.istio-system").findings
    assert any("no-such-secret" in finding.text for finding in findings)


def test_tcp_server(edge: Edge) -> None:
    """TCP of a port goes where the rule says."""
    assert ask(edge.stream, b"hi\n") == b"tcp:HI\n"
