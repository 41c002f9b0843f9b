"""Kubeconfig files and the in-cluster service account -> where the server is and who we are.

In: a kubeconfig path (the current context is used) or the files a pod gets. Out: `Connection`.
Promises: every problem is a KubeconfigError that names the file and the field; keys given inline
touch the disk only as a 0600 temporary file, for as long as OpenSSL needs to read them.
"""

import base64
import binascii
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from localkube.client.errors import KubeconfigError

SERVICE_ACCOUNT_FOLDER: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Connection:
    """How to reach one API server."""

    server: str
    tls: ssl.SSLContext | None
    tls_server_name: str | None = None
    token: str | None = None
    token_file: Path | None = None  # read anew now and then: projected tokens rotate
    namespace: str = "default"


def in_cluster(
    folder: Path = SERVICE_ACCOUNT_FOLDER, environ: Mapping[str, str] = os.environ
) -> Connection:
    """The connection of a pod: KUBERNETES_SERVICE_HOST/PORT and the mounted service account."""
    host = environ.get("KUBERNETES_SERVICE_HOST")
    port = environ.get("KUBERNETES_SERVICE_PORT")
    token_file = folder / "token"
    if not host or not port or not token_file.exists():
        raise KubeconfigError(
            "not inside a cluster: KUBERNETES_SERVICE_HOST or the token at "
            f"{token_file} is missing; give a kubeconfig instead"
        )
    tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    namespace_file = folder / "namespace"
    namespace = namespace_file.read_text().strip() if namespace_file.exists() else "default"
    if ":" in host:
        host = f"[{host}]"
    return Connection(f"https://{host}:{port}", tls, token_file=token_file, namespace=namespace)


def from_kubeconfig(path: Path) -> Connection:
    """The connection of a kubeconfig's current context. Raises KubeconfigError."""
    import yaml  # here, because a pod with a service account never needs it

    try:
        text = path.read_bytes()
    except OSError as error:
        raise KubeconfigError(f"cannot read kubeconfig {path}: {error.strerror}") from error
    try:
        document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except yaml.YAMLError as error:
        raise KubeconfigError(f"kubeconfig {path} is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise KubeconfigError(f"kubeconfig {path} is empty or not a mapping")
    context_name = document.get("current-context") or ""
    context = _named(document, "contexts", context_name, "context", path)
    cluster = _named(document, "clusters", context.get("cluster") or "", "cluster", path)
    user = _named(document, "users", context.get("user") or "", "user", path)
    return _connection(path, context, cluster, user)


def _named(document: dict[str, Any], listing: str, name: str, field: str, path: Path) -> Any:
    for entry in document.get(listing) or []:
        if isinstance(entry, dict) and entry.get("name") == name:
            return entry.get(field) or {}
    raise KubeconfigError(f"kubeconfig {path}: {listing} has no entry named {name!r}")


def _connection(
    path: Path, context: dict[str, Any], cluster: dict[str, Any], user: dict[str, Any]
) -> Connection:
    server = str(cluster.get("server") or "").rstrip("/")
    if not server.startswith(("https://", "http://")):
        raise KubeconfigError(
            f"kubeconfig {path}: the cluster's server must be an https:// URL, is {server!r}"
        )
    for field in ("exec", "auth-provider"):
        if user.get(field):
            raise KubeconfigError(
                f"kubeconfig {path}: user.{field} is not supported; "
                "use a client certificate or a token"
            )
    tls = _tls(path, cluster, user) if server.startswith("https://") else None
    token_file = user.get("tokenFile")
    return Connection(
        server=server,
        tls=tls,
        tls_server_name=cluster.get("tls-server-name"),
        token=user.get("token"),
        token_file=_relative(path, token_file) if token_file else None,
        namespace=context.get("namespace") or "default",
    )


def _tls(path: Path, cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
    try:
        ca = _bytes_of(path, cluster, "certificate-authority")
        tls = ssl.create_default_context(cadata=ca.decode() if ca else None)
        if cluster.get("insecure-skip-tls-verify"):
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        certificate = _bytes_of(path, user, "client-certificate")
        key = _bytes_of(path, user, "client-key")
        if certificate and key:
            _load_client_certificate(tls, certificate, key)
    except (ssl.SSLError, OSError, UnicodeDecodeError, binascii.Error) as error:
        raise KubeconfigError(f"kubeconfig {path}: certificates cannot be used: {error}") from error
    return tls


def _load_client_certificate(tls: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    # OpenSSL reads client keys from files only; mkstemp makes the file 0600.
    descriptor, name = tempfile.mkstemp(prefix="kubeconfig-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(certificate + b"\n" + key)
        tls.load_cert_chain(name)
    finally:
        Path(name).unlink()


def _bytes_of(path: Path, section: dict[str, Any], field: str) -> bytes | None:
    inline = section.get(f"{field}-data")
    if inline:
        return base64.b64decode(inline, validate=True)
    file = section.get(field)
    return _relative(path, file).read_bytes() if file else None


def _relative(path: Path, file: str) -> Path:
    """Paths in a kubeconfig are relative to the kubeconfig."""
    return path.parent / file
