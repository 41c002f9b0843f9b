"""Cluster names, and DNS messages checked against an independent implementation."""

from __future__ import annotations

from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from localkube.node.network import dns_zone


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "shop"}, "spec": spec}


PORTS = [{"name": "http", "port": 80, "protocol": "TCP"}]
SLICE = {
    "metadata": {"namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
    "addressType": "IPv4",
    "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
    "endpoints": [
        {"addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": {"ready": True}},
        {"addresses": ["10.244.0.6"], "hostname": "db-1", "conditions": {"ready": True}},
        {"addresses": ["10.244.0.7"], "conditions": {"ready": False}},
    ],
}


@pytest.fixture
def zone() -> dns_zone.Zone:
    services = [
        service("web", clusterIP="10.96.0.7", ports=PORTS),
        service("db", clusterIP="None"),
        service("far", type="ExternalName", externalName="www.example.com"),
    ]
    return dns_zone.build_zone(services, [SLICE], "cluster.local")


def ask(zone: dns_zone.Zone, name: str, kind: str = "A", udp: bool = True) -> Any:
    query = dns.message.make_query(name, kind, use_edns=False)
    question = dns_zone.decode_question(query.to_wire())
    assert question is not None
    answer = dns_zone.resolve(zone, question.name, question.kind)
    if answer is None:
        return None
    reply = dns.message.from_wire(dns_zone.encode_answer(question, answer, zone, udp))
    assert reply.id == query.id
    return reply


def texts(reply: Any) -> list[str]:
    return sorted(str(item) for rrset in reply.answer for item in rrset)


def test_a_service_has_its_cluster_address(zone: dns_zone.Zone) -> None:
    assert texts(ask(zone, "Web.Shop.svc.cluster.local.")) == ["10.96.0.7"]


def test_ipv6_is_empty_but_no_error(zone: dns_zone.Zone) -> None:
    reply = ask(zone, "web.shop.svc.cluster.local.", "AAAA")
    assert reply.rcode() == dns.rcode.NOERROR
    assert reply.answer == []
    assert reply.authority[0].rdtype == dns.rdatatype.SOA


def test_an_unknown_name_is_nxdomain_and_a_parent_is_not(zone: dns_zone.Zone) -> None:
    assert ask(zone, "none.shop.svc.cluster.local.").rcode() == dns.rcode.NXDOMAIN
    assert ask(zone, "shop.svc.cluster.local.").rcode() == dns.rcode.NOERROR


def test_a_headless_service_has_its_ready_pods(zone: dns_zone.Zone) -> None:
    assert texts(ask(zone, "db.shop.svc.cluster.local.")) == ["10.244.0.5", "10.244.0.6"]
    assert texts(ask(zone, "db-1.db.shop.svc.cluster.local.")) == ["10.244.0.6"]


def test_srv_records_name_port_and_host(zone: dns_zone.Zone) -> None:
    reply = ask(zone, "_sql._tcp.db.shop.svc.cluster.local.", "SRV")
    assert "0 100 5432 db-0.db.shop.svc.cluster.local." in texts(reply)
    reply = ask(zone, "_http._tcp.web.shop.svc.cluster.local.", "SRV")
    assert "0 100 80 web.shop.svc.cluster.local." in texts(reply)


def test_external_names_are_aliases(zone: dns_zone.Zone) -> None:
    assert texts(ask(zone, "far.shop.svc.cluster.local.")) == ["www.example.com."]


def test_reverse_and_pod_names(zone: dns_zone.Zone) -> None:
    assert texts(ask(zone, "7.0.96.10.in-addr.arpa.", "PTR")) == ["web.shop.svc.cluster.local."]
    assert texts(ask(zone, "10-244-0-9.shop.pod.cluster.local.")) == ["10.244.0.9"]


def test_other_domains_are_for_the_hosts_resolvers(zone: dns_zone.Zone) -> None:
    assert ask(zone, "www.example.com.") is None
    assert ask(zone, "9.9.9.9.in-addr.arpa.", "PTR") is None


def test_a_long_answer_is_cut_over_udp_only() -> None:
    endpoints = [{"addresses": [f"10.244.1.{n}"]} for n in range(1, 120)]
    many = {**SLICE, "endpoints": endpoints}
    zone = dns_zone.build_zone([service("db", clusterIP="None")], [many], "cluster.local")
    name = "db.shop.svc.cluster.local."
    short = ask(zone, name)
    assert short.flags & dns.flags.TC
    assert 0 < len(texts(short)) < 119
    assert len(texts(ask(zone, name, udp=False))) == 119


@pytest.mark.parametrize("size", range(40))
def test_cut_off_messages_never_raise(size: int) -> None:
    query = dns.message.make_query("web.shop.svc.cluster.local.", "A").to_wire()
    dns_zone.decode_question(query[:size])
    if size >= 12:
        assert dns_zone.encode_failure(query[:size], dns_zone.FORMERR)[3] & 15 == 1
