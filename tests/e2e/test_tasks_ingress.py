"""The classic tasks at the ingress gateway: plain HTTP, TLS from Secrets (simple and mutual), SNI passthrough."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from e2e.conftest import ROOT, Shell, wait_for
from e2e.tasks import Gateway, task, tls_server, write_pair
from pki import make_authority

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
HTTPBIN = "samples/httpbin/httpbin.yaml"
TIMEOUT = aiohttp.ClientWSTimeout(ws_receive=20)
HOST = "httpbin.example.com"


def gateway_yaml(host: str, port: str, tls: str = "") -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: httpbin-gateway}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
    - port: {port}
      hosts: [{host}]
{tls}
"""


ROUTES = f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: httpbin}}
spec:
  hosts: [{HOST}]
  gateways: [httpbin-gateway]
  http:
    - match:
        - uri: {{prefix: /status}}
        - uri: {{prefix: /delay}}
      route: [{{destination: {{host: httpbin, port: {{number: 8000}}}}}}]
"""


def test_ingress(mesh: Shell) -> None:
    with task(mesh, "ingress") as own:
        own.apply(HTTPBIN, gateway_yaml(HOST, "{number: 80, name: http, protocol: HTTP}"), ROUTES)
        own.ready()
        gateway = Gateway(mesh)
        wait_for("200", lambda: gateway.status("http", HOST, "/status/200"), 30, "200".__eq__)
        answer = gateway.curl("http", HOST, "/status/200", "-I")
        assert "server: istio-envoy" in answer
        assert gateway.status("http", HOST, "/delay/0") == "200"
        assert gateway.status("http", HOST, "/headers") == "404", "a path that no rule names"
        assert gateway.status("http", "other.example.com", "/status/200") == "404"
        # A browser, which cannot set the Host header, comes with the rule for all hosts.
        own.apply(ROUTES.replace(f"[{HOST}]", '["*"]').replace("/delay", "/headers"))
        own.apply(gateway_yaml('"any.example.com"', "{number: 80, name: http, protocol: HTTP}"))
        wait_for(
            "200", lambda: gateway.status("http", "any.example.com", "/headers"), 30, "200".__eq__
        )


@pytest.mark.covers("Gateway.servers.tls.mode", "Gateway.servers.tls.credentialName")
def test_secure_ingress(mesh: Shell, tmp_path: Path) -> None:
    secrets = "httpbin-credential httpbin-mutual-credential httpbin-mutual-credential-cacert"
    authority, others = make_authority(), make_authority("others")
    pair = write_pair(tmp_path, HOST, authority.issue(HOST))
    client = write_pair(tmp_path, "client", authority.issue("client.example.com"))
    stranger = write_pair(tmp_path, "stranger", others.issue("client.example.com"))
    (tmp_path / "ca.crt").write_bytes(authority.root)
    trust = f"--cacert {tmp_path}/ca.crt"
    port = "{number: 443, name: https, protocol: HTTPS}"
    gateway = Gateway(mesh)

    def status(flags: str) -> str:
        return gateway.status("https", HOST, "/status/418", f"{trust} {flags}")

    with task(mesh, "secure-ingress") as own:
        try:
            mesh(f"kubectl create -n istio-system secret tls httpbin-credential {pair}")
            own.apply(
                HTTPBIN,
                gateway_yaml(
                    HOST, port, "      tls: {mode: SIMPLE, credentialName: httpbin-credential}"
                ),
                ROUTES,
            )
            own.ready()
            wait_for("a teapot by HTTPS", lambda: status(""), 30, "418".__eq__)
            assert gateway.curl("https", HOST, "/status/418", f"{trust} --http2").strip() == (
                "I'm a teapot!"
            )
            assert "(60)" in gateway.status("https", HOST, "/status/418"), "an unknown authority"
            # Mutual: one Secret with all three.
            mesh(
                "kubectl create -n istio-system secret generic httpbin-mutual-credential "
                f"--from-file=tls.key={tmp_path}/{HOST}.key --from-file=tls.crt={tmp_path}/{HOST}.crt "
                f"--from-file=ca.crt={tmp_path}/ca.crt"
            )
            own.apply(
                gateway_yaml(
                    HOST,
                    port,
                    "      tls: {mode: MUTUAL, credentialName: httpbin-mutual-credential}",
                )
            )
            wait_for("no entry without a certificate", lambda: status(""), 30, _refused)
            assert status(client) == "418"
            assert _refused(status(stranger))
            # The authority of clients in a Secret of its own, as certificate managers make them.
            mesh(
                "kubectl delete -n istio-system secret httpbin-mutual-credential; "
                f"kubectl create -n istio-system secret tls httpbin-mutual-credential {pair}; "
                "kubectl create -n istio-system secret generic httpbin-mutual-credential-cacert "
                f"--from-literal=ca.crt='{others.root.decode()}'"
            )
            wait_for("the others get in now", lambda: status(stranger), 30, "418".__eq__)
            wait_for("and nobody else", lambda: status(client), 30, _refused)
        finally:
            mesh(f"kubectl delete -n istio-system --ignore-not-found secret {secrets}")


def _refused(answer: str) -> bool:
    return answer.startswith("000") or "curl: (" in answer


def test_sni_passthrough(mesh: Shell, tmp_path: Path) -> None:
    host = "tls.example.com"
    authority = make_authority()
    (tmp_path / "ca.crt").write_bytes(authority.root)
    gateway = Gateway(mesh)
    with task(mesh, "passthrough") as own:
        pair = write_pair(tmp_path, host, authority.issue(host))
        own.kubectl(f"create secret tls server-certs {pair}")
        own.apply(
            tls_server("server", "server-certs", {80: 8080, 443: 8443}),
            """
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports: [{name: https, port: 443, targetPort: 8443}]
""",
            gateway_yaml(
                host,
                "{number: 443, name: https, protocol: HTTPS}",
                "      tls: {mode: PASSTHROUGH}",
            ),
            f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: server}}
spec:
  hosts: [{host}]
  gateways: [httpbin-gateway]
  tls:
    - match: [{{port: 443, sniHosts: [{host}]}}]
      route: [{{destination: {{host: server, port: {{number: 443}}}}}}]
""",
        )
        own.ready()
        # The application's own certificate answers; the gateway never sees inside.
        flags = f"--cacert {tmp_path}/ca.crt"
        wait_for("200", lambda: gateway.status("https", host, "/get", flags), 30, "200".__eq__)
        assert '"method": "GET"' in gateway.curl("https", host, "/get", flags)
        assert "server: istio-envoy" not in gateway.curl("https", host, "/get", f"{flags} -I")
        assert _refused(gateway.status("https", "other.example.com", "/get", flags))


