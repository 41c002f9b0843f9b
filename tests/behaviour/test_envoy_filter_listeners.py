"""EnvoyFilter on listeners, their filters and filter chains: matches and operations, shown by requests."""

from __future__ import annotations

from typing import Any

import pytest

from behaviour.envoy_filters import (
    HCM,
    ROUTER,
    TYPE,
    adds,
    envoy_filter,
    in_manager,
    outbound_lua,
    patch,
    seen,
)
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy


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
