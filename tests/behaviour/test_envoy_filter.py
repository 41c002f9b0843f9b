"""EnvoyFilter: every place a patch can apply to, every operation, every match, and their order; shown by requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import yaml

from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh, WrongConfiguration

pytestmark = pytest.mark.envoy

URL = "http://reviews:9080/"
HCM = "envoy.filters.network.http_connection_manager"
ROUTER = "envoy.filters.http.router"
TYPE = "type.googleapis.com/envoy."
Patch = Mapping[str, Any]


def lua(name: str, code: str) -> dict[str, Any]:
    """An HTTP filter that runs this Lua for every request."""
    return {
        "name": name,
        "typed_config": {
            "@type": TYPE + "extensions.filters.http.lua.v3.Lua",
            "default_source_code": {
                "inline_string": f"function envoy_on_request(handle) {code} end"
            },
        },
    }


def adds(header: str, text: str = "yes", name: str = "") -> dict[str, Any]:
    """A Lua filter that appends to a request header."""
    code = (
        f"local old = handle:headers():get('{header}') "
        f"handle:headers():replace('{header}', (old and old .. ',' or '') .. '{text}')"
    )
    return lua(name or f"adds-{text}", code)


def envoy_filter(
    *patches: Patch,
    name: str = "patches",
    namespace: str = "default",
    created: str = "",
    **spec: Any,
) -> str:
    """The YAML of an EnvoyFilter."""
    metadata = {"name": name, "namespace": namespace}
    if created:
        metadata["creationTimestamp"] = created
    return yaml.safe_dump(
        {
            "apiVersion": "networking.istio.io/v1alpha3",
            "kind": "EnvoyFilter",
            "metadata": metadata,
            "spec": {"configPatches": list(patches), **spec},
        }
    )


def patch(
    apply_to: str,
    operation: str,
    value: Any = None,
    match: Mapping[str, Any] | None = None,
    **more: Any,
) -> Patch:
    """One patch."""
    made: dict[str, Any] = {"operation": operation, **more}
    if value is not None:
        made["value"] = value
    return {"applyTo": apply_to, "match": dict(match or {"context": "ANY"}), "patch": made}


def in_manager(context: str, sub_filter: str = "", **listener: Any) -> dict[str, Any]:
    """Matches HTTP connection managers, and a filter in them."""
    chain = dict(listener.pop("filterChain", {}))
    chain["filter"] = {"name": HCM}
    if sub_filter:
        chain["filter"]["subFilter"] = {"name": sub_filter}
    return {"context": context, "listener": {**listener, "filterChain": chain}}


def outbound_lua(header: str, text: str = "yes", **listener: Any) -> Patch:
    """Clients' proxies append to a request header."""
    match = in_manager("SIDECAR_OUTBOUND", ROUTER, **listener)
    return patch("HTTP_FILTER", "INSERT_BEFORE", adds(header, text), match)


def seen(client: Client, header: str, url: str = URL, **request: Any) -> str | None:
    """A request header as the application got it."""
    answer = client.get(url, **request)
    assert answer.status == 200, answer.text
    found = answer.json()["headers"].get(header)
    return None if found is None else str(found)


# --- HTTP filters -------------------------------------------------------------------------------------


@pytest.mark.covers(
    "EnvoyFilter.configPatches.applyTo",
    "EnvoyFilter.configPatches.patch.operation",
    "EnvoyFilter.configPatches.patch.value",
    "EnvoyFilter.configPatches.match.context",
    "EnvoyFilter.configPatches.match.listener.filterChain.filter.name",
    "EnvoyFilter.configPatches.match.listener.filterChain.filter.subFilter.name",
)
@pytest.mark.parametrize(
    ("context", "reaches"),
    [("SIDECAR_OUTBOUND", 1), ("SIDECAR_INBOUND", 1), ("ANY", 2), ("GATEWAY", 0)],
)
def test_context_chooses_the_side(shop: Mesh, caller: Client, context: str, reaches: int) -> None:
    shop.apply(
        envoy_filter(
            patch("HTTP_FILTER", "INSERT_BEFORE", adds("x-lua"), in_manager(context, ROUTER))
        )
    )
    found = seen(caller, "x-lua")
    assert (found or "").count("yes") == reaches


@pytest.mark.parametrize(
    ("operation", "anchor", "wanted"),
    [
        ("INSERT_BEFORE", "first", "new,first,second"),
        ("INSERT_AFTER", "first", "first,new,second"),
        ("INSERT_AFTER", "second", "first,second,new"),
        ("INSERT_FIRST", "", "new,first,second"),
        ("ADD", "", "first,second,new"),
        ("INSERT_BEFORE", "", "new,first,second"),
        ("INSERT_AFTER", "", "first,second,new"),
        ("INSERT_BEFORE", "nobody", "first,second"),
        ("REMOVE", "first", "second"),
        ("REPLACE", "first", "new,second"),
    ],
)
def test_operations_on_http_filters(
    shop: Mesh, caller: Client, operation: str, anchor: str, wanted: str
) -> None:
    value = None if operation == "REMOVE" else adds("x-order", "new", "new")
    shop.apply(
        envoy_filter(
            *(
                patch(
                    "HTTP_FILTER",
                    "INSERT_BEFORE",
                    adds("x-order", name, name),
                    in_manager("SIDECAR_OUTBOUND", ROUTER),
                )
                for name in ("first", "second")
            ),
            patch("HTTP_FILTER", operation, value, in_manager("SIDECAR_OUTBOUND", anchor)),
        )
    )
    assert seen(caller, "x-order") == wanted


