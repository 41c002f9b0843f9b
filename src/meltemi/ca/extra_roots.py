"""Further roots that workloads trust, from ``caCertificates`` and ``defaultConfig.caCertificatesPem`` of the mesh configuration.

In: what the mesh's own authority publishes, and the mesh configuration. Out: the same with further roots behind its own. A root
that is only for other trust domains is left out: proxies keep one set of roots, so it could speak for this mesh's members, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meltemi.ca import secrets
from meltemi.model.mesh import CertificateData, MeshConfig


def readable_roots(text: str) -> list[x509.Certificate]:
    """The certificates of a PEM text; none when it is not one."""
    try:
        return x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        return []


def _is_for(entry: CertificateData, domains: Iterable[str]) -> bool:
    """Whether a root speaks for this mesh: it names no trust domain, or none but the mesh's own."""
    return set(entry.trust_domains) <= set(domains)


def with_extra_roots(
    published: Mapping[str, str] | None, mesh: MeshConfig, more: Iterable[str] = ()
) -> Mapping[str, str] | None:
    """The data of ``istio-ca-root-cert`` with the mesh configuration's roots and ``more``, each root once. None stays None."""
    if published is None:
        return None
    own = published[secrets.ROOT_KEY]
    seen = set(readable_roots(own))
    extra = ""
    texts = [
        entry.pem
        for entry in mesh.ca_certificates
        if entry.pem and _is_for(entry, mesh.trust_domains)
    ]
    for text in (*texts, *mesh.default_config.ca_certificates_pem, *more):
        for root in readable_roots(text):
            if root not in seen:
                seen.add(root)
                extra += root.public_bytes(Encoding.PEM).decode()
    if not extra:
        return published
    return {**published, secrets.ROOT_KEY: own.rstrip("\n") + "\n" + extra}
