"""Environment to settings to bootstrap: what users write, and what Envoy gets."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from meltemi.agent.bootstrap import build_arguments, build_bootstrap, build_environment
from meltemi.agent.metrics import Rewriter, find_scrape_target
from meltemi.agent.readiness import count_connections, judge_readiness
from meltemi.agent.settings import parse_duration_s, parse_settings
from meltemi.programs.node_agent import main

ENVIRONMENT = {
    "POD_NAME": "reviews-v1-abc",
    "POD_NAMESPACE": "bookinfo",
    "SERVICE_ACCOUNT": "bookinfo-reviews",
    "INSTANCE_IP": "10.1.2.3",
    "ISTIO_META_WORKLOAD_NAME": "reviews-v1",
    "ISTIO_META_CLUSTER_ID": "east",
    "ISTIO_METAJSON_EXTRA": '{"STRICT": {"a": 1}}',
}
LABELS = 'app="reviews"\nversion="v1"\nodd="a\\"b"\n'


def bootstrap(environment: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    settings, problems = parse_settings(
        {**ENVIRONMENT, **(environment or {})}, labels=LABELS, **more
    )
    assert not problems
    built, problems = build_bootstrap(settings)
    assert not problems
    json.dumps(built)
    return built


def cluster(built: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        c for c in built["static_resources"]["clusters"] if c["name"] == name
    )
    return found


def test_the_node_has_istios_id_and_keys() -> None:
    """Id, labels with escapes, metadata of both kinds of variables."""
    node = bootstrap()["node"]
    assert node["id"] == "sidecar~10.1.2.3~reviews-v1-abc.bookinfo~bookinfo.svc.cluster.local"
    assert node["metadata"]["LABELS"]["odd"] == 'a"b'
    assert node["metadata"]["CLUSTER_ID"] == "east"
    assert node["metadata"]["STRICT"] == {"a": 1}
    assert node["cluster"] == "reviews.bookinfo"


def test_the_socket_mark_is_set_only_where_the_user_does_not_tell() -> None:
    """Marked: a captured sidecar of another uid than 1337. Unmarked: uid 1337, gateways, mode NONE."""
    marked = bootstrap(uid=0)
    options = marked["cluster_manager"]["upstream_bind_config"]["socket_options"]
    assert [(o["level"], o["name"], o["int_value"]) for o in options] == [(1, 36, 1337)]
    assert marked["node"]["metadata"]["MESH_SO_MARK"] == "1337"
    for built in (
        bootstrap(uid=1337),
        bootstrap(uid=0, node_type="router"),
        bootstrap({"ISTIO_META_INTERCEPTION_MODE": "NONE"}, uid=0),
    ):
        assert "cluster_manager" not in built
        assert "MESH_SO_MARK" not in built["node"]["metadata"]


def test_istiod_is_verified_and_gets_the_token() -> None:
    """TLS with the mesh's root and istiod's name; the token is injected before the codec."""
    xds = cluster(bootstrap(), "xds-grpc")
    context = xds["transport_socket"]["typed_config"]
    assert context["sni"] == "istiod.istio-system.svc"
    # However long istiod was away: a proxy that does not hear of it calls pods that have gone.
    (service,) = bootstrap()["dynamic_resources"]["ads_config"]["grpc_services"]
    assert service["envoy_grpc"]["retry_policy"]["retry_back_off"]["max_interval"] == "3s"
    verified = context["common_tls_context"]["combined_validation_context"]
    assert verified["validation_context_sds_secret_config"]["name"] == "ROOTCA"
    (name,) = verified["default_validation_context"]["match_typed_subject_alt_names"]
    assert name == {"san_type": "DNS", "matcher": {"exact": "istiod.istio-system.svc"}}
    options = xds["typed_extension_protocol_options"]
    (protocol,) = options.values()
    names = [f["name"] for f in protocol["http_filters"]]
    assert names == ["envoy.filters.http.credential_injector", "envoy.filters.http.upstream_codec"]


def test_a_plaintext_istiod_is_used_without_tls() -> None:
    """Port 15010 is the plaintext one."""
    config = json.dumps({"discoveryAddress": "127.0.0.1:15010"})
    xds = cluster(bootstrap({"PROXY_CONFIG": config}), "xds-grpc")
    assert "transport_socket" not in xds and "cluster_type" not in xds


POLICY_TAGS = {"authz_enforce_result", "authz_dry_run_action", "authz_dry_run_result"}


@pytest.mark.covers(
    "MeshConfig.defaultConfig.proxyStatsMatcher.inclusionPrefixes",
)
def test_statistics_are_few_unless_asked_for() -> None:
    """Istio's inclusion list; proxyStatsMatcher and annotations widen it and turn tags on."""
    plain = bootstrap()["stats_config"]
    assert {"prefix": "istio."} in plain["stats_matcher"]["inclusion_list"]["patterns"]
    assert {tag["tag_name"] for tag in plain["stats_tags"]} == POLICY_TAGS
    config = json.dumps({"proxyStatsMatcher": {"inclusionPrefixes": ["cluster.outbound"]}})
    wide = bootstrap(
        {"PROXY_CONFIG": config},
        annotations='sidecar.istio.io/statsInclusionRegexps=".*retry.*"\n',
    )["stats_config"]
    patterns = wide["stats_matcher"]["inclusion_list"]["patterns"]
    assert {"prefix": "cluster.outbound"} in patterns
    assert {"safe_regex": {"regex": ".*retry.*"}} in patterns
    assert {tag["tag_name"] for tag in wide["stats_tags"]} > POLICY_TAGS


