"""ClusterLoadAssignments: the hand-made bytes parse to what is meant, and priorities follow Istio's rules."""

from __future__ import annotations

from dataclasses import replace

from envoy.config.endpoint.v3 import endpoint_pb2

from meltemi.envoy import encode_endpoints
from meltemi.ir.endpoint import EndpointNeed, LocalityPolicy
from meltemi.model.service import Endpoint, Health

NEED = EndpointNeed("outbound|80||a.default", "a.default", "default", "http", 80)


def _endpoint(address: str, locality: str = "", **fields: object) -> Endpoint:
    known = {"labels": {"app": "a", "version": "v1"}, "workload": "a-v1", "namespace": "default"}
    return Endpoint(address, 8080, "http", locality=locality, **{**known, **fields})  # type: ignore[arg-type]


def _decode(need: EndpointNeed, *endpoints: Endpoint) -> endpoint_pb2.ClusterLoadAssignment:
    return endpoint_pb2.ClusterLoadAssignment.FromString(encode_endpoints(need, endpoints).body)


def _places(need: EndpointNeed, *endpoints: Endpoint) -> list[tuple[int, str, int]]:
    """(priority, first address, locality weight) of each group."""
    return [
        (
            group.priority,
            group.lb_endpoints[0].endpoint.address.socket_address.address,
            group.load_balancing_weight.value,
        )
        for group in _decode(need, *endpoints).endpoints
    ]


def test_every_field_is_where_it_belongs() -> None:
    """Address, health, weight, locality and metadata survive a parse by the real types."""
    made = _decode(NEED, _endpoint("10.0.0.1", "r/z/s", weight=3, tls_mode="istio", cluster="c1"))
    assert made.cluster_name == NEED.cluster
    (group,) = made.endpoints
    assert (group.locality.region, group.locality.zone, group.locality.sub_zone) == ("r", "z", "s")
    assert group.load_balancing_weight.value == 3
    (member,) = group.lb_endpoints
    address = member.endpoint.address.socket_address
    assert (address.address, address.port_value) == ("10.0.0.1", 8080)
    assert member.load_balancing_weight.value == 3
    fields = member.metadata.filter_metadata
    assert dict(fields["envoy.transport_socket_match"]) == {"tlsMode": "istio"}
    assert fields["mesh"]["workload"] == "a-v1"
    assert fields["mesh"]["canonical"] == "a"
    assert fields["mesh"]["revision"] == "v1"
    assert fields["istio"]["workload"] == "a-v1;default;a;v1;c1"


def test_bytes_equal_those_of_the_real_types() -> None:
    """A parse and a new serialisation give the same bytes, fields in order."""
    body = encode_endpoints(NEED, [_endpoint("10.0.0.1", "r/z"), _endpoint("10.0.0.2")]).body
    again = endpoint_pb2.ClusterLoadAssignment.FromString(body)
    assert again.SerializeToString(deterministic=True) == body


def test_order_of_the_input_does_not_matter() -> None:
    """Two replicas that saw events in different order agree on the version."""
    one, two = _endpoint("10.0.0.1", "r"), _endpoint("10.0.0.2", "q")
    assert encode_endpoints(NEED, [one, two]) == encode_endpoints(NEED, [two, one])


def test_only_ready_endpoints_of_the_port_and_subset() -> None:
    """Others are left out."""
    need = NEED
    made = _decode(
        need,
        _endpoint("10.0.0.1"),
        _endpoint("10.0.0.2", health=Health.UNHEALTHY),
        _endpoint("10.0.0.3", health=Health.DRAINING),
        Endpoint("10.0.0.4", 9, "other"),
    )
    addresses = [
        m.endpoint.address.socket_address.address for g in made.endpoints for m in g.lb_endpoints
    ]
    assert addresses == ["10.0.0.1"]


def test_subset_labels() -> None:
    """A subset's endpoints carry its labels."""
    need = EndpointNeed("c", "a.default", "default", "http", 80, subset=(("version", "v2"),))
    assert _places(
        need, _endpoint("10.0.0.1"), _endpoint("10.0.0.2", labels={"version": "v2"})
    ) == [(0, "10.0.0.2", 1)]


def test_failover_prefers_what_is_near() -> None:
    """Same zone, then region, then the failover region, then the rest; priorities have no gaps."""
    policy = LocalityPolicy(enabled=True, failover=(("eu", "us"),))
    need = EndpointNeed("c", "a", "d", "http", 80, locality="eu/z1/s1", policy=policy)
    assert _places(
        need,
        _endpoint("10.0.0.1", "eu/z1/s1"),
        _endpoint("10.0.0.2", "eu/z2/s1"),
        _endpoint("10.0.0.3", "us/z1/s1"),
        _endpoint("10.0.0.4", "as/z1/s1"),
    ) == [(0, "10.0.0.1", 1), (1, "10.0.0.2", 1), (2, "10.0.0.3", 1), (3, "10.0.0.4", 1)]


def test_priority_labels() -> None:
    """The more of the labels agree from the left, the better."""
    policy = LocalityPolicy(enabled=True, priority_labels=(("rack", "1"), ("row", "a")))
    need = EndpointNeed("c", "a", "d", "http", 80, policy=policy)
    assert [
        (priority, address)
        for priority, address, _ in _places(
            need,
            _endpoint("10.0.0.1", labels={"rack": "2", "row": "a"}),
            _endpoint("10.0.0.2", labels={"rack": "1", "row": "b"}),
            _endpoint("10.0.0.3", labels={"rack": "1", "row": "a"}),
        )
    ] == [(0, "10.0.0.3"), (1, "10.0.0.2"), (2, "10.0.0.1")]


