"""What is known about the keys of token issuers that only the network tells: OpenID discovery, and key sets that istiod fetched.

Addresses and key sets are public; they may show anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from meltemi.model.config import AnyConfig

# How long proxies use a key set, as Istio's do.
PROXIES_REFRESH_S = 300.0
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class IssuerKeys:
    """``addresses``: issuer -> where its discovery document says the keys are; ``sets``: address -> key set in JSON.

    ``by_proxies``: proxies fetch key sets themselves, every ``refresh_s`` seconds; otherwise ``sets`` is used.
    """

    addresses: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    sets: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    by_proxies: bool = True
    refresh_s: float = PROXIES_REFRESH_S


NO_ISSUER_KEYS = IssuerKeys()


def unknown_issuers(configs: Iterable[AnyConfig]) -> frozenset[str]:
    """Issuers whose keys must be found through their discovery document: neither jwks nor jwksUri is given."""
    return frozenset(
        rule.issuer
        for config in configs
        if config.kind == "RequestAuthentication"
        for rule in config.spec.jwt_rules
        if not rule.jwks and not rule.jwks_uri and rule.issuer.startswith(("https://", "http://"))
    )


def key_addresses(configs: Iterable[AnyConfig]) -> frozenset[str]:
    """The addresses of key sets that are written down."""
    return frozenset(
        rule.jwks_uri
        for config in configs
        if config.kind == "RequestAuthentication"
        for rule in config.spec.jwt_rules
        if not rule.jwks and rule.jwks_uri
    )
