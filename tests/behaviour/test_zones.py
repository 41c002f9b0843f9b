"""Zone-aware routing: requests stay in the caller's zone as far as the callers themselves are spread like the endpoints."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from behaviour_rules import OUTLIER, eventually
from meltemi.testing.client import Client
from meltemi.testing.distribution import Distribution
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

URL = "http://stock:8080/"
Zones = Callable[..., Client]
_DISCOVERS = "proxyMetadata: {ISTIO_META_ENABLE_SELF_DISCOVERY: 'true'}"


def _deployment(name: str, app: str, place: str, replicas: int = 1, more: str = "") -> str:
    return f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  template:
    metadata:
      labels: {{app: {app}, workload: {name}, service.istio.io/workload-name: {app}, istio-locality: {place}}}
{more}    spec: {{serviceAccountName: {app}, containers: [{{name: app}}]}}
---
"""


def _service(name: str) -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 8080}}]}}
---
"""


def _world(stock: dict[str, int], discovers: bool = True) -> str:
    """Callers in zones a (where requests come from) and b of one region, as many in each; ``stock``: pods by place."""
    note = f'      annotations: {{proxy.istio.io/config: "{_DISCOVERS}"}}\n' if discovers else ""
    callers = "".join(
        _deployment(f"shopper-{place[3]}", "shopper", place, more=note)
        for place in ("eu.a.rack1", "eu.b.rack1")
    )
    pods = "".join(
        _deployment(f"stock-{place.replace('.', '-')}", "stock", place, count)
        for place, count in stock.items()
    )
    return callers + pods + _service("shopper") + _service("stock")


@pytest.fixture
def zones(mesh: Mesh) -> Zones:
    """Apply the world and the ``trafficPolicy`` of a rule for ``stock``; the caller in zone a."""

    def apply(stock: dict[str, int], policy: str, discovers: bool = True, **more: str) -> Client:
        rule = (
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: stock}\n"
            f"spec:\n  host: stock\n  trafficPolicy:\n{policy}\n"
        )
        mesh.apply(_world(stock, discovers) + rule, **more)
        return mesh.client("shopper-a")

    return apply


def _settings(text: str, *more: str) -> str:
    lines = (f"loadBalancer: {{simple: ROUND_ROBIN, zoneAwareLbSetting: {{{text}}}}}", *more)
    return "\n".join("    " + line for line in lines)


def _places(found: Distribution) -> set[str]:
    return set(found.counts)


EVEN = {"eu.a.rack9": 1, "eu.b.rack9": 1}


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.loadBalancer.zoneAwareLbSetting.enabled",
    "DestinationRule.trafficPolicy.loadBalancer.zoneAwareLbSetting.minClusterSize",
)
def test_requests_stay_in_the_callers_zone(zones: Zones) -> None:
    """Whatever the racks: those are not compared."""
    client = zones(EVEN, _settings("enabled: true, minClusterSize: 2"))
    assert client.send(URL, n=30).counts == {"stock-eu-a-rack9": 30}


@pytest.mark.covers("DestinationRule.trafficPolicy.loadBalancer.zoneAwareLbSetting.minClusterSize")
@pytest.mark.parametrize("text", ["enabled: true", "enabled: true, minClusterSize: 3"])
def test_small_services_are_not_divided(zones: Zones, text: str) -> None:
    """Below ``minClusterSize`` endpoints (six, where nothing is said) zones do not count."""
    found = zones(EVEN, _settings(text)).send(URL, n=30)
    assert _places(found) == {"stock-eu-a-rack9", "stock-eu-b-rack9"}


@pytest.mark.covers("DestinationRule.trafficPolicy.loadBalancer.zoneAwareLbSetting.enabled")
def test_it_can_be_off(zones: Zones) -> None:
    found = zones(EVEN, _settings("enabled: false, minClusterSize: 2")).send(URL, n=30)
    assert _places(found) == {"stock-eu-a-rack9", "stock-eu-b-rack9"}


def test_callers_that_do_not_know_their_own_service_spread(zones: Zones) -> None:
    policy = _settings("enabled: true, minClusterSize: 2")
    found = zones(EVEN, policy, discovers=False).send(URL, n=30)
    assert _places(found) == {"stock-eu-a-rack9", "stock-eu-b-rack9"}


def test_what_the_zone_cannot_take_spills_over(zones: Zones) -> None:
    """Half of the callers are in zone a, a quarter of the endpoints: every endpoint gets as much."""
    policy = _settings("enabled: true, minClusterSize: 2")
    client = zones({"eu.a.rack9": 1, "eu.b.rack9": 3}, policy)
    found = client.send(URL, n=400)
    found.assert_shares({"stock-eu-a-rack9": 0.5, "stock-eu-b-rack9": 0.5})


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.loadBalancer.zoneAwareLbSetting.failover.from",
    "DestinationRule.trafficPolicy.loadBalancer.zoneAwareLbSetting.failover.to",
)
def test_other_regions_come_last(zones: Zones, mesh: Mesh) -> None:
    """Both zones of the region fail; ``failover`` says which region is next."""
    stock = {**EVEN, "asia.a.rack1": 1, "us.a.rack1": 1}
    policy = _settings("enabled: true, minClusterSize: 2, failover: [{from: eu, to: us}]", OUTLIER)
    client = zones(stock, policy)
    assert client.send(URL, n=20).counts == {"stock-eu-a-rack9": 20}
    mesh.fail("stock-eu-a-rack9", status=500)
    mesh.fail("stock-eu-b-rack9", status=500)
    eventually(lambda: client.get(URL).workload == "stock-us-a-rack1")


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.loadBalancer.zoneAwareLbSetting.failoverPriority"
)
def test_labels_come_before_regions(zones: Zones) -> None:
    """What matches no label is a reserve, even in the caller's own zone; regions are compared among equals."""
    stock = {**EVEN, "asia.a.rack1": 1}
    priority = "failoverPriority: ['workload=stock-eu-b-rack9']"
    client = zones(stock, _settings(f"enabled: true, minClusterSize: 1, {priority}"))
    assert client.send(URL, n=20).counts == {"stock-eu-b-rack9": 20}


