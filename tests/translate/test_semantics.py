"""Istio's rules of precedence, visibility and conflict, by simulation: who gets a request, and why."""

from __future__ import annotations

import pytest

from meltemi.translate.delegates import resolve_delegates
from mesh_world import World, build_world, pod, service
from simulate import destinations, simulate

BASE = (
    service("web", ("http", 80), namespace="shop")
    + pod("web", "10.0.0.1", namespace="shop")
    + pod("client", "10.0.0.2", namespace="shop")
    + pod("guest", "10.0.0.3", namespace="other")
)


def _world(rules: str, mesh: str = "") -> World:
    return build_world(BASE + rules, mesh=mesh)


def _rule(name: str, namespace: str, host: str, balancer: str, extra: str = "") -> str:
    return f"""
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  host: {host}
  {extra}
  trafficPolicy: {{loadBalancer: {{simple: {balancer}}}}}
"""


def _balancer(
    world: World, proxy: str, name: str = "outbound|80||web.shop.svc.cluster.local"
) -> str:
    clusters = {cluster.name: cluster for cluster in world.ir(proxy).clusters}
    return clusters[name].balancer.policy.value


HOST = "web.shop.svc.cluster.local"


def test_a_clients_own_rule_wins_over_the_services_and_the_roots() -> None:
    """Client namespace, then service namespace, then root namespace."""
    root = _rule("r", "istio-system", HOST, "RANDOM")
    owner = _rule("o", "shop", "web", "ROUND_ROBIN")
    own = _rule("c", "other", HOST, "LEAST_REQUEST")
    assert _balancer(_world(root), "guest.other") == "RANDOM"
    assert _balancer(_world(root + owner), "guest.other") == "ROUND_ROBIN"
    assert _balancer(_world(root + owner + own), "guest.other") == "LEAST_REQUEST"


def test_the_most_specific_host_wins_and_equal_hosts_merge() -> None:
    """An exact host beats a wildcard; two rules for one host add up their subsets, the older policy holds."""
    wild = _rule("w", "shop", "'*.shop.svc.cluster.local'", "RANDOM")
    one = _rule("a", "shop", "web", "ROUND_ROBIN", "subsets: [{name: v1, labels: {version: v1}}]")
    two = _rule("b", "shop", "web", "RANDOM", "subsets: [{name: v2, labels: {version: v2}}]")
    world = _world(wild + one + two)
    assert _balancer(world, "client.shop") == "ROUND_ROBIN"
    names = {cluster.name for cluster in world.ir("client.shop").clusters}
    assert {f"outbound|80|v1|{HOST}", f"outbound|80|v2|{HOST}"} <= names


def test_rules_that_are_not_exported_do_not_apply_elsewhere() -> None:
    """exportTo '.' keeps a rule in its namespace."""
    world = _world(_rule("o", "shop", "web", "RANDOM", "exportTo: ['.']"))
    assert _balancer(world, "client.shop") == "RANDOM"
    assert _balancer(world, "guest.other") == "LEAST_REQUEST"


def test_a_rule_for_some_workloads() -> None:
    """workloadSelector chooses clients of the rule's namespace."""
    extra = "workloadSelector: {matchLabels: {app: client}}"
    world = _world(_rule("s", "shop", "web", "RANDOM", extra))
    assert _balancer(world, "client.shop") == "RANDOM"
    assert _balancer(world, "web.shop") == "LEAST_REQUEST"


def _virtual_service(name: str, namespace: str, hosts: str, http: str, extra: str = "") -> str:
    return f"""
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  hosts: {hosts}
  {extra}
  http: {http}
"""


def test_the_oldest_virtual_service_of_a_host_wins() -> None:
    """In the mesh rules of one host are not merged."""
    first = _virtual_service("z", "shop", "[web]", "[{directResponse: {status: 201}}]")
    second = _virtual_service("a", "shop", "[web]", "[{directResponse: {status: 202}}]")
    assert simulate(_world(first + second), "client.shop", "web", port=80).status == 201


def test_an_exact_host_wins_over_an_older_wildcard() -> None:
    """The wildcard still holds for the others."""
    wild = _virtual_service(
        "w", "shop", "['*.svc.cluster.local']", "[{directResponse: {status: 201}}]"
    )
    exact = _virtual_service("e", "shop", "[web]", "[{directResponse: {status: 202}}]")
    assert simulate(_world(wild + exact), "client.shop", "web", port=80).status == 202
    assert simulate(_world(wild), "client.shop", "web", port=80).status == 201