def test_merge_changes_a_filters_configuration(shop: Mesh, caller: Client) -> None:
    router = TYPE + "extensions.filters.http.router.v3.Router"
    shop.apply(
        envoy_filter(
            patch(
                "HTTP_FILTER",
                "MERGE",
                {"typed_config": {"@type": router, "suppress_envoy_headers": True}},
                in_manager("ANY", ROUTER),
            )
        )
    )
    assert "x-envoy-upstream-service-time" not in caller.get(URL).headers


@pytest.mark.covers("EnvoyFilter.configPatches.patch.filterClass")
@pytest.mark.parametrize(
    ("filter_class", "status"), [("AUTHN", 418), ("AUTHZ", 403), ("STATS", 403)]
)
def test_filter_class_places_a_filter_among_the_policies(
    shop: Mesh, caller: Client, filter_class: str, status: int
) -> None:
    refuses = lua("teapot", "handle:respond({[':status'] = '418'}, '')")
    shop.apply(
        envoy_filter(
            patch(
                "HTTP_FILTER",
                "ADD",
                refuses,
                in_manager("SIDECAR_INBOUND"),
                filterClass=filter_class,
            )
        ),
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
        "metadata: {name: nothing}\nspec: {selector: {matchLabels: {app: reviews}}}\n",
    )
    assert caller.get(URL).status == status


# --- listeners ----------------------------------------------------------------------------------------


@pytest.mark.covers("EnvoyFilter.configPatches.match.listener.portNumber")
def test_listener_port_number(shop: Mesh, caller: Client) -> None:
    shop.apply(envoy_filter(outbound_lua("x-lua", portNumber=9081)))
    assert seen(caller, "x-lua") is None
    assert seen(caller, "x-lua", "http://reviews:9081/") == "yes"


def test_inbound_listener_port_number_is_the_workloads(shop: Mesh, caller: Client) -> None:
    match = in_manager("SIDECAR_INBOUND", ROUTER, portNumber=9081)
    shop.apply(envoy_filter(patch("HTTP_FILTER", "INSERT_BEFORE", adds("x-lua"), match)))
    assert seen(caller, "x-lua") is None
    assert seen(caller, "x-lua", "http://reviews:9081/") == "yes"


@pytest.mark.covers("EnvoyFilter.configPatches.match.listener.portName")
@pytest.mark.parametrize("context", ["SIDECAR_OUTBOUND", "SIDECAR_INBOUND"])
def test_listener_port_name(shop: Mesh, caller: Client, context: str) -> None:
    match = in_manager(context, ROUTER, portName="HTTP-Second")
    shop.apply(envoy_filter(patch("HTTP_FILTER", "INSERT_BEFORE", adds("x-lua"), match)))
    assert seen(caller, "x-lua") is None
    assert seen(caller, "x-lua", "http://reviews:9081/") == "yes"


@pytest.mark.covers("EnvoyFilter.configPatches.match.listener.name")
def test_listener_name(shop: Mesh, caller: Client) -> None:
    shop.apply(envoy_filter(outbound_lua("x-lua", name="0.0.0.0_9081")))
    assert seen(caller, "x-lua") is None
    assert seen(caller, "x-lua", "http://reviews:9081/") == "yes"


@pytest.mark.covers(
    "EnvoyFilter.configPatches.match.listener.filterChain.transportProtocol",
    "EnvoyFilter.configPatches.match.listener.filterChain.transportSocket",
    "EnvoyFilter.configPatches.match.listener.filterChain.applicationProtocols",
    "EnvoyFilter.configPatches.match.listener.filterChain.destinationPort",
)
@pytest.mark.parametrize(
    ("chain", "secure", "plain"),
    [
        ({"transportProtocol": "tls"}, "yes", None),
        ({"transportProtocol": "raw_buffer"}, None, "yes"),
        ({"transportSocket": "envoy.transport_sockets.tls"}, "yes", None),
        ({"transportSocket": "envoy.transport_sockets.raw_buffer"}, None, "yes"),
        ({"applicationProtocols": "istio-http/1.1,istio-h2"}, "yes", None),
        ({"applicationProtocols": "h2c"}, None, None),
        ({"destinationPort": 9080}, "yes", "yes"),
        ({"destinationPort": 9081}, None, None),
    ],
)
def test_filter_chain_matches(
    shop: Mesh, caller: Client, chain: dict[str, Any], secure: str | None, plain: str | None
) -> None:
    match = in_manager("SIDECAR_INBOUND", ROUTER, filterChain=chain)
    shop.apply(envoy_filter(patch("HTTP_FILTER", "INSERT_BEFORE", adds("x-lua"), match)))
    assert seen(caller, "x-lua") == secure
    assert seen(shop.outside, "x-lua", "http://reviews.default:9080/") == plain


