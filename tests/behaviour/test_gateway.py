"""Gateway: hosts, ports and protocols at the edge, and the VirtualServices that are bound to it."""

from __future__ import annotations

from typing import Any

import pytest

from behaviour.edge import HTTP, gateway, routes, to
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh
from meltemi.testing.response import NoAnswer

pytestmark = pytest.mark.envoy


def codes(mesh: Mesh) -> set[tuple[str, str]]:
    """(code, object) of everything that is doubtful."""
    return {(f.code, f"{f.origin.namespace}/{f.origin.name}") for f in mesh.findings}


def server(
    hosts: str, *, number: int = 80, protocol: str = "HTTP", name: str = "http", more: str = ""
) -> str:
    """One server of a Gateway."""
    return f"- {{port: {{number: {number}, name: {name}, protocol: {protocol}}}, hosts: {hosts}{more}}}"


@pytest.mark.covers("Gateway.servers.port.targetPort", "Gateway.servers.port.name")
def test_the_service_of_the_gateway_says_which_port_is_bound(shop: Mesh) -> None:
    """Visitors call the Service's port, as the Gateway does; ``targetPort`` of a Gateway is ignored, as in Istio."""
    service = (
        "---\napiVersion: v1\nkind: Service\n"
        "metadata: {name: istio-ingressgateway, namespace: istio-system}\n"
        "spec:\n  selector: {istio: ingressgateway}\n"
        "  ports: [{name: http2, port: 8000, targetPort: 8080}]\n"
    )
    port = server('["*"]', number=8000).replace(
        "protocol: HTTP", "protocol: HTTP, targetPort: 9999"
    )
    shop.apply(service, gateway(port), routes(to("details")))
    assert shop.gateway().get("http://any:8000/").workload == "details-v1"
    listeners = {f["name"] for f in _listeners(shop)}
    assert "0.0.0.0_8080" in listeners
    assert not {"0.0.0.0_8000", "0.0.0.0_9999"} & listeners


def test_a_gateway_that_no_file_describes_has_the_ports_of_an_installed_one(shop: Mesh) -> None:
    """Samples for the installed gateway name its pods' port 8080; visitors call its Service's port 80."""
    shop.apply(gateway(server('["*"]', number=8080)), routes(to("details")))
    assert shop.gateway().get("http://any/").workload == "details-v1"
    assert shop.gateway().get("http://any:8080/").workload == "details-v1"


def _listeners(mesh: Mesh) -> list[dict[str, Any]]:
    dump = next(
        part
        for part in mesh.config("istio-ingressgateway")["configs"]
        if part["@type"].endswith("ListenersConfigDump")
    )
    return list(dump["dynamic_listeners"])


# --- hosts ------------------------------------------------------------------------------------------


@pytest.mark.covers(
    "Gateway.selector",
    "Gateway.servers.hosts",
    "Gateway.servers.port.number",
    "Gateway.servers.port.protocol",
    "VirtualService.gateways",
    "VirtualService.hosts",
)
def test_a_server_answers_for_its_hosts_alone(shop: Mesh) -> None:
    shop.apply(gateway(server('["a.example.com", "*.b.example.com"]')), routes(to("details")))
    visitor = shop.gateway()
    assert visitor.get("http://a.example.com/").workload == "details-v1"
    assert visitor.get("http://a.example.com/", host="a.example.com:8080").status == 200
    assert visitor.get("http://x.b.example.com/").status == 200
    assert visitor.get("http://x.y.b.example.com/").status == 200
    assert visitor.get("http://b.example.com/").status == 404
    assert visitor.get("http://other.example.com/").status == 404


def test_the_more_specific_host_wins(shop: Mesh) -> None:
    shop.apply(
        gateway(HTTP),
        routes(to("details"), hosts='["*.example.com"]', name="wild"),
        routes(to("reviews", subset="v1"), hosts='["a.example.com"]', name="exact"),
        routes(to("reviews", subset="v2"), hosts='["*.a.example.com"]', name="deeper"),
        routes(to("reviews", subset="v3"), hosts='["*"]', name="rest"),
    )
    visitor = shop.gateway()
    found = {
        name: visitor.get(f"http://{name}/").workload
        for name in ("x.example.com", "a.example.com", "x.a.example.com", "example.org")
    }
    assert found == {
        "x.example.com": "details-v1",
        "a.example.com": "reviews-v1",
        "x.a.example.com": "reviews-v2",
        "example.org": "reviews-v3",
    }


