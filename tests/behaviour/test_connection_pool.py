"""DestinationRule ``connectionPool`` and ``retryBudget``: limits on connections, requests and retries."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from behaviour_rules import eventually
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

URL = "http://reviews:9080/"
Apply = Callable[[str], Mesh]


def at_once(client: Client, n: int, url: str = URL) -> list[int]:
    """The statuses of requests that are sent at the same time."""
    found: list[int] = []
    lock = threading.Lock()
    together = threading.Barrier(n)

    def one() -> None:
        together.wait(10)
        status = client.get(url).status
        with lock:
            found.append(status)

    threads = [threading.Thread(target=one) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return sorted(found)


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.connectionPool.tcp.maxConnections",
    "DestinationRule.trafficPolicy.connectionPool.http.http1MaxPendingRequests",
)
def test_max_connections_and_pending_requests(
    policy: Apply, caller: Client, shop: Mesh, http: Apply
) -> None:
    http("- retries: {attempts: 0}\n  route: [{destination: {host: reviews, subset: v1}}]")
    policy("connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}")
    caller.get(URL)  # while the connection is made, the first request is a pending one itself
    shop.fail("reviews-v1", delay=1.0)
    found = at_once(caller, 6)
    # Envoy's limits are eventually consistent: one more may slip through before a counter is seen.
    assert 2 <= found.count(200) <= 3
    assert found.count(200) + found.count(503) == 6


@pytest.mark.covers("DestinationRule.trafficPolicy.connectionPool.http.http2MaxRequests")
def test_http2_max_requests(policy: Apply, caller: Client, shop: Mesh, http: Apply) -> None:
    http("- retries: {attempts: 0}\n  route: [{destination: {host: reviews, subset: v1}}]")
    policy("connectionPool: {http: {http2MaxRequests: 2, h2UpgradePolicy: UPGRADE}}")
    shop.fail("reviews-v1", delay=0.5)
    found = at_once(caller, 5)
    assert 2 <= found.count(200) <= 3
    assert found.count(200) + found.count(503) == 5


def overflows(shop: Mesh) -> int:
    """Retries to reviews-v1 that a limit forbade."""
    name = "cluster.outbound|9080|v1|reviews.default.svc.cluster.local.upstream_rq_retry_overflow"
    return shop.stats("caller", "upstream_rq_retry_overflow").get(name, 0)


RETRYING = (
    "- retries: {attempts: 1, retryOn: 5xx}\n  route: [{destination: {host: reviews, subset: v1}}]"
)


@pytest.mark.covers("DestinationRule.trafficPolicy.connectionPool.http.maxRetries")
def test_max_retries_at_a_time(policy: Apply, caller: Client, shop: Mesh, http: Apply) -> None:
    http(RETRYING)
    policy("connectionPool: {http: {maxRetries: 1}}")
    before = overflows(shop)
    shop.fail("reviews-v1", status=500, delay=0.4)
    at_once(caller, 5)
    assert overflows(shop) - before == 4


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.retryBudget.percent",
    "DestinationRule.trafficPolicy.retryBudget.minRetryConcurrency",
)
def test_retry_budget_limits_the_share_of_retries(
    policy: Apply, caller: Client, shop: Mesh, http: Apply
) -> None:
    http(RETRYING)
    policy("retryBudget: {percent: 20, minRetryConcurrency: 2}")
    before = overflows(shop)
    shop.fail("reviews-v1", status=500, delay=0.4)
    at_once(caller, 6)
    assert overflows(shop) - before == 4


@pytest.mark.covers("DestinationRule.trafficPolicy.connectionPool.http.maxRequestsPerConnection")
def test_max_requests_per_connection(
    policy: Apply, caller: Client, shop: Mesh, http: Apply
) -> None:
    http("- route: [{destination: {host: reviews, subset: v1}}]")
    policy("connectionPool: {http: {maxRequestsPerConnection: 1}}")
    before = upstream_connections(shop)
    caller.send(URL, n=10)
    assert upstream_connections(shop) - before == 10


def upstream_connections(shop: Mesh, subset: str = "v1") -> int:
    """Connections that the caller's proxy has made to a subset."""
    name = f"cluster.outbound|9080|{subset}|reviews.default.svc.cluster.local.upstream_cx_total"
    return shop.stats("caller", "upstream_cx_total").get(name, 0)


def test_connections_are_kept_without_a_limit(
    policy: Apply, caller: Client, shop: Mesh, http: Apply
) -> None:
    http("- route: [{destination: {host: reviews, subset: v1}}]")
    policy("connectionPool: {http: {maxRequestsPerConnection: 0}}")
    before = upstream_connections(shop)
    caller.send(URL, n=10)
    assert upstream_connections(shop) - before == 1


@pytest.mark.covers("DestinationRule.trafficPolicy.connectionPool.http.idleTimeout")
def test_idle_timeout_closes_connections(
    policy: Apply, caller: Client, shop: Mesh, http: Apply
) -> None:
    http("- route: [{destination: {host: reviews, subset: v1}}]")
    policy("connectionPool: {http: {idleTimeout: 0.2s}}")
    caller.get(URL)
    name = "cluster.outbound|9080|v1|reviews.default.svc.cluster.local.upstream_cx_active"
    eventually(lambda: shop.stats("caller", "upstream_cx_active").get(name, 0) == 0)