@pytest.mark.covers(
    "MeshConfig.defaultConfig.serviceCluster",
    "MeshConfig.defaultConfig.proxyAdminPort",
    "MeshConfig.defaultConfig.discoveryAddress",
    "MeshConfig.defaultConfig.controlPlaneAuthPolicy",
    "MeshConfig.defaultConfig.runtimeValues",
    "MeshConfig.defaultConfig.connectionSettings.globalDownstreamConnectionLimit",
)
def test_the_start_configuration_follows_the_proxy_config() -> None:
    config = {
        "serviceCluster": "shop",
        "proxyAdminPort": 15055,
        "discoveryAddress": "istiod.example:15012",
        "controlPlaneAuthPolicy": "NONE",
        "runtimeValues": {"envoy.reloadable_features.x": "true"},
        "connectionSettings": {"globalDownstreamConnectionLimit": 55},
    }
    built = bootstrap({"PROXY_CONFIG": json.dumps(config)})
    assert built["node"]["cluster"] == "shop"
    assert built["admin"]["address"]["socket_address"]["port_value"] == 15055
    xds = cluster(built, "xds-grpc")
    assert "transport_socket" not in xds and "istiod.example" in json.dumps(xds)
    (values, _) = built["layered_runtime"]["layers"]
    assert values["static_layer"]["envoy.reloadable_features.x"] == "true"
    (monitor,) = built["overload_manager"]["resource_monitors"]
    assert monitor["typed_config"]["max_active_downstream_connections"] == 55


@pytest.mark.covers(
    "MeshConfig.defaultConfig.drainDuration",
    "MeshConfig.defaultConfig.fileFlushInterval",
    "MeshConfig.defaultConfig.fileFlushMinSizeKb",
)
def test_envoys_flags_follow_the_proxy_config() -> None:
    config = {"drainDuration": "20s", "fileFlushInterval": "0.5s", "fileFlushMinSizeKb": 16}
    settings, problems = parse_settings({"PROXY_CONFIG": json.dumps(config)})
    assert not problems
    found = build_arguments(settings, "x.json")
    flags = dict(pairwise(found))
    assert flags["--drain-time-s"] == "20"
    assert flags["--file-flush-interval-msec"] == "500"
    assert flags["--file-flush-min-size-kb"] == "16"
    assert "--file-flush-min-size-kb" not in build_arguments(parse_settings({})[0], "x.json")