def by_ingress(kind: str) -> str:
    return f"""
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {{name: istio}}
spec: {{controller: istio.io/ingress-controller}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: httpbin}}
spec:
  ingressClassName: {kind}
  rules:
    - host: ingress.example.com
      http:
        paths:
          - path: /status
            pathType: Prefix
            backend: {{service: {{name: httpbin, port: {{name: http}}}}}}
"""


def test_kubernetes_ingress(mesh: Shell) -> None:
    """An Ingress of the mesh's class is served, says where, and ends with its class."""
    host = "ingress.example.com"
    gateway = Gateway(mesh)

    def shown() -> list[str]:
        held = mesh.json("kubectl get ingress -n kubernetes-ingress httpbin -o json")
        entries = held.get("status", {}).get("loadBalancer", {}).get("ingress", [])
        return [entry["ip"] for entry in entries]

    service = mesh.json("kubectl -n istio-system get service istio-ingressgateway -o json")
    address = service["status"]["loadBalancer"]["ingress"][0]["ip"]
    with task(mesh, "kubernetes-ingress") as own:
        try:
            own.apply(HTTPBIN, by_ingress("istio"))
            own.ready()
            wait_for("200", lambda: gateway.status("http", host, "/status/200"), 30, "200".__eq__)
            assert gateway.status("http", host, "/headers") == "404"
            wait_for("the address in its status", shown, 30, [address].__eq__)
            own.apply(by_ingress("nginx"))
            wait_for("404", lambda: gateway.status("http", host, "/status/200"), 30, "404".__eq__)
        finally:
            mesh("kubectl delete ingressclass istio --ignore-not-found", check=False)


def test_websockets(mesh: Shell) -> None:
    host = "ws.example.com"
    route = (ROOT / "samples/websockets/route.yaml").read_text().replace('"*"', host)
    gateway = Gateway(mesh)

    async def talk() -> list[str]:
        url = f"ws://{gateway.host}:{gateway.port(80)}/ws"
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, headers={"Host": host}, timeout=TIMEOUT) as connection,
        ):
            await connection.send_str("ahoy")
            return [await connection.receive_str() for _ in range(3)]

    with task(mesh, "websockets") as own:
        own.apply("samples/websockets/app.yaml", route)
        own.ready()
        wait_for("the page", lambda: gateway.status("http", host, "/"), 30, "200".__eq__)
        # It counts, and sends back what it is told, in whatever order.
        assert sorted(asyncio.run(talk())) == ["0", "1", "ahoy"]
