"""DestinationRule: how requests are spread, limited and protected on their way to a host."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from behaviour_rules import OUTLIER, eventually
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh
from meltemi.testing.response import NoAnswer

pytestmark = pytest.mark.envoy

URL = "http://reviews:9080/"
Apply = Callable[[str], Mesh]
THREE = {"reviews-v1", "reviews-v2", "reviews-v3"}


# --- load balancers -----------------------------------------------------------------------------------


@pytest.mark.covers(
    "DestinationRule.host", "DestinationRule.trafficPolicy.loadBalancer.simple=ROUND_ROBIN"
)
def test_round_robin_takes_turns(policy: Apply, caller: Client) -> None:
    policy("loadBalancer: {simple: ROUND_ROBIN}")
    assert set(caller.send(URL, n=30).counts.values()) == {10}


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.loadBalancer.simple=LEAST_REQUEST",
    "DestinationRule.trafficPolicy.loadBalancer.simple=LEAST_CONN",
    "DestinationRule.trafficPolicy.loadBalancer.simple=UNSPECIFIED",
)
@pytest.mark.parametrize("name", ["RANDOM", "LEAST_REQUEST", "LEAST_CONN", "UNSPECIFIED"])
def test_other_balancers_use_every_endpoint(policy: Apply, caller: Client, name: str) -> None:
    policy(f"loadBalancer: {{simple: {name}}}")
    assert set(caller.send(URL, n=60).counts) == THREE


@pytest.mark.covers("DestinationRule.trafficPolicy.loadBalancer.simple=RANDOM")
def test_random_is_fair(policy: Apply, caller: Client) -> None:
    policy("loadBalancer: {simple: RANDOM}")
    third = 1 / 3
    caller.send(URL, n=450).assert_shares(dict.fromkeys(THREE, third))


def vary(name: str) -> Callable[[int], dict[str, str]]:
    """A header whose value differs from request to request."""
    return lambda number: {name: f"value-{number}"}


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.loadBalancer.consistentHash.httpHeaderName",
    "DestinationRule.trafficPolicy.loadBalancer.consistentHash.ringHash.minimumRingSize",
    "DestinationRule.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
)
@pytest.mark.parametrize(
    "algorithm", ["", ", ringHash: {minimumRingSize: 64}", ", maglev: {tableSize: 65537}"]
)
def test_consistent_hash_by_header(policy: Apply, caller: Client, algorithm: str) -> None:
    policy(f"loadBalancer: {{consistentHash: {{httpHeaderName: x-user{algorithm}}}}}")
    assert len(caller.send(URL, n=20, headers={"x-user": "jason"}).counts) == 1
    assert set(caller.send(URL, n=60, vary=vary("x-user")).counts) == THREE


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.loadBalancer.consistentHash.httpQueryParameterName"
)
def test_consistent_hash_by_query_parameter(policy: Apply, caller: Client) -> None:
    policy("loadBalancer: {consistentHash: {httpQueryParameterName: user}}")
    assert len(caller.send(URL + "?user=jason", n=20).counts) == 1
    found = {caller.get(f"{URL}?user={number}").workload for number in range(40)}
    assert found == THREE


@pytest.mark.covers("DestinationRule.trafficPolicy.loadBalancer.consistentHash.useSourceIp")
def test_consistent_hash_by_source_address(policy: Apply, caller: Client) -> None:
    policy("loadBalancer: {consistentHash: {useSourceIp: true}}")
    assert len(caller.send(URL, n=20, new_connections=True).counts) == 1


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.loadBalancer.consistentHash.httpCookie.name",
    "DestinationRule.trafficPolicy.loadBalancer.consistentHash.httpCookie.path",
    "DestinationRule.trafficPolicy.loadBalancer.consistentHash.httpCookie.ttl",
)
def test_consistent_hash_by_cookie_that_the_proxy_makes(policy: Apply, caller: Client) -> None:
    policy("loadBalancer: {consistentHash: {httpCookie: {name: shop, path: /, ttl: 60s}}}")
    first = caller.get(URL)
    cookie = first.headers["set-cookie"].partition(";")[0]
    assert cookie.startswith("shop=")
    assert "Max-Age=60" in first.headers["set-cookie"]
    found = caller.send(URL, n=20, headers={"cookie": cookie})
    assert found.counts == {first.workload: 20}


# --- outlier detection --------------------------------------------------------------------------------


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.outlierDetection.consecutive5xxErrors",
    "DestinationRule.trafficPolicy.outlierDetection.interval",
)
def test_consecutive_5xx_errors_eject(
    policy: Apply, caller: Client, shop: Mesh, http: Apply
) -> None:
    http("- retries: {attempts: 0}\n  route: [{destination: {host: reviews}}]")
    policy(f"loadBalancer: {{simple: ROUND_ROBIN}}\n{OUTLIER}")
    shop.fail("reviews-v2", status=500)
    caller.send(URL, n=6)
    found = caller.send(URL, n=30)
    assert found.statuses == {200: 30}
    assert set(found.counts) == {"reviews-v1", "reviews-v3"}


@pytest.mark.covers("DestinationRule.trafficPolicy.outlierDetection.consecutiveGatewayErrors")
def test_consecutive_gateway_errors_eject_for_those_alone(
    policy: Apply, caller: Client, shop: Mesh, http: Apply
) -> None:
    http("- retries: {attempts: 0}\n  route: [{destination: {host: reviews}}]")
    policy("""
