"""AuthorizationPolicy: the filters that enforce it at a workload.

In: the context and a class. Out: HTTP and network filters, the same for every chain of the class. Order is Istio's: CUSTOM
(an external authorizer), then token verification, AUDIT, DENY, ALLOW. A workload with any ALLOW policy refuses
what none of them allows. What cannot be expressed is refused, with a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from meltemi.ir import authorization as ir
from meltemi.ir.jwt import JwtAuthn
from meltemi.model.config import AnyConfig, Config
from meltemi.model.security import AuthorizationPolicy, PolicyTargetReference
from meltemi.push.classes import gateway_target_labels
from meltemi.translate.authorization_rules import Facts, RuleBuilder, Setting
from meltemi.translate.build import Build
from meltemi.translate.ext_authz import Authorizer, find_authorizer
from meltemi.translate.request_authentication import jwt_filter

DRY_RUN = "istio.io/dry-run"
CUSTOM_PREFIX = "istio_ext_authz_"
_DRY_RUN_PREFIX = {"ALLOW": "istio_dry_run_allow_", "DENY": "istio_dry_run_deny_"}

HttpPolicyFilter = ir.Rbac | ir.ExtAuthz | JwtAuthn
TcpPolicyFilter = ir.Rbac | ir.ExtAuthz
Policies = list[Config[AuthorizationPolicy]]


@dataclass(frozen=True)
class PolicyFilters:
    """What goes in front of everything else, for HTTP and for TCP."""

    http: tuple[HttpPolicyFilter, ...] = ()
    tcp: tuple[TcpPolicyFilter, ...] = ()


def selected(build: Build, kind: str) -> list[AnyConfig]:
    """Policies of a kind for this class: the root namespace's first, then its own, each oldest first."""
    proxy, root = build.proxy, build.context.root_namespace
    found = []
    for namespace in dict.fromkeys((root, proxy.namespace)):
        for config in build.context.configs.get(kind, ()):
            if config.meta.namespace == namespace and _selects(build, config):
                found.append(config)
    return found


def _selects(build: Build, config: AnyConfig) -> bool:
    spec = config.spec
    targets = spec.target_refs or ((spec.target_ref,) if spec.target_ref is not None else ())
    if targets:
        # References to Services are for waypoints, which a sidecar is not.
        return build.proxy.is_gateway and any(
            _target_selects(build, config, target) for target in targets
        )
    return build.proxy.matches(spec.selector.match_labels if spec.selector is not None else None)


def _target_selects(build: Build, config: AnyConfig, target: PolicyTargetReference) -> bool:
    """A Gateway of the policy's own namespace, or a GatewayClass named in the root namespace."""
    labels = gateway_target_labels(target)
    place = build.context.root_namespace if target.kind == "GatewayClass" else build.proxy.namespace
    return bool(labels) and config.meta.namespace == place and build.proxy.matches(labels)


def _dry_run(config: AnyConfig) -> bool:
    return str(config.meta.annotations.get(DRY_RUN, "")).lower() == "true"


def _rule_name(config: AnyConfig, index: int) -> str:
    """Istio's name of a rule in Envoy."""
    return f"ns[{config.meta.namespace}]-policy[{config.meta.name}]-rule[{index}]"


