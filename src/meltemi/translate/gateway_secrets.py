"""Secrets of a gateway: those that its servers and its DestinationRules name, from its own namespace only."""

from __future__ import annotations

from collections.abc import Iterator

from meltemi.ir.secret import Secret
from meltemi.model.destination_rule import ClientTLSSettings, DestinationRule
from meltemi.model.origin import Origin
from meltemi.push.secrets import SecretData
from meltemi.translate.build import Build
from meltemi.translate.gateway_servers import bound_servers
from meltemi.translate.gateway_tls import CA_SUFFIX, credential_names, secret_name
from meltemi.translate.upstream_tls import SECRET_PREFIX


def _wanted(build: Build) -> dict[str, tuple[str, Origin]]:
    """Secret name -> (kind, origin); kind is pair, roots or both."""
    found: dict[str, tuple[str, Origin]] = {}
    for server in bound_servers(build):
        tls = server.server.tls
        if tls is None:
            continue
        origin = server.config.origin(f"spec.servers[{server.index}].tls.credentialName")
        mutual = tls.mode in ("MUTUAL", "OPTIONAL_MUTUAL")
        for name in credential_names(tls):
            found.setdefault(
                name, ("both" if mutual and not tls.ca_cert_credential_name else "pair", origin)
            )
        if tls.ca_cert_credential_name:
            found[tls.ca_cert_credential_name] = ("roots", origin)
    for config in build.context.destination_rules:
        for settings in _client_settings(config.spec):
            kind = "both" if settings.mode == "MUTUAL" else "roots"
            name = settings.credential_name
            known, origin = found.get(name, (kind, config.origin("spec")))
            found[name] = (kind if known == kind else "both", origin)
    return found


def _client_settings(rule: DestinationRule) -> Iterator[ClientTLSSettings]:
    """Where a DestinationRule names a Secret: as a whole, by subset, and by port of either."""
    for policy in (rule.traffic_policy, *(subset.traffic_policy for subset in rule.subsets)):
        for part in (policy, *(policy.port_level_settings if policy else ())):
            if part is not None and part.tls is not None and part.tls.credential_name:
                yield part.tls


def _lookup(build: Build, name: str) -> SecretData | None:
    plain = name.removeprefix(SECRET_PREFIX)
    return build.context.secrets.get((build.proxy.namespace, plain))


def gateway_secrets(build: Build) -> tuple[Secret, ...]:
    """What is pushed. A missing Secret is reported; its server waits while the others serve."""
    made: list[Secret] = []
    for name, (kind, origin) in sorted(_wanted(build).items()):
        data = _lookup(build, name)
        roots = data
        if data is None and kind in ("both", "roots"):
            roots = _lookup(build, name + CA_SUFFIX)
        elif data is not None and not data.ca:
            roots = _lookup(build, name + CA_SUFFIX) or data
        if data is None and roots is None:
            build.report(
                "IST0101",
                f"Secret {build.proxy.namespace}/{name} does not exist",
                origin,
                f"create it in namespace {build.proxy.namespace}, where the gateway runs",
            )
            continue
        if data is not None and data.key and kind != "roots":
            made.append(Secret(secret_name(name), data.chain, data.key, origins=(origin,)))
        if roots is not None and roots.ca and kind != "pair":
            made.append(
                Secret(secret_name(name) + CA_SUFFIX, ca=roots.ca, crl=roots.crl, origins=(origin,))
            )
    return tuple(made)