def test_a_wildcard_rule_is_narrowed_to_the_servers_host(shop: Mesh) -> None:
    shop.apply(
        gateway(server('["a.example.com"]')), routes(to("details"), hosts='["*.example.com"]')
    )
    assert shop.gateway().get("http://a.example.com/").status == 200
    assert shop.gateway().get("http://b.example.com/").status == 404


@pytest.mark.parametrize(
    ("entry", "own", "others"),
    [
        ("./*.example.com", 200, 404),
        ("elsewhere/*.example.com", 404, 200),
        ("*/*.example.com", 200, 200),
        ("nowhere/*.example.com", 404, 404),
    ],
)
def test_hosts_may_name_the_namespace_of_rules(
    shop: Mesh, entry: str, own: int, others: int
) -> None:
    shop.apply(
        gateway(server(f'["{entry}"]')),
        routes(to("details"), hosts="[own.example.com]"),
        routes(
            to("details.default.svc.cluster.local"),
            hosts="[others.example.com]",
            namespace="elsewhere",
            gateways="[default/edge]",
        ),
    )
    assert shop.gateway().get("http://own.example.com/").status == own
    assert shop.gateway().get("http://others.example.com/").status == others


# --- which rules apply ------------------------------------------------------------------------------


def test_rules_of_other_gateways_and_of_the_mesh_do_not_apply(shop: Mesh) -> None:
    shop.apply(
        gateway(HTTP),
        routes(to("details"), gateways="[mesh]", hosts="[details]", name="in-mesh"),
        routes(to("details"), gateways="[other]", hosts="[a.example.com]", name="elsewhere"),
    )
    assert shop.gateway().get("http://a.example.com/").status == 404
    assert shop.gateway().get("http://details/").status == 404


def test_one_rule_for_gateway_and_mesh(shop: Mesh, caller: Client) -> None:
    shop.apply(
        gateway(HTTP),
        routes(to("reviews", subset="v2"), gateways="[edge, mesh]", hosts="[reviews]"),
    )
    assert caller.get("http://reviews:9080/").workload == "reviews-v2"
    visitor = shop.gateway()
    assert visitor.get("http://reviews.default.svc.cluster.local/").workload == "reviews-v2"


@pytest.mark.covers("VirtualService.http.match.gateways")
def test_conditions_may_name_gateways(shop: Mesh, caller: Client) -> None:
    rules = (
        "- match: [{gateways: [edge]}]\n"
        "  route: [{destination: {host: reviews, port: {number: 9080}, subset: v1}}]\n"
        "- match: [{gateways: [mesh]}]\n"
        "  route: [{destination: {host: reviews, subset: v3}}]\n"
    )
    shop.apply(
        gateway(HTTP),
        routes(rules, hosts="[reviews.default.svc.cluster.local]", gateways="[edge, mesh]"),
    )
    assert caller.get("http://reviews:9080/").workload == "reviews-v3"
    visitor = shop.gateway()
    assert visitor.get("http://reviews.default.svc.cluster.local/").workload == "reviews-v1"


@pytest.mark.covers("VirtualService.http.match.port")
def test_conditions_on_the_port_mean_the_gateways(shop: Mesh) -> None:
    both = (
        server('["*"]', number=8080, name="one") + "\n" + server('["*"]', number=8081, name="two")
    )
    rules = (
        "- match: [{port: 8081}]\n  route: [{destination: {host: reviews, subset: v1}, weight: 1}]\n"
        + to("details")
    ).replace("subset: v1}", "subset: v1, port: {number: 9080}}")
    shop.apply(gateway(both), routes(rules))
    assert shop.gateway().get("http://a:8080/").workload == "details-v1"
    assert shop.gateway().get("http://a:8081/").workload == "reviews-v1"


