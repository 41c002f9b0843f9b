"""MeshConfig: what holds for all services and proxies of the mesh where nothing closer says otherwise."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from behaviour_rules import OUTLIER, eventually
from meltemi.testing.client import Client, TlsOptions
from meltemi.testing.mesh import Mesh
from meltemi.testing.response import NoAnswer
from pki import Authority

pytestmark = pytest.mark.envoy

URL = "http://reviews:9080/"
Apply = Callable[[str], Mesh]


def cluster_of(shop: Mesh, name: str, workload: str = "caller") -> dict[str, Any]:
    """A cluster, as a workload's Envoy has it."""
    (found,) = [
        entry["cluster"]
        for config in shop.config(workload)["configs"]
        for entry in config.get("dynamic_active_clusters", ())
        if entry["cluster"]["name"] == name
    ]
    made: dict[str, Any] = found
    return made


def http_of(cluster: dict[str, Any]) -> dict[str, Any]:
    """What a cluster says about HTTP."""
    options: dict[str, Any] = cluster["typed_extension_protocol_options"]
    found: dict[str, Any] = options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
    return found


REVIEWS = "outbound|9080||reviews.default.svc.cluster.local"


# --- connections --------------------------------------------------------------------------------------


@pytest.mark.covers("MeshConfig.connectTimeout")
def test_connections_are_given_up(shop: Mesh, policy: Apply) -> None:
    """The mesh's time holds for every service; a DestinationRule's wins."""
    shop.apply(mesh_config="connectTimeout: 3s")
    assert cluster_of(shop, REVIEWS)["connect_timeout"] == "3s"
    assert cluster_of(shop, "PassthroughCluster")["connect_timeout"] == "3s"
    policy("connectionPool: {tcp: {connectTimeout: 4s}}")
    assert cluster_of(shop, REVIEWS)["connect_timeout"] == "4s"


@pytest.mark.covers(
    "MeshConfig.tcpKeepalive.probes",
    "MeshConfig.tcpKeepalive.time",
    "MeshConfig.tcpKeepalive.interval",
)
def test_keepalive(shop: Mesh, policy: Apply) -> None:
    """The proxy sets it on its sockets; a DestinationRule's wins."""
    shop.apply(mesh_config="tcpKeepalive: {probes: 3, time: 60s, interval: 10s}")
    found = cluster_of(shop, REVIEWS)["upstream_connection_options"]["tcp_keepalive"]
    assert found == {"keepalive_probes": 3, "keepalive_time": 60, "keepalive_interval": 10}
    policy("connectionPool: {tcp: {tcpKeepalive: {time: 90s}}}")
    found = cluster_of(shop, REVIEWS)["upstream_connection_options"]["tcp_keepalive"]
    assert found == {"keepalive_time": 90}


@pytest.mark.covers("MeshConfig.h2UpgradePolicy=UPGRADE", "MeshConfig.h2UpgradePolicy")
def test_http2_between_proxies(shop: Mesh, caller: Client, policy: Apply) -> None:
    """HTTP/1.1 from the client, HTTP/2 between the proxies; a DestinationRule may say no."""

    def streams() -> int:
        return shop.stats("caller", "reviews.*upstream_cx_http2_total").get(
            f"cluster.{REVIEWS}.upstream_cx_http2_total", 0
        )

    before = streams()
    assert caller.get(URL).status == 200
    assert streams() == before
    shop.apply(mesh_config="h2UpgradePolicy: UPGRADE")
    assert caller.get(URL).status == 200
    assert streams() > before
    policy("connectionPool: {http: {h2UpgradePolicy: DO_NOT_UPGRADE}}")
    before = streams()
    assert caller.get(URL).status == 200
    assert streams() == before


DEFAULTS = """
defaultTrafficPolicy:
  connectionPool:
    tcp:
      maxConnections: 7
      connectTimeout: 2s
      idleTimeout: 90s
      maxConnectionDuration: 100s
      tcpKeepalive: {probes: 4, time: 50s, interval: 20s}
    http:
      http1MaxPendingRequests: 8
      http2MaxRequests: 9
      maxRetries: 5
      maxRequestsPerConnection: 11
      idleTimeout: 80s
      maxConcurrentStreams: 12
      http2KeepAlive: {interval: 30s, timeout: 3s}
      h2UpgradePolicy: UPGRADE
  outlierDetection:
    splitExternalLocalOriginErrors: true
    consecutiveLocalOriginFailures: 2
    consecutiveGatewayErrors: 3
    consecutive5xxErrors: 4
    interval: 6s
    baseEjectionTime: 7s
    maxEjectionPercent: 33
    minHealthPercent: 22
"""


