"""What tests of TLS at gateways share: servers, Secrets and clients with certificates."""

from __future__ import annotations

import functools
import ssl
import time
from pathlib import Path

from behaviour.edge import secret
from meltemi.testing.client import TlsOptions
from meltemi.testing.mesh import Mesh
from meltemi.testing.response import NoAnswer
from pki import Authority

HOST = "shop.example.com"
URL = f"https://{HOST}:8443/"
REFUSED = (NoAnswer, ssl.SSLError, ConnectionError)


@functools.cache
def rsa_pair(authority: Authority, *names: str) -> tuple[bytes, bytes]:
    """RSA keys take long to make."""
    return authority.issue(*names, with_rsa=True)


def pair(authority: Authority, *names: str, with_rsa: bool = False) -> tuple[str, str]:
    """(certificate, key) as text."""
    chain, key = rsa_pair(authority, *names) if with_rsa else authority.issue(*names)
    return chain.decode(), key.decode()


def tls_secret(
    name: str, made: tuple[str, str], namespace: str = "istio-system", **more: str
) -> str:
    """A Secret of type kubernetes.io/tls; ``ca`` and ``crl`` as text."""
    files = {"ca": "ca.crt", "crl": "ca.crl"}
    data = {"tls.crt": made[0], "tls.key": made[1]} | {files[k]: v for k, v in more.items()}
    return secret(name, data, namespace=namespace, kind="kubernetes.io/tls")


def https(
    tls: str,
    *,
    hosts: str = f"[{HOST}]",
    name: str = "https",
    protocol: str = "HTTPS",
    number: int = 8443,
) -> str:
    """One server with TLS."""
    port = f"{{number: {number}, name: {name}, protocol: {protocol}}}"
    return f"- {{port: {port}, hosts: {hosts}, tls: {tls}}}"


def refused(mesh: Mesh, url: str = URL, options: TlsOptions | None = None, **more: str) -> bool:
    """Whether a visitor gets no answer."""
    try:
        mesh.gateway().get(url, tls=options, **more)
    except REFUSED:
        return True
    return False


def showing(authority: Authority, *names: str) -> TlsOptions:
    """A client with a certificate."""
    return TlsOptions(cert=pair(authority, *names))


def mounted(folder: Path, made: tuple[str, str], **more: str) -> Path:
    """Files behind links of which one is swapped, as in a mounted Secret."""
    version = folder / f"..{time.monotonic_ns()}"
    version.mkdir()
    files = {"tls.crt": made[0], "tls.key": made[1], **more}
    for name, text in files.items():
        (version / name.replace("_", ".")).write_text(text)
    fresh = folder / "..tmp"
    fresh.symlink_to(version.name)
    fresh.rename(folder / "..data")
    for name in files:
        link = folder / name.replace("_", ".")
        if not link.is_symlink():
            link.symlink_to(f"..data/{link.name}")
    return folder
