"""The classic tasks about the world outside the mesh: egress control, TLS origination, egress gateway.

There is no Internet here: the outside is a pod without a sidecar in a namespace that the mesh does not touch, and client
pods find its address under a public name in /etc/hosts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.conftest import Shell, wait_for
from e2e.tasks import Task, client, eventually, task, tls_server, write_pair
from pki import Authority, make_authority

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
HOST = "edition.example.org"
SECRET = "client-credential"


@dataclass
class Outside:
    """A server outside the mesh, and who signed its certificate."""

    address: str
    authority: Authority


@pytest.fixture(scope="module")
def outside(mesh: Shell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    folder = tmp_path_factory.mktemp("outside")
    authority = make_authority("the world")
    with task(mesh, "the-world", injected=False) as world:
        pair = write_pair(folder, "server", authority.issue(HOST))
        world.kubectl(f"create secret tls server-certs {pair}")
        world.apply(tls_server("server", "server-certs", {80: 80, 443: 443}))
        world.ready()
        yield Outside(world.address("server"), authority)


def service_entry(outside: Outside, *ports: str) -> str:
    """The outside as a part of the registry."""
    return f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: edition}}
spec:
  hosts: [{HOST}]
  ports: [{", ".join(ports)}]
  location: MESH_EXTERNAL
  resolution: STATIC
  endpoints: [{{address: {outside.address}}}]
"""


HTTP = "{number: 80, name: http, protocol: HTTP}"
HTTPS = "{number: 443, name: https, protocol: HTTPS}"
HTTP_TO_443 = "{number: 80, name: http, protocol: HTTP, targetPort: 443}"


def whole_mesh(mesh: Shell, mode: str) -> None:
    """Change the mesh's outboundTrafficPolicy where its owner does: in the IstioOperator."""
    patch = json.dumps({"spec": {"meshConfig": {"outboundTrafficPolicy": {"mode": mode}}}})
    mesh(f"kubectl patch -n istio-system istiooperator istio --type merge -p '{patch}'")


@pytest.mark.covers("MeshConfig.outboundTrafficPolicy.mode")
def test_egress_control(mesh: Shell, outside: Outside) -> None:
    plain, secure = f"http://{HOST}/get", f"-k https://{HOST}/get"
    with task(mesh, "egress-control") as own:
        own.apply(client(outside.address, HOST))
        own.ready()
        assert own.status(plain) == own.status(secure) == "200", "all is allowed at first"
        try:
            whole_mesh(mesh, "REGISTRY_ONLY")
            eventually(own, plain, "502")
            wait_for("no TLS", lambda: own.status(secure), 30, lambda s: s.startswith("000"))
            own.apply(service_entry(outside, HTTP))
            eventually(own, plain, "200")
            assert own.status(secure).startswith("000")
            own.apply(service_entry(outside, HTTP, HTTPS))
            eventually(own, secure, "200")
            # What is in the registry can be managed: a call of five seconds is ended after one.
            own.apply(f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: edition}}
spec:
  hosts: [{HOST}]
  http:
    - timeout: 1s
      route: [{{destination: {{host: {HOST}}}}}]
""")
            eventually(own, f"http://{HOST}/delay/5", "504")
        finally:
            whole_mesh(mesh, "ALLOW_ANY")
        own.kubectl("delete virtualservice,serviceentry --all")
        eventually(own, plain, "200")


def origination(mode: str) -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: edition}}
spec:
  host: {HOST}
  trafficPolicy:
    portLevelSettings:
      - port: {{number: 80}}
        tls: {mode}
"""


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.portLevelSettings.tls", "ServiceEntry.ports.targetPort"
)
def test_tls_origination(mesh: Shell, outside: Outside) -> None:
    plain = f"http://{HOST}/get"
    with task(mesh, "tls-origination") as own:
        own.kubectl(
            f"create secret generic world-ca --from-literal=ca.crt='{outside.authority.root.decode()}'"
        )
        own.apply(client(outside.address, HOST, mounts={"/etc/world": "world-ca"}))
        own.apply(service_entry(outside, HTTP_TO_443, HTTPS))
        own.ready()
        # Without origination a plain request meets a server that speaks TLS.
        wait_for("no answer", lambda: own.status(plain), 30, lambda s: s in ("400", "502", "503"))
        own.apply(origination(f"{{mode: SIMPLE, sni: {HOST}, caCertificates: /etc/world/ca.crt}}"))
        eventually(own, plain, "200")
        assert f'"url": "http://{HOST}/get"' in own.curl(plain)
        # Applications that speak TLS themselves are left alone.
        assert own.status(f"-k https://{HOST}/get") == "200"
        # The sidecar does check: another name in the certificate is no good.
        own.apply(
            origination(
                "{mode: SIMPLE, sni: other.example.org, subjectAltNames: [other.example.org], "
                "caCertificates: /etc/world/ca.crt}"
            )
        )
        eventually(own, plain, "503")