class _Compiler:
    """Builds policy sets for one kind of traffic and reports what it had to leave out."""

    def __init__(self, build: Build, facts: Facts, *, report: bool) -> None:
        self.build = build
        self.facts = facts
        self.report = report
        self.trust_domains = build.context.mesh.trust_domains

    def policies(
        self, config: AnyConfig, facts: Facts, name: Callable[[AnyConfig, int], str] = _rule_name
    ) -> Iterable[ir.Policy]:
        """The rules of one object that can be expressed."""
        allow = config.spec.action == "ALLOW"
        for index, rule in enumerate(config.spec.rules):
            builder = RuleBuilder(Setting(allow, config.meta.namespace, facts, self.trust_domains))
            path = f"spec.rules[{index}]"
            made = builder.build(rule, path)
            self._report(config, builder.skipped, left_out=made is None)
            if made is not None:
                yield ir.Policy(name(config, index), *made, origins=(config.origin(path),))

    def _report(self, config: AnyConfig, skipped: list[tuple[str, str]], *, left_out: bool) -> None:
        if not self.report:
            return
        effect = (
            "the rule allows nothing here"
            if left_out
            else f"the {config.spec.action} rule holds here without it"
        )
        for path, reason in dict(skipped).items():
            self.build.report(
                "MLT0201",
                f"{path}: {reason}; {effect}",
                config.origin(path),
                "write a rule of its own for TCP ports, or correct the value",
            )

    def policy_set(self, action: str, configs: Policies) -> ir.PolicySet | None:
        """All rules of the policies of one action; None without policies."""
        if not configs:
            return None
        made = tuple(policy for config in configs for policy in self.policies(config, self.facts))
        return ir.PolicySet("LOG" if action == "AUDIT" else action, made)

    def rbac(self, action: str, configs: Policies) -> list[ir.Rbac]:
        """The filter of one action; dry-run policies are its shadow."""
        rules = self.policy_set(action, [c for c in configs if not _dry_run(c)])
        shadow = self.policy_set(action, [c for c in configs if _dry_run(c)])
        if action == "AUDIT":
            shadow = None
        if rules is None and shadow is None:
            return []
        origins = tuple(config.origin() for config in configs)
        prefix = _DRY_RUN_PREFIX.get(action, "") if shadow is not None else ""
        return [ir.Rbac(rules, shadow, prefix, origins=origins)]

    def custom(self, provider: str, configs: Policies, *, http: bool) -> list[TcpPolicyFilter]:
        """Ask the authorizer about what the rules match; without an authorizer that is refused."""

        def name(config: AnyConfig, index: int) -> str:
            return f"istio-ext-authz-{provider}-{_rule_name(config, index)}"

        # Tokens are verified only after the authorizer was asked: it may be what adds them.
        facts = min(self.facts, Facts.REQUEST)
        made = tuple(p for config in configs for p in self.policies(config, facts, name))
        origins = tuple(config.origin() for config in configs)
        rules = ir.PolicySet("DENY", made)
        prefix = f"{CUSTOM_PREFIX}{provider}_"
        found = find_authorizer(
            self.build, provider, Authorizer(prefix, f"istio-ext-authz-{provider}-", origins, http)
        )
        if isinstance(found, str):
            if self.report or http:
                self.build.report(
                    "MLT0212",
                    f"authorizer {provider}: {found}; what the policy matches is refused",
                    configs[0].origin("spec.provider"),
                    "see extensionProviders in the mesh configuration",
                )
            return [ir.Rbac(rules, origins=origins)]
        return [ir.Rbac(None, rules, prefix, origins=origins), found]


def _by_action(configs: Iterable[AnyConfig]) -> Mapping[str, Policies]:
    found: dict[str, Policies] = {"CUSTOM": [], "AUDIT": [], "DENY": [], "ALLOW": []}
    for config in configs:
        found[config.spec.action].append(config)
    return found


def _without_effect(build: Build, actions: Mapping[str, Policies]) -> None:
    """Dry run exists for ALLOW and DENY."""
    for config in (*actions["CUSTOM"], *actions["AUDIT"]):
        if _dry_run(config):
            build.report(
                "MLT0213",
                f"dry run is not possible for action {config.spec.action}; the policy does nothing",
                config.origin("metadata.annotations"),
                f"remove the annotation {DRY_RUN} to enforce it",
            )


def policy_filters(build: Build) -> PolicyFilters:
    """The filters of a class, computed once."""
    memo = ("policy", build.proxy)
    known: Any = build.context.memo.get(memo)
    if isinstance(known, PolicyFilters):
        return known
    actions = _by_action(selected(build, "AuthorizationPolicy"))
    _without_effect(build, actions)
    authn = jwt_filter(build, selected(build, "RequestAuthentication"))
    tcp_ports = any(
        not target.protocol.is_http and not target.protocol.is_unknown
        for target in build.proxy.targets
    )
    http = _Compiler(build, Facts.TOKEN, report=True)
    tcp = _Compiler(build, Facts.CONNECTION, report=tcp_ports)
    made = PolicyFilters(
        (*_customs(http, actions, http=True), *authn, *_enforced(http, actions)),
        (*_customs(tcp, actions, http=False), *_enforced(tcp, actions)),
    )
    build.findings[:] = list(dict.fromkeys(build.findings))
    build.context.memo[memo] = made
    return made


def _customs(
    compiler: _Compiler, actions: Mapping[str, Policies], *, http: bool
) -> list[TcpPolicyFilter]:
    by_provider: dict[str, Policies] = {}
    for config in actions["CUSTOM"]:
        if not _dry_run(config):
            name = config.spec.provider.name if config.spec.provider is not None else ""
            by_provider.setdefault(name, []).append(config)
    return [
        entry
        for provider, configs in by_provider.items()
        for entry in compiler.custom(provider, configs, http=http)
    ]


def _enforced(compiler: _Compiler, actions: Mapping[str, Policies]) -> list[ir.Rbac]:
    audits = [config for config in actions["AUDIT"] if not _dry_run(config)]
    return [
        *compiler.rbac("AUDIT", audits),
        *compiler.rbac("DENY", actions["DENY"]),
        *compiler.rbac("ALLOW", actions["ALLOW"]),
    ]