@pytest.mark.covers(
    "MeshConfig.defaultTrafficPolicy.connectionPool.tcp.maxConnections",
    "MeshConfig.defaultTrafficPolicy.connectionPool.tcp.connectTimeout",
    "MeshConfig.defaultTrafficPolicy.connectionPool.tcp.idleTimeout",
    "MeshConfig.defaultTrafficPolicy.connectionPool.tcp.maxConnectionDuration",
    "MeshConfig.defaultTrafficPolicy.connectionPool.tcp.tcpKeepalive.probes",
    "MeshConfig.defaultTrafficPolicy.connectionPool.tcp.tcpKeepalive.time",
    "MeshConfig.defaultTrafficPolicy.connectionPool.tcp.tcpKeepalive.interval",
    "MeshConfig.defaultTrafficPolicy.connectionPool.http.http1MaxPendingRequests",
    "MeshConfig.defaultTrafficPolicy.connectionPool.http.http2MaxRequests",
    "MeshConfig.defaultTrafficPolicy.connectionPool.http.maxRetries",
    "MeshConfig.defaultTrafficPolicy.connectionPool.http.maxRequestsPerConnection",
    "MeshConfig.defaultTrafficPolicy.connectionPool.http.idleTimeout",
    "MeshConfig.defaultTrafficPolicy.connectionPool.http.maxConcurrentStreams",
    "MeshConfig.defaultTrafficPolicy.connectionPool.http.http2KeepAlive.interval",
    "MeshConfig.defaultTrafficPolicy.connectionPool.http.http2KeepAlive.timeout",
    "MeshConfig.defaultTrafficPolicy.connectionPool.http.h2UpgradePolicy",
    "MeshConfig.defaultTrafficPolicy.outlierDetection.splitExternalLocalOriginErrors",
    "MeshConfig.defaultTrafficPolicy.outlierDetection.consecutiveLocalOriginFailures",
    "MeshConfig.defaultTrafficPolicy.outlierDetection.consecutiveGatewayErrors",
    "MeshConfig.defaultTrafficPolicy.outlierDetection.consecutive5xxErrors",
    "MeshConfig.defaultTrafficPolicy.outlierDetection.interval",
    "MeshConfig.defaultTrafficPolicy.outlierDetection.baseEjectionTime",
    "MeshConfig.defaultTrafficPolicy.outlierDetection.maxEjectionPercent",
    "MeshConfig.defaultTrafficPolicy.outlierDetection.minHealthPercent",
)
def test_default_traffic_policy_reaches_the_proxy(shop: Mesh) -> None:
    shop.apply(mesh_config=DEFAULTS)
    found = cluster_of(shop, REVIEWS)
    (limits,) = found["circuit_breakers"]["thresholds"]
    names = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    assert [limits[name] for name in names] == [7, 8, 9, 5]
    assert found["connect_timeout"] == "2s"
    assert found["upstream_connection_options"]["tcp_keepalive"] == {
        "keepalive_probes": 4,
        "keepalive_time": 50,
        "keepalive_interval": 20,
    }
    common = http_of(found)["common_http_protocol_options"]
    assert common["max_requests_per_connection"] == 11
    assert (common["idle_timeout"], common["max_connection_duration"]) == ("80s", "100s")
    http2 = http_of(found)["explicit_http_config"]["http2_protocol_options"]
    assert http2["max_concurrent_streams"] == 12
    pings = http2["connection_keepalive"]
    assert (pings["interval"], pings["timeout"]) == ("30s", "3s")
    bytes_alone = found["typed_extension_protocol_options"][
        "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions"
    ]
    assert bytes_alone["idle_timeout"] == "90s"
    outlier = found["outlier_detection"]
    assert outlier["split_external_local_origin_errors"] is True
    assert outlier["consecutive_local_origin_failure"] == 2
    assert outlier["consecutive_gateway_failure"] == 3
    assert outlier["consecutive_5xx"] == 4
    assert (outlier["interval"], outlier["base_ejection_time"]) == ("6s", "7s")
    assert outlier["max_ejection_percent"] == 33
    assert found["common_lb_config"]["healthy_panic_threshold"]["value"] == 22


