"""AuthorizationPolicy, RequestAuthentication and PeerAuthentication (security.istio.io v1 and v1beta1).

In: nothing; these are types. Same promises as ``model.traffic``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from msgspec import field

from meltemi.model.fields import Duration, Spec
from meltemi.model.frozen import EMPTY_MAP
from meltemi.model.traffic import LabelSelector, Strings


class PolicyTargetReference(Spec, frozen=True):
    """An object that a policy attaches to: a Gateway, Service, ServiceEntry or GatewayClass."""

    REQUIRED: ClassVar = ("kind", "name")
    group: str = ""
    kind: str = ""
    name: str = ""
    namespace: str = ""


class Source(Spec, frozen=True):
    """Who calls; all set fields have to match, each with one of its values.

    principals: ``trust-domain/ns/namespace/sa/account`` of the peer's certificate.
    request_principals: ``issuer/subject`` of the JWT.
    service_accounts: ``namespace/account`` or an account of the policy's namespace.
    ip_blocks: Address of the connection.
    remote_ip_blocks: Original client address (X-Forwarded-For or PROXY protocol).
    """

    principals: Strings = ()
    not_principals: Strings = ()
    request_principals: Strings = ()
    not_request_principals: Strings = ()
    namespaces: Strings = ()
    not_namespaces: Strings = ()
    service_accounts: Strings = ()
    not_service_accounts: Strings = ()
    trust_domains: Strings = ()
    not_trust_domains: Strings = ()
    ip_blocks: Strings = ()
    not_ip_blocks: Strings = ()
    remote_ip_blocks: Strings = ()
    not_remote_ip_blocks: Strings = ()


class Operation(Spec, frozen=True):
    """What is asked for; all set fields have to match, each with one of its values."""

    hosts: Strings = ()
    not_hosts: Strings = ()
    ports: Strings = ()
    not_ports: Strings = ()
    methods: Strings = ()
    not_methods: Strings = ()
    paths: Strings = ()
    not_paths: Strings = ()


class RuleFrom(Spec, frozen=True):
    """One alternative of a rule's sources."""

    source: Source | None = None


class RuleTo(Spec, frozen=True):
    """One alternative of a rule's operations."""

    operation: Operation | None = None


class Condition(Spec, frozen=True):
    """A further condition on an attribute."""

    REQUIRED: ClassVar = ("key",)
    key: str = ""
    values: Strings = ()
    not_values: Strings = ()


class Rule(Spec, frozen=True):
    """A request matches when a source, an operation and all conditions match."""

    from_: tuple[RuleFrom, ...] = field(default=(), name="from")
    to: tuple[RuleTo, ...] = ()
    when: tuple[Condition, ...] = ()


class ExtensionProvider(Spec, frozen=True):
    """An external authorizer by its name in the mesh configuration."""

    name: str = ""


class AuthorizationPolicy(Spec, frozen=True):
    """Who may do what at some workloads.

    action: CUSTOM, then DENY, then ALLOW policies are evaluated.
    rules: None at all never matches: an ALLOW policy without rules denies everything.
    """

    ONE_OF: ClassVar = (("selector", "target_ref", "target_refs"),)
    selector: LabelSelector | None = None
    target_ref: PolicyTargetReference | None = None
    target_refs: tuple[PolicyTargetReference, ...] = ()
    rules: tuple[Rule, ...] = ()
    action: Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"] = "ALLOW"
    provider: ExtensionProvider | None = None


class JWTHeader(Spec, frozen=True):
    """A header that holds the token, after an optional prefix."""

    REQUIRED: ClassVar = ("name",)
    name: str = ""
    prefix: str = ""


class ClaimToHeader(Spec, frozen=True):
    """Copy a claim of a valid token to a header."""

    REQUIRED: ClassVar = ("header", "claim")
    header: str = ""
    claim: str = ""


class JWTRule(Spec, frozen=True):
    """Tokens of one issuer.

    jwks: The keys themselves; otherwise they are fetched from jwksUri or found by OpenID discovery.
    presence: REQUIRED refuses requests without this token.
    """

    REQUIRED: ClassVar = ("issuer",)
    ONE_OF: ClassVar = (("jwks_uri", "jwks"),)
    issuer: str = ""
    audiences: Strings = ()
    jwks_uri: str = ""
    jwks: str = ""
    from_headers: tuple[JWTHeader, ...] = ()
    from_params: Strings = ()
    from_cookies: Strings = ()
    output_payload_to_header: str = ""
    output_claim_to_headers: tuple[ClaimToHeader, ...] = ()
    forward_original_token: bool = False
    timeout: Duration | None = None
    space_delimited_claims: Strings = ()
    presence: Literal["OPTIONAL", "REQUIRED"] = "OPTIONAL"


class RequestAuthentication(Spec, frozen=True):
    """Which JWTs are accepted; a request without a token passes."""

    ONE_OF: ClassVar = (("selector", "target_ref", "target_refs"),)
    selector: LabelSelector | None = None
    target_ref: PolicyTargetReference | None = None
    target_refs: tuple[PolicyTargetReference, ...] = ()
    jwt_rules: tuple[JWTRule, ...] = ()


MutualTLSMode = Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]


class MutualTLS(Spec, frozen=True):
    """Whether plaintext, mTLS or both are accepted; UNSET inherits."""

    mode: MutualTLSMode = "UNSET"


class PeerAuthentication(Spec, frozen=True):
    """What inbound connections have to bring.

    port_level_mtls: By the workload's own port number; only with a selector.
    """

    selector: LabelSelector | None = None
    mtls: MutualTLS | None = None
    port_level_mtls: Mapping[int, MutualTLS] = field(default_factory=lambda: EMPTY_MAP)