loadBalancer: {simple: ROUND_ROBIN}
outlierDetection: {consecutiveGatewayErrors: 1, consecutive5xxErrors: 0, interval: 0.05s, baseEjectionTime: 60s, maxEjectionPercent: 100}
""")
    with shop.fail("reviews-v2", status=500):
        assert caller.send(URL, n=30).count(500) == 10
    shop.fail("reviews-v2", status=503)
    caller.send(URL, n=6)
    assert caller.send(URL, n=30).statuses == {200: 30}


@pytest.mark.covers("DestinationRule.trafficPolicy.outlierDetection.baseEjectionTime")
def test_base_ejection_time_ends(policy: Apply, caller: Client, shop: Mesh, http: Apply) -> None:
    http("- retries: {attempts: 0}\n  route: [{destination: {host: reviews}}]")
    policy("""
loadBalancer: {simple: ROUND_ROBIN}
outlierDetection: {consecutive5xxErrors: 1, interval: 0.05s, baseEjectionTime: 0.2s, maxEjectionPercent: 100}
""")
    with shop.fail("reviews-v2", status=500):
        caller.send(URL, n=6)
    eventually(lambda: "reviews-v2" in caller.send(URL, n=9).counts)


@pytest.mark.covers("DestinationRule.trafficPolicy.outlierDetection.maxEjectionPercent")
def test_max_ejection_percent_keeps_some(
    policy: Apply, caller: Client, shop: Mesh, http: Apply
) -> None:
    http("- retries: {attempts: 0}\n  route: [{destination: {host: reviews}}]")
    policy("""
loadBalancer: {simple: ROUND_ROBIN}
outlierDetection: {consecutive5xxErrors: 1, interval: 0.05s, baseEjectionTime: 60s, maxEjectionPercent: 34}
""")
    for name in THREE:
        shop.fail(name, status=500)
    caller.send(URL, n=12)
    assert len(caller.send(URL, n=30).counts) == 2


@pytest.mark.covers("DestinationRule.trafficPolicy.outlierDetection.consecutiveErrors")
def test_the_old_consecutive_errors_eject(
    policy: Apply, caller: Client, shop: Mesh, http: Apply
) -> None:
    http("- retries: {attempts: 0}\n  route: [{destination: {host: reviews}}]")
    policy(
        "loadBalancer: {simple: ROUND_ROBIN}\n"
        + OUTLIER.replace("consecutive5xxErrors", "consecutiveErrors")
    )
    shop.fail("reviews-v2", status=500)
    caller.send(URL, n=6)
    assert set(caller.send(URL, n=30).counts) == {"reviews-v1", "reviews-v3"}


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.outlierDetection.splitExternalLocalOriginErrors",
    "DestinationRule.trafficPolicy.outlierDetection.consecutiveLocalOriginFailures",
)
@pytest.mark.parametrize(("failures", "ejections"), [(2, 1), (1000, 0)])
def test_connections_that_fail_are_counted_apart(
    shop: Mesh, caller: Client, http: Apply, failures: int, ejections: int
) -> None:
    """Nobody listens: errors of the proxy's own, which consecutive5xxErrors does not count."""
    shop.apply(f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: gone}}
spec:
  hosts: [gone.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9080, name: http, protocol: HTTP}}]
  endpoints: [{{address: "unix:///nobody/listens.sock"}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: gone}}
spec:
  host: gone.example.com
  trafficPolicy:
    outlierDetection:
      splitExternalLocalOriginErrors: true
      consecutiveLocalOriginFailures: {failures}
      consecutive5xxErrors: 1
      interval: 0.05s
      baseEjectionTime: 60s
      maxEjectionPercent: 100
