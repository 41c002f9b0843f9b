"""The plugin in short: two services, one VirtualService, two real Envoys, mTLS."""

from __future__ import annotations

import pytest

from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

SERVICES = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: productpage-v1}
spec:
  template:
    metadata: {labels: {app: productpage, version: v1}}
    spec: {serviceAccountName: productpage, containers: [{name: app}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews-v1}
spec:
  template:
    metadata: {labels: {app: reviews, version: v1}}
    spec: {serviceAccountName: reviews, containers: [{name: app, ports: [{containerPort: 9080}]}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews-v2}
spec:
  template:
    metadata: {labels: {app: reviews, version: v2}}
    spec: {serviceAccountName: reviews, containers: [{name: app, ports: [{containerPort: 9080}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
"""

ROUTES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - name: jason
    match:
    - headers: {end-user: {exact: jason}}
    route:
    - destination: {host: reviews, subset: v2}
  - name: everybody
    route:
    - destination: {host: reviews, subset: v1}
"""


def test_a_request_takes_the_route_through_two_proxies_with_mtls(mesh: Mesh) -> None:
    mesh.apply(SERVICES, ROUTES)
    client = mesh.client("productpage-v1", namespace="default")
    answer = client.get("http://reviews:9080/reviews/0", headers={"end-user": "jason"})
    assert answer.status == 200
    assert answer.workload == "reviews-v2"
    assert answer.route == "jason"
    assert answer.destination.subset == "v2"
    assert answer.destination.service == "reviews.default.svc.cluster.local"
    assert answer.destination.pod == "reviews-v2-1"
    assert answer.mtls
    assert answer.peer_identity == "spiffe://cluster.local/ns/default/sa/productpage"
    assert answer.attempts == 1
    assert answer.flags == ""
    assert answer.path_seen == "/reviews/0"
    assert answer.json()["version"] == "v2"
    assert client.get("http://reviews:9080/").route == "everybody"


def test_many_requests_have_a_distribution(mesh: Mesh) -> None:
    mesh.apply(SERVICES)
    found = mesh.client("productpage-v1").send("http://reviews:9080/", n=300)
    assert found.n == 300
    assert set(found.counts) == {"reviews-v1", "reviews-v2"}
    assert found.statuses == {200: 300}