@pytest.mark.covers(
    "MeshConfig.defaultTrafficPolicy.connectionPool.http.useClientProtocol",
    "MeshConfig.defaultTrafficPolicy.outlierDetection.consecutiveErrors",
    "MeshConfig.defaultTrafficPolicy.outlierDetection.failurePercentageThreshold",
    "MeshConfig.defaultTrafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes",
)
def test_default_traffic_policy_in_other_words(shop: Mesh) -> None:
    shop.apply(
        mesh_config="defaultTrafficPolicy: {connectionPool: {http: {useClientProtocol: true}}, "
        "outlierDetection: {consecutiveErrors: 6, failurePercentageThreshold: 44, "
        "outlierDetectionHttpErrorCodes: [501]}}"
    )
    counted = http_of(cluster_of(shop, REVIEWS))["outlier_detection"]["error_matcher"]
    (header,) = counted["http_response_headers_match"]["headers"]
    assert header["string_match"] == {"exact": "501"}
    found = cluster_of(shop, REVIEWS)
    assert "use_downstream_protocol_config" in http_of(found)
    assert found["outlier_detection"]["consecutive_5xx"] == 6
    assert found["outlier_detection"]["failure_percentage_threshold"] == 44


@pytest.mark.covers(
    "MeshConfig.outboundTrafficPolicy.egressProxy.host",
    "MeshConfig.outboundTrafficPolicy.egressProxy.subset",
    "MeshConfig.outboundTrafficPolicy.egressProxy.port.number",
)
def test_unknown_destinations_go_to_the_meshs_proxy(shop: Mesh, caller: Client) -> None:
    proxy = "{host: reviews.default.svc.cluster.local, subset: v2, port: {number: 9080}}"
    shop.apply(mesh_config=f"outboundTrafficPolicy: {{mode: ALLOW_ANY, egressProxy: {proxy}}}")
    assert caller.get("http://films.example:9080/").workload == "reviews-v2"


def test_endpoints_are_ejected_by_the_meshs_policy(shop: Mesh, caller: Client) -> None:
    """Without any DestinationRule about it; retries keep the failures from the client."""
    shop.apply(mesh_config=f"defaultTrafficPolicy:\n  {OUTLIER}")
    shop.fail("reviews-v1", status=500)
    eventually(lambda: "reviews-v1" not in caller.send(URL, n=12).counts)


# --- retries ------------------------------------------------------------------------------------------


def tries(shop: Mesh, caller: Client, config: str) -> int:
    """How often a request that always fails is tried."""
    shop.apply(mesh_config=config)
    shop.fail("details-v1", status=500)
    before = len(shop.received("details-v1"))
    assert caller.get("http://details:9080/").status == 500
    return len(shop.received("details-v1")) - before


@pytest.mark.covers(
    "MeshConfig.defaultHttpRetryPolicy.attempts",
    "MeshConfig.defaultHttpRetryPolicy.retryOn",
)
def test_default_retries(shop: Mesh, caller: Client, http: Apply) -> None:
    """A 500 is not tried again unless the mesh says so; a VirtualService's retries win."""
    assert tries(shop, caller, "") == 1
    often = "defaultHttpRetryPolicy: {attempts: 3, retryOn: 5xx}"
    assert tries(shop, caller, often) == 4
    http("- retries: {attempts: 0}\n  route: [{destination: {host: details}}]")
    shop.fail("details-v1", status=500)
    before = len(shop.received("details-v1"))
    assert caller.get(URL).status == 500
    assert len(shop.received("details-v1")) - before == 1