@pytest.mark.covers(
    "MeshConfig.zoneAwareLbSetting.enabled", "MeshConfig.zoneAwareLbSetting.minClusterSize"
)
def test_the_mesh_may_ask_for_it(zones: Zones) -> None:
    found = zones(
        EVEN,
        "    loadBalancer: {simple: ROUND_ROBIN}",
        mesh_config="zoneAwareLbSetting: {enabled: true, minClusterSize: 2}",
    ).send(URL, n=30)
    assert found.counts == {"stock-eu-a-rack9": 30}


@pytest.mark.covers(
    "MeshConfig.zoneAwareLbSetting.failoverPriority",
    "MeshConfig.zoneAwareLbSetting.failover.from",
    "MeshConfig.zoneAwareLbSetting.failover.to",
)
def test_the_meshs_order_of_labels_and_regions(zones: Zones) -> None:
    """No endpoint is near, so the label's owner in the region that is named comes first, then the region alone."""
    asked = "zoneAwareLbSetting: {failoverPriority: [app], failover: [{from: eu, to: us}]}"
    found = zones(
        {"asia.a.r": 1, "us.a.r": 1}, "    loadBalancer: {simple: ROUND_ROBIN}", mesh_config=asked
    )
    assert found.send(URL, n=20).counts == {"stock-us-a-r": 20}


def test_a_rules_localities_win_over_the_meshs_zones(zones: Zones) -> None:
    """Weights by locality are the opposite of what the mesh asks for."""
    weights = "distribute: [{from: eu/a/*, to: {eu/b/*: 100}}]"
    found = zones(
        EVEN,
        f"    loadBalancer: {{simple: ROUND_ROBIN, localityLbSetting: {{{weights}}}}}",
        mesh_config="zoneAwareLbSetting: {enabled: true, minClusterSize: 2}",
    ).send(URL, n=20)
    assert found.counts == {"stock-eu-b-rack9": 20}