@pytest.mark.covers("EnvoyFilter.configPatches.match.listener.filterChain.name")
def test_filter_chain_name(shop: Mesh, caller: Client) -> None:
    names = {
        chain["name"]
        for config in shop.config("reviews-v1")["configs"]
        for entry in config.get("dynamic_listeners", ())
        if entry["name"] == "virtualInbound"
        for chain in entry["active_state"]["listener"]["filter_chains"]
        if chain["filter_chain_match"].get("destination_port") == 9080
        and chain["filter_chain_match"].get("transport_protocol") == "tls"
        and chain["filters"][-1]["name"] == HCM
    }
    (name,) = names
    match = in_manager("SIDECAR_INBOUND", ROUTER, filterChain={"name": name})
    shop.apply(envoy_filter(patch("HTTP_FILTER", "INSERT_BEFORE", adds("x-lua"), match)))
    assert seen(caller, "x-lua") == "yes"
    assert seen(caller, "x-lua", "http://reviews:9081/") is None


GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8080, name: http, protocol: HTTP}, hosts: ["*"]}
  - {port: {number: 8081, name: http-other, protocol: HTTP}, hosts: ["*"]}
  - port: {number: 8443, name: https-a, protocol: HTTPS}
    hosts: ["a.example.com"]
    tls: {mode: SIMPLE, credentialName: a}
  - port: {number: 8443, name: https-b, protocol: HTTPS}
    hosts: ["b.example.com"]
    tls: {mode: SIMPLE, credentialName: a}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: front}
spec:
  hosts: ["*"]
  gateways: [front]
  http:
  - {name: front, route: [{destination: {host: reviews, port: {number: 9080}}}]}