def egress_routes(port_outside: int, *, mtls: bool = False) -> str:
    """Sidecars send the host to the egress gateway, with mutual TLS if asked for, which sends it outside."""
    number, server = 80, "port: {number: 80, name: http, protocol: HTTP}"
    policy = ""
    if mtls:
        number, server = (
            443,
            ("port: {number: 443, name: https, protocol: HTTPS}\n      tls: {mode: ISTIO_MUTUAL}"),
        )
        policy = f"""
      trafficPolicy:
        portLevelSettings: [{{port: {{number: 443}}, tls: {{mode: ISTIO_MUTUAL, sni: {HOST}}}}}]"""
    egress = "istio-egressgateway.istio-system.svc.cluster.local"
    return f"""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edition-egress}}
spec:
  selector: {{istio: egressgateway}}
  servers:
    - {server}
      hosts: [{HOST}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: egressgateway-for-edition}}
spec:
  host: {egress}
  subsets:
    - name: edition{policy}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: through-egress-gateway}}
spec:
  hosts: [{HOST}]
  gateways: [edition-egress, mesh]
  http:
    - match: [{{gateways: [mesh], port: 80}}]
      route: [{{destination: {{host: {egress}, subset: edition, port: {{number: {number}}}}}}}]
    - match: [{{gateways: [edition-egress], port: {number}}}]
      route: [{{destination: {{host: {HOST}, port: {{number: {port_outside}}}}}}}]
"""


def passed(mesh: Shell, own: Task, path: str) -> bool:
    """Whether the egress gateway's log has a request of the client's, after it was sent."""
    answer = own.status(f"http://{HOST}{path}")
    log = mesh("kubectl logs -n istio-system -l istio=egressgateway -c istio-proxy --tail=200")
    return answer == "200" and f"GET {path} " in log


@pytest.mark.covers("DestinationRule.trafficPolicy.tls.credentialName")
def test_egress_gateway(mesh: Shell, outside: Outside, tmp_path: Path) -> None:
    with task(mesh, "egress-gateway") as own:
        own.apply(client(outside.address, HOST), service_entry(outside, HTTP, HTTPS))
        own.ready()
        eventually(own, f"http://{HOST}/get", "200")
        own.apply(egress_routes(80))
        wait_for(
            "the request in the egress gateway's log", lambda: passed(mesh, own, "/anything/a")
        )
        seen_outside = own.curl(f"http://{HOST}/headers")
        assert "X-Envoy-Attempt-Count" in seen_outside
        for secret in ("X-Forwarded-Client-Cert", "X-Mesh-Peer"):
            assert secret not in seen_outside, "what proxies tell each other stays in the mesh"
        # The gateway speaks TLS for everybody, and is who the outside trusts: mutual TLS from a Secret.
        write_pair(tmp_path, "client", outside.authority.issue("gateway.example.com"))
        try:
            mesh(
                f"kubectl create -n istio-system secret generic {SECRET} "
                f"--from-file=tls.crt={tmp_path}/client.crt --from-file=tls.key={tmp_path}/client.key "
                f"--from-literal=ca.crt='{outside.authority.root.decode()}'"
            )
            own.apply(
                egress_routes(443, mtls=True),
                f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: originate-at-the-gateway}}
spec:
  host: {HOST}
  trafficPolicy:
    portLevelSettings:
      - port: {{number: 443}}
        tls: {{mode: MUTUAL, credentialName: {SECRET}, sni: {HOST}}}
""",
            )
            # Mutual TLS of the mesh on the way to the gateway, and the gateway's own on the way outside.
            wait_for("TLS from the gateway", lambda: passed(mesh, own, "/anything/b"))
        finally:
            mesh(f"kubectl delete -n istio-system --ignore-not-found secret {SECRET}")
