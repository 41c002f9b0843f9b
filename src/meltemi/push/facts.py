"""The little about endpoints that clusters and listeners depend on.

Endpoints bypass the push context, with three exceptions, gathered here per service: the identities that clients
must accept, the inline endpoints of DNS services, and the addresses and host names of headless services' pods. ``discovery`` compares
facts before and after an endpoint change: equal facts mean that only EDS is affected.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meltemi.model.service import Endpoint, Health, Resolution, Service


@dataclass(frozen=True, slots=True)
class EndpointFacts:
    """``identities`` are SPIFFE ids, sorted. ``inline`` and ``addresses`` are empty unless the service needs them.

    ``hostnames`` are (host name, address) of a headless service's pods that have names of their own.
    ``any_plain`` is True when some endpoint has no sidecar.
    """

    identities: tuple[str, ...] = ()
    inline: tuple[Endpoint, ...] = ()
    addresses: tuple[str, ...] = ()
    hostnames: tuple[tuple[str, str], ...] = ()
    any_plain: bool = False


NO_FACTS = EndpointFacts()
_INLINE = (Resolution.DNS_LB, Resolution.DNS_ROUND_ROBIN_LB)


def derive_facts(service: Service, endpoints: Iterable[Endpoint]) -> EndpointFacts:
    """The facts of one service."""
    known = tuple(endpoints)
    identities = sorted({e.service_account for e in known if e.service_account})
    inline: tuple[Endpoint, ...] = ()
    addresses: tuple[str, ...] = ()
    hostnames: tuple[tuple[str, str], ...] = ()
    if service.resolution in _INLINE:
        inline = known
    if service.headless and not service.mesh_external:
        ready = [e for e in known if e.address and e.health is Health.HEALTHY]
        addresses = tuple(sorted({e.address for e in ready}))
        hostnames = tuple(sorted({(e.hostname, e.address) for e in ready if e.hostname}))
    return EndpointFacts(
        identities=tuple(identities),
        inline=inline,
        addresses=addresses,
        hostnames=hostnames,
        any_plain=any(e.tls_mode != "istio" for e in known),
    )