"""


@pytest.fixture
def front(shop: Mesh) -> Client:
    """A gateway with two plaintext ports, and TLS for two names."""
    shop.apply(GATEWAY, shop.tls_secret("a", "a.example.com", "b.example.com"))
    return shop.gateway()


@pytest.mark.covers("EnvoyFilter.configPatches.match.listener.filterChain.sni")
def test_filter_chain_sni(shop: Mesh, front: Client) -> None:
    match = in_manager("GATEWAY", ROUTER, filterChain={"sni": "b.example.com"})
    shop.apply(
        envoy_filter(
            patch("HTTP_FILTER", "INSERT_BEFORE", adds("x-lua"), match), namespace="istio-system"
        )
    )
    assert seen(front, "x-lua", "https://a.example.com:8443/") is None
    assert seen(front, "x-lua", "https://b.example.com:8443/") == "yes"


def test_gateway_listener_by_port_name(shop: Mesh, front: Client) -> None:
    match = in_manager("GATEWAY", ROUTER, portName="http-other")
    shop.apply(
        envoy_filter(
            patch("HTTP_FILTER", "INSERT_BEFORE", adds("x-lua"), match), namespace="istio-system"
        )
    )
    assert seen(front, "x-lua", "http://a.example.com:8080/") is None
    assert seen(front, "x-lua", "http://a.example.com:8081/") == "yes"


def direct(body: str) -> list[dict[str, Any]]:
    """Network filters that answer every connection with a line and end it."""
    return [
        {
            "name": "envoy.filters.network.direct_response",
            "typed_config": {
                "@type": TYPE + "extensions.filters.network.direct_response.v3.Config",
                "response": {"inline_string": f"{body}\n"},
            },
        }
    ]


def test_listeners_are_added_and_removed(shop: Mesh, caller: Client) -> None:
    added = {
        "name": "extra",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 9999}},
        "bind_to_port": False,
        "filter_chains": [{"filters": direct("hello")}],
    }
    shop.apply(
        envoy_filter(
            patch("LISTENER", "ADD", added, {"context": "SIDECAR_OUTBOUND"}),
            patch(
                "LISTENER",
                "REMOVE",
                match={"context": "SIDECAR_OUTBOUND", "listener": {"portNumber": 9081}},
            ),
        )
    )
    with caller.tcp("reviews:9999") as connection:
        assert connection.read_line() == b"hello\n"
    names = {
        entry["name"]
        for config in shop.config("caller")["configs"]
        for entry in config.get("dynamic_listeners", ())
    }
    assert "0.0.0.0_9080" in names
    assert "0.0.0.0_9081" not in names


def test_filter_chains_are_added_merged_and_removed(shop: Mesh, caller: Client) -> None:
    chain = {
        "name": "by-name",
        "filter_chain_match": {"server_names": ["special.example.com"]},
        "filters": direct("special"),
    }
    outbound = {"context": "SIDECAR_OUTBOUND", "listener": {"portNumber": 9080}}
    shop.apply(envoy_filter(patch("FILTER_CHAIN", "ADD", chain, outbound)))
    with caller.tcp("reviews:9080") as connection:
        connection.write(client_hello("special.example.com"))
        assert connection.read_line() == b"special\n"
    named = {**outbound, "listener": {"portNumber": 9080, "filterChain": {"name": "by-name"}}}
    shop.apply(
        envoy_filter(
            patch("FILTER_CHAIN", "ADD", chain, outbound),
            patch(
                "FILTER_CHAIN",
                "MERGE",
                {"filter_chain_match": {"server_names": ["more.example.com"]}},
                named,
            ),
        )
    )
    with caller.tcp("reviews:9080") as connection:
        connection.write(client_hello("more.example.com"))
        assert connection.read_line() == b"special\n"
    shop.apply(
        envoy_filter(
            patch("FILTER_CHAIN", "ADD", chain, outbound),
            patch("FILTER_CHAIN", "REMOVE", match=named),
        )
    )
    assert seen(caller, "x-lua") is None


def client_hello(name: str) -> bytes:
    """The first bytes of TLS for a server name."""
    import ssl

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    pretend = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        pretend.do_handshake()
    return outgoing.read()


def test_network_filters(shop: Mesh, caller: Client) -> None:
    """A connection limit of nothing refuses; a merge into the TCP proxy shows in its idle timeout."""
    match = {
        "context": "SIDECAR_OUTBOUND",
        "listener": {
            "portNumber": 9000,
            "filterChain": {"filter": {"name": "envoy.filters.network.tcp_proxy"}},
        },
    }
    proxy = TYPE + "extensions.filters.network.tcp_proxy.v3.TcpProxy"
    shop.apply(
        envoy_filter(
            patch(
                "NETWORK_FILTER",
                "MERGE",
                {"typed_config": {"@type": proxy, "idle_timeout": "0.1s"}},
                match,
            )
        )
    )
    with caller.tcp("reviews:9000") as connection:
        assert connection.ask("hello")["received"] == "hello"
        assert connection.read_line() == b""
    shop.apply(
        envoy_filter(
            patch("NETWORK_FILTER", "INSERT_BEFORE", direct("instead")[0], match),
            patch("NETWORK_FILTER", "REMOVE", match=match),
        )
    )
    with caller.tcp("reviews:9000") as connection:
        assert connection.read_line() == b"instead\n"


def test_replace_of_a_network_filter(shop: Mesh, caller: Client) -> None:
    match = in_manager("SIDECAR_OUTBOUND", portNumber=9080)
    shop.apply(envoy_filter(patch("NETWORK_FILTER", "REPLACE", direct("instead")[0], match)))
    with caller.tcp("reviews:9080") as connection:
        connection.write(b"GET / HTTP/1.1\r\nhost: reviews\r\n\r\n")
        assert connection.read_line() == b"instead\n"


def test_lists_are_replaced_by_merge_and_replace_list(shop: Mesh, caller: Client) -> None:
    manager = TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = TYPE + "extensions.filters.http.router.v3.Router"
    only = [adds("x-lua", "alone"), {"name": ROUTER, "typed_config": {"@type": router}}]
    value = {"typed_config": {"@type": manager, "http_filters": only}}
    match = in_manager("SIDECAR_OUTBOUND", portNumber=9080)
    # Added to the list, a second router would be refused.
    shop.apply(envoy_filter(patch("NETWORK_FILTER", "MERGE_AND_REPLACE_LIST", value, match)))
    assert seen(caller, "x-lua") == "alone"


def test_a_network_filter_is_inserted_first(shop: Mesh, caller: Client) -> None:
    limit = {
        "name": "limit",
        "typed_config": {
            "@type": TYPE + "extensions.filters.network.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "limit",
            "token_bucket": {"max_tokens": 1, "tokens_per_fill": 1, "fill_interval": "600s"},
        },
    }
    match = {"context": "SIDECAR_OUTBOUND", "listener": {"portNumber": 9000}}
    shop.apply(envoy_filter(patch("NETWORK_FILTER", "INSERT_FIRST", limit, match)))
    with caller.tcp("reviews:9000") as connection:
        assert connection.ask("hello")["received"] == "hello"
    with caller.tcp("reviews:9000") as connection:
        assert connection.read_line() == b""


@pytest.mark.covers("EnvoyFilter.configPatches.match.listener.listenerFilter")
@pytest.mark.parametrize(
    ("operation", "anchor", "wanted"),
    [
        ("ADD", "", [-1]),
        ("INSERT_FIRST", "", [0]),
        ("INSERT_BEFORE", "envoy.filters.listener.http_inspector", [-2]),
        ("INSERT_AFTER", "envoy.filters.listener.tls_inspector", [-2]),
    ],
)
def test_listener_filters(
    shop: Mesh, caller: Client, operation: str, anchor: str, wanted: list[int]
) -> None:
    limit = {
        "name": "limit",
        "typed_config": {
            "@type": TYPE + "extensions.filters.listener.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "patched",
            "token_bucket": {"max_tokens": 2, "tokens_per_fill": 1, "fill_interval": "600s"},
        },
    }
    listener: dict[str, Any] = {"name": "0.0.0.0_9080"}
    if anchor:
        listener["listenerFilter"] = anchor
    match = {"context": "SIDECAR_OUTBOUND", "listener": listener}
    shop.apply(envoy_filter(patch("LISTENER_FILTER", operation, limit, match)))
    rig = "envoy.filters.listener.proxy_protocol"  # only here: where a pod's kernel tells the destination
    (filters,) = [
        [
            f["name"]
            for f in entry["active_state"]["listener"]["listener_filters"]
            if f["name"] != rig
        ]
        for config in shop.config("caller")["configs"]
        for entry in config.get("dynamic_listeners", ())
        if entry["name"] == "0.0.0.0_9080"
    ]
    assert all(filters[index] == "limit" for index in wanted), filters
    assert "limit" in filters


def test_merge_of_a_listener(shop: Mesh) -> None:
    shop.apply(
        envoy_filter(
            patch(
                "LISTENER",
                "MERGE",
                {"per_connection_buffer_limit_bytes": 4096},
                {"context": "SIDECAR_OUTBOUND", "listener": {"portNumber": 9080}},
            )
        )
    )
    limits = {
        entry["name"]: entry["active_state"]["listener"].get("per_connection_buffer_limit_bytes")
        for config in shop.config("caller")["configs"]
        for entry in config.get("dynamic_listeners", ())
    }
    assert (limits["0.0.0.0_9080"], limits["0.0.0.0_9081"]) == (4096, None)


# --- routes -------------------------------------------------------------------------------------------


def header_added(name: str) -> dict[str, Any]:
    """A value that adds a request header, for tables, hosts and routes alike."""
    return {"request_headers_to_add": [{"header": {"key": name, "value": "yes"}}]}


@pytest.mark.covers(
    "EnvoyFilter.configPatches.match.routeConfiguration.portNumber",
    "EnvoyFilter.configPatches.match.routeConfiguration.name",
)
@pytest.mark.parametrize("table", [{"portNumber": 9081}, {"name": "9081"}])
def test_route_configurations(shop: Mesh, caller: Client, table: dict[str, Any]) -> None:
    match = {"context": "SIDECAR_OUTBOUND", "routeConfiguration": table}
    shop.apply(envoy_filter(patch("ROUTE_CONFIGURATION", "MERGE", header_added("x-table"), match)))
    assert seen(caller, "x-table") is None
    assert seen(caller, "x-table", "http://reviews:9081/") == "yes"


def test_inbound_route_configurations(shop: Mesh, caller: Client) -> None:
    match = {"context": "SIDECAR_INBOUND"}
    shop.apply(envoy_filter(patch("ROUTE_CONFIGURATION", "MERGE", header_added("x-table"), match)))
    assert seen(caller, "x-table") == "yes"


@pytest.mark.covers(
    "EnvoyFilter.configPatches.match.routeConfiguration.gateway",
    "EnvoyFilter.configPatches.match.routeConfiguration.portName",
)
@pytest.mark.parametrize(
    ("table", "urls"),
    [
        ({"gateway": "default/front"}, {"http:8080", "http:8081", "https:8443"}),
        ({"gateway": "default/other"}, set()),
        ({"portName": "http-other"}, {"http:8081"}),
        ({"portName": "https-a", "gateway": "default/front"}, {"https:8443"}),
        ({"portNumber": 8443}, {"https:8443"}),
        ({"portNumber": 8080, "gateway": "default/front"}, {"http:8080"}),
    ],
)
def test_route_configurations_of_gateways(
    shop: Mesh, front: Client, table: dict[str, Any], urls: set[str]
) -> None:
    match = {"context": "GATEWAY", "routeConfiguration": table}
    shop.apply(
        envoy_filter(
            patch("ROUTE_CONFIGURATION", "MERGE", header_added("x-table"), match),
            namespace="istio-system",
        )
    )
    for scheme, port in (("http", 8080), ("http", 8081), ("https", 8443)):
        wanted = "yes" if f"{scheme}:{port}" in urls else None
        assert seen(front, "x-table", f"{scheme}://a.example.com:{port}/") == wanted


def vhost(host: str, **route: Any) -> dict[str, Any]:
    """Matches one virtual host of the callers' proxies by its name, and routes in it."""
    found: dict[str, Any] = {"name": host}
    if route:
        found["route"] = route
    return {"context": "SIDECAR_OUTBOUND", "routeConfiguration": {"vhost": found}}


