"""Who gets a gateway's keys: gateways of the Secret's own namespace, and nobody else."""

from __future__ import annotations

from base64 import b64encode

import pytest

from meltemi.model.names import SDS_TYPE
from mesh_world import build_world, pod
from pki import make_authority

RULES = """
---
apiVersion: v1
kind: Secret
metadata: {name: web-cert, namespace: owner}
type: kubernetes.io/tls
data: {tls.crt: %s, tls.key: %s}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: web, namespace: %s}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: ["x.example"]
    tls: {mode: SIMPLE, credentialName: web-cert}
"""
LABELS = {"istio": "ingressgateway"}


def test_only_gateways_of_the_secrets_namespace_get_it() -> None:
    """A Gateway object elsewhere that names the Secret, even of the owner, brings it nowhere else."""
    chain, key = (b64encode(part).decode() for part in make_authority().issue("x.example"))
    for written_in in ("owner", "thief"):
        world = build_world(
            pod("edge", "10.1.0.1", namespace="owner", labels=LABELS)
            + pod("trap", "10.1.0.2", namespace="thief", labels=LABELS)
            + pod("app", "10.1.0.3", namespace="owner")
            + RULES % (chain, key, written_in)
        )
        served = {name: world.resources(name)[SDS_TYPE] for name in world.pods}
        assert [entry.name for entry in served["edge.owner"]] == ["kubernetes://web-cert"]
        assert not served["trap.thief"]
        assert not served["app.owner"]
        assert "PRIVATE" not in repr(world.context.secrets)
        assert key not in repr(world.context.secrets)


ORIGINATION = """
---
apiVersion: v1
kind: Secret
metadata: {name: client, namespace: owner}
data: {tls.crt: %s, tls.key: %s, ca.crt: %s}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: world, namespace: owner}
spec:
  hosts: [world.example]
  resolution: DNS
  ports: [{number: 443, name: http, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: world, namespace: owner}
spec:
  host: world.example
  trafficPolicy: %s
"""
MUTUAL = "{mode: MUTUAL, credentialName: client}"
BOTH = ["kubernetes://client", "kubernetes://client-cacert"]


@pytest.mark.parametrize(
    ("policy", "names"),
    [
        (f"{{tls: {MUTUAL}}}", BOTH),
        (f"{{portLevelSettings: [{{port: {{number: 443}}, tls: {MUTUAL}}}]}}", BOTH),
        ("{tls: {mode: SIMPLE, credentialName: client}}", BOTH[1:]),
    ],
)
def test_a_gateway_gets_the_client_certificates_of_destination_rules(
    policy: str, names: list[str]
) -> None:
    """Of the whole rule and of single ports; for SIMPLE the roots only."""
    authority = make_authority()
    parts = (*authority.issue("client.example"), authority.root)
    rules = ORIGINATION % (*(b64encode(part).decode() for part in parts), policy)
    world = build_world(pod("edge", "10.1.0.1", namespace="owner", labels=LABELS) + rules)
    assert [entry.name for entry in world.resources("edge.owner")[SDS_TYPE]] == names
