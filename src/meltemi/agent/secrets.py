"""The files through which Envoy gets certificates and tokens.

In: paths, PEM texts, a token. Out: the JSON of SDS files. Envoy watches them (``path_config_source``), so
there is no SDS server; ``adapters.agent_files`` writes them atomically. Nothing here logs what it renders.
"""

from __future__ import annotations

import json
from typing import Any

TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
DEFAULT_FILE = "sds-default.json"
ROOTCA_FILE = "sds-rootca.json"
XDS_ROOT_FILE = "sds-xds-root.json"
XDS_TOKEN_FILE = "sds-xds-token.json"  # noqa: S105 -- a file name
CURRENT = "current"


class SecretText(str):
    """A private key or token: text that does not print itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Say that something is there, not what."""
        return "[redacted]"


def _file(version: str, resource: dict[str, Any]) -> str:
    body = {"version_info": version, "resources": [{"@type": TLS, **resource}]}
    return json.dumps(body, indent=1) + "\n"


def render_default(directory: str) -> str:
    """SDS secret ``default``: the workload's certificate in ``<directory>/current``."""
    tls = {
        "certificate_chain": {"filename": f"{directory}/{CURRENT}/cert.pem"},
        "private_key": {"filename": f"{directory}/{CURRENT}/key.pem"},
        "watched_directory": {"path": directory},
    }
    return _file("1", {"name": "default", "tls_certificate": tls})


def render_rootca(directory: str) -> str:
    """SDS secret ``ROOTCA``: the roots that peers are verified against."""
    context = {
        "trusted_ca": {"filename": f"{directory}/{CURRENT}/root.pem"},
        "watched_directory": {"path": directory},
    }
    return _file("1", {"name": "ROOTCA", "validation_context": context})


def render_xds_root(root_file: str, san: str) -> str:
    """SDS secret ``xds-root``: how istiod's own certificate is verified (root and DNS name)."""
    directory = root_file.rpartition("/")[0] or "."
    context = {
        "trusted_ca": {"filename": root_file},
        "watched_directory": {"path": directory},
        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": san}}],
    }
    return _file("1", {"name": "xds-root", "validation_context": context})


def render_xds_token(token: SecretText, version: int) -> str:
    """SDS secret ``xds-token``: the bearer token of Envoy's own stream; ``version`` counts rotations.

    The token is inline: replacing the SDS file is what Envoy notices at once (a file behind it is not).
    """
    secret = {"secret": {"inline_string": str(token)}}
    return _file(str(version), {"name": "xds-token", "generic_secret": secret})