@pytest.mark.covers("VirtualService.http.match.sourceLabels")
def test_conditions_on_callers_do_not_hold_for_visitors(shop: Mesh) -> None:
    rules = (
        "- match: [{sourceLabels: {app: caller}}]\n"
        "  route: [{destination: {host: reviews, port: {number: 9080}, subset: v1}}]\n"
        + to("details")
    )
    shop.apply(gateway(HTTP), routes(rules))
    assert shop.gateway().get("http://any/").workload == "details-v1"


def test_rules_for_one_host_are_joined(shop: Mesh) -> None:
    one = (
        "- match: [{uri: {prefix: /one}}]\n"
        "  route: [{destination: {host: reviews, port: {number: 9080}, subset: v1}}]\n"
    )
    two = one.replace("/one", "/two").replace("v1", "v2")
    shop.apply(
        gateway(HTTP),
        routes(to("details"), name="a-all"),
        routes(one, name="b-one"),
        routes(two, name="c-two"),
    )
    visitor = shop.gateway()
    assert visitor.get("http://any/one").workload == "reviews-v1"
    assert visitor.get("http://any/two").workload == "reviews-v2"
    assert visitor.get("http://any/three").workload == "details-v1"


@pytest.mark.covers("VirtualService.http.delegate.name", "VirtualService.http.delegate.namespace")
def test_delegates_work_at_gateways(shop: Mesh) -> None:
    delegate = (
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n"
        "metadata: {name: part, namespace: elsewhere}\n"
        "spec:\n  http:\n"
        "  - match: [{uri: {prefix: /part/deep}}]\n"
        "    route: [{destination: {host: reviews.default.svc.cluster.local, port: {number: 9080}, subset: v1}}]\n"
        "  - route: [{destination: {host: details.default.svc.cluster.local, port: {number: 9080}}}]\n"
    )
    rules = "- match: [{uri: {prefix: /part}}]\n  delegate: {name: part, namespace: elsewhere}"
    shop.apply(gateway(HTTP), routes(rules), delegate)
    visitor = shop.gateway()
    assert visitor.get("http://any/part/deep").workload == "reviews-v1"
    assert visitor.get("http://any/part/other").workload == "details-v1"
    assert visitor.get("http://any/else").status == 404


def test_a_rule_that_is_not_exported_does_not_reach_the_gateway(shop: Mesh) -> None:
    shop.apply(
        gateway(HTTP),
        routes(to("details")).replace("  gateways:", '  exportTo: ["."]\n  gateways:'),
    )
    assert shop.gateway().get("http://any/").status == 404


# --- merging ----------------------------------------------------------------------------------------


def test_http_servers_of_several_gateways_share_a_port(shop: Mesh) -> None:
    shop.apply(
        gateway(server("[a.example.com]"), name="one"),
        gateway(server("[b.example.com]", protocol="HTTP2"), name="two", namespace="elsewhere"),
        routes(to("details"), gateways="[one]", hosts='["*"]', name="one"),
        routes(
            to("reviews.default.svc.cluster.local", subset="v1"),
            gateways="[elsewhere/two]",
            hosts='["*"]',
            name="two",
        ),
    )
    visitor = shop.gateway()
    assert visitor.get("http://a.example.com/").workload == "details-v1"
    assert visitor.get("http://b.example.com/").workload == "reviews-v1"
    assert visitor.get("http://c.example.com/").status == 404
    assert not codes(shop)


@pytest.mark.parametrize("first", ["HTTP", "TCP"])
def test_of_two_protocols_on_a_port_the_older_stays(shop: Mesh, first: str) -> None:
    second = "TCP" if first == "HTTP" else "HTTP"
    shop.apply(
        gateway(server('["*"]', number=8080, protocol=first), name="older"),
        gateway(server('["*"]', number=8080, protocol=second), name="younger"),
        routes(to("details"), gateways="[older, younger]", name="web"),
        routes(to("details", 9000), gateways="[older, younger]", name="bytes", kind="tcp"),
    )
    visitor = shop.gateway()
    if first == "HTTP":
        assert visitor.get("http://any:8080/").status == 200
    else:
        with visitor.tcp("any:8080") as line:
            assert line.ask("hello")["workload"] == "details-v1"
    assert {("MLT0105", "default/older"), ("MLT0105", "default/younger")} <= codes(shop)