REVIEWS = "reviews.default.svc.cluster.local:9080"


@pytest.mark.covers(
    "EnvoyFilter.configPatches.match.routeConfiguration.vhost.name",
    "EnvoyFilter.configPatches.match.routeConfiguration.vhost.domainName",
)
@pytest.mark.parametrize("chosen", [{"name": REVIEWS}, {"domainName": "reviews"}])
def test_virtual_hosts_are_merged(shop: Mesh, caller: Client, chosen: dict[str, Any]) -> None:
    match = {"context": "SIDECAR_OUTBOUND", "routeConfiguration": {"vhost": chosen}}
    shop.apply(envoy_filter(patch("VIRTUAL_HOST", "MERGE", header_added("x-host"), match)))
    assert seen(caller, "x-host") == "yes"
    assert seen(caller, "x-host", "http://details:9080/") is None


def test_virtual_hosts_are_added_and_removed(shop: Mesh, caller: Client) -> None:
    teapot = {
        "name": "teapot",
        "domains": ["teapot.example.com"],
        "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 418}}],
    }
    table = {"context": "SIDECAR_OUTBOUND", "routeConfiguration": {"name": "9080"}}
    shop.apply(
        envoy_filter(
            patch("VIRTUAL_HOST", "ADD", teapot, table),
            patch("VIRTUAL_HOST", "REMOVE", match=vhost("details.default.svc.cluster.local:9080")),
        )
    )
    assert caller.get(URL, host="teapot.example.com").status == 418
    assert caller.get(URL).route == "default"
    assert caller.get("http://details:9080/").route == "allow_any"


