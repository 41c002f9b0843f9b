"""The settings of proxies: mesh-wide, by annotation, by ProxyConfig objects; and what each of them does to traffic."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

URL = "http://reviews:9080/"


GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8080, name: http, protocol: HTTP}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: front}
spec:
  hosts: ["*"]
  gateways: [front]
  http:
  - route: [{destination: {host: reviews, port: {number: 9080}}}]
"""


def defaults(**settings: Any) -> str:
    """A MeshConfig with these settings of all proxies."""
    return yaml.safe_dump({"defaultConfig": settings})


def headers_of(client: Client, url: str = URL, **request: Any) -> dict[str, str]:
    """The request headers as the application got them."""
    answer = client.get(url, **request)
    assert answer.status == 200, answer.text
    found: dict[str, str] = answer.json()["headers"]
    return found


def deployment(name: str, annotation: dict[str, Any], labels: str = "") -> str:
    """A Deployment of the shop with proxy settings of its own."""
    text = yaml.safe_dump(annotation, default_flow_style=True).strip()
    app, _, version = name.partition("-")
    more = f", version: {version}" if version else ", team: blue"
    return f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  template:
    metadata:
      labels: {{app: {app}{more}{labels}}}
      annotations: {{proxy.istio.io/config: "{text}"}}
    spec: {{serviceAccountName: {app}, containers: [{{name: app}}]}}
"""


# --- which settings hold ------------------------------------------------------------------------------

NAMED = {"proxyHeaders": {"server": {"value": "mesh"}}}


def test_the_annotation_wins_over_the_mesh(shop: Mesh, caller: Client) -> None:
    shop.apply(mesh_config=defaults(**NAMED))
    assert caller.get(URL).headers["server"] == "mesh"
    shop.apply(deployment("caller", {"proxyHeaders": {"server": {"value": "own"}}}))
    assert shop.client("caller").get(URL).headers["server"] == "own"


def test_what_the_annotation_leaves_out_is_the_meshs(shop: Mesh) -> None:
    shop.apply(
        deployment("caller", {"gatewayTopology": {"numTrustedProxies": 1}}),
        mesh_config=defaults(**NAMED),
    )
    assert shop.client("caller").get(URL).headers["server"] == "mesh"


@pytest.mark.covers("ProxyConfig.environmentVariables", "MeshConfig.defaultConfig.proxyMetadata")
@pytest.mark.parametrize("where", ["mesh", "annotation", "object"])
def test_metadata_of_a_proxy_tells_it_from_others(shop: Mesh, where: str) -> None:
    """An EnvoyFilter for proxies with this metadata."""
    given = {"ISTIO_META_COLOUR": "red"}
    shop.apply(
        """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: red}
spec:
  configPatches:
  - applyTo: ROUTE_CONFIGURATION
    match: {context: SIDECAR_OUTBOUND, proxy: {metadata: {COLOUR: red}}}
    patch:
      operation: MERGE
      value: {request_headers_to_add: [{header: {key: x-red, value: "yes"}}]}
"""
    )
    assert "x-red" not in headers_of(shop.client("caller"))
    if where == "mesh":
        shop.apply(mesh_config=defaults(proxyMetadata=given))
    elif where == "annotation":
        shop.apply(deployment("caller", {"proxyMetadata": given}))
    else:
        shop.apply(f"""
