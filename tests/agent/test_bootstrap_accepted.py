"""Envoy itself accepts every shape of bootstrap, without a deprecation warning."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.control_plane import Authority
from meltemi.adapters.envoy_process import find_envoy
from meltemi.agent import secrets
from meltemi.agent.bootstrap import build_bootstrap
from meltemi.agent.settings import parse_settings
from meltemi.envoy.patch_bootstrap import merged_bootstrap

PROBES = {
    "/app-health/a/livez": {
        "httpGet": {"path": "/x?y=\\1", "port": 1, "httpHeaders": [{"name": "X", "value": "5%"}]}
    },
    "/app-health/a/readyz": {"httpGet": {"port": 2, "scheme": "HTTPS"}, "timeoutSeconds": 3},
    "/app-health/b/livez": {"tcpSocket": {"port": 3}, "periodSeconds": 5},
    "/app-health/b/readyz": {"grpc": {"port": 4, "service": "ready"}},
    "/app-health/c/readyz": {"grpc": {"port": 4}},
    "/app-lifecycle/a/prestopz": {"httpGet": {"path": "/bye", "port": 1}},
}


@pytest.mark.envoy
@pytest.mark.parametrize("patched", [False, True], ids=["as-is", "patched"])
@pytest.mark.parametrize(
    ("environment", "more"),
    [
        ({}, {}),
        ({"ISTIO_KUBE_APP_PROBERS": json.dumps(PROBES), "INSTANCE_IP": "10.1.2.3"}, {"uid": 0}),
        ({"ISTIO_KUBE_APP_PROBERS": json.dumps(PROBES), "INSTANCE_IP": "fd00::1"}, {}),
        ({"GOMEMLIMIT": "1073741824"}, {"node_type": "router"}),
        (
            {"ISTIO_META_ENABLE_SELF_DISCOVERY": "true"},
            {"labels": 'topology.kubernetes.io/zone="b"'},
        ),
        (
            {
                "PROXY_CONFIG": json.dumps(
                    {
                        "discoveryAddress": "10.0.0.1:15010",
                        "proxyStatsMatcher": {
                            "inclusionSuffixes": ["x"],
                            "inclusionRegexps": [".*retry.*"],
                        },
                        "runtimeValues": {"a.b": "true"},
                        "connectionSettings": {"globalDownstreamConnectionLimit": 55},
                    }
                )
            },
            {
                "annotations": 'sidecar.istio.io/statsHistogramBuckets="{\\"istiocustom\\":[1,5]}"\n'
                'sidecar.istio.io/statsInclusionPrefixes="*"\n'
            },
        ),
    ],
    ids=["plain", "marked-probes", "ipv6-probes", "gateway", "own-service", "plaintext-stats"],
)
def test_envoy_accepts_it(
    tmp_path: Path, environment: dict[str, str], more: dict[str, Any], patched: bool
) -> None:
    """``envoy --mode validate`` says OK and nothing else."""
    settings, problems = parse_settings(
        {
            "MESH_CONFIG_DIR": str(tmp_path),
            "MESH_CREDENTIALS_DIR": str(tmp_path),
            **environment,
        },
        **more,
    )
    assert not problems
    (tmp_path / secrets.ROOTCA_FILE).write_text(secrets.render_rootca(Authority().pem))
    token = secrets.SecretText("token")
    (tmp_path / secrets.XDS_TOKEN_FILE).write_text(secrets.render_xds_token(token, 1))
    bootstrap, problems = build_bootstrap(settings)
    assert not problems
    # In protobuf's own spelling, too, as after a merge of patches: no field may be lost.
    path = tmp_path / "bootstrap.json"
    path.write_text(json.dumps(merged_bootstrap(bootstrap, []) if patched else bootstrap))
    run = subprocess.run(
        [find_envoy(), "--mode", "validate", "-c", str(path), "-l", "warning"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "OK" in run.stdout, run.stderr
    assert "eprecated" not in run.stdout + run.stderr


def test_unusable_probes_are_named_and_left_out() -> None:
    """A broken entry costs itself only."""
    probes = json.dumps(
        {"/app-health/a/livez": {"httpGet": {}}, "/app-health/a/readyz": {"exec": {}}}
    )
    settings, _ = parse_settings({"ISTIO_KUBE_APP_PROBERS": probes})
    _, problems = build_bootstrap(settings)
    assert [problem.split()[1].strip(":") for problem in problems] == [
        "/app-health/a/livez",
        "/app-health/a/readyz",
    ]


def test_secrets_do_not_print_themselves() -> None:
    """A token's or key's repr says nothing."""
    assert "tok" not in repr([secrets.SecretText("tok-en")])


def test_the_admin_port_is_on_loopback_only() -> None:
    """Whatever the settings: Envoy's admin interface can change and end it. Others' listeners only reach named paths of it."""
    for environment in ({}, {"PROXY_CONFIG": json.dumps({"proxyAdminPort": 15999})}):
        bootstrap, _ = build_bootstrap(parse_settings(environment)[0])
        address = bootstrap["admin"]["address"]["socket_address"]["address"]
        assert address == "127.0.0.1"
        for listener in bootstrap["static_resources"]["listeners"]:
            hcm = listener["filter_chains"][0]["filters"][0]["typed_config"]
            for route in hcm["route_config"]["virtual_hosts"][0]["routes"]:
                if route["route"]["cluster"] == "agent-admin":
                    assert route["match"].keys() == {"path"}
                    assert route["route"]["prefix_rewrite"] in ("/stats/prometheus", "/ready")


@pytest.mark.parametrize(
    ("metadata", "labels", "place"),
    [
        ("true", 'istio-locality="eu.a.rack1"', {"region": "eu", "zone": "a"}),
        ("", 'istio-locality="eu.a.rack1"', {"region": "eu", "zone": "a", "sub_zone": "rack1"}),
        ("true", 'topology.kubernetes.io/zone="a"', {"zone": "a"}),
        ("true", "", None),
    ],
)
def test_a_proxy_says_where_it_is(metadata: str, labels: str, place: object) -> None:
    """Without its subzone where it compares zones, which Envoy does for whole localities."""
    settings, _ = parse_settings({"ISTIO_META_ENABLE_SELF_DISCOVERY": metadata}, labels=labels)
    bootstrap, _ = build_bootstrap(settings)
    assert bootstrap["node"].get("locality") == place
    named = bootstrap.get("cluster_manager", {}).get("local_cluster_name")
    assert named == ("local_cluster" if metadata else None)