@pytest.mark.covers("DestinationRule.trafficPolicy.connectionPool.tcp.maxConnectionDuration")
def test_max_connection_duration_closes_connections(
    policy: Apply, caller: Client, shop: Mesh, http: Apply
) -> None:
    http("- route: [{destination: {host: reviews, subset: v1}}]")
    policy("connectionPool: {tcp: {maxConnectionDuration: 0.2s}}")
    caller.get(URL)
    name = "cluster.outbound|9080|v1|reviews.default.svc.cluster.local.upstream_cx_active"
    eventually(lambda: shop.stats("caller", "upstream_cx_active").get(name, 0) == 0)


@pytest.mark.covers("DestinationRule.trafficPolicy.connectionPool.tcp.idleTimeout")
def test_tcp_idle_timeout(policy: Apply, shop: Mesh, caller: Client) -> None:
    policy("connectionPool: {tcp: {idleTimeout: 0.2s}}")
    with caller.tcp("reviews:9000") as connection:
        assert connection.ask("hello")["received"] == "hello"
        assert connection.read_line() == b""


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.connectionPool.http.h2UpgradePolicy=UPGRADE",
    "DestinationRule.trafficPolicy.connectionPool.http.h2UpgradePolicy=DO_NOT_UPGRADE",
)
@pytest.mark.parametrize(("wanted", "seen"), [("UPGRADE", "h2"), ("DO_NOT_UPGRADE", "http/1.1")])
def test_h2_upgrade_policy(
    policy: Apply, caller: Client, shop: Mesh, wanted: str, seen: str
) -> None:
    policy(f"connectionPool: {{http: {{h2UpgradePolicy: {wanted}}}}}")
    answer = caller.get(URL)
    assert answer.last is not None
    assert answer.last.protocol == ("HTTP/2" if seen == "h2" else "HTTP/1.1")


@pytest.mark.covers("DestinationRule.trafficPolicy.connectionPool.http.useClientProtocol")
def test_use_client_protocol(policy: Apply, caller: Client) -> None:
    policy("connectionPool: {http: {useClientProtocol: true}}")
    for http2 in (True, False):
        answer = caller.get(URL, http2=http2)
        assert answer.last is not None
        assert answer.last.protocol == ("HTTP/2" if http2 else "HTTP/1.1")


@pytest.mark.covers("DestinationRule.trafficPolicy.connectionPool.tcp.connectTimeout")
def test_connect_timeout_gives_up(shop: Mesh, caller: Client) -> None:
    """An address that never answers; without the field it would take the mesh's ten seconds."""
    shop.apply("""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  trafficPolicy: {connectionPool: {tcp: {connectTimeout: 0.25s}}}
""")
    assert cluster(shop)["connect_timeout"] == "0.250s"
    assert (
        cluster(shop, "outbound|9080||details.default.svc.cluster.local")["connect_timeout"]
        == "10s"
    )


def cluster(
    shop: Mesh, name: str = "outbound|9080||reviews.default.svc.cluster.local"
) -> dict[str, Any]:
    """A cluster as the caller's proxy has it."""
    (found,) = [
        entry["cluster"]
        for config in shop.config("caller")["configs"]
        for entry in config.get("dynamic_active_clusters", ())
        if entry["cluster"]["name"] == name
    ]
    return dict(found)


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.connectionPool.tcp.tcpKeepalive.probes",
    "DestinationRule.trafficPolicy.connectionPool.tcp.tcpKeepalive.time",
    "DestinationRule.trafficPolicy.connectionPool.tcp.tcpKeepalive.interval",
)
def test_tcp_keepalive_is_the_proxys(policy: Apply, caller: Client, shop: Mesh) -> None:
    """The kernel does it; a proxy that has it still serves."""
    policy("connectionPool: {tcp: {tcpKeepalive: {probes: 3, time: 60s, interval: 5s}}}")
    assert cluster(shop)["upstream_connection_options"]["tcp_keepalive"] == {
        "keepalive_probes": 3,
        "keepalive_time": 60,
        "keepalive_interval": 5,
    }
    assert caller.get(URL).status == 200


@pytest.mark.covers("DestinationRule.trafficPolicy.connectionPool.http.maxConcurrentStreams")
def test_max_concurrent_streams(policy: Apply, caller: Client, shop: Mesh, http: Apply) -> None:
    """With one stream for each connection, requests at the same time take connections of their own."""
    http("- retries: {attempts: 0}\n  route: [{destination: {host: reviews, subset: v2}}]")
    policy("connectionPool: {http: {h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 1}}")
    before = upstream_connections(shop, "v2")
    shop.fail("reviews-v2", delay=0.4)
    assert set(at_once(caller, 4)) == {200}
    assert upstream_connections(shop, "v2") - before == 4


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.connectionPool.http.http2KeepAlive.interval",
    "DestinationRule.trafficPolicy.connectionPool.http.http2KeepAlive.timeout",
)
def test_http2_keep_alive_pings(policy: Apply, caller: Client, shop: Mesh, http: Apply) -> None:
    """Pings while nothing is sent: Envoy counts what it writes to the connection."""
    http("- route: [{destination: {host: reviews, subset: v3}}]")
    policy(
        "connectionPool: {http: {h2UpgradePolicy: UPGRADE, "
        "http2KeepAlive: {interval: 0.05s, timeout: 2s}}}"
    )
    assert caller.get(URL).status == 200
    name = "cluster.outbound|9080|v3|reviews.default.svc.cluster.local.upstream_cx_tx_bytes_total"
    sent = shop.stats("caller", "upstream_cx_tx_bytes_total")[name]
    eventually(lambda: shop.stats("caller", "upstream_cx_tx_bytes_total")[name] > sent + 50)
