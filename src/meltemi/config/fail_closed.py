"""What holds in the place of a security policy that cannot be read: less is allowed, never more.

In: an object whose spec could not be decoded. Out: a policy for the same workloads that opens nothing, and a finding that says so. An
ALLOW policy is replaced by one that allows nothing, any other AuthorizationPolicy by one that refuses everything, a
PeerAuthentication by STRICT. A selector that cannot be read either selects the whole namespace.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from meltemi.config.reader import Report, decode_meta, decode_spec
from meltemi.config.yaml_source import RawObject
from meltemi.model.config import Config
from meltemi.model.fields import Spec
from meltemi.model.origin import Finding, Level
from meltemi.model.security import AuthorizationPolicy, MutualTLS, PeerAuthentication, Rule

CODE = "MLT0013"
SpecT = TypeVar("SpecT", bound=Spec)
_SELECTING = ("selector", "targetRef", "targetRefs")


def closed(raw: RawObject) -> tuple[Config[Any], Finding] | None:
    """The policy that holds instead, and its finding; None for objects that open nothing by being absent."""
    spec: AuthorizationPolicy | PeerAuthentication
    if raw.kind == "AuthorizationPolicy":
        chosen = _selection(raw, AuthorizationPolicy)
        allows = _spec(raw).get("action", "ALLOW") == "ALLOW"
        spec = AuthorizationPolicy(
            selector=chosen.selector,
            target_ref=chosen.target_ref,
            target_refs=chosen.target_refs,
            action="ALLOW" if allows else "DENY",
            rules=() if allows else (Rule(),),
        )
        effect = "allows nothing" if allows else "refuses everything that it selects"
    elif raw.kind == "PeerAuthentication":
        selector = _selection(raw, PeerAuthentication).selector
        spec = PeerAuthentication(selector=selector, mtls=MutualTLS(mode="STRICT"))
        effect = "lets only mutual TLS in"
    else:
        return None
    meta, wrong = decode_meta(raw)
    if wrong:
        return None
    made = Config(raw.kind, meta, spec, raw.source_map)
    text = f"the policy cannot be read; until it can, it {effect}"
    remedy = "correct what is wrong with it"
    return made, Finding(CODE, Level.ERROR, text, made.origin("spec"), remedy)


def _spec(raw: RawObject) -> Mapping[str, Any]:
    return raw.spec if isinstance(raw.spec, Mapping) else {}


def _selection(raw: RawObject, cls: type[SpecT]) -> SpecT:
    """The part of the spec that says where it applies; everywhere when that cannot be read."""
    part = {name: value for name, value in _spec(raw).items() if name in _SELECTING}
    report = Report(Config(raw.kind, decode_meta(raw)[0], None, raw.source_map))
    return decode_spec(cls, part, "spec", report) or cls()
