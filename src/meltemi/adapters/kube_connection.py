"""Which API server to talk to, and as whom: a kubeconfig file or a pod's service account.

In: ``KUBECONFIG``/flags/files. Out: a ``Connection``. Promises: keys from a kubeconfig never reach a disk; a
service account's token is read again when it changes. Raises ``ConnectionConfigError`` with a text for people.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class ConnectionConfigError(ValueError):
    """No usable description of a cluster; the text says what was looked at and what to do."""


@dataclass(frozen=True, slots=True, repr=False)
class Connection:
    """One API server and one identity. Certificates and keys are PEM bytes; empty means none."""

    server: str
    ca: bytes = b""
    insecure: bool = False
    server_name: str = ""
    certificate: bytes = b""
    key: bytes = b""
    token: str = ""
    token_file: str = ""
    username: str = ""
    password: str = ""
    namespace: str = "default"
    context: str = ""

    def __repr__(self) -> str:
        """Only what is not secret."""
        return f"Connection({self.server!r}, context={self.context!r})"

    def bearer(self) -> str:
        """The token to send now, or ``""``. Token files are rotated by the kubelet, so they are read anew."""
        if self.token_file:
            return Path(self.token_file).read_text(encoding="utf-8").strip()
        return self.token

    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS settings; None for a plain ``http://`` server."""
        if self.server.startswith("http://"):
            return None
        context = ssl.create_default_context(cadata=self.ca.decode() if self.ca else None)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate:
            # OpenSSL reads keys from files only; an anonymous memory file never reaches a disk.
            with os.fdopen(os.memfd_create("client"), "wb") as file:
                file.write(self.certificate + b"\n" + self.key)
                file.flush()
                context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        return context


def in_cluster(environ: Mapping[str, str] = os.environ, account: Path = ACCOUNT) -> Connection:
    """The connection of a pod's service account."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port or not (account / "token").exists():
        raise ConnectionConfigError(
            "not running in a pod: KUBERNETES_SERVICE_HOST/PORT or the service account's token is missing"
        )
    namespace = account / "namespace"
    return Connection(
        server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        ca=(account / "ca.crt").read_bytes(),
        token_file=str(account / "token"),
        namespace=namespace.read_text(encoding="utf-8").strip()
        if namespace.exists()
        else "default",
    )


def _entry(config: Mapping[str, Any], section: str, name: str, source: str) -> Mapping[str, Any]:
    for item in config.get(section) or []:
        if item.get("name") == name:
            found = item.get(section.removesuffix("s"))
            return found if isinstance(found, Mapping) else {}
    raise ConnectionConfigError(f"{source}: there is no {section.removesuffix('s')} named {name!r}")


def _pem(entry: Mapping[str, Any], key: str, folder: Path, source: str) -> bytes:
    if data := entry.get(f"{key}-data"):
        try:
            return base64.b64decode(data)
        except (binascii.Error, ValueError) as error:
            raise ConnectionConfigError(f"{source}: {key}-data is not base64: {error}") from error
    if path := entry.get(key):
        try:
            return (folder / str(path)).read_bytes()
        except OSError as error:
            raise ConnectionConfigError(f"{source}: {key}: {error}") from error
    return b""


def from_kubeconfig(path: Path, context: str = "") -> Connection:
    """The connection of a kubeconfig file's context (its current one by default)."""
    source = str(path)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConnectionConfigError(f"kubeconfig {source} cannot be read: {error}") from error
    if not isinstance(config, Mapping):
        raise ConnectionConfigError(f"kubeconfig {source} is not a mapping")
    name = context or config.get("current-context") or ""
    if not name:
        raise ConnectionConfigError(
            f"kubeconfig {source} has no current-context; name one with --context"
        )
    chosen = _entry(config, "contexts", name, source)
    cluster = _entry(config, "clusters", chosen.get("cluster", ""), source)
    user = _entry(config, "users", chosen["user"], source) if chosen.get("user") else {}
    if "exec" in user or "auth-provider" in user:
        raise ConnectionConfigError(
            f"{source}: user {chosen['user']!r} signs in by a plug-in, which is not supported; "
            "use a token (kubectl create token) or a client certificate"
        )
    folder = path.parent
    return Connection(
        server=str(cluster.get("server", "")).rstrip("/"),
        ca=_pem(cluster, "certificate-authority", folder, source),
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
        server_name=cluster.get("tls-server-name", ""),
        certificate=_pem(user, "client-certificate", folder, source),
        key=_pem(user, "client-key", folder, source),
        token=user.get("token", ""),
        token_file=str(folder / user["tokenFile"]) if user.get("tokenFile") else "",
        username=user.get("username", ""),
        password=user.get("password", ""),
        namespace=chosen.get("namespace") or "default",
        context=name,
    )


def load(kubeconfig: str = "", context: str = "") -> Connection:
    """What a program should use: the given file, ``KUBECONFIG``, the pod's account, ``~/.kube/config``."""
    if kubeconfig:
        return from_kubeconfig(Path(kubeconfig), context)
    for path in filter(None, os.environ.get("KUBECONFIG", "").split(os.pathsep)):
        if Path(path).exists():
            return from_kubeconfig(Path(path), context)
    if os.environ.get("KUBECONFIG"):
        raise ConnectionConfigError(
            f"KUBECONFIG names {os.environ['KUBECONFIG']}, which does not exist"
        )
    if (ACCOUNT / "token").exists() and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return in_cluster()
    home = Path.home() / ".kube" / "config"
    if home.exists():
        return from_kubeconfig(home, context)
    raise ConnectionConfigError(
        "no cluster: set KUBECONFIG, or start one on this machine:\n"
        '  meltemi local up --detach && eval "$(meltemi local env)"'
    )