# --- redirects --------------------------------------------------------------------------------------


@pytest.mark.covers("Gateway.servers.tls.httpsRedirect")
def test_https_redirect_concerns_its_server_alone(shop: Mesh) -> None:
    both = (
        server("[a.example.com]", name="one", more=", tls: {httpsRedirect: true}")
        + "\n"
        + server("[b.example.com]", name="two")
    )
    shop.apply(gateway(both), routes(to("details")))
    visitor = shop.gateway()
    answer = visitor.get("http://a.example.com/path?x=1")
    assert answer.status == 301
    assert answer.headers["location"] == "https://a.example.com/path?x=1"
    assert visitor.get("http://b.example.com/").status == 200


def test_https_redirect_needs_no_rule(shop: Mesh) -> None:
    shop.apply(gateway(server('["*.example.com"]', more=", tls: {httpsRedirect: true}")))
    assert shop.gateway().get("http://a.example.com/").status == 301
    assert shop.gateway().get("http://other.org/").status == 404


# --- protocols --------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["HTTP", "HTTP2", "GRPC", "GRPC-WEB"])
def test_http_of_every_version_and_grpc(shop: Mesh, protocol: str) -> None:
    shop.apply(
        gateway(server('["*"]', number=8080, protocol=protocol)),
        routes(
            "- match: [{uri: {prefix: /shop.Cart}}]\n"
            "  route: [{destination: {host: details, port: {number: 7070}}}]\n" + to("details")
        ),
    )
    visitor = shop.gateway()
    assert visitor.get("http://any:8080/").http_version == "1.1"
    assert visitor.get("http://any:8080/", http2=True).http_version == "2"
    assert visitor.grpc("grpc://any:8080/shop.Cart/Add", b"hello").workload.startswith("d")


def test_grpc_web_is_translated(shop: Mesh) -> None:
    shop.apply(
        gateway(server('["*"]', number=8080, protocol="GRPC-WEB")), routes(to("details", 7070))
    )
    answer = shop.gateway().post(
        "http://any:8080/shop.Cart/Add",
        headers={"content-type": "application/grpc-web+proto"},
        body=b"\0\0\0\0\5hello",
    )
    assert answer.headers["content-type"].startswith("application/grpc-web")
    assert b"hello" in answer.body


def test_websockets_pass(shop: Mesh) -> None:
    shop.apply(gateway(server('["*"]', number=8080)), routes(to("details")))
    with shop.gateway().websocket("ws://any:8080/room") as room:
        assert room.ask("hello")["workload"] == "details-v1"


@pytest.mark.parametrize("protocol", ["TCP", "MONGO"])
def test_bytes_go_where_the_rule_says(shop: Mesh, protocol: str) -> None:
    shop.apply(
        gateway(server('["*"]', number=9000, protocol=protocol)),
        routes(to("details", 9000), kind="tcp"),
    )
    with shop.gateway().tcp("any:9000") as line:
        answer = line.ask("hello")
        assert (answer["workload"], answer["received"]) == ("details-v1", "hello")


def test_mongodb_is_counted(shop: Mesh) -> None:
    port = server('["*"]', number=27017, protocol="MONGO", name="db").replace(
        "{port", "{name: db, port"
    )
    shop.apply(gateway(port), routes(to("details", 9000), kind="tcp"))
    query = (
        b"\x01\0\0\0"
        + b"\0" * 4
        + b"\xd4\x07\0\0"
        + b"\0" * 4
        + b"a.b\0"
        + b"\0" * 8
        + b"\x05\0\0\0\0"
    )
    with shop.gateway().tcp("any:27017") as line:
        line.write((len(query) + 4).to_bytes(4, "little") + query)
        line.write(b"\n")
        line.read_line()
        found = shop.stats("istio-ingressgateway", "mongo.db.op_query$")
    assert sum(found.values()) == 1


def test_a_port_without_rules_for_it_is_closed(shop: Mesh) -> None:
    shop.apply(gateway(server('["*"]', number=9000, protocol="TCP")))
    with pytest.raises(NoAnswer), shop.gateway().tcp("any:9000") as line:
        assert line.ask("hello") is None
        raise NoAnswer("closed", line.exchange)