def test_distribution_by_locality() -> None:
    """Shares are kept; localities without a share get nothing."""
    policy = LocalityPolicy(enabled=True, distribute=(("eu/z1/*", 80), ("eu/z2/*", 20)))
    need = EndpointNeed("c", "a", "d", "http", 80, locality="eu/z1/s", policy=policy)
    groups = _places(
        need,
        _endpoint("10.0.0.1", "eu/z1/s"),
        _endpoint("10.0.0.2", "eu/z2/s"),
        _endpoint("10.0.0.3", "us/z/s"),
    )
    assert [(address, weight) for _, address, weight in groups] == [
        ("10.0.0.1", 8000),
        ("10.0.0.2", 2000),
    ]


def test_workloads_that_refuse_mtls_get_plaintext() -> None:
    """A DISABLE policy hides the endpoint's tlsMode, for its port only."""
    need = EndpointNeed("c", "a", "d", "http", 80, plaintext=(((("app", "a"),), 8080),))
    made = _decode(
        need,
        _endpoint("10.0.0.1", tls_mode="istio"),
        _endpoint("10.0.0.2", tls_mode="istio", labels={}),
    )
    modes = {
        m.endpoint.address.socket_address.address: "envoy.transport_socket_match"
        in m.metadata.filter_metadata
        for g in made.endpoints
        for m in g.lb_endpoints
    }
    assert modes == {"10.0.0.1": False, "10.0.0.2": True}


def test_no_endpoints_is_an_answer() -> None:
    """An empty assignment says that the cluster has none."""
    made = _decode(NEED)
    assert (made.cluster_name, len(made.endpoints)) == (NEED.cluster, 0)


def test_without_an_address_only_a_gateway_leads_there() -> None:
    """A machine of another network is what its gateway says; where none is known it is left out."""
    far = _endpoint("", network="n2", tls_mode="istio")
    gateways = (("n2", (("10.8.0.1", 15443),)),)
    need = replace(NEED, network="n1", gateways=gateways)
    assert _places(need, far) == [(0, "10.8.0.1", 1)]
    for other in (NEED, replace(need, network="n2"), replace(need, gateways=())):
        assert not _decode(other, far).endpoints
    assert not _decode(need, _endpoint("", network="n2")).endpoints, (
        "in plaintext it is not reached"
    )


def test_endpoints_of_the_own_node_come_first() -> None:
    """trafficDistribution PreferSameNode: the node, then places as usual."""
    need = replace(NEED, locality="r/z/s", policy=LocalityPolicy(enabled=True, node="n1"))
    assert _places(
        need,
        _endpoint("10.0.0.1", "r/z/s", node_name="n2"),
        _endpoint("10.0.0.2", "q/z/s", node_name="n1"),
        _endpoint("10.0.0.3", "q/z/s", node_name="n2"),
    ) == [(0, "10.0.0.2", 1), (1, "10.0.0.1", 1), (2, "10.0.0.3", 1)]


def test_regions_are_ranked_below_labels() -> None:
    """Under zone-aware routing: the label first, the own region among equals, then the one it fails over to; no subzones."""
    policy = LocalityPolicy(
        enabled=True, by_region=True, failover=(("eu", "us"),), priority_labels=(("rack", "1"),)
    )
    need = EndpointNeed("c", "a", "d", "http", 80, locality="eu", policy=policy)
    one, two = {"rack": "1"}, {"rack": "2"}
    assert _places(
        need,
        _endpoint("10.0.0.1", "eu/z1/s1", labels=two),
        _endpoint("10.0.0.2", "eu/z1/s2", labels=two),
        _endpoint("10.0.0.3", "as/z1", labels=one),
        _endpoint("10.0.0.4", "us/z1", labels=one),
        _endpoint("10.0.0.5", "eu/z1/s2", labels=one),
    ) == [(0, "10.0.0.5", 1), (1, "10.0.0.4", 1), (2, "10.0.0.3", 1), (3, "10.0.0.1", 2)]


def test_priorities_may_compare_places() -> None:
    """Labels of the topology mean where an endpoint runs, not what its pod is labelled with."""
    labels = (("topology.kubernetes.io/region", "eu"), ("kubernetes.io/hostname", "n1"))
    policy = LocalityPolicy(enabled=True, priority_labels=labels)
    need = EndpointNeed("c", "a", "d", "http", 80, policy=policy)
    assert _places(
        need,
        _endpoint("10.0.0.1", "us/z1"),
        _endpoint("10.0.0.2", "eu/z1", node_name="n2"),
        _endpoint("10.0.0.3", "eu/z1", node_name="n1"),
    ) == [(0, "10.0.0.3", 1), (1, "10.0.0.2", 1), (2, "10.0.0.1", 1)]


def test_the_endpoints_of_one_workload_and_region() -> None:
    """What a proxy counts as its own equals."""
    need = EndpointNeed("c", "a", "d", "http", 80, region="eu", workload="a-v1")
    assert _places(
        need,
        _endpoint("10.0.0.1", "eu/z1"),
        _endpoint("10.0.0.2", "us/z1"),
        _endpoint("10.0.0.3", "eu/z1", workload="a-v2"),
    ) == [(0, "10.0.0.1", 1)]