@pytest.mark.covers(
    "MeshConfig.defaultHttpRetryPolicy.perTryTimeout",
    "MeshConfig.defaultHttpRetryPolicy.backoff",
    "MeshConfig.defaultHttpRetryPolicy.retryRemoteLocalities",
    "MeshConfig.defaultHttpRetryPolicy.retryIgnorePreviousHosts",
)
def test_how_retries_are_made(shop: Mesh) -> None:
    shop.apply(
        mesh_config="defaultHttpRetryPolicy: {attempts: 2, retryOn: 5xx, perTryTimeout: 3s, backoff: 0.2s, "
        "retryRemoteLocalities: true, retryIgnorePreviousHosts: false}"
    )
    found = retry_policy(shop)
    assert (found["num_retries"], found["per_try_timeout"]) == (2, "3s")
    assert found["retry_back_off"]["base_interval"] == "0.200s"
    assert "previous_priorities" in found["retry_priority"]["name"]
    assert "retry_host_predicate" not in found
    shop.apply(mesh_config="defaultHttpRetryPolicy: {attempts: 2}")
    found = retry_policy(shop)
    assert "retry_priority" not in found
    assert "previous_hosts" in found["retry_host_predicate"][0]["name"]


def retry_policy(shop: Mesh) -> dict[str, Any]:
    """Of the caller's route to reviews."""
    for config in shop.config("caller")["configs"]:
        for entry in config.get("dynamic_route_configs", ()):
            for host in entry["route_config"].get("virtual_hosts", ()):
                for route in host["routes"]:
                    if route.get("route", {}).get("cluster") == REVIEWS:
                        found: dict[str, Any] = route["route"]["retry_policy"]
                        return found
    raise AssertionError("there is no route to reviews")


# --- localities ---------------------------------------------------------------------------------------


PLACES = {
    "caller": "eu.west.a",
    "reviews-v1": "eu.west.a",
    "reviews-v2": "eu.west.b",
    "reviews-v3": "us.east.a",
}


@pytest.fixture
def spread(shop: Mesh) -> Mesh:
    """The caller and reviews-v1 are in one zone, v2 in another of the region, v3 in another region."""
    for name, place in PLACES.items():
        app = name.partition("-")[0]
        labels = f"app: {app}" if app == name else f"app: {app}, version: {name[-2:]}"
        shop.apply(f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  template:
    metadata: {{labels: {{{labels}, istio-locality: {place}}}}}
    spec: {{serviceAccountName: {app}, containers: [{{name: app}}]}}
""")
    return shop


@pytest.mark.covers(
    "MeshConfig.localityLbSetting.distribute.from",
    "MeshConfig.localityLbSetting.distribute.to",
)
def test_the_mesh_distributes_over_localities(spread: Mesh, policy: Apply) -> None:
    policy(OUTLIER)
    spread.apply(
        mesh_config="localityLbSetting: {distribute: [{from: eu/west/*, to: {us/east/*: 100}}]}"
    )
    assert spread.client("caller").send(URL, n=10).counts == {"reviews-v3": 10}


@pytest.mark.covers(
    "MeshConfig.localityLbSetting.failover.from", "MeshConfig.localityLbSetting.failover.to"
)
def test_the_mesh_says_where_to_fail_over(spread: Mesh, policy: Apply) -> None:
    """Within the region first, then to the region that is named."""
    policy(OUTLIER)
    spread.apply(mesh_config="localityLbSetting: {failover: [{from: eu, to: us}]}")
    client = spread.client("caller")
    assert client.get(URL).workload == "reviews-v1"
    for name in ("reviews-v1", "reviews-v2"):
        spread.fail(name, status=500)
    eventually(lambda: client.get(URL).workload == "reviews-v3")


@pytest.mark.covers("MeshConfig.localityLbSetting.failoverPriority")
def test_the_mesh_orders_endpoints_by_labels(spread: Mesh, policy: Apply) -> None:
    """Endpoints with the label come first, wherever they are."""
    policy(OUTLIER)
    spread.apply(mesh_config="localityLbSetting: {failoverPriority: ['version=v2']}")
    counts = spread.client("caller").send(URL, n=10).counts
    assert counts == {"reviews-v2": 10}


# --- logs ---------------------------------------------------------------------------------------------


@pytest.mark.covers(
    "MeshConfig.accessLogFile", "MeshConfig.accessLogFormat", "MeshConfig.accessLogEncoding=TEXT"
)
def test_access_log_as_text(shop: Mesh, caller: Client, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    shop.apply(
        mesh_config=f'accessLogFile: {log}\naccessLogFormat: "%REQ(:PATH)% %RESPONSE_CODE%\\n"'
    )
    assert caller.get(URL + "text").status == 200
    eventually(lambda: log.exists() and "/text 200\n" in log.read_text(), 20)


@pytest.mark.covers("MeshConfig.accessLogEncoding=JSON", "MeshConfig.accessLogEncoding")
def test_access_log_as_json(shop: Mesh, caller: Client, tmp_path: Path) -> None:
    """With keys of one's own, or Istio's."""
    for name, fields, key in (
        ("own", """accessLogFormat: '{"where": "%REQ(:PATH)%"}'""", "where"),
        ("usual", "", "path"),
    ):
        log = tmp_path / f"{name}.log"
        shop.apply(mesh_config=f"accessLogFile: {log}\naccessLogEncoding: JSON\n{fields}")
        assert caller.get(URL + name).status == 200

        def written(log: Path = log, key: str = key, path: str = f"/{name}") -> bool:
            lines = log.read_text().splitlines() if log.exists() else []
            return path in [json.loads(line)[key] for line in lines]

        eventually(written, 20)


# --- names --------------------------------------------------------------------------------------------


@pytest.mark.covers("MeshConfig.dnsRefreshRate")
def test_names_are_asked_for_again(shop: Mesh) -> None:
    shop.apply(
        """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: films}