@pytest.mark.covers(
    "EnvoyFilter.configPatches.match.routeConfiguration.vhost.route.name",
    "EnvoyFilter.configPatches.match.routeConfiguration.vhost.route.action",
)
def test_routes(http: Callable[[str], Mesh], shop: Mesh, caller: Client) -> None:
    http("""
- name: old
  match: [{uri: {prefix: /old}}]
  redirect: {uri: /new}
- name: answer
  match: [{uri: {prefix: /answer}}]
  directResponse: {status: 201}
- name: rest
  route: [{destination: {host: reviews, subset: v1}}]
""")

    def answering(name: str, status: int, path: str) -> dict[str, Any]:
        return {"name": name, "match": {"prefix": path}, "direct_response": {"status": status}}

    shop.apply(
        envoy_filter(
            patch("HTTP_ROUTE", "MERGE", header_added("x-named"), vhost(REVIEWS, name="rest")),
            patch(
                "HTTP_ROUTE",
                "MERGE",
                header_added("x-forwarded-on"),
                vhost(REVIEWS, action="ROUTE"),
            ),
            patch(
                "HTTP_ROUTE",
                "MERGE",
                {"redirect": {"path_redirect": "/newest"}},
                vhost(REVIEWS, action="REDIRECT"),
            ),
            patch(
                "HTTP_ROUTE",
                "MERGE",
                {"direct_response": {"status": 202}},
                vhost(REVIEWS, action="DIRECT_RESPONSE"),
            ),
            patch("HTTP_ROUTE", "INSERT_FIRST", answering("a", 211, "/first"), vhost(REVIEWS)),
            patch(
                "HTTP_ROUTE",
                "INSERT_BEFORE",
                answering("b", 212, "/rest/a"),
                vhost(REVIEWS, name="rest"),
            ),
            patch(
                "HTTP_ROUTE",
                "INSERT_AFTER",
                answering("c", 213, "/answer/late"),
                vhost(REVIEWS, name="answer"),
            ),
            patch("HTTP_ROUTE", "ADD", answering("d", 214, "/"), vhost(REVIEWS)),
        )
    )
    answer = caller.get(URL)
    headers = answer.json()["headers"]
    assert (headers.get("x-named"), headers.get("x-forwarded-on")) == ("yes", "yes")
    assert caller.get(URL + "old").headers["location"].endswith("/newest")
    # INSERT_AFTER puts it behind a route that takes its requests already.
    assert [caller.get(URL + p).status for p in ("answer", "answer/late", "first", "rest/a")] == [
        202,
        202,
        211,
        212,
    ]
    shop.apply(
        envoy_filter(
            patch("HTTP_ROUTE", "REMOVE", match=vhost(REVIEWS, name="rest")),
            patch("HTTP_ROUTE", "ADD", answering("d", 214, "/"), vhost(REVIEWS)),
        )
    )
    assert caller.get(URL).status == 214


# --- clusters -----------------------------------------------------------------------------------------

V1 = "outbound|9080|v1|reviews.default.svc.cluster.local"


def timeouts(shop: Mesh, workload: str = "caller") -> dict[str, str]:
    """The connect timeouts of a proxy's clusters."""
    return {
        entry["cluster"]["name"]: entry["cluster"].get("connect_timeout", "")
        for config in shop.config(workload)["configs"]
        for entry in config.get("dynamic_active_clusters", ())
    }


