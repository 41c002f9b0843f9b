"""Explanations: outcomes and the lines that caused them."""

from __future__ import annotations

import pytest

from mesh_world import World, build_world, pod, service
from simulate import destinations, simulate

RULES = """apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{uri: {prefix: /gone}}]
    redirect: {uri: /new, redirectCode: 308}
  - match: [{uri: {prefix: /none}}]
    route: [{destination: {host: nosuch}}]
  - match: [{uri: {prefix: /fault}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: reviews}}]
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews, subset: v2}, weight: 10}
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


@pytest.fixture(scope="module")
def world() -> World:
    """Reviews with two subsets."""
    text = RULES + service("reviews", ("http", 9080), ("tcp", 7000)) + pod("reviews", "10.1.0.5")
    return build_world(text + pod("client", "10.1.0.6"), source="rules.yaml")


def test_shares_of_a_weighted_route(world: World) -> None:
    """The default rule splits 90/10."""
    assert destinations(simulate(world, "client", "reviews")) == {
        "reviews/v1": 90,
        "reviews/v2": 10,
    }


def test_the_line_that_decided_is_named(world: World) -> None:
    """Route and cluster name file and line."""
    found = simulate(world, "client", "reviews", headers={"end-user": "jason"})
    assert destinations(found) == {"reviews/v2": 100}
    route, cluster = found.step("route"), found.step("cluster")
    assert route is not None
    assert (route.origins[0].source, route.origins[0].line) == ("rules.yaml", 7)
    assert cluster is not None
    assert any(origin.path == "spec.subsets[1]" for origin in cluster.origins)


@pytest.mark.parametrize(
    ("path", "status", "location"),
    [("/gone", 308, "http://reviews/new"), ("/fault", 418, "")],
)
def test_answers_without_a_backend(world: World, path: str, status: int, location: str) -> None:
    """Redirects and full aborts end in the proxy."""
    found = simulate(world, "client", "reviews", path)
    assert (found.status, found.location) == (status, location)


def test_a_missing_destination_is_told(world: World) -> None:
    """The cluster that does not exist is named."""
    found = simulate(world, "client", "reviews", "/none")
    assert found.missing == ("outbound|9080||nosuch.default.svc.cluster.local",)
    assert "503" in str(found)


def test_tcp_goes_by_address(world: World) -> None:
    """A TCP port has a listener on the service's address."""
    found = simulate(world, "client", address="10.96.0.1", port=7000)
    assert found.outcome == "outbound|7000||reviews.default.svc.cluster.local"


def test_unknown_hosts_pass_through(world: World) -> None:
    """An authority that nobody knows goes where the client wanted."""
    assert simulate(world, "client", "example.org").outcome == "PassthroughCluster"


@pytest.mark.parametrize(
    ("fields", "chain", "outcome"),
    [
        ({"host": "x"}, "9080-plain-http", "inbound|9080||"),
        (
            {"host": "x", "tls": True, "alpn": ("istio-http/1.1", "istio")},
            "9080-mtls-http",
            "inbound|9080||",
        ),
        ({"port": 7000, "tls": True, "alpn": ("istio",)}, "7000-mtls-tcp", "inbound|7000||"),
        ({"port": 1234, "host": "x"}, "catchall-plain-http", "InboundPassthroughCluster"),
        ({"port": 1234}, "catchall-plain-tcp", "InboundPassthroughCluster"),
    ],
)
def test_inbound_chains(world: World, fields: dict[str, object], chain: str, outcome: str) -> None:
    """Permissive: mTLS by its ALPN, plaintext otherwise; unknown ports pass through."""
    found = simulate(world, "reviews", inbound=True, **{"host": "", **fields})
    step = found.step("chain")
    assert step is not None
    assert (step.name, found.outcome) == (chain, outcome)