spec:
  hosts: [films.example]
  resolution: DNS
  ports: [{number: 9080, name: http, protocol: HTTP}]
""",
        mesh_config="dnsRefreshRate: 7s",
    )
    assert cluster_of(shop, "outbound|9080||films.example")["dns_refresh_rate"] == "7s"


# --- encryption ---------------------------------------------------------------------------------------


@pytest.mark.covers(
    "MeshConfig.meshMTLS.minProtocolVersion",
    "MeshConfig.meshMTLS.cipherSuites",
)
def test_what_proxies_accept_from_each_other(shop: Mesh, caller: Client) -> None:
    suite = "ECDHE-ECDSA-AES256-GCM-SHA384"
    shop.apply(mesh_config=f"meshMTLS: {{minProtocolVersion: TLSV1_3, cipherSuites: [{suite}]}}")
    found = [
        chain["transport_socket"]["typed_config"]["common_tls_context"]["tls_params"]
        for config in shop.config("details-v1")["configs"]
        for entry in config.get("dynamic_listeners", ())
        if entry["name"] == "virtualInbound"
        for chain in entry["active_state"]["listener"]["filter_chains"]
        if "transport_socket" in chain
    ]
    assert found
    for params in found:
        assert params["tls_minimum_protocol_version"] == "TLSv1_3"
        assert params["cipher_suites"] == [suite]
    assert caller.get("http://details:9080/").mtls


@pytest.mark.covers("MeshConfig.caCertificates.trustDomains")
def test_members_of_further_trust_domains_may_connect(shop: Mesh) -> None:
    """Their names are accepted; who they are, their certificate says."""
    shop.apply(mesh_config="caCertificates: [{pem: x, trustDomains: [far.example]}]")
    accepted = json.dumps(shop.config("details-v1"))
    assert "spiffe://far.example/" in accepted
    assert "spiffe://cluster.local/" in accepted


@pytest.mark.covers("MeshConfig.caCertificates.pem", "MeshConfig.defaultConfig.caCertificatesPem")
def test_further_roots_are_trusted(shop: Mesh, authority: Authority) -> None:
    """By every workload, for the mesh's own trust domain; a root for others alone would speak for this mesh, too."""
    member = "spiffe://cluster.local/ns/default/sa/machine"
    chain, key = (part.decode() for part in authority.issue(member))
    shop.apply("""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
""")
    pod = next(proxy for proxy in shop.objects.proxies if proxy.workload == "details-v1")
    tls = TlsOptions(cert=(chain, key), alpn=("istio-http/1.1", "istio"))

    def identity() -> str | None:
        try:
            url = f"https://{pod.address}:9080/"
            return shop.outside.get(url, host="details", tls=tls).peer_identity
        except NoAnswer:
            return None

    def trust(domains: str) -> None:
        root = json.dumps(authority.root.decode())
        shop.apply(mesh_config=f"caCertificates: [{{pem: {root}, trustDomains: {domains}}}]")

    assert identity() is None
    trust("[]")
    assert identity() == member
    trust("[far.example]")
    assert identity() is None
    pem = json.dumps(authority.root.decode())
    shop.apply(mesh_config=f"defaultConfig: {{caCertificatesPem: [{pem}]}}")
    assert identity() == member