@pytest.mark.covers(
    "EnvoyFilter.configPatches.match.cluster.service",
    "EnvoyFilter.configPatches.match.cluster.subset",
    "EnvoyFilter.configPatches.match.cluster.portNumber",
    "EnvoyFilter.configPatches.match.cluster.name",
)
@pytest.mark.parametrize(
    "chosen",
    [
        {"service": "reviews.default.svc.cluster.local", "subset": "v1", "portNumber": 9080},
        {"name": V1},
    ],
)
def test_clusters_are_merged(shop: Mesh, chosen: dict[str, Any]) -> None:
    match = {"context": "SIDECAR_OUTBOUND", "cluster": chosen}
    shop.apply(envoy_filter(patch("CLUSTER", "MERGE", {"connect_timeout": "7s"}, match)))
    assert [name for name, time in timeouts(shop).items() if time == "7s"] == [V1]


def test_inbound_clusters_are_matched_by_the_workloads_port(shop: Mesh) -> None:
    match = {"context": "SIDECAR_INBOUND", "cluster": {"portNumber": 9081}}
    shop.apply(envoy_filter(patch("CLUSTER", "MERGE", {"connect_timeout": "7s"}, match)))
    found = timeouts(shop, "reviews-v1")
    assert [name for name, time in found.items() if time == "7s"] == ["inbound|9081||"]


