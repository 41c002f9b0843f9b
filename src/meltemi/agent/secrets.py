"""The files through which Envoy gets certificates and tokens.

In: PEM texts, a token. Out: the JSON of SDS files, and what is read back from them. Envoy watches them
(``path_config_source``), so there is no SDS server; ``adapters.agent_files`` replaces them by rename. Everything is
inline: each watched path costs an inotify instance, of which the kernel gives a user 128 by default, and a key
beside its certificate cannot be read half renewed. Nothing here logs what it renders.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from meltemi.model.names import SDS_DEFAULT, SDS_DEFAULT_FILE, SDS_ROOTCA, SDS_ROOTCA_FILE

TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
DEFAULT_FILE = SDS_DEFAULT_FILE.rpartition("/")[2]
ROOTCA_FILE = SDS_ROOTCA_FILE.rpartition("/")[2]
XDS_TOKEN_FILE = "sds-xds-token.json"  # noqa: S105 -- a file name


class SecretText(str):
    """A private key or token: text that does not print itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Say that something is there, not what."""
        return "[redacted]"


def _file(version: str, resource: dict[str, Any]) -> str:
    body = {"version_info": version, "resources": [{"@type": TLS, **resource}]}
    return json.dumps(body, indent=1) + "\n"


def version_of(pem: str) -> str:
    """The version of what these certificates are in: a digest, equal after every restart."""
    return hashlib.sha256(pem.encode()).hexdigest()[:16]


def render_default(certificate: str, key: SecretText) -> str:
    """SDS secret ``default``: the workload's certificate chain (leaf first) and its key, PEM."""
    tls = {
        "certificate_chain": {"inline_string": certificate},
        "private_key": {"inline_string": str(key)},
    }
    return _file(version_of(certificate), {"name": SDS_DEFAULT, "tls_certificate": tls})


def read_default(document: str) -> tuple[str, SecretText]:
    """The chain and the key that ``render_default`` was given.

    :raises ValueError, LookupError, TypeError: when ``document`` is something else.
    """
    tls = json.loads(document)["resources"][0]["tls_certificate"]
    chain, key = (tls[part]["inline_string"] for part in ("certificate_chain", "private_key"))
    return chain, SecretText(key)


def render_rootca(roots: str, crl: str = "") -> str:
    """SDS secret ``ROOTCA``: the roots that peers and istiod are verified against, and revocation lists; PEM.

    Only a peer's own certificate is looked up in the lists: the authorities above it may have none, and Envoy
    would then refuse everybody.
    """
    context: dict[str, Any] = {"trusted_ca": {"inline_string": roots}}
    if crl:
        context |= {"crl": {"inline_string": crl}, "only_verify_leaf_cert_crl": True}
    return _file(version_of(roots + crl), {"name": SDS_ROOTCA, "validation_context": context})


def read_rootca(document: str) -> tuple[str, str]:
    """The roots and the revocation lists that ``render_rootca`` was given.

    :raises ValueError, LookupError, TypeError: when ``document`` is something else.
    """
    context = json.loads(document)["resources"][0]["validation_context"]
    roots, crl = context["trusted_ca"], context.get("crl", {"inline_string": ""})
    return str(roots["inline_string"]), str(crl["inline_string"])


def render_xds_token(token: SecretText, version: int) -> str:
    """SDS secret ``xds-token``: the bearer token of Envoy's own stream; ``version`` counts rotations."""
    secret = {"secret": {"inline_string": str(token)}}
    return _file(str(version), {"name": "xds-token", "generic_secret": secret})