""")
    name = "cluster.outbound|9080||gone.example.com.outlier_detection.ejections_active"

    def ejected() -> int:
        assert caller.get("http://gone.example.com:9080/").status == 503
        return shop.stats("caller", "ejections_active").get(name, 0)

    if ejections:
        eventually(lambda: ejected() == ejections)
    else:
        assert [ejected() for _ in range(5)] == [0] * 5


@pytest.mark.covers("DestinationRule.trafficPolicy.outlierDetection.minHealthPercent")
@pytest.mark.parametrize(("least", "panics"), [(0, False), (60, True)])
def test_min_health_percent_gives_up_on_ejection(
    policy: Apply, caller: Client, shop: Mesh, http: Apply, least: int, panics: bool
) -> None:
    """With two of three ejected, fewer than 60 percent are left: then all get requests again."""
    http("- retries: {attempts: 0}\n  route: [{destination: {host: reviews}}]")
    more = f", minHealthPercent: {least}}}"
    policy("loadBalancer: {simple: ROUND_ROBIN}\n" + OUTLIER.replace("}", more))
    stat = "outlier_detection.ejections_enforced_total"
    name = f"cluster.outbound|9080||reviews.default.svc.cluster.local.{stat}"
    before = shop.stats("caller", stat).get(name, 0)
    shop.fail("reviews-v1", status=500)
    shop.fail("reviews-v2", status=500)

    def two_are_out() -> bool:
        caller.send(URL, n=6)
        return shop.stats("caller", stat).get(name, 0) - before == 2

    eventually(two_are_out)
    if panics:
        assert all(caller.send(URL, n=12).count(500) for _ in range(5))
    else:
        eventually(lambda: caller.send(URL, n=12).count(500) == 0)


# --- TLS ----------------------------------------------------------------------------------------------


@pytest.mark.covers("DestinationRule.trafficPolicy.tls.mode=DISABLE")
def test_tls_disable_sends_plaintext(policy: Apply, caller: Client) -> None:
    policy("tls: {mode: DISABLE}")
    assert not caller.get(URL).mtls


@pytest.mark.covers("DestinationRule.trafficPolicy.tls.mode=ISTIO_MUTUAL")
def test_tls_istio_mutual(policy: Apply, caller: Client) -> None:
    policy("tls: {mode: ISTIO_MUTUAL}")
    assert caller.get(URL).mtls


EXTERNAL = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: bank}
spec:
  hosts: [bank.example.com]
  location: MESH_EXTERNAL
  resolution: DNS
  ports:
  - {number: 80, name: http, protocol: HTTP, targetPort: 443}
"""


def originate(tls: str) -> str:
    """TLS origination to the bank."""
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: bank}}
spec:
  host: bank.example.com
  trafficPolicy:
    tls: {tls}
"""


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.tls.mode=SIMPLE",
    "DestinationRule.trafficPolicy.tls.sni",
    "DestinationRule.trafficPolicy.tls.insecureSkipVerify",
    "ServiceEntry.resolution=DNS",
    "ServiceEntry.ports.targetPort",
)
def test_tls_simple_originates_tls_with_sni(shop: Mesh, caller: Client) -> None:
    shop.apply(
        EXTERNAL, originate("{mode: SIMPLE, sni: www.bank.example.com, insecureSkipVerify: true}")
    )
    answer = caller.get("http://bank.example.com/account")
    assert answer.status == 200
    assert answer.json()["tls"]["sni"] == "www.bank.example.com"


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.tls.caCertificates",
    "DestinationRule.trafficPolicy.tls.subjectAltNames",
)
def test_tls_simple_verifies_names(shop: Mesh, caller: Client, tmp_path: object) -> None:
    _, _, root = shop.certificate("unused.example.com")
    path = f"{tmp_path}/root.pem"
    with open(path, "w") as file:
        file.write(root)
    url = "http://bank.example.com/"
    good = f"{{mode: SIMPLE, sni: bank.example.com, caCertificates: {path}, subjectAltNames: [bank.example.com]}}"
    shop.apply(EXTERNAL, originate(good))
    assert caller.get(url).status == 200
    shop.apply(originate(good.replace("[bank.example.com]", "[thief.example.com]")))
    assert caller.get(url).status == 503


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.tls.mode=MUTUAL",
    "DestinationRule.trafficPolicy.tls.clientCertificate",
    "DestinationRule.trafficPolicy.tls.privateKey",
)
def test_tls_mutual_shows_the_clients_certificate(
    shop: Mesh, caller: Client, tmp_path: object
) -> None:
    chain, key, root = shop.certificate("customer.example.com")
    paths = {}
    for name, text in {"chain": chain, "key": key, "root": root}.items():
        paths[name] = f"{tmp_path}/{name}.pem"
        with open(paths[name], "w") as file:
            file.write(text)
    shop.apply(
        EXTERNAL,
        originate(
            f"{{mode: MUTUAL, sni: bank.example.com, clientCertificate: {paths['chain']}, "
            f"privateKey: {paths['key']}, caCertificates: {paths['root']}}}"
        ),
    )
    answer = caller.get("http://bank.example.com/")
    assert "customer.example.com" in answer.json()["tls"]["client"]


# --- where a policy holds -----------------------------------------------------------------------------


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.portLevelSettings.port.number",
    "DestinationRule.trafficPolicy.portLevelSettings.tls.mode",
)
def test_port_level_settings_hold_for_one_port(policy: Apply, caller: Client) -> None:
    policy("portLevelSettings:\n- {port: {number: 9081}, tls: {mode: DISABLE}}")
    assert caller.get("http://reviews:9080/").mtls
    assert not caller.get("http://reviews:9081/").mtls


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.portLevelSettings.loadBalancer.consistentHash.httpHeaderName",
    "DestinationRule.trafficPolicy.portLevelSettings.outlierDetection.consecutive5xxErrors",
)
def test_port_level_settings_have_all_parts(
    policy: Apply, caller: Client, shop: Mesh, http: Apply
) -> None:
    """One port hashes and ejects, the other does as the rule says."""
    http("- retries: {attempts: 0}\n  route: [{destination: {host: reviews}}]")
    policy(f"""