def test_short_names_work_in_their_own_namespace_only() -> None:
    """'web' is a name in shop; elsewhere it passes through."""
    world = _world("")
    assert destinations(simulate(world, "client.shop", "web", port=80)) == {"web": 100}
    assert destinations(simulate(world, "guest.other", "web.shop", port=80)) == {"web": 100}
    assert simulate(world, "guest.other", "web", port=80).outcome == "PassthroughCluster"


def test_registry_only_refuses_what_is_unknown() -> None:
    """HTTP gets 502, TCP goes to the black hole."""
    world = _world("", mesh="outboundTrafficPolicy: {mode: REGISTRY_ONLY}")
    assert simulate(world, "client.shop", "example.org", port=80).status == 502
    assert (
        simulate(world, "client.shop", port=4444, address="192.0.2.1").outcome == "BlackHoleCluster"
    )


def test_rules_by_source_namespace_and_gateway() -> None:
    """A match for another namespace or for gateways is not in a sidecar."""
    http = """
  - match: [{sourceNamespace: other}]
    directResponse: {status: 201}
  - match: [{gateways: [edge]}]
    directResponse: {status: 202}
  - directResponse: {status: 203}
"""
    world = _world(_virtual_service("v", "shop", "[web]", http, "gateways: [mesh, edge]"))
    assert simulate(world, "guest.other", "web.shop", port=80).status == 201
    assert simulate(world, "client.shop", "web", port=80).status == 203


def test_a_host_that_only_a_rule_knows() -> None:
    """Names without a service are routed on port 80."""
    http = "[{route: [{destination: {host: web.shop.svc.cluster.local}}]}]"
    world = _world(_virtual_service("v", "shop", "[virtual.example]", http))
    assert destinations(simulate(world, "client.shop", "virtual.example", port=80)) == {"web": 100}


def test_delegates_take_over_a_part() -> None:
    """The root's condition and the delegate's must both hold; what contradicts is dropped."""
    root = _virtual_service(
        "root",
        "shop",
        "[web]",
        "[{match: [{uri: {prefix: /a}}], delegate: {name: leaf}}, {directResponse: {status: 404}}]",
    )
    leaf = """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: leaf, namespace: shop}
spec:
  http:
  - match: [{uri: {prefix: /a/b}}]
    directResponse: {status: 201}
  - match: [{uri: {prefix: /other}}]
    directResponse: {status: 500}
  - directResponse: {status: 202}
"""
    world = _world(root + leaf)
    got = {
        path: simulate(world, "client.shop", "web", path, port=80).status
        for path in ("/a/b/c", "/a/x", "/other")
    }
    assert got == {"/a/b/c": 201, "/a/x": 202, "/other": 404}


def test_a_delegate_speaks_for_its_own_namespace_and_lines() -> None:
    """Its short names are services of its namespace; what the root alone sets holds; each route tells of both objects."""
    root = _virtual_service(
        "root",
        "shop",
        "[web]",
        "[{match: [{uri: {prefix: /a}}], timeout: 3s, mirrors: [{destination: {host: web}}],"
        " delegate: {name: leaf, namespace: other}}]",
    )
    leaf = """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: leaf, namespace: other}
spec:
  http:
  - match: [{uri: {prefix: /a/b}}]
    route: [{destination: {host: till}}]
  - route: [{destination: {host: till}}]
"""
    context = _world(root + leaf).context
    (merged,) = (c for c in resolve_delegates(context) if c.meta.name == "root")
    first, second = merged.spec.http
    assert first.route[0].destination.host == "till.other.svc.cluster.local"
    assert (first.timeout, first.mirrors[0].destination.host) == (3.0, "web")
    places = [
        [(origin.name, origin.path) for origin in merged.origins(f"spec.http{path}")]
        for path in ("[0]", "[0].match[0]", "[1].match[0]")
    ]
    assert places == [
        [("leaf", "spec.http[0]"), ("root", "spec.http[0].delegate")],
        [("leaf", "spec.http[0].match[0]"), ("root", "spec.http[0].match[0]")],
        [("root", "spec.http[0].match[0]")],
    ]
    assert second.timeout == 3.0


def test_tcp_shares() -> None:
    """TCP routes have weights, too."""
    rules = (
        service("tcp", ("tcp-a", 9000), namespace="shop", ip="10.96.0.7")
        + """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: t, namespace: shop}
spec:
  hosts: [tcp]
  tcp:
  - route:
    - {destination: {host: tcp, subset: v1}, weight: 80}
    - {destination: {host: tcp, subset: v2}, weight: 20}
"""
    )
    found = simulate(_world(rules), "client.shop", address="10.96.0.7", port=9000)
    assert destinations(found) == {"tcp/v1": 80, "tcp/v2": 20}


