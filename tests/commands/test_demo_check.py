"""The demo's proof accepts a healthy mesh and nothing less."""

from __future__ import annotations

import pytest

from meltemi.commands.demo import ingress_url
from meltemi.commands.demo_check import Hop, expected_hops, hop_rows, parse_hops, share_rows


def healthy() -> dict[Hop, float]:
    return {
        Hop(source, destination, "http", "mutual_tls", caller, callee): 10.0
        for (source, destination), (caller, callee) in expected_hops("bookinfo").items()
    }


def test_a_healthy_mesh_passes() -> None:
    assert all(row.good for row in hop_rows(healthy(), "bookinfo"))


@pytest.mark.parametrize("field", ["security", "source_principal", "destination_principal"])
def test_one_hop_without_proof_fails(field: str) -> None:
    hops = healthy()
    victim = next(iter(hops))
    parts = {name: getattr(victim, name) for name in Hop.__dataclass_fields__}
    hops[Hop(**{**parts, field: "none"})] = hops[victim]
    assert not all(row.good for row in hop_rows(hops, "bookinfo"))


def test_a_missing_hop_fails() -> None:
    hops = healthy()
    hops.pop(next(iter(hops)))
    assert [row.found for row in hop_rows(hops, "bookinfo") if not row.good] == ["not seen"]


@pytest.mark.parametrize(
    ("counts", "good"),
    [((100, 95, 105), True), ((300, 0, 0), False), ((180, 60, 60), True), ((150, 110, 40), False)],
)
def test_every_version_must_take_part(counts: tuple[int, int, int], good: bool) -> None:
    versions = dict(zip(("reviews-v1", "reviews-v2", "reviews-v3"), counts, strict=True))
    assert all(row.good for row in share_rows(versions)) is good


def test_hops_are_read_from_the_receiving_side_only() -> None:
    labels = (
        'source_workload="a",destination_workload="b",request_protocol="http",'
        'connection_security_policy="mutual_tls",source_principal="p",destination_principal="q"'
    )
    text = (
        "# TYPE istio_requests_total counter\n"
        f'istio_requests_total{{reporter="destination",response_code="200",{labels}}} 3\n'
        f'istio_requests_total{{reporter="destination",response_code="503",{labels}}} 1\n'
        f'istio_requests_total{{reporter="source",response_code="200",{labels}}} 9\n'
    )
    assert parse_hops(text) == {Hop("a", "b", "http", "mutual_tls", "p", "q"): 4.0}


def test_a_refused_port_is_replaced_by_the_announced_one() -> None:
    service = {
        "metadata": {"annotations": {"localkube/forwarded-ports": "80=8080,443=8443"}},
        "spec": {"ports": [{"name": "http2", "port": 80}]},
        "status": {
            "loadBalancer": {
                "ingress": [
                    {"ip": "127.1.2.3", "ports": [{"port": 80, "error": "PermissionDenied"}]}
                ]
            }
        },
    }
    assert ingress_url(service) == "http://127.1.2.3:8080"
    del service["status"]["loadBalancer"]["ingress"][0]["ports"]
    assert ingress_url(service) == "http://127.1.2.3"
    assert ingress_url({**service, "status": {}}) is None
