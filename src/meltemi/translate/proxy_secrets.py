"""Secrets that a proxy is given: what its servers and clusters name.

In: what was translated, and the Secrets of the proxy's own namespace (others are never looked at; sidecars get those that a
DestinationRule with a workloadSelector names). Out: the secrets to push, and findings about those that are missing or cannot be used: each stops its own host only. Files are
pushed by name: the proxy reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from meltemi.ir.cluster import Cluster
from meltemi.ir.listener import Listener
from meltemi.ir.secret import Secret
from meltemi.ir.tls import SecretRef, SecretSource
from meltemi.ir.value import Origins
from meltemi.model.origin import Origin
from meltemi.push.secrets import SecretData, pair_problem, roots_problem
from meltemi.translate.build import Build
from meltemi.translate.credentials import CA_SUFFIX, SECRET_PREFIX
from meltemi.translate.gateway_servers import bound_servers
from meltemi.translate.gateway_tls import credential_names, roots_credential

_NONE = SecretData()


@dataclass
class _Wanted:
    """Names of Secrets by use, each with the place that first named it; and files."""

    pairs: dict[str, Origin] = field(default_factory=dict)
    roots: dict[str, Origin] = field(default_factory=dict)
    files: dict[SecretRef, Origins] = field(default_factory=dict)

    def add(self, ref: SecretRef | None, origins: Origins, *, roots: bool = False) -> None:
        """Note a reference. Files may be named by the mesh's configuration, which has no place; Secrets are not."""
        if ref is None:
            return
        if ref.source is SecretSource.FILE:
            self.files.setdefault(ref, origins)
        elif ref.source is SecretSource.ADS and origins:
            name = ref.name.removesuffix(CA_SUFFIX) if roots else ref.name
            (self.roots if roots else self.pairs).setdefault(name, origins[-1])


def _listener_references(wanted: _Wanted, listeners: Iterable[Listener]) -> None:
    for listener in listeners:
        for chain in listener.chains:
            if chain.tls is not None:
                for ref in chain.tls.certificates:
                    wanted.add(ref, chain.origins)
                wanted.add(chain.tls.roots, chain.origins, roots=True)


def _server_places(build: Build, wanted: _Wanted) -> None:
    """Servers name their Secrets at an exact place."""
    for server in bound_servers(build, quiet=True):
        tls = server.server.tls
        if tls is None:
            continue
        base = f"spec.servers[{server.index}].tls"
        for name in credential_names(tls):
            wanted.pairs.setdefault(_full(name), server.config.origin(f"{base}.credentialName"))
        name = roots_credential(tls)
        if name:
            last = "caCertCredentialName" if tls.ca_cert_credential_name else "credentialName"
            wanted.roots.setdefault(_full(name), server.config.origin(f"{base}.{last}"))


def _full(name: str) -> str:
    return name if "://" in name else SECRET_PREFIX + name


def _cluster_references(wanted: _Wanted, clusters: Iterable[Cluster]) -> None:
    for cluster in clusters:
        for tls in (cluster.tls, cluster.auto_tls):
            if tls is not None:
                wanted.add(tls.certificate, cluster.origins)
                wanted.add(tls.roots, cluster.origins, roots=True)


def proxy_secrets(
    build: Build, listeners: Iterable[Listener], clusters: Iterable[Cluster]
) -> tuple[Secret, ...]:
    """What is pushed to proxies of this class."""
    wanted = _Wanted()
    if build.proxy.is_gateway:
        _server_places(build, wanted)
    _listener_references(wanted, listeners)
    _cluster_references(wanted, clusters)
    made = [
        Secret(ref.sds_name, files=ref, origins=origins) for ref, origins in wanted.files.items()
    ]
    made += _pairs(build, wanted.pairs)
    made += _roots(build, wanted.roots)
    return tuple(sorted(made, key=lambda secret: secret.name))


def _lookup(build: Build, name: str) -> SecretData | None:
    plain = name.removeprefix(SECRET_PREFIX)
    return build.context.secrets.get((build.proxy.namespace, plain))


def _pairs(build: Build, wanted: dict[str, Origin]) -> Iterator[Secret]:
    for name, origin in wanted.items():
        data = _lookup(build, name)
        if data is None:
            _missing(build, name, origin)
        elif problem := pair_problem(data):
            _broken(build, name, origin, problem)
        else:
            yield Secret(name, data.chain, data.key, origins=(origin,))


def _roots(build: Build, wanted: dict[str, Origin]) -> Iterator[Secret]:
    """Authorities are in the Secret itself, else in its companion ``<name>-cacert``."""
    for name, origin in wanted.items():
        own, companion = _lookup(build, name), _lookup(build, name + CA_SUFFIX)
        data = own if own is not None and own.ca else companion
        if data is None and own is None:
            _missing(build, name, origin)
        elif problem := roots_problem(data or _NONE):
            _broken(build, name, origin, problem)
        elif data is not None:
            crl = data.crl or (own.crl if own is not None else b"")
            yield Secret(name + CA_SUFFIX, ca=data.ca, crl=crl, origins=(origin,))


def _missing(build: Build, name: str, origin: Origin) -> None:
    space = build.proxy.namespace
    shown = f"{space}/{name.removeprefix(SECRET_PREFIX)}"
    remedy = f"create it in namespace {space}, where the proxy runs"
    build.report("IST0101", f"Secret {shown} does not exist", origin, remedy)


def _broken(build: Build, name: str, origin: Origin, problem: str) -> None:
    shown = f"{build.proxy.namespace}/{name.removeprefix(SECRET_PREFIX)}"
    text = f"Secret {shown} cannot be used: {problem}"
    build.report("IST0161", text, origin, "write PEM certificates and the key that belongs to them")
