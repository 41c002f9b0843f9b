"""Endpoints that report their load get their share by it; endpoints that fail too large a share of requests are ejected."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from envoy_rig import Backend, fetch, free_port, wait_for
from live import running
from mesh_world import World, build_world, pod, service

pytestmark = pytest.mark.envoy
HOSTS = tuple(f"127.0.0.{number}" for number in range(1, 6))


@pytest.fixture
def fleet() -> Iterator[list[Backend]]:
    """Five instances on one port; the first fails every second request."""
    count = [0]

    def every_second(_: object) -> int | None:
        count[0] += 1
        return 500 if count[0] % 2 else None

    first = Backend(HOSTS[0], HOSTS[0], respond=every_second)
    made = [first, *(Backend(host, host, port=first.port) for host in HOSTS[1:])]
    yield made
    for backend in made:
        backend.close()


def _world(fleet: list[Backend], policy: str) -> World:
    pods = "".join(
        pod(backend.name.replace(".", "-"), backend.name, labels={"app": "web"}, mtls=False)
        for backend in fleet
    )
    return build_world(
        service("web", ("http", 9080, fleet[0].port))
        + pods
        + pod("client", "10.1.0.6")
        + f"""
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web}}
spec:
  host: web
  trafficPolicy: {policy}
"""
    )


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.loadBalancer.backendUtilization.weightStabilizationPeriod",
    "DestinationRule.trafficPolicy.loadBalancer.backendUtilization.weightExpirationPeriod",
    "DestinationRule.trafficPolicy.loadBalancer.backendUtilization.weightUpdatePeriod",
    "DestinationRule.trafficPolicy.loadBalancer.backendUtilization.errorUtilizationPenaltyPercent",
    "DestinationRule.trafficPolicy.loadBalancer.backendUtilization.metricNamesForComputingUtilization",
)
@pytest.mark.parametrize(
    ("more", "quiet", "busy"),
    [
        ("", {"application_utilization": 0.1}, {"application_utilization": 0.9}),
        (
            ", metricNamesForComputingUtilization: [named_metrics.queue]",
            {"named_metrics": {"queue": 0.1}, "application_utilization": 0.9},
            {"named_metrics": {"queue": 0.9}, "application_utilization": 0.1},
        ),
        (
            ", errorUtilizationPenaltyPercent: 200",
            {"application_utilization": 0.2},
            {"application_utilization": 0.2, "eps": 90},
        ),
    ],
    ids=["utilization", "a metric of one's own", "errors"],
)
def test_busy_endpoints_get_less(
    tmp_path: Path,
    fleet: list[Backend],
    more: str,
    quiet: dict[str, object],
    busy: dict[str, object],
) -> None:
    """Reports come in a header of every answer; a tenth of the load gives most of the requests."""
    two = fleet[1:3]
    for backend, report in zip(two, (quiet, busy), strict=True):
        backend.headers["endpoint-load-metrics"] = "JSON " + json.dumps(
            {"rps_fractional": 100, **report}
        )
    world = _world(
        two,
        "{loadBalancer: {backendUtilization: {weightStabilizationPeriod: 0s, "
        f"weightExpirationPeriod: 60s, weightUpdatePeriod: 0.1s{more}}}}}}}",
    )
    assert not world.findings
    port = free_port()

    def shares() -> Counter[str]:
        return Counter(fetch(port, host="web").json["name"] for _ in range(60))

    with running(tmp_path, world, "client", {"0.0.0.0_9080": [("127.0.0.1", port)]}):
        wait_for("the weights", lambda: shares()[two[0].name] > 40)


@pytest.mark.covers("DestinationRule.trafficPolicy.outlierDetection.failurePercentageThreshold")
def test_a_share_of_failures_ejects(tmp_path: Path, fleet: list[Backend]) -> None:
    """Half of the first one's answers are errors, never two in a row; of five endpoints it alone goes."""
    world = _world(
        fleet,
        "{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 0, "
        "failurePercentageThreshold: 40, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 20}}",
    )
    assert not world.findings
    port = free_port()
    stat = "cluster.outbound|9080||web.default.svc.cluster.local.outlier_detection.ejections_active"
    with running(tmp_path, world, "client", {"0.0.0.0_9080": [("127.0.0.1", port)]}) as envoy:

        def ejected() -> bool:
            for _ in range(100):
                fetch(port, host="web")
            return envoy.counter(stat) == 1

        wait_for("the ejection", ejected)
        seen = {fetch(port, host="web").json["name"] for _ in range(20)}
        assert seen == set(HOSTS[1:])
