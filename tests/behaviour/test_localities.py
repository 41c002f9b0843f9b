"""Localities: endpoints near the caller come first, others when those fail, or by weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from behaviour_rules import OUTLIER, eventually
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

URL = "http://reviews:9080/"
Apply = Callable[[str], Mesh]


@pytest.fixture
def spread(shop: Mesh) -> Mesh:
    """The caller and reviews-v1 are in one zone, v2 in another of the region, v3 in another region."""
    places = {
        "caller": "eu.west.a",
        "reviews-v1": "eu.west.a",
        "reviews-v2": "eu.west.b",
        "reviews-v3": "us.east.a",
    }
    for name, place in places.items():
        labels = "app: caller" if name == "caller" else f"app: reviews, version: {name[-2:]}"
        account = "caller" if name == "caller" else "reviews"
        shop.apply(f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  template:
    metadata: {{labels: {{{labels}, istio-locality: {place}}}}}
    spec: {{serviceAccountName: {account}, containers: [{{name: app}}]}}
""")
    return shop


def test_failover_prefers_the_callers_own_place(
    spread: Mesh, policy: Apply, caller: Client
) -> None:
    policy(OUTLIER)
    assert spread.client("caller").send(URL, n=20).counts == {"reviews-v1": 20}


@pytest.mark.covers("DestinationRule.trafficPolicy.loadBalancer.localityLbSetting.enabled")
def test_failover_goes_to_the_next_place(spread: Mesh, policy: Apply) -> None:
    policy(f"loadBalancer: {{localityLbSetting: {{enabled: true}}}}\n{OUTLIER}")
    client = spread.client("caller")
    assert client.get(URL).workload == "reviews-v1"
    spread.fail("reviews-v1", status=500)
    eventually(lambda: client.get(URL).workload == "reviews-v2")


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.loadBalancer.localityLbSetting.distribute.from",
    "DestinationRule.trafficPolicy.loadBalancer.localityLbSetting.distribute.to",
)
def test_distribute_by_locality(spread: Mesh, policy: Apply) -> None:
    policy(
        """
loadBalancer:
  localityLbSetting:
    distribute:
    - from: eu/west/*
      to: {"eu/west/a": 0, "eu/west/b": 20, "us/east/*": 80}
""".replace('"eu/west/a": 0, ', "")
    )
    found = spread.client("caller").send(URL, n=500)
    found.assert_shares({"reviews-v2": 0.2, "reviews-v3": 0.8})


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.loadBalancer.localityLbSetting.failover.from",
    "DestinationRule.trafficPolicy.loadBalancer.localityLbSetting.failover.to",
)
def test_failover_by_region(spread: Mesh, policy: Apply) -> None:
    spread.apply("""
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews-v1}
spec: {replicas: 0, template: {metadata: {labels: {app: reviews, version: v1}}, spec: {containers: [{name: app}]}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews-v2}
spec:
  template:
    metadata: {labels: {app: reviews, version: v2, istio-locality: asia.south.a}}
    spec: {serviceAccountName: reviews, containers: [{name: app}]}
""")
    policy(f"loadBalancer: {{localityLbSetting: {{failover: [{{from: eu, to: us}}]}}}}\n{OUTLIER}")
    assert spread.client("caller").send(URL, n=10).counts == {"reviews-v3": 10}


@pytest.mark.covers("DestinationRule.trafficPolicy.loadBalancer.localityLbSetting.failoverPriority")
def test_failover_priority_compares_labels(spread: Mesh, policy: Apply) -> None:
    policy(f"loadBalancer: {{localityLbSetting: {{failoverPriority: ['version=v2']}}}}\n{OUTLIER}")
    assert spread.client("caller").send(URL, n=10).counts == {"reviews-v2": 10}


@pytest.mark.covers("VirtualService.http.retries.retryRemoteLocalities")
@pytest.mark.parametrize(("remote", "status"), [("true", 200), ("false", 500)])
def test_retries_may_leave_the_locality(
    spread: Mesh, policy: Apply, http: Apply, remote: str, status: int
) -> None:
    """The only endpoint of the caller's own zone fails; outlier detection is slower than the retry."""
    http(
        "- retries: {attempts: 3, retryOn: 5xx, retryIgnorePreviousHosts: false, "
        f"retryRemoteLocalities: {remote}}}\n  route: [{{destination: {{host: reviews}}}}]"
    )
    policy("outlierDetection: {consecutive5xxErrors: 100, interval: 60s}")
    spread.fail("reviews-v1", status=500)
    assert spread.client("caller").get(URL).status == status


@pytest.mark.covers("MeshConfig.localityLbSetting.enabled")
def test_the_mesh_may_switch_localities_off(spread: Mesh, policy: Apply) -> None:
    spread.apply(mesh_config="localityLbSetting: {enabled: false}")
    policy(OUTLIER)
    assert len(spread.client("caller").send(URL, n=30).counts) == 3