def test_clusters_are_added_removed_and_routed_to(
    http: Callable[[str], Mesh], shop: Mesh, caller: Client
) -> None:
    http("- name: only\n  route: [{destination: {host: reviews, subset: v1}}]")
    address = {"address": "elsewhere.example.com", "port_value": 80}
    endpoint = {"endpoint": {"address": {"socket_address": address}}}
    cluster = {
        "name": "elsewhere",
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": "elsewhere",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }
    shop.apply(
        envoy_filter(
            patch("CLUSTER", "ADD", cluster, {"context": "SIDECAR_OUTBOUND"}),
            patch("CLUSTER", "REMOVE", match={"cluster": {"name": V1}}),
            patch(
                "HTTP_ROUTE",
                "MERGE",
                {"route": {"cluster": "elsewhere"}},
                vhost(REVIEWS, name="only"),
            ),
        )
    )
    answer = caller.get(URL)
    assert answer.json()["host"] == "reviews:9080"
    assert answer.workload == "elsewhere.example.com"
    assert V1 not in timeouts(shop)


# --- filters delivered by name ------------------------------------------------------------------------


def test_extension_configs_are_delivered_by_name(shop: Mesh, caller: Client) -> None:
    by_name = {
        "name": "named",
        "config_discovery": {
            "config_source": {"ads": {}, "initial_fetch_timeout": "5s"},
            "type_urls": [TYPE + "extensions.filters.http.lua.v3.Lua"],
        },
    }
    insert = patch("HTTP_FILTER", "INSERT_BEFORE", by_name, in_manager("SIDECAR_OUTBOUND", ROUTER))
    for text in ("one", "two"):
        shop.apply(
            envoy_filter(
                insert,
                patch(
                    "EXTENSION_CONFIG",
                    "ADD",
                    adds("x-lua", text, "named"),
                    {"context": "SIDECAR_OUTBOUND"},
                ),
            )
        )
        assert seen(caller, "x-lua") == text


# --- which proxies, and in which order ----------------------------------------------------------------


@pytest.mark.covers(
    "EnvoyFilter.configPatches.match.proxy.proxyVersion",
    "EnvoyFilter.configPatches.match.proxy.metadata",
)
@pytest.mark.parametrize(
    ("proxy", "applies"),
    [
        ({"proxyVersion": r"^1\..*"}, True),
        ({"proxyVersion": r"^0\..*"}, False),
        ({"metadata": {"WORKLOAD_NAME": "caller"}}, True),
        ({"metadata": {"WORKLOAD_NAME": "other"}}, False),
    ],
)
def test_proxies_by_version_and_metadata(
    shop: Mesh, caller: Client, proxy: dict[str, Any], applies: bool
) -> None:
    match = {**in_manager("SIDECAR_OUTBOUND", ROUTER), "proxy": proxy}
    shop.apply(envoy_filter(patch("HTTP_FILTER", "INSERT_BEFORE", adds("x-lua"), match)))
    assert (seen(caller, "x-lua") == "yes") is applies


@pytest.mark.covers("EnvoyFilter.workloadSelector.labels")
def test_workload_selector(shop: Mesh, caller: Client) -> None:
    shop.apply(envoy_filter(outbound_lua("x-lua"), workloadSelector={"labels": {"team": "green"}}))
    assert seen(caller, "x-lua") is None
    shop.apply(envoy_filter(outbound_lua("x-lua"), workloadSelector={"labels": {"team": "blue"}}))
    assert seen(caller, "x-lua") == "yes"


def test_namespaces_limit_what_a_filter_reaches(shop: Mesh, caller: Client) -> None:
    other = shop.client("other")
    shop.apply(envoy_filter(outbound_lua("x-lua")))
    assert seen(caller, "x-lua") == "yes"
    assert seen(other, "x-lua", "http://reviews.default:9080/") is None
    shop.delete("EnvoyFilter", "patches")
    shop.apply(envoy_filter(outbound_lua("x-lua"), namespace="istio-system"))
    assert seen(other, "x-lua", "http://reviews.default:9080/") == "yes"


@pytest.mark.covers(
    "EnvoyFilter.targetRefs.group", "EnvoyFilter.targetRefs.kind", "EnvoyFilter.targetRefs.name"
)
def test_target_refs_choose_gateways(shop: Mesh, front: Client) -> None:
    shop.apply("""
apiVersion: apps/v1
kind: Deployment
metadata: {name: edge, namespace: istio-system}
spec:
  template:
    metadata:
      labels: {istio: ingressgateway, gateway.networking.k8s.io/gateway-name: edge}
      annotations: {inject.istio.io/templates: gateway}
    spec: {containers: [{name: istio-proxy}]}
""")
    lua_there = patch("HTTP_FILTER", "INSERT_BEFORE", adds("x-lua"), in_manager("GATEWAY", ROUTER))

    def target(name: str) -> str:
        ref = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": name}
        return envoy_filter(lua_there, namespace="istio-system", targetRefs=[ref])

    shop.apply(target("another"))
    assert seen(shop.gateway("edge"), "x-lua", "http://a.example.com:8080/") is None
    shop.apply(target("edge"))
    assert seen(shop.gateway("edge"), "x-lua", "http://a.example.com:8080/") == "yes"


@pytest.mark.covers("EnvoyFilter.priority")
def test_order_is_root_namespace_then_priority_then_age(shop: Mesh, caller: Client) -> None:
    shop.apply(
        envoy_filter(outbound_lua("x-order", "young"), name="a", created="2024-01-02T00:00:00Z"),
        envoy_filter(outbound_lua("x-order", "old"), name="b", created="2024-01-01T00:00:00Z"),
        envoy_filter(outbound_lua("x-order", "late"), name="c", priority=10),
        envoy_filter(outbound_lua("x-order", "early"), name="d", priority=-10),
        envoy_filter(
            outbound_lua("x-order", "root"), name="e", namespace="istio-system", priority=100
        ),
    )
    assert seen(caller, "x-order") == "root,early,old,young,late"


# --- what people use it for ---------------------------------------------------------------------------


def test_local_rate_limit(shop: Mesh, caller: Client) -> None:
    limit = {
        "name": "envoy.filters.http.local_ratelimit",
        "typed_config": {
            "@type": TYPE + "extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "limit",
            "token_bucket": {"max_tokens": 3, "tokens_per_fill": 3, "fill_interval": "600s"},
            "filter_enabled": {"default_value": {"numerator": 100}},
            "filter_enforced": {"default_value": {"numerator": 100}},
        },
    }
    shop.apply(
        envoy_filter(
            patch("HTTP_FILTER", "INSERT_BEFORE", limit, in_manager("SIDECAR_INBOUND", ROUTER)),
            workloadSelector={"labels": {"app": "details"}},
        )
    )
    found = caller.send("http://details:9080/", n=5).statuses
    assert found == {200: 3, 429: 2}


# --- wrong patches ------------------------------------------------------------------------------------


def test_a_wrong_value_is_refused_with_its_line(shop: Mesh) -> None:
    with pytest.raises(WrongConfiguration) as caught:
        shop.apply(
            envoy_filter(patch("CLUSTER", "MERGE", {"connect_timeout": "soon"}, {"context": "ANY"}))
        )
    (finding,) = caught.value.findings
    assert finding.origin.path == "spec.configPatches[0].patch.value"
    assert finding.origin.line > 0
    assert "connect_timeout" in finding.text


def test_a_type_that_the_proxy_does_not_have_is_refused(shop: Mesh) -> None:
    name = TYPE + "extensions.filters.network.mysql_proxy.v3.MySQLProxy"
    value = {"name": "mysql", "typed_config": {"@type": name, "stat_prefix": "m"}}
    with pytest.raises(WrongConfiguration, match="the proxy has no type"):
        shop.apply(envoy_filter(patch("NETWORK_FILTER", "INSERT_FIRST", value)))


def test_unknown_fields_are_ignored_and_reported(shop: Mesh, caller: Client) -> None:
    value = {"connect_timeout": "7s", "no_such_field": 1}
    match = {"context": "SIDECAR_OUTBOUND", "cluster": {"name": V1}}
    shop.apply(envoy_filter(patch("CLUSTER", "MERGE", value, match)))
    assert timeouts(shop)[V1] == "7s"
    assert any("no_such_field" in finding.text for finding in shop.findings)


def test_a_patch_that_cannot_be_applied_leaves_the_others(shop: Mesh, caller: Client) -> None:
    taken = {"name": V1, "connect_timeout": "1s"}
    shop.apply(
        envoy_filter(
            patch("CLUSTER", "ADD", taken, {"context": "SIDECAR_OUTBOUND"}),
            outbound_lua("x-lua"),
        )
    )
    assert seen(caller, "x-lua") == "yes"
    (finding,) = [f for f in shop.findings if f.code == "MLT0110"]
    assert finding.origin.path == "spec.configPatches[0]"
    assert finding.origin.line > 0
