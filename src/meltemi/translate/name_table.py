"""What DNS capture answers: the names in a proxy's scope, with the addresses that its listeners know.

In: one build. Out: a ``NameTable``, or None where capture is off. The addresses are those of ``addresses_of``, so
that every answer leads to a listener: a service's own, else its automatic ones; a headless service's are its ready
endpoints', and each pod that has a host name there has a name of its own. What has no address (ExternalName,
resolution NONE) is left to the platform's DNS.
"""

from __future__ import annotations

from collections.abc import Iterator

from meltemi.ir.name_table import Name, NameTable
from meltemi.model.service import Service
from meltemi.translate.build import Build
from meltemi.translate.virtual_hosts import addresses_of, is_single_address


def name_table(build: Build) -> NameTable | None:
    """All names that this class can resolve."""
    if not build.proxy.dns_capture:
        return None
    found = [name for service in build.scope.services for name in _names(build, service)]
    return NameTable(tuple(sorted(found, key=lambda name: name.host)))


def _names(build: Build, service: Service) -> Iterator[Name]:
    facts = build.context.facts_of(service)
    addresses = tuple(a for a in addresses_of(build, service) if is_single_address(a))
    if not addresses and service.headless:
        addresses = facts.addresses
    if not addresses:
        return
    yield _name(service, "", addresses)
    pods: dict[str, set[str]] = {}
    for hostname, address in facts.hostnames:
        pods.setdefault(hostname, set()).add(address)
    for hostname, own in sorted(pods.items()):
        yield _name(service, f"{hostname}.", tuple(sorted(own)))


def _name(service: Service, prefix: str, addresses: tuple[str, ...]) -> Name:
    kubernetes = service.registry == "Kubernetes"
    return Name(
        host=f"{prefix}{service.hostname}".lower(),
        addresses=addresses,
        registry=service.registry,
        shortname=f"{prefix}{service.meta.name}" if kubernetes else "",
        namespace=service.namespace if kubernetes else "",
        origins=(service.origin,),
    )
