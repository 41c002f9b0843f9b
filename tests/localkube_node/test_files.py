"""Files of pods: resolv.conf, hosts, atomic volume contents, addresses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from localkube.node.network.addresses import AddressPool
from localkube.node.podfiles import DnsSettings, build_hosts, build_resolv_conf, pod_hostname
from localkube.node.volumes import VolumeError, select_items, write_atomically

DNS = DnsSettings("10.96.0.10", "cluster.local", ("home.arpa",))


def pod(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec}


def test_resolv_conf_of_the_usual_pod() -> None:
    assert build_resolv_conf(pod(), DNS) == (
        "nameserver 10.96.0.10\n"
        "search shop.svc.cluster.local svc.cluster.local cluster.local home.arpa\n"
        "options ndots:5\n"
    )


def test_resolv_conf_of_other_policies() -> None:
    config = {
        "nameservers": ["9.9.9.9"],
        "searches": ["a.b"],
        "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
    }
    assert build_resolv_conf(pod(dnsPolicy="None", dnsConfig=config), DNS) == (
        "nameserver 9.9.9.9\nsearch a.b\noptions ndots:2 edns0\n"
    )
    default = build_resolv_conf(pod(dnsPolicy="Default"), DNS)
    assert default == "nameserver 10.96.0.10\nsearch home.arpa\n"
    merged = build_resolv_conf(pod(dnsConfig=config), DNS)
    assert merged.endswith("options ndots:2 edns0\n")


def test_hosts_and_host_names() -> None:
    text = build_hosts(
        pod(subdomain="web", hostAliases=[{"ip": "1.2.3.4", "hostnames": ["x", "y"]}]),
        "10.244.0.2",
        DNS,
    )
    assert "10.244.0.2\tweb-0.web.shop.svc.cluster.local web-0\n" in text
    assert text.endswith("1.2.3.4\tx y\n")
    long = {"metadata": {"name": "a" * 62 + "-b"}, "spec": {}}
    assert pod_hostname(long) == "a" * 62


def test_volume_contents_change_in_one_step(tmp_path: Path) -> None:
    volume = tmp_path / "v"
    assert write_atomically(volume, {"a": (b"1", 0o644), "d/e": (b"2", 0o600)})
    first = os.readlink(volume / "..data")
    assert (volume / "a").read_bytes() == b"1"
    assert (volume / "d" / "e").stat().st_mode & 0o777 == 0o600
    assert not write_atomically(volume, {"a": (b"1", 0o644), "d/e": (b"2", 0o600)})
    assert write_atomically(volume, {"a": (b"3", 0o644)})
    assert os.readlink(volume / "..data") != first
    assert sorted(p.name for p in volume.iterdir() if not p.name.startswith("..")) == ["a"]
    assert (volume / "a").read_bytes() == b"3"
    assert not (volume / first).exists()


def test_items_choose_keys_and_refuse_to_leave_the_volume() -> None:
    data = {"k": b"v"}
    chosen = select_items(data, {"items": [{"key": "k", "path": "a/b", "mode": 0o400}]}, 0o644, "x")
    assert chosen == {"a/b": (b"v", 0o400)}
    with pytest.raises(VolumeError, match="non-existent key: n"):
        select_items(data, {"items": [{"key": "n", "path": "a"}]}, 0o644, "configmap c")
    with pytest.raises(VolumeError, match="must not contain"):
        select_items(data, {"items": [{"key": "k", "path": "a/../../b"}]}, 0o644, "x")


def test_addresses_are_unique_and_come_back_late() -> None:
    pool = AddressPool("10.0.0.0/29")
    taken = [pool.take() for _ in range(5)]
    assert taken == ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
    with pytest.raises(RuntimeError, match="no free pod address"):
        pool.take()
    pool.give_back("10.0.0.3")
    assert pool.take() == "10.0.0.3"