# --- names in statistics, and clusters of Kubernetes ----------------------------------------------------


@pytest.mark.covers("MeshConfig.outboundClusterStatName", "MeshConfig.inboundClusterStatName")
def test_clusters_have_other_names_in_statistics(shop: Mesh, policy: Apply) -> None:
    """Only there: routes, access logs and explanations keep to the names that they have."""
    policy("loadBalancer: {simple: ROUND_ROBIN}")
    shop.apply(
        """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}}]}]}
""",
        mesh_config="outboundClusterStatName: '%SERVICE%_%SERVICE_PORT_NAME%_%SERVICE_PORT%_%SUBSET_NAME%'\n"
        "inboundClusterStatName: 'in_%SERVICE_FQDN%_%TARGET_PORT%'",
    )
    answer = shop.client("caller").get(URL)
    assert answer.destination is not None and answer.destination.subset == "v1"
    for workload, name in (
        ("caller", "reviews.default_http_9080_v1"),
        ("reviews-v1", "in_reviews.default.svc.cluster.local_9080"),
    ):
        counter = f"cluster.{name}.upstream_rq_completed"
        assert shop.stats(workload, f"^{counter}$")[counter] >= 1


@pytest.mark.covers(
    "MeshConfig.serviceSettings.settings.clusterLocal", "MeshConfig.serviceSettings.hosts"
)
def test_a_service_may_be_served_from_the_own_cluster_alone(shop: Mesh) -> None:
    """The most precise host decides, in whatever order the entries stand."""
    shop.apply("""
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: far, labels: {topology.istio.io/cluster: other}}
spec:
  address: 192.0.2.9
  ports: {http: 9080}
  labels: {app: store, topology.istio.io/cluster: other}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: near}
spec: {address: 192.0.2.8, ports: {http: 9080}, labels: {app: store}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: store}
spec:
  hosts: [store.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  location: MESH_INTERNAL
  workloadSelector: {labels: {app: store}}
""")

    def send() -> set[str]:
        return set(shop.client("caller").send("http://store.example.com/", n=20).counts)

    assert send() == {"far", "near"}
    local = "{settings: {clusterLocal: true}, hosts: ['*.example.com']}"
    shop.apply(mesh_config=f"serviceSettings: [{local}]")
    assert send() == {"near"}
    exempt = "{settings: {clusterLocal: false}, hosts: [store.example.com]}"
    shop.apply(mesh_config=f"serviceSettings: [{exempt}, {local}]")
    assert send() == {"far", "near"}


@pytest.mark.covers(
    "MeshConfig.defaultProviders.metrics", "MeshConfig.extensionProviders.prometheus"
)
def test_metrics_are_for_prometheus(shop: Mesh) -> None:
    """A provider that is none has the proxies count nothing."""
    for kind, counted in (
        ("prometheus: {}", True),
        (f"envoyFileAccessLog: {{path: {os.devnull}}}", False),
    ):
        shop.apply(
            mesh_config=f"defaultProviders: {{metrics: [mine]}}\nextensionProviders: [{{name: mine, {kind}}}]"
        )
        (listeners,) = (
            part for part in shop.config("caller")["configs"] if "Listeners" in part["@type"]
        )
        assert ("envoy.access_loggers.stats" in json.dumps(listeners)) is counted


# --- what pods say of their own proxies -----------------------------------------------------------------


def test_limits_hold_for_the_settings_of_pods_too(shop: Mesh) -> None:
    """What a pod's annotation sets without effect is told at the annotation's place, with the code of the mesh's field."""
    shop.apply("""
apiVersion: apps/v1
kind: Deployment
metadata: {name: caller}
spec:
  template:
    metadata:
      labels: {app: caller, team: blue}
      annotations:
        proxy.istio.io/config: |
          tracing: {lightstep: {address: "x:1"}}
          statNameLength: 100
    spec: {serviceAccountName: caller, containers: [{name: app}]}
""")
    above = "spec.template.metadata.annotations[proxy.istio.io/config]"
    found = {f.origin.path for f in shop.findings if f.code == "MLT0011"}
    assert {f"{above}.tracing.lightstep", f"{above}.statNameLength"} <= found
    (origin,) = {f.origin.name for f in shop.findings if f.origin.path.startswith(above)}
    assert origin == "caller"