apiVersion: networking.istio.io/v1beta1
kind: ProxyConfig
metadata: {{name: red}}
spec: {{selector: {{matchLabels: {{app: caller}}}}, environmentVariables: {given}}}
""")
    assert headers_of(shop.client("caller"))["x-red"] == "yes"


# --- proxyHeaders -------------------------------------------------------------------------------------


@pytest.mark.covers(
    "MeshConfig.defaultConfig.proxyHeaders.server.value",
    "MeshConfig.defaultConfig.proxyHeaders.server.disabled",
)
def test_server_header(shop: Mesh, caller: Client) -> None:
    assert caller.get(URL).headers["server"] == "istio-envoy"
    shop.apply(mesh_config=defaults(proxyHeaders={"server": {"value": "shop"}}))
    assert caller.get(URL).headers["server"] == "shop"
    shop.apply(mesh_config=defaults(proxyHeaders={"server": {"disabled": True}}))
    shop.fail("reviews-v1", headers={"server": "mine"})
    shop.fail("reviews-v2", headers={"server": "mine"})
    shop.fail("reviews-v3", headers={"server": "mine"})
    assert caller.get(URL).headers["server"] == "mine"


@pytest.mark.covers("MeshConfig.defaultConfig.proxyHeaders.requestId.disabled")
def test_request_id(shop: Mesh, caller: Client) -> None:
    assert "x-request-id" in headers_of(caller)
    shop.apply(mesh_config=defaults(proxyHeaders={"requestId": {"disabled": True}}))
    assert "x-request-id" not in headers_of(caller)


@pytest.mark.covers("MeshConfig.defaultConfig.proxyHeaders.attemptCount.disabled")
def test_attempt_count(shop: Mesh, caller: Client) -> None:
    assert headers_of(caller)["x-envoy-attempt-count"] == "1"
    shop.apply(mesh_config=defaults(proxyHeaders={"attemptCount": {"disabled": True}}))
    assert "x-envoy-attempt-count" not in headers_of(caller)


@pytest.mark.covers("MeshConfig.defaultConfig.proxyHeaders.envoyDebugHeaders.disabled")
def test_envoys_own_headers(shop: Mesh, caller: Client) -> None:
    assert "x-envoy-upstream-service-time" in caller.get(URL).headers
    shop.apply(mesh_config=defaults(proxyHeaders={"envoyDebugHeaders": {"disabled": True}}))
    assert "x-envoy-upstream-service-time" not in caller.get(URL).headers


@pytest.mark.covers("MeshConfig.defaultConfig.proxyHeaders.forwardedClientCert")
@pytest.mark.parametrize(
    ("mode", "own", "given"),
    [
        ("APPEND_FORWARD", True, True),
        ("SANITIZE_SET", True, False),
        ("SANITIZE", False, False),
        ("FORWARD_ONLY", False, True),
        ("ALWAYS_FORWARD_ONLY", False, True),
    ],
)
def test_forwarded_client_certificate(shop: Mesh, mode: str, own: bool, given: bool) -> None:
    """A gateway that passes on what it is told, so that the sidecar behind it has something to decide about."""
    shop.apply(
        GATEWAY,
        mesh_config=defaults(
            proxyHeaders={"forwardedClientCert": mode},
            gatewayTopology={"forwardClientCertDetails": "ALWAYS_FORWARD_ONLY"},
        ),
    )
    sent = {"x-forwarded-client-cert": "URI=spiffe://somebody/else"}
    found = headers_of(shop.gateway(), "http://a.example.com:8080/", headers=sent)
    text = found.get("x-forwarded-client-cert", "")
    assert ("sa/istio-ingressgateway" in text, "somebody" in text) == (own, given)


@pytest.mark.covers(
    "MeshConfig.defaultConfig.proxyHeaders.setCurrentClientCertDetails.subject",
    "MeshConfig.defaultConfig.proxyHeaders.setCurrentClientCertDetails.cert",
    "MeshConfig.defaultConfig.proxyHeaders.setCurrentClientCertDetails.chain",
    "MeshConfig.defaultConfig.proxyHeaders.setCurrentClientCertDetails.dns",
    "MeshConfig.defaultConfig.proxyHeaders.setCurrentClientCertDetails.uri",
)
def test_details_of_the_client_certificate(shop: Mesh, caller: Client) -> None:
    text = headers_of(caller)["x-forwarded-client-cert"]
    assert "URI=spiffe://" in text
    assert "Subject=" in text
    assert "Cert=" not in text
    wanted = {"subject": False, "uri": False, "dns": False, "cert": True, "chain": True}
    shop.apply(mesh_config=defaults(proxyHeaders={"setCurrentClientCertDetails": wanted}))
    text = headers_of(caller)["x-forwarded-client-cert"]
    assert "Cert=" in text
    assert "Chain=" in text
    assert ";URI=" not in text
    assert "Subject=" not in text


@pytest.mark.covers("MeshConfig.defaultConfig.proxyHeaders.preserveHttp1HeaderCase")
def test_header_case(shop: Mesh, caller: Client) -> None:
    def answered() -> list[bytes]:
        with caller.tcp("details:9080") as connection:
            connection.write(b"GET / HTTP/1.1\r\nhost: details\r\nconnection: close\r\n\r\n")
            return list(iter(lambda: connection.read_line().strip(), b""))

    shop.fail("details-v1", headers={"X-Written-So": "yes"})
    assert b"x-written-so: yes" in answered()
    shop.apply(mesh_config=defaults(proxyHeaders={"preserveHttp1HeaderCase": True}))
    assert b"X-Written-So: yes" in answered()


@pytest.mark.covers("MeshConfig.defaultConfig.proxyHeaders.xForwardedHost.enabled")
def test_forwarded_host(shop: Mesh, caller: Client, http: Any) -> None:
    http("- rewrite: {authority: other}\n  route: [{destination: {host: reviews, subset: v1}}]")
    assert "x-forwarded-host" not in headers_of(caller)
    shop.apply(mesh_config=defaults(proxyHeaders={"xForwardedHost": {"enabled": True}}))
    assert headers_of(caller)["x-forwarded-host"] == "reviews:9080"


@pytest.mark.covers("MeshConfig.defaultConfig.proxyHeaders.xForwardedPort.enabled")
def test_forwarded_port(shop: Mesh, caller: Client) -> None:
    assert "x-forwarded-port" not in headers_of(caller)
    shop.apply(mesh_config=defaults(proxyHeaders={"xForwardedPort": {"enabled": True}}))
    assert headers_of(caller)["x-forwarded-port"] == "9080"


# --- connectionSettings -------------------------------------------------------------------------------


def manager_of(shop: Mesh, workload: str, listener: str) -> dict[str, Any]:
    """The first HTTP connection manager of a listener, as Envoy has it."""
    (found,) = [
        entry["active_state"]["listener"]
        for config in shop.config(workload)["configs"]
        for entry in config.get("dynamic_listeners", ())
        if entry["name"] == listener
    ]
    for chain in found["filter_chains"]:
        for entry in chain["filters"]:
            if entry["name"].endswith("http_connection_manager"):
                config: dict[str, Any] = entry["typed_config"]
                return {**config, "buffer": found.get("per_connection_buffer_limit_bytes")}
    raise AssertionError(f"{listener} has no HTTP connection manager")


@pytest.mark.covers(
    "MeshConfig.defaultConfig.connectionSettings.httpMaxConcurrentStreams",
    "MeshConfig.defaultConfig.connectionSettings.http2InitialStreamWindowSize",
    "MeshConfig.defaultConfig.connectionSettings.http2InitialConnectionWindowSize",
    "MeshConfig.defaultConfig.connectionSettings.listenerPerConnectionBufferLimitBytes",
    "MeshConfig.defaultConfig.connectionSettings.clusterPerConnectionBufferLimitBytes",
    "MeshConfig.defaultConfig.connectionSettings.httpDrainTimeout",
    "MeshConfig.defaultConfig.connectionSettings.httpMaxConnectionDuration",
    "MeshConfig.defaultConfig.connectionSettings.httpIdleTimeout",
    "MeshConfig.defaultConfig.connectionSettings.httpRequestHeadersTimeout",
)
def test_connection_settings_reach_the_proxy(shop: Mesh) -> None:
    settings = {
        "httpMaxConcurrentStreams": 77,
        "http2InitialStreamWindowSize": 70000,
        "http2InitialConnectionWindowSize": 80000,
        "listenerPerConnectionBufferLimitBytes": 9999,
        "clusterPerConnectionBufferLimitBytes": 8888,
        "httpDrainTimeout": "3s",
        "httpMaxConnectionDuration": "600s",
        "httpIdleTimeout": "500s",
        "httpRequestHeadersTimeout": "4s",
    }
    shop.apply(mesh_config=defaults(connectionSettings=settings))
    found = manager_of(shop, "caller", "0.0.0.0_9080")
    assert found["http2_protocol_options"] == {
        "max_concurrent_streams": 77,
        "initial_stream_window_size": 70000,
        "initial_connection_window_size": 80000,
    }
    common = found["common_http_protocol_options"]
    assert (common["idle_timeout"], common["max_connection_duration"]) == ("500s", "600s")
    times = (found["drain_timeout"], found["request_headers_timeout"])
    assert (*times, found["buffer"]) == ("3s", "4s", 9999)
    limits = {
        entry["cluster"].get("per_connection_buffer_limit_bytes")
        for config in shop.config("caller")["configs"]
        for entry in config.get("dynamic_active_clusters", ())
    }
    assert limits == {8888}


@pytest.mark.covers(
    "MeshConfig.defaultConfig.connectionSettings.httpStreamIdleTimeout",
    "MeshConfig.defaultConfig.connectionSettings.httpMaxStreamDuration",
)
@pytest.mark.parametrize(
    ("setting", "status"), [("httpStreamIdleTimeout", 408), ("httpMaxStreamDuration", 408)]
)
def test_slow_answers_end(shop: Mesh, caller: Client, setting: str, status: int) -> None:
    shop.apply(mesh_config=defaults(connectionSettings={setting: "0.2s"}))
    shop.fail("details-v1", delay=5.0)
    assert caller.get("http://details:9080/").status in (status, 504)


@pytest.mark.covers("MeshConfig.defaultConfig.connectionSettings.httpRequestTimeout")
def test_slow_requests_end(shop: Mesh, caller: Client) -> None:
    shop.apply(mesh_config=defaults(connectionSettings={"httpRequestTimeout": "0.2s"}))
    with caller.tcp("reviews:9080") as connection:
        connection.write(b"POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 10\r\n\r\nhalf")
        assert connection.read_line().startswith(b"HTTP/1.1 408")


@pytest.mark.covers("MeshConfig.defaultConfig.connectionSettings.httpHeadersWithUnderscoresAction")
@pytest.mark.parametrize(
    ("action", "status", "reaches"),
    [("ALLOW", 200, True), ("DROP_HEADER", 200, False), ("REJECT_REQUEST", 400, False)],
)
def test_headers_with_underscores(
    shop: Mesh, caller: Client, action: str, status: int, reaches: bool
) -> None:
    setting = {"httpHeadersWithUnderscoresAction": f"HEADERS_WITH_UNDERSCORES_{action}"}
    shop.apply(mesh_config=defaults(connectionSettings=setting))
    answer = caller.get(URL, headers={"x_under": "yes"})
    assert answer.status == status
    assert (status == 200 and "x_under" in answer.json()["headers"]) is reaches


@pytest.mark.covers(
    "MeshConfig.defaultConfig.connectionSettings.httpMergeSlashes",
    "MeshConfig.defaultConfig.connectionSettings.httpPathWithEscapedSlashesAction",
)
def test_slashes(shop: Mesh, caller: Client) -> None:
    shop.apply(mesh_config=defaults(connectionSettings={"httpMergeSlashes": True}))
    assert caller.get(URL + "a//b").json()["path"] == "/a/b"
    for action, status in (
        ("REJECT_REQUEST", 400),
        ("UNESCAPE_AND_REDIRECT", 307),
        ("KEEP_UNCHANGED", 200),
    ):
        setting = {"httpPathWithEscapedSlashesAction": action}
        shop.apply(mesh_config=defaults(connectionSettings=setting))
        assert caller.get(URL + "a%2Fb").status == status
    shop.apply(
        mesh_config=defaults(
            connectionSettings={"httpPathWithEscapedSlashesAction": "UNESCAPE_AND_FORWARD"}
        )
    )
    assert caller.get(URL + "a%2Fb").json()["path"] == "/a/b"


@pytest.mark.covers("MeshConfig.defaultConfig.connectionSettings.profile")
def test_profile_edge_is_for_gateways(shop: Mesh, caller: Client) -> None:
    edge = {"profile": "EDGE", "http2InitialStreamWindowSize": 70000}
    shop.apply(GATEWAY, mesh_config=defaults(connectionSettings=edge))
    found = manager_of(shop, "istio-ingressgateway", "0.0.0.0_8080")
    assert found["http2_protocol_options"] == {
        "max_concurrent_streams": 100,
        "initial_stream_window_size": 70000,
        "initial_connection_window_size": 1024 * 1024,
    }
    assert (found["request_timeout"], found["buffer"]) == ("300s", 32768)
    assert shop.gateway().get("http://a.example.com:8080/a%2Fb").status == 307
    assert "request_timeout" not in manager_of(shop, "caller", "0.0.0.0_9080")
    assert caller.get(URL + "a%2Fb").status == 200


@pytest.mark.covers(
    "MeshConfig.defaultConfig.gatewayTopology.numTrustedProxies",
    "MeshConfig.defaultConfig.gatewayTopology.forwardClientCertDetails",
)
def test_gateway_topology(shop: Mesh) -> None:
    shop.apply(GATEWAY)
    url = "http://a.example.com:8080/"
    sent = {"x-forwarded-for": "1.1.1.1, 2.2.2.2", "x-forwarded-client-cert": "URI=spiffe://a/b"}
    assert "spiffe://a/b" not in headers_of(shop.gateway(), url, headers=sent).get(
        "x-forwarded-client-cert", ""
    )
    topology = {"numTrustedProxies": 2, "forwardClientCertDetails": "ALWAYS_FORWARD_ONLY"}
    shop.apply(mesh_config=defaults(gatewayTopology=topology))
    found = headers_of(shop.gateway(), url, headers=sent)
    assert found["x-envoy-external-address"] == "1.1.1.1"
    assert "spiffe://a/b" in found["x-forwarded-client-cert"]
