"""The little about endpoints that clusters and listeners depend on.

Endpoints bypass the push context, with three exceptions, gathered here per service: the identities that clients
must accept, the inline endpoints of DNS services, and the addresses of headless services. ``discovery`` compares
facts before and after an endpoint change: equal facts mean that only EDS is affected.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meltemi.model.service import Endpoint, Health, Resolution, Service


@dataclass(frozen=True, slots=True)
class EndpointFacts:
    """``identities`` are SPIFFE ids, sorted. ``inline`` and ``addresses`` are empty unless the service needs them.

    ``any_plain`` is True when some endpoint has no sidecar.
    """

    identities: tuple[str, ...] = ()
    inline: tuple[Endpoint, ...] = ()
    addresses: tuple[str, ...] = ()
    any_plain: bool = False


NO_FACTS = EndpointFacts()
_INLINE = (Resolution.DNS_LB, Resolution.DNS_ROUND_ROBIN_LB)


def derive_facts(service: Service, endpoints: Iterable[Endpoint]) -> EndpointFacts:
    """The facts of one service."""
    known = tuple(endpoints)
    identities = sorted({e.service_account for e in known if e.service_account})
    inline: tuple[Endpoint, ...] = ()
    addresses: tuple[str, ...] = ()
    if service.resolution in _INLINE:
        inline = known
    if service.headless and not service.mesh_external:
        addresses = tuple(sorted({e.address for e in known if e.health is Health.HEALTHY}))
    return EndpointFacts(
        identities=tuple(identities),
        inline=inline,
        addresses=addresses,
        any_plain=any(e.tls_mode != "istio" for e in known),
    )
