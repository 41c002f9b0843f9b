"""istiod's settings in the environment: Istio's names, defaults and units."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

import click
import pytest
from click.testing import CliRunner

from meltemi.programs.control_plane_options import Options, flags, options_from


def options(environ: Mapping[str, str]) -> Options:
    """What no flags and this environment give."""
    made: list[Options] = []

    @click.command()
    @flags
    def command(**given: Any) -> None:
        made.append(options_from(given, environ))

    answer = CliRunner().invoke(command, [], standalone_mode=False)
    if answer.exception is not None:
        raise answer.exception
    return made[0]


@pytest.mark.parametrize(
    ("name", "field", "default", "text", "value"),
    [
        ("DEFAULT_WORKLOAD_CERT_TTL", "workload_ttl_s", 86400.0, "1h30m", 5400.0),
        ("MAX_WORKLOAD_CERT_TTL", "workload_ttl_max_s", 90 * 86400.0, "48h", 172800.0),
        ("CITADEL_SELF_SIGNED_CA_CERT_TTL", "root_ttl_s", 3650 * 86400.0, "8760h", 31536000.0),
        ("CITADEL_SELF_SIGNED_CA_RSA_KEY_SIZE", "root_rsa_bits", 2048, "4096", 4096),
        ("CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL", "root_check_s", 3600.0, "10m", 600.0),
        ("CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE", "root_grace_percentile", 20, "50", 50),
        ("CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR", "root_jitter", True, "false", False),
        ("USE_CACERTS_FOR_SELF_SIGNED_CA", "root_in_cacerts", False, "true", True),
        ("PILOT_JWT_ENABLE_REMOTE_JWKS", "keys_by_proxies", True, "istiod", False),
        ("PILOT_JWT_PUB_KEY_REFRESH_INTERVAL", "keys_refresh_s", 0.0, "1m", 60.0),
        ("CA_TRUSTED_NODE_ACCOUNTS", "trusted_node_accounts", (), "a/b,c/d", ("a/b", "c/d")),
        ("MESH_EXTERNAL_CA_ADDR", "external_ca", "", "ca.example:443", "ca.example:443"),
        ("TRUSTED_GATEWAY_CIDR", "trusted_gateways", (), "10.0.0.0/8", (ip_network("10.0.0.0/8"),)),
        ("CERT_SIGNER_DOMAIN", "signer_domain", "", "example.com", "example.com"),
    ],
)  # fmt: skip
def test_a_setting(name: str, field: str, default: object, text: str, value: object) -> None:
    """The default without it, its value with it."""
    assert getattr(options({}), field) == default
    assert getattr(options({name: text}), field) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DEFAULT_WORKLOAD_CERT_TTL", "soon"),
        ("MAX_WORKLOAD_CERT_TTL", "-1h"),
        ("CITADEL_SELF_SIGNED_CA_RSA_KEY_SIZE", "1024"),
        ("CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE", "many"),
        ("JWT_RULE", "{"),
        ("CA_TRUSTED_NODE_ACCOUNTS", "ztunnel"),
        ("EXTERNAL_CA", "VAULT"),
        ("TRUSTED_GATEWAY_CIDR", "everybody"),
    ],
)
def test_a_wrong_setting_is_named(name: str, text: str) -> None:
    """Start ends with the name of the variable."""
    with pytest.raises(click.BadParameter, match=name):
        options({name: text})
