"""Who gets a gateway's keys: gateways of the Secret's own namespace, and nobody else."""

from __future__ import annotations

from meltemi.model.names import SDS_TYPE
from mesh_world import build_world, pod

RULES = """
---
apiVersion: v1
kind: Secret
metadata: {name: web-cert, namespace: owner}
type: kubernetes.io/tls
data: {tls.crt: Y2VydA==, tls.key: a2V5}
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
    for written_in in ("owner", "thief"):
        world = build_world(
            pod("edge", "10.1.0.1", namespace="owner", labels=LABELS)
            + pod("trap", "10.1.0.2", namespace="thief", labels=LABELS)
            + pod("app", "10.1.0.3", namespace="owner")
            + RULES % written_in
        )
        served = {name: world.resources(name)[SDS_TYPE] for name in world.pods}
        assert [entry.name for entry in served["edge.owner"]] == ["kubernetes://web-cert"]
        assert not served["trap.thief"]
        assert not served["app.owner"]
        assert b"a2V5" not in repr(world.context.secrets).encode()
        assert "'key'" not in repr(world.context.secrets)
