"""The authority's own storage: which Secret holds what, and what to write.

In: the data of ``istio-ca-secret`` or ``cacerts`` as the cluster has them. Out: an ``Authority``, or the
Secret to create. Names and keys are Istio's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meltemi.ca import authority

SELF_SIGNED_SECRET = "istio-ca-secret"  # noqa: S105 - a Secret's name
PLUGGED_SECRET = "cacerts"  # noqa: S105 - a Secret's name
ROOT_CONFIG_MAP = "istio-ca-root-cert"
CRL_CONFIG_MAP = "istio-ca-crl"
ROOT_KEY = "root-cert.pem"
SELF_SIGNED_TYPE = "istio.io/ca-root"


def authority_of(data: Mapping[str, bytes]) -> authority.Authority:
    """The authority that a Secret (or a folder of files of these names) holds. Raises ValueError.

    Both spellings are known: ``ca-cert.pem`` and, for TLS Secrets of cert-manager, ``tls.crt``.
    """

    def text(*keys: str) -> str:
        return next((data[k].decode(errors="replace") for k in keys if data.get(k)), "")

    cert = text("ca-cert.pem", "tls.crt")
    key = text("ca-key.pem", "tls.key")
    if not cert or not key:
        raise ValueError(
            "the authority's Secret needs ca-cert.pem and ca-key.pem (or tls.crt and tls.key)"
        )
    return authority.load(
        cert,
        key,
        text("cert-chain.pem"),
        text("root-cert.pem", "ca.crt"),
        crl_pem=text("ca-crl.pem", "ca.crl"),
    )


def secret_of(
    held: authority.Authority, namespace: str, name: str = SELF_SIGNED_SECRET
) -> dict[str, Any]:
    """The Secret that keeps a self-signed authority; ``stringData`` so that nobody encodes by hand."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": SELF_SIGNED_TYPE,
        "metadata": {"name": name, "namespace": namespace},
        "stringData": {
            "ca-cert.pem": authority.certificate_pem(held),
            "ca-key.pem": authority.key_pem(held.key),
            "root-cert.pem": held.roots,
        },
    }


def files_of(held: authority.Authority) -> dict[str, str]:
    """The files of a plugged-in authority, under Istio's names."""
    files = {
        "ca-cert.pem": authority.certificate_pem(held),
        "ca-key.pem": authority.key_pem(held.key),
        "cert-chain.pem": authority.certificate_pem(held) + authority.chain_pem(held),
        "root-cert.pem": held.roots,
    }
    return {**files, "ca-crl.pem": held.crl} if held.crl else files


def root_config_map(
    namespace: str, data: Mapping[str, str], name: str = ROOT_CONFIG_MAP
) -> dict[str, Any]:
    """The ConfigMap through which every namespace learns the root, and what has been revoked."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"istio.io/config": "true"},
        },
        "data": dict(data),
    }