@pytest.mark.covers(
    "MeshConfig.defaultConfig.proxyStatsMatcher.inclusionSuffixes",
    "MeshConfig.defaultConfig.proxyStatsMatcher.inclusionRegexps",
)
def test_statistics_by_suffix_and_pattern() -> None:
    matcher = {"inclusionSuffixes": ["upstream_rq_retry"], "inclusionRegexps": [".*circuit.*"]}
    config = json.dumps({"proxyStatsMatcher": matcher})
    made = bootstrap({"PROXY_CONFIG": config})["stats_config"]["stats_matcher"]
    patterns = made["inclusion_list"]["patterns"]
    assert {"suffix": "upstream_rq_retry"} in patterns
    assert {"safe_regex": {"regex": ".*circuit.*"}} in patterns


@pytest.mark.covers("MeshConfig.defaultConfig.configPath")
def test_the_folder_of_the_start_configuration() -> None:
    settings, _ = parse_settings({"PROXY_CONFIG": json.dumps({"configPath": "/var/lib/proxy"})})
    assert settings.config_dir == "/var/lib/proxy"
    assert settings.xds_socket == "/var/lib/proxy/XDS"


def test_environment_of_envoy_names_the_pod() -> None:
    """What shared resources read with %ENVIRONMENT(X)%."""
    settings, _ = parse_settings(ENVIRONMENT, labels=LABELS)
    environment = build_environment(settings)
    assert environment["MESH_WORKLOAD"] == "reviews-v1"
    assert environment["MESH_CANONICAL"] == "reviews" and environment["MESH_REVISION"] == "v1"
    assert environment["MESH_PRINCIPAL"] == "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews"


@pytest.mark.parametrize(
    ("config", "environment", "expected"),
    [
        ({}, {}, ["--concurrency", "2"]),
        ({}, {"ISTIO_CPU_LIMIT": "4"}, ["--concurrency", "4"]),
        ({"concurrency": 1}, {"ISTIO_CPU_LIMIT": "4"}, ["--concurrency", "1"]),
        ({"concurrency": 0}, {}, []),
    ],
)
@pytest.mark.covers(
    "MeshConfig.defaultConfig.concurrency",
)
def test_concurrency(
    config: dict[str, Any], environment: dict[str, str], expected: list[str]
) -> None:
    """As configured, else the CPU limit, else two; zero leaves it to Envoy."""
    settings, _ = parse_settings({"PROXY_CONFIG": json.dumps(config), **environment})
    arguments = build_arguments(settings, "x.json")
    found = (
        arguments[arguments.index("--concurrency") :][:2] if "--concurrency" in arguments else []
    )
    assert found == expected


def test_wrong_values_are_named_and_replaced_by_defaults() -> None:
    """Nothing in the environment stops the proxy."""
    settings, problems = parse_settings(
        {
            "PROXY_CONFIG": '{"drainDuration": "soon", "concurrency": "many", "proxyMetadata": 7}',
            "ISTIO_METAJSON_X": "{",
            "EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "perhaps",
        },
        annotations='sidecar.istio.io/statsHistogramBuckets="[1]"\n',
    )
    assert settings.config.drain_s == 45.0 and not settings.exit_on_zero_connections
    text = "\n".join(problems)
    for part in ("'soon' is not a duration", "'many' is not a whole number", "ISTIO_METAJSON_X"):
        assert part in text
    assert len(problems) == 6
    assert parse_settings({"PROXY_CONFIG": "{"})[1][0].startswith("PROXY_CONFIG is not JSON")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45.0), ("1m30s", 90.0), ("250ms", 0.25), (5, 5.0), ("1.5h", 5400.0)],
)
def test_durations(text: Any, seconds: float) -> None:
    """Go's durations and plain numbers of seconds."""
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("size", [1, 7, 64, 10000])
def test_metrics_are_rewritten_whatever_the_pieces(size: int) -> None:
    """Names and empty labels change in Istio's metrics only, wherever the stream is cut."""
    text = (
        b"# TYPE envoy_istio_requests_total counter\n"
        b'envoy_istio_requests_total{a="",grpc_response_status="",b="x"} 3\n'
        b'envoy_cluster_x{a=""} 1\n'
        b"tail 1"
    )
    rewriter = Rewriter()
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    made = b"".join(rewriter.feed(piece) for piece in pieces) + rewriter.close()
    assert made == (
        b"# TYPE istio_requests_total counter\n"
        b'istio_requests_total{a="unknown",grpc_response_status="",b="x"} 3\n'
        b'envoy_cluster_x{a=""} 1\n'
        b"tail 1\n"
    )