loadBalancer: {{simple: ROUND_ROBIN}}
portLevelSettings:
- port: {{number: 9081}}
  loadBalancer: {{consistentHash: {{httpHeaderName: x-user}}}}
  {OUTLIER}
""")
    second = "http://reviews:9081/"
    headers = {"x-user": "jason"}
    assert set(caller.send(URL, n=9, headers=headers).counts) == THREE
    (chosen,) = caller.send(second, n=9, headers=headers).counts
    shop.fail(chosen, status=500)
    eventually(lambda: caller.get(second, headers=headers).status == 200)
    assert caller.send(URL, n=9).count(500) == 3


@pytest.mark.covers("DestinationRule.subsets.trafficPolicy.tls.mode")
def test_subsets_have_policies_of_their_own(shop: Mesh, caller: Client, http: Apply) -> None:
    http(
        "- match: [{uri: {prefix: /plain}}]\n  route: [{destination: {host: reviews, subset: v1}}]\n"
        "- route: [{destination: {host: reviews, subset: v2}}]"
    )
    shop.apply("""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}, trafficPolicy: {tls: {mode: DISABLE}}}
  - {name: v2, labels: {version: v2}}
""")
    assert not caller.get("http://reviews:9080/plain").mtls
    assert caller.get("http://reviews:9080/").mtls


@pytest.mark.covers("DestinationRule.exportTo")
def test_export_to_hides_policies_from_other_namespaces(shop: Mesh, caller: Client) -> None:
    shop.apply("""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  exportTo: ["."]
  trafficPolicy: {tls: {mode: DISABLE}}
""")
    assert not caller.get("http://reviews:9080/").mtls
    assert shop.client("other").get("http://reviews.default:9080/").mtls


@pytest.mark.covers("DestinationRule.workloadSelector.matchLabels")
def test_workload_selector_restricts_a_policy_to_callers(shop: Mesh, caller: Client) -> None:
    shop.apply("""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  workloadSelector: {matchLabels: {app: details}}
  trafficPolicy: {tls: {mode: DISABLE}}
""")
    assert caller.get("http://reviews:9080/").mtls
    assert not shop.client("details-v1").get("http://reviews:9080/").mtls


@pytest.mark.covers("DestinationRule.trafficPolicy.proxyProtocol.version=V1")
def test_proxy_protocol_is_sent(shop: Mesh, caller: Client) -> None:
    shop.apply("""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: bank}
spec:
  hosts: [bank.example.com]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 9100, name: tcp, protocol: TCP}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: bank}
spec:
  host: bank.example.com
  trafficPolicy: {proxyProtocol: {version: V1}}
""")
    with caller.tcp("bank.example.com:9100") as connection:
        connection.write(b"hello\n")
        assert b"PROXY TCP4" in connection.read_line()


def test_refused_connections_are_reported(shop: Mesh, caller: Client, http: Apply) -> None:
    http(
        "- retries: {attempts: 0}\n  route: [{destination: {host: reviews, port: {number: 9090}}}]"
    )
    try:
        status = caller.get(URL).status
    except NoAnswer:
        status = 503
    assert status == 503
