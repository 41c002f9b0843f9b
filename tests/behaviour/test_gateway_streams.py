"""Gateways for TLS that is passed through or ends there, and for bytes; what stands in front of them, where they listen."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from behaviour.edge import gateway, routes, secret, to
from meltemi.testing.client import Client, TlsOptions
from meltemi.testing.mesh import Mesh
from meltemi.testing.response import NoAnswer
from pki import Authority

pytestmark = pytest.mark.envoy

REFUSED = (NoAnswer, ssl.SSLError, ConnectionError)
HOST = "vault.example.com"
BACKENDS = """
apiVersion: v1
kind: Service
metadata: {name: vault}
spec:
  selector: {app: reviews, version: v1}
  ports:
  - {name: tls, port: 9443}
---
apiVersion: v1
kind: Service
metadata: {name: other-vault}
spec:
  selector: {app: reviews, version: v2}
  ports:
  - {name: tls, port: 9443}
"""


def tls_server(tls: str, *, hosts: str = f"[{HOST}]", name: str = "tls", number: int = 8443) -> str:
    """One server of protocol TLS."""
    port = f"{{number: {number}, name: {name}, protocol: TLS}}"
    return f"- {{port: {port}, hosts: {hosts}, tls: {tls}}}"


def by_sni(names: str, host: str, more: str = "") -> str:
    """A rule for SNI names."""
    return (
        f"- match: [{{sniHosts: {names}{more}}}]\n"
        f"  route: [{{destination: {{host: {host}, port: {{number: 9443}}}}}}]"
    )


def refused(mesh: Mesh, url: str, options: TlsOptions | None = None) -> bool:
    """Whether a visitor gets no TLS connection, or one that ends."""
    try:
        with mesh.gateway().tls(url, tls=options) as line:
            return line.ask("hello") is None
    except REFUSED:
        return True


# --- passed through ---------------------------------------------------------------------------------


@pytest.mark.covers(
    "VirtualService.tls.match.sniHosts", "VirtualService.tls.route.destination.host"
)
def test_passthrough_leaves_tls_to_the_application(shop: Mesh) -> None:
    shop.apply(
        BACKENDS,
        gateway(tls_server("{mode: PASSTHROUGH}", hosts='["*.example.com"]')),
        routes(
            by_sni(f"[{HOST}]", "vault") + "\n" + by_sni('["*.example.com"]', "other-vault"),
            hosts='["*.example.com"]',
            kind="tls",
        ),
    )
    visitor = shop.gateway()
    with visitor.tls(f"{HOST}:8443") as line:
        answer = line.ask("hello")
        assert answer["workload"] == "reviews-v1"
        assert answer["tls"]["sni"] == HOST
    with visitor.tls("x.example.com:8443") as line:
        assert line.ask("hello")["workload"] == "reviews-v2"
    assert refused(shop, "example.org:8443")


def test_passthrough_serves_only_hosts_of_the_server(shop: Mesh) -> None:
    shop.apply(
        BACKENDS,
        gateway(tls_server("{mode: PASSTHROUGH}", hosts="[a.example.com]")),
        routes(
            by_sni("[a.example.com, b.example.com]", "vault"),
            hosts="[a.example.com, b.example.com]",
            kind="tls",
        ),
    )
    with shop.gateway().tls("a.example.com:8443") as line:
        assert line.ask("hello")["workload"] == "reviews-v1"
    assert refused(shop, "b.example.com:8443")


@pytest.mark.covers("VirtualService.tls.route.weight")
def test_weights_of_tls_rules(shop: Mesh) -> None:
    rule = (
        f"- match: [{{sniHosts: [{HOST}]}}]\n"
        "  route:\n"
        "  - {destination: {host: vault, port: {number: 9443}}, weight: 50}\n"
        "  - {destination: {host: other-vault, port: {number: 9443}}, weight: 50}\n"
    )
    shop.apply(
        BACKENDS,
        gateway(tls_server("{mode: PASSTHROUGH}")),
        routes(rule, hosts=f"[{HOST}]", kind="tls"),
    )
    found = set()
    for _ in range(40):
        with shop.gateway().tls(f"{HOST}:8443") as line:
            found.add(line.ask("hello")["workload"])
    assert found == {"reviews-v1", "reviews-v2"}


def test_passthrough_and_termination_share_a_port(shop: Mesh, authority: Authority) -> None:
    chain, key = authority.issue("web.example.com")
    servers = (
        tls_server("{mode: PASSTHROUGH}")
        + "\n- {port: {number: 8443, name: https, protocol: HTTPS}, hosts: [web.example.com], "
        "tls: {mode: SIMPLE, credentialName: web}}"
    )
    shop.apply(
        BACKENDS,
        gateway(servers),
        routes(by_sni(f"[{HOST}]", "vault"), hosts=f"[{HOST}]", kind="tls", name="bytes"),
        routes(to("details"), hosts="[web.example.com]", name="web"),
        secret("web", {"tls.crt": chain.decode(), "tls.key": key.decode()}),
    )
    assert shop.gateway().get("https://web.example.com:8443/").workload == "details-v1"
    with shop.gateway().tls(f"{HOST}:8443") as line:
        assert line.ask("hello")["workload"] == "reviews-v1"


# --- ended at the gateway ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["SIMPLE", "MUTUAL"])
def test_tls_with_bytes_inside_ends_at_the_gateway(
    shop: Mesh, authority: Authority, mode: str
) -> None:
    chain, key = authority.issue(HOST)
    data = {"tls.crt": chain.decode(), "tls.key": key.decode(), "ca.crt": authority.root.decode()}
    shop.apply(
        gateway(tls_server(f"{{mode: {mode}, credentialName: vault-{mode.lower()}}}")),
        routes(to("details", 9000), hosts=f"[{HOST}]", kind="tcp"),
        secret(f"vault-{mode.lower()}", data),
    )
    client, client_key = authority.issue("client.example.com")
    options = TlsOptions(
        ca=authority.root.decode(),
        cert=(client.decode(), client_key.decode()) if mode == "MUTUAL" else None,
    )
    with shop.gateway().tls(f"{HOST}:8443", tls=options) as line:
        answer = line.ask("hello")
        assert answer["workload"] == "details-v1"
        assert "tls" not in answer
        assert line.certificate == (HOST,)
    assert refused(shop, "other.example.com:8443", options)
    if mode == "MUTUAL":
        assert refused(shop, f"{HOST}:8443")


def test_bytes_on_a_port_of_protocol_tcp_may_be_encrypted(shop: Mesh, authority: Authority) -> None:
    chain, key = authority.issue(HOST)
    port = "{number: 8443, name: tcp, protocol: TCP}"
    shop.apply(
        gateway(
            f"- {{port: {port}, hosts: [{HOST}], tls: {{mode: SIMPLE, credentialName: vault}}}}"
        ),
        routes(to("details", 9000), hosts=f"[{HOST}]", kind="tcp"),
        secret("vault", {"tls.crt": chain.decode(), "tls.key": key.decode()}),
    )
    with shop.gateway().tls(f"{HOST}:8443") as line:
        assert line.ask("hello")["workload"] == "details-v1"


# --- bytes ------------------------------------------------------------------------------------------


@pytest.mark.covers(
    "VirtualService.tcp.match.port",
    "VirtualService.tcp.route.destination.host",
    "VirtualService.tcp.route.destination.port.number",
)
def test_ports_tell_rules_for_bytes_apart(shop: Mesh) -> None:
    servers = "\n".join(
        f'- {{port: {{number: {n}, name: tcp-{n}, protocol: TCP}}, hosts: ["*"]}}'
        for n in (9000, 9001)
    )
    rules = (
        "- match: [{port: 9001}]\n"
        "  route: [{destination: {host: reviews, port: {number: 9000}, subset: v1}}]\n"
        + to("details", 9000)
    )
    shop.apply(gateway(servers), routes(rules, kind="tcp"))
    for port, workload in ((9000, "details-v1"), (9001, "reviews-v1")):
        with shop.gateway().tcp(f"any:{port}") as line:
            assert line.ask("hello")["workload"] == workload


@pytest.mark.covers("VirtualService.tcp.match.gateways")
def test_rules_for_bytes_may_name_gateways(shop: Mesh, caller: Client) -> None:
    rules = (
        "- match: [{gateways: [edge]}]\n"
        "  route: [{destination: {host: reviews, port: {number: 9000}, subset: v1}}]\n"
        "- match: [{gateways: [mesh]}]\n"
        "  route: [{destination: {host: reviews, port: {number: 9000}, subset: v2}}]\n"
    )
    shop.apply(
        gateway('- {port: {number: 9000, name: tcp, protocol: TCP}, hosts: ["*"]}'),
        routes(rules, hosts="[reviews]", gateways="[edge, mesh]", kind="tcp"),
    )
    with shop.gateway().tcp("any:9000") as line:
        assert line.ask("hello")["workload"] == "reviews-v1"
    with caller.tcp("reviews:9000") as line:
        assert line.ask("hello")["workload"] == "reviews-v2"


@pytest.mark.covers("VirtualService.tcp.match.sourceSubnet", "VirtualService.tcp.route.weight")
def test_callers_addresses_tell_rules_for_bytes_apart(shop: Mesh) -> None:
    rules = (
        '- match: [{sourceSubnet: "203.0.113.0/24"}]\n'
        "  route: [{destination: {host: reviews, port: {number: 9000}, subset: v1}}]\n"
        "- route:\n"
        "  - {destination: {host: reviews, port: {number: 9000}, subset: v2}, weight: 50}\n"
        "  - {destination: {host: reviews, port: {number: 9000}, subset: v3}, weight: 50}\n"
    )
    shop.apply(
        gateway('- {port: {number: 9000, name: tcp, protocol: TCP}, hosts: ["*"]}'),
        routes(rules, kind="tcp"),
        mesh_config=BEHIND_A_BALANCER,
    )

    def who(address: str) -> str:
        with shop.gateway().tcp("any:9000", proxied_for=address) as line:
            return str(line.ask("hello")["workload"])

    assert {who("203.0.113.7") for _ in range(10)} == {"reviews-v1"}
    assert {who("198.51.100.7") for _ in range(40)} == {"reviews-v2", "reviews-v3"}


# --- what stands in front ---------------------------------------------------------------------------

BEHIND_A_BALANCER = "defaultConfig: {gatewayTopology: {proxyProtocol: {}}}"
WEB = '- {port: {number: 8080, name: http, protocol: HTTP}, hosts: ["*"]}'


@pytest.mark.covers("MeshConfig.defaultConfig.gatewayTopology.proxyProtocol")
def test_the_proxy_protocol_tells_the_visitors_address(shop: Mesh) -> None:
    shop.apply(gateway(WEB), routes(to("details")), mesh_config=BEHIND_A_BALANCER)
    answer = shop.gateway().get("http://any:8080/", proxied_for="203.0.113.7")
    assert answer.json()["headers"]["x-forwarded-for"].startswith("203.0.113.7")
    with pytest.raises(NoAnswer):
        shop.gateway().get("http://any:8080/")


@pytest.mark.covers("MeshConfig.defaultConfig.gatewayTopology.numTrustedProxies")
@pytest.mark.parametrize(
    ("trusted", "seen"), [(0, "127.0.0.1"), (1, "198.51.100.2"), (2, "203.0.113.7")]
)
def test_trusted_proxies_in_front(shop: Mesh, trusted: int, seen: str) -> None:
    topology = f"defaultConfig: {{gatewayTopology: {{numTrustedProxies: {trusted}}}}}"
    shop.apply(gateway(WEB), routes(to("details")), mesh_config=topology)
    headers = {"x-forwarded-for": "203.0.113.7, 198.51.100.2"}
    answer = shop.gateway().get("http://any:8080/", headers=headers)
    assert answer.json()["headers"]["x-envoy-external-address"] == seen


FORGED = "By=x;Hash=y;URI=spiffe://forged/client"


@pytest.mark.covers("MeshConfig.defaultConfig.gatewayTopology.forwardClientCertDetails")
@pytest.mark.parametrize(
    ("details", "passed"),
    [
        ("SANITIZE", False),
        ("SANITIZE_SET", False),
        ("UNDEFINED", False),
        ("FORWARD_ONLY", False),  # only over mutual TLS
        ("APPEND_FORWARD", False),
        ("ALWAYS_FORWARD_ONLY", True),
    ],
)
def test_forwarded_client_certificates(shop: Mesh, details: str, passed: bool) -> None:
    topology = f"defaultConfig: {{gatewayTopology: {{forwardClientCertDetails: {details}}}}}"
    shop.apply(gateway(WEB), routes(to("details")), mesh_config=topology)
    answer = shop.gateway().get("http://any:8080/", headers={"x-forwarded-client-cert": FORGED})
    assert ("forged" in answer.json()["headers"]["x-forwarded-client-cert"]) is passed


def test_a_gateway_may_have_a_topology_of_its_own(shop: Mesh) -> None:
    pod = (
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: behind, namespace: istio-system}\n"
        "spec:\n  template:\n    metadata:\n      labels: {istio: behind}\n      annotations:\n"
        "        proxy.istio.io/config: |\n          gatewayTopology: {numTrustedProxies: 1}\n"
        "    spec: {containers: [{name: istio-proxy, image: auto}]}\n"
    )
    shop.apply(pod, gateway(WEB, selector="{istio: behind}"), routes(to("details")))
    answer = shop.gateway("behind").get(
        "http://any:8080/", headers={"x-forwarded-for": "203.0.113.7"}
    )
    assert answer.json()["headers"]["x-envoy-external-address"] == "203.0.113.7"


# --- where a server listens -------------------------------------------------------------------------


@pytest.mark.covers("Gateway.servers.bind")
def test_bind_to_an_address(shop: Mesh) -> None:
    servers = (
        WEB.replace("{port", '{bind: "10.0.0.5", port')
        + "\n"
        + '- {port: {number: 8080, name: http-all, protocol: HTTP}, hosts: ["a.example.com"]}'
    )
    shop.apply(gateway(servers), routes(to("details")))
    visitor = shop.gateway()
    assert visitor.get("http://10.0.0.5:8080/", host="b.example.com").status == 200
    assert visitor.get("http://any:8080/", host="b.example.com").status == 404
    assert visitor.get("http://any:8080/", host="a.example.com").status == 200


def test_bind_to_a_unix_socket(shop: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "edge.sock"
    shop.apply(
        gateway(WEB.replace("{port", f'{{bind: "unix://{path}", port')), routes(to("details"))
    )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(b"GET / HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n")
        assert connection.recv(20).startswith(b"HTTP/1.1 200")


@pytest.mark.covers("Gateway.servers.name")
def test_the_servers_name_is_that_of_its_statistics(shop: Mesh) -> None:
    shop.apply(gateway(WEB.replace("{port", "{name: front-door, port")), routes(to("details")))
    assert shop.gateway().get("http://any:8080/").status == 200
    found = shop.stats("istio-ingressgateway", "http.front-door.downstream_cx_total")
    assert sum(found.values()) >= 1
