"""Names are Istio's, so that programs that read an Istio proxy's configuration feel at home; and every decision shows its line."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meltemi.commands.compile import compile_

FILE = Path(__file__).parent / "names.yaml"
WEB = "web.shop.svc.cluster.local"
CACHE = "cache.data.svc.cluster.local"
QUEUE = "queue.data.svc.cluster.local"


def output(*arguments: str) -> str:
    """What the verb prints."""
    done = CliRunner().invoke(
        compile_, ["-f", str(FILE), *arguments], standalone_mode=False, catch_exceptions=False
    )
    assert done.return_value == 0, done.output
    return done.stdout


@cache
def proxy(name: str) -> dict[str, Any]:
    """A proxy's entry of the JSON form."""
    (found,) = json.loads(output("--proxy", name, "-o", "json"))["proxies"]
    assert isinstance(found, dict)
    return found


def names(entry: dict[str, Any], part: str) -> set[str]:
    """The names of one part."""
    return {resource["name"] for resource in entry[part]}


def test_listeners() -> None:
    assert names(proxy("web"), "listeners") == {
        "virtualInbound",
        "virtualOutbound",
        "0.0.0.0_9080",
        "0.0.0.0_7070",
        "0.0.0.0_8080",
        "10.0.0.10_443",
        "10.0.0.10_5000",
        "10.0.0.11_6379",
    }
    gateway = names(proxy("istio-ingressgateway"), "listeners")
    assert gateway == {"0.0.0.0_8080", "0.0.0.0_8443", "0.0.0.0_9000"}


def test_routes() -> None:
    assert names(proxy("web"), "routes") == {"9080", "7070", "8080", f"{WEB}:5000"}
    gateway = names(proxy("istio-ingressgateway"), "routes")
    assert gateway == {"http.8080", "https.8443.https.edge.shop"}
    (inbound,) = [li for li in proxy("web")["listeners"] if li["name"] == "virtualInbound"]
    tables = {
        entry["typedConfig"]["routeConfig"]["name"]
        for chain in inbound["filterChains"]
        for entry in chain["filters"]
        if "routeConfig" in entry["typedConfig"]
    }
    assert tables >= {"inbound|9080||", "inbound|7070||", "InboundPassthroughCluster"}


def test_clusters() -> None:
    assert names(proxy("web"), "clusters") == {
        "BlackHoleCluster",
        "PassthroughCluster",
        "InboundPassthroughCluster",
        *(
            f"outbound|{port}|{subset}|{WEB}"
            for port in (9080, 443, 7070, 5000)
            for subset in ("", "v1")
        ),
        f"outbound|6379||{CACHE}",
        f"outbound|8080||{QUEUE}",
        *(f"inbound|{port}||" for port in (9080, 443, 7070, 5000)),
    }


def test_virtual_hosts_and_domains() -> None:
    (table,) = [route for route in proxy("web")["routes"] if route["name"] == "9080"]
    hosts = {host["name"]: host["domains"] for host in table["virtualHosts"]}
    assert hosts == {
        f"{WEB}:9080": [WEB, "web", "web.shop", "web.shop.svc", "10.0.0.10"],
        "allow_any": ["*"],
    }
    (table,) = [route for route in proxy("import")["routes"] if route["name"] == "9080"]
    (host,) = [host for host in table["virtualHosts"] if host["name"] == f"{WEB}:9080"]
    assert set(host["domains"]) == {WEB, "web.shop", "web.shop.svc", "10.0.0.10"}
    (table,) = [r for r in proxy("istio-ingressgateway")["routes"] if r["name"] == "http.8080"]
    assert {host["name"] for host in table["virtualHosts"]} >= {"a.example.com:8080"}


def test_closed_meshes_have_block_all(tmp_path: Path) -> None:
    mesh = tmp_path / "mesh.yaml"
    mesh.write_text("outboundTrafficPolicy: {mode: REGISTRY_ONLY}")
    text = output("--proxy", "web", "-o", "json", "--mesh-config", str(mesh))
    (table,) = [r for r in json.loads(text)["proxies"][0]["routes"] if r["name"] == "9080"]
    assert table["virtualHosts"][-1]["name"] == "block_all"


def test_endpoints_say_what_they_are() -> None:
    (group,) = [
        e for e in proxy("import")["endpoints"] if e["clusterName"] == f"outbound|9080||{WEB}"
    ]
    metadata = group["endpoints"][0]["lbEndpoints"][0]["metadata"]["filterMetadata"]
    assert metadata["envoy.transport_socket_match"] == {"tlsMode": "istio"}
    assert metadata["istio"] == {"workload": "web;shop;web;v1;Kubernetes"}
    (cluster,) = [c for c in proxy("import")["clusters"] if c["name"] == f"outbound|9080|v1|{WEB}"]
    assert [entry["match"] for entry in cluster["transportSocketMatches"]] == [
        {"tlsMode": "istio"},
        {},
    ]
    assert cluster["metadata"]["filterMetadata"]["istio"] == {
        "config": "/apis/networking.istio.io/v1/namespaces/shop/destination-rule/web",
        "services": [{"host": WEB, "name": "web", "namespace": "shop"}],
    }


@pytest.mark.parametrize("workload", ["web", "import", "cache-0", "istio-ingressgateway"])
def test_every_decision_of_an_object_shows_its_line(workload: str) -> None:
    """Listeners, chains, hosts, routes and clusters name the lines that caused them.

    Inner parts do not repeat what the part around them has named; what every proxy has comes from no object.
    """
    everywhere = re.compile(
        r" (virtualOutbound|virtualInbound|PassthroughCluster|BlackHoleCluster|InboundPassthroughCluster|host (allow_any|block_all|blackhole))"
    )
    above = ""
    for line in output("--proxy", workload).splitlines()[1:]:
        where = line.partition("  # ")[2]
        if re.match(r"  \S", line):
            # A table of a port belongs to the services whose hosts follow.
            above = where
            table = re.match(r"  routes \d+$", line)
            assert where or everywhere.search(line) or table or line.startswith("  Warning "), line
        for place in filter(None, where.split("; ")):
            assert re.match(rf"{re.escape(str(FILE))}:\d+ \(\w+/", place), line
        if line.startswith("    host ") and not everywhere.search(line):
            assert where or above, line


def test_runs_are_alike() -> None:
    """Two runs of one input print the same bytes."""
    assert output("--all", "-o", "json") == output("--all", "-o", "json")
    assert output("--all") == output()