ENTRY = """
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: shop}}
spec:
  hosts: [{host}]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{{number: 443, name: tls, protocol: TLS}}]
"""


def test_external_tls_services_share_a_port_by_name() -> None:
    """SNI tells them apart; other names pass through."""
    world = _world(
        ENTRY.format(name="a", host="a.example") + ENTRY.format(name="b", host="b.example")
    )
    for host in ("a.example", "b.example"):
        found = simulate(world, "client.shop", sni=host, port=443, address="192.0.2.9")
        assert found.outcome == f"outbound|443||{host}"
    other = simulate(world, "client.shop", sni="c.example", port=443, address="192.0.2.9")
    assert other.outcome == "PassthroughCluster"


def test_two_services_that_claim_one_address_are_reported() -> None:
    """The older keeps it, the other is named in a finding, and both proxies keep working."""
    rules = service("one", ("tcp", 9000), namespace="shop", ip="10.96.0.8")
    rules += service("two", ("tcp", 9000), namespace="shop", ip="10.96.0.8")
    world = _world(rules)
    found = simulate(world, "client.shop", address="10.96.0.8", port=9000)
    assert destinations(found) == {"one": 100}
    assert any("two.shop" in finding.text for finding in world.ir("client.shop").findings)


def test_a_service_without_proxy_of_its_own_keeps_plaintext() -> None:
    """A namespace that disables mTLS is not spoken to with it."""
    rules = """
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: no-mtls, namespace: shop}
spec: {mtls: {mode: DISABLE}}
"""
    needs = _world(rules).ir("guest.other").needs()
    assert needs[f"outbound|80||{HOST}"].plaintext == (((), 0),)
    assert _world("").ir("guest.other").needs()[f"outbound|80||{HOST}"].plaintext == ()


GATEWAY = (
    pod("gw", "10.0.0.9", namespace="istio-system", labels={"istio": "ingressgateway"})
    + """
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 8080, name: http, protocol: HTTP}, hosts: ["shop/*.example"]}]
"""
)


@pytest.mark.parametrize(
    ("namespace", "host", "asked", "status"),
    [
        ("shop", "a.example", "a.example", 201),
        ("other", "a.example", "a.example", 404),
        ("shop", "'*'", "b.example", 201),
        ("shop", "a.test", "a.test", 404),
    ],
)
def test_gateway_hosts(namespace: str, host: str, asked: str, status: int) -> None:
    """A server takes VirtualServices of the namespaces and hosts that it names."""
    rule = _virtual_service(
        "v", namespace, f"[{host}]", "[{directResponse: {status: 201}}]", "gateways: [shop/edge]"
    )
    world = _world(GATEWAY + rule)
    assert simulate(world, "gw.istio-system", asked, port=8080).status == status


def test_a_gateway_without_rules_answers_404() -> None:
    """The port is open and says that there is nothing."""
    assert simulate(_world(GATEWAY), "gw.istio-system", "a.example", port=8080).status == 404


def test_a_sidecars_scope() -> None:
    """Hosts that a Sidecar leaves out are unknown to its proxies, and to nobody else's."""
    rules = """
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: other}
spec: {egress: [{hosts: ["./*"]}]}
"""
    world = _world(rules)
    assert simulate(world, "guest.other", "web.shop", port=80).outcome == "PassthroughCluster"
    assert destinations(simulate(world, "client.shop", "web", port=80)) == {"web": 100}


@pytest.mark.covers("MeshConfig.proxyListenPort", "MeshConfig.proxyInboundListenPort")
def test_the_ports_that_captured_traffic_comes_to() -> None:
    world = _world("", "proxyListenPort: 15101\nproxyInboundListenPort: 15106")
    ports = {entry.name: entry.port for entry in world.ir("client.shop").listeners}
    assert (ports["virtualOutbound"], ports["virtualInbound"]) == (15101, 15106)


@pytest.mark.covers("MeshConfig.disableEnvoyListenerLog")
def test_logs_of_connections_that_no_chain_takes_may_be_off() -> None:
    def logged(mesh: str) -> bool:
        listeners = _world("", "accessLogFile: /dev/stdout\n" + mesh).ir("client.shop").listeners
        return any(entry.access_logs for entry in listeners)

    assert logged("")
    assert not logged("disableEnvoyListenerLog: true")