@pytest.mark.parametrize(
    ("annotations", "port", "problem"),
    [
        ({}, None, ""),
        ({"scrape": "false", "port": "1"}, None, ""),
        ({"scrape": "true", "port": "9080"}, 9080, ""),
        ({"scrape": "true"}, 80, ""),
        ({"scrape": "true", "port": "web"}, None, "'web' is not a port"),
        ({"scrape": "true", "port": "15020"}, None, "the agent's own port"),
    ],
)
def test_scrape_targets(annotations: dict[str, str], port: int | None, problem: str) -> None:
    """Where the application's metrics are, or why they cannot be had."""
    target, said = find_scrape_target(annotations, 15020)
    assert (target.port if target else None) == port
    assert problem in said and bool(problem) == bool(said)


READY = (
    "cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_success: 0\n"
    "listener_manager.lds.update_rejected: 1\nlistener_manager.workers_started: 1\nserver.state: 0\n"
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (READY, ""),
        ("", "is istiod reachable?"),
        (READY.replace("cds.update_success: 1", "cds.update_success: 0"), "cds updates: 0"),
        (READY.replace("workers_started: 1", "workers_started: 0"), "workers"),
        (READY.replace("server.state: 0", "server.state: 1"), "draining"),
    ],
)
def test_readiness(text: str, reason: str) -> None:
    """Ready with clusters and listeners accepted or refused; otherwise the reason says what is missing."""
    verdict = judge_readiness(text)
    assert verdict.ready is (reason == "") and reason in verdict.reason


def test_open_connections_do_not_count_our_own_listeners() -> None:
    """Admin, health and Prometheus connections do not keep a drain going."""
    text = (
        "listener.admin.downstream_cx_active: 3\nlistener.0.0.0.0_15021.downstream_cx_active: 4\n"
        "listener.0.0.0.0_15006.downstream_cx_active: 2\n"
        "listener.0.0.0.0_15006.worker_0.downstream_cx_active: 2\n"
        "http.inbound.downstream_cx_active: 2\n"
    )
    assert count_connections(text, ("_15021", "_15090")) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["istio-iptables", "-n", "-o", "3306"], 0, "tcp dport 3306 return"),
        (["istio-iptables", "-n", "-o", "x"], 2, "-o: 'x' is not a port"),
        (["istio-iptables", "-n", "-m", "TPROXY"], 2, "TPROXY is not available"),
        (["istio-iptables", "-n", "-i", "nowhere"], 2, "-i: 'nowhere' is not an IP network"),
        (["version", "--short"], 0, "0.1.0"),
        (["wait", "--url", "ftp://x"], 2, "only http:// addresses"),
        (["request", "GET", "stats", "--debug-port", "22"], 2, "invalid choice"),
    ],
)
def test_command_line(
    arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit codes 0 and 2, and what is said."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    assert (ended.value.code, text in captured.out + captured.err) == (code, True), captured
