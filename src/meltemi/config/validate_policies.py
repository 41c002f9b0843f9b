"""What makes a security, telemetry or extension object wrong, beyond its schema.

In: decoded objects. Out: findings in the report.
"""

from __future__ import annotations

import json
import re
from typing import get_args

from meltemi.config import checks
from meltemi.config.durations import format_duration
from meltemi.config.paths import item, join
from meltemi.config.reader import Report, nearest, quoted
from meltemi.model.config import Config
from meltemi.model.extensions import TrafficExtension, WasmConfig, WasmPlugin
from meltemi.model.security import (
    AuthorizationPolicy,
    Condition,
    JWTRule,
    Operation,
    PeerAuthentication,
    RequestAuthentication,
    Source,
)
from meltemi.model.telemetry import StandardMetric, Telemetry

# Keys of AuthorizationPolicy conditions; those that end with [ take a name in brackets.
CONDITION_KEYS = (
    "request.headers[",
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[",
    "destination.ip",
    "destination.port",
    "connection.sni",
    "experimental.envoy.filters.",
)
_PATH_OPERATOR = re.compile(r"\{[^}]*\}|\{|\}")
_SHA256 = re.compile(r"[0-9a-f]{64}$")


def validate_peer_authentication(config: Config[PeerAuthentication], report: Report) -> None:
    """All rules of PeerAuthentications."""
    spec = config.spec
    labels = spec.selector.match_labels if spec.selector else {}
    checks.selector(labels, "spec.selector.matchLabels", report)
    if spec.port_level_mtls and not labels:
        text = "is only possible together with a selector"
        report.error("spec.portLevelMtls", text, "add selector.matchLabels")
    for port in spec.port_level_mtls:
        if not 0 < port < 65536:
            where = join("spec.portLevelMtls", str(port))
            report.error(where, f"{port} is not a port", "use the workload's own port, 1 to 65535")


def validate_request_authentication(config: Config[RequestAuthentication], report: Report) -> None:
    """All rules of RequestAuthentications."""
    spec = config.spec
    if spec.selector is not None:
        checks.selector(spec.selector.match_labels, "spec.selector.matchLabels", report)
    checks.targets(spec, report)
    for index, rule in enumerate(spec.jwt_rules):
        _jwt_rule(rule, item("spec.jwtRules", index), report)


def _jwt_rule(rule: JWTRule, path: str, report: Report) -> None:
    if not rule.issuer:
        report.error(f"{path}.issuer", "is required", "write the token's iss claim")
    for index, audience in enumerate(rule.audiences):
        if not audience:
            report.error(item(f"{path}.audiences", index), "may not be empty", "remove it")
    if rule.jwks_uri and not re.match(r"https?://[^/\s]+", rule.jwks_uri):
        text = f"{quoted(rule.jwks_uri)} is not an HTTP address"
        report.error(f"{path}.jwksUri", text, "as in https://example.com/.well-known/jwks.json")
    if rule.jwks:
        _jwks(rule.jwks, f"{path}.jwks", report)
    for index, header in enumerate(rule.from_headers):
        checks.header_name(header.name, item(f"{path}.fromHeaders", index) + ".name", report)
    for name, values in (("fromParams", rule.from_params), ("fromCookies", rule.from_cookies)):
        for index, value in enumerate(values):
            if not value:
                report.error(item(join(path, name), index), "may not be empty", "remove it")
    if rule.output_payload_to_header:
        checks.header_name(rule.output_payload_to_header, f"{path}.outputPayloadToHeader", report)
    for index, claim in enumerate(rule.output_claim_to_headers):
        where = item(f"{path}.outputClaimToHeaders", index)
        checks.header_name(claim.header, f"{where}.header", report)
        if not claim.claim:
            report.error(f"{where}.claim", "is required", "name the claim")
    checks.duration(rule.timeout, f"{path}.timeout", report)


def _jwks(text: str, path: str, report: Report) -> None:
    try:
        keys = json.loads(text)
    except (ValueError, RecursionError):
        report.error(path, "is not JSON", "paste the key set as the issuer publishes it")
        return
    entries = keys.get("keys") if isinstance(keys, dict) else None
    if not isinstance(entries, list) or not entries:
        report.error(path, "holds no keys", 'a key set has the form {"keys": [...]}')


def validate_authorization_policy(config: Config[AuthorizationPolicy], report: Report) -> None:
    """All rules of AuthorizationPolicies."""
    spec = config.spec
    if spec.selector is not None:
        checks.selector(spec.selector.match_labels, "spec.selector.matchLabels", report)
    checks.targets(spec, report)
    if spec.action == "CUSTOM":
        if spec.provider is None or not spec.provider.name:
            remedy = "name an extension provider of the mesh configuration"
            report.error("spec.provider", "is required by action CUSTOM", remedy)
        if not spec.rules:
            report.error("spec.rules", "is required by action CUSTOM", "add rules: [{}] for all")
    elif spec.provider is not None:
        text = f"is not used by action {spec.action}"
        report.error("spec.provider", text, "use action CUSTOM, or remove it")
    if spec.action == "DENY" and not spec.rules:
        text = "a DENY policy without rules denies nothing"
        report.error("spec.rules", text, "add rules: [{}] to deny everything")
    for index, rule in enumerate(spec.rules):
        path = item("spec.rules", index)
        for number, origin in enumerate(rule.from_):
            where = item(f"{path}.from", number)
            if origin.source is None or origin.source == Source():
                report.error(f"{where}.source", "is empty", "set at least one field")
            else:
                _source(origin.source, f"{where}.source", config, report)
        for number, target in enumerate(rule.to):
            where = item(f"{path}.to", number)
            if target.operation is None or target.operation == Operation():
                report.error(f"{where}.operation", "is empty", "set at least one field")
            else:
                _operation(target.operation, f"{where}.operation", report)
        for number, condition in enumerate(rule.when):
            _condition(condition, item(f"{path}.when", number), report)


def _values(values: tuple[str, ...], path: str, report: Report) -> None:
    for index, value in enumerate(values):
        if not value:
            report.error(item(path, index), "may not be empty", "remove it")


def _source(source: Source, path: str, config: Config[AuthorizationPolicy], report: Report) -> None:
    for field in source.__struct_fields__:
        _values(getattr(source, field), join(path, _wire(field)), report)
    for field in ("ip_blocks", "not_ip_blocks", "remote_ip_blocks", "not_remote_ip_blocks"):
        for index, block in enumerate(getattr(source, field)):
            checks.cidr(block, item(join(path, _wire(field)), index), report)
    accounts = (*source.service_accounts, *source.not_service_accounts)
    others = (*source.namespaces, *source.principals)
    others += (*source.not_namespaces, *source.not_principals)
    if accounts and others:
        text = "cannot be combined with namespaces or principals"
        report.error(f"{path}.serviceAccounts", text, "write namespace/account instead")
    for account in accounts:
        if "*" in account or account.count("/") > 1:
            text = f"{quoted(account)} is not a service account"
            report.error(f"{path}.serviceAccounts", text, 'write "account" or "namespace/account"')


def _operation(operation: Operation, path: str, report: Report) -> None:
    for field in operation.__struct_fields__:
        _values(getattr(operation, field), join(path, _wire(field)), report)
    for field in ("ports", "not_ports"):
        for index, port in enumerate(getattr(operation, field)):
            if not port.isdecimal() or not 0 < int(port[:6]) < 65536:
                where = item(join(path, field.replace("not_ports", "notPorts")), index)
                report.error(where, f"{quoted(port)} is not a port", 'as in "8080"')
    for field in ("methods", "not_methods"):
        for index, method in enumerate(getattr(operation, field)):
            if method != method.upper():
                where = item(join(path, _wire(field)), index)
                report.warn(where, f"{quoted(method)} never matches", f"write {method.upper()}")
    for field in ("paths", "not_paths"):
        for index, value in enumerate(getattr(operation, field)):
            _path_template(value, item(join(path, _wire(field)), index), report)


def _path_template(value: str, path: str, report: Report) -> None:
    """``{*}`` matches one segment, ``{**}`` any number and only once; each fills its segment."""
    operators = _PATH_OPERATOR.findall(value)
    if not operators:
        return
    for operator in operators:
        if operator not in ("{*}", "{**}"):
            text = f"{quoted(operator)} is not a path operator"
            report.error(path, text, "use {*} for one segment, {**} for any number")
            return
    segments = value.split("/")
    if any("{" in segment and segment not in ("{*}", "{**}") for segment in segments):
        report.error(path, "an operator must fill its whole segment", 'as in "/foo/{*}/bar"')
    if operators.count("{**}") > 1 or (
        "{**}" in operators and "{*}" in operators[operators.index("{**}") :]
    ):
        report.error(path, "{**} must be the last operator, and the only one of its kind", "")
    if "*" in value.replace("{*}", "").replace("{**}", ""):
        report.error(path, "path operators and * exclude each other", "use one of them")


def _condition(condition: Condition, path: str, report: Report) -> None:
    key = condition.key
    if not condition.values and not condition.not_values:
        report.error(path, "has no values", "add values or notValues")
    known = any(
        key.startswith(name) if name[-1] in "[." else key == name for name in CONDITION_KEYS
    )
    if key.startswith(("request.headers[", "request.auth.claims[")) and not key.endswith("]"):
        known = False
    if not known:
        guess = nearest(key, [name.rstrip("[.") for name in CONDITION_KEYS])
        remedy = f"did you mean {guess}?" if guess else f"use one of {', '.join(CONDITION_KEYS)}"
        report.error(f"{path}.key", f"{quoted(key)} is not a known attribute", remedy)
    if key in ("source.ip", "remote.ip", "destination.ip"):
        for field, values in (("values", condition.values), ("notValues", condition.not_values)):
            for index, value in enumerate(values):
                checks.cidr(value, item(join(path, field), index), report)
    if key == "destination.port":
        for value in (*condition.values, *condition.not_values):
            if not value.isdecimal() or not 0 < int(value[:6]) < 65536:
                report.error(f"{path}.values", f"{quoted(value)} is not a port", 'as in "8080"')
    _values(condition.values, f"{path}.values", report)
    _values(condition.not_values, f"{path}.notValues", report)


def _wire(field: str) -> str:
    head, *rest = field.split("_")
    return head + "".join(part.capitalize() for part in rest)


def validate_telemetry(config: Config[Telemetry], report: Report) -> None:
    """All rules of Telemetries."""
    spec = config.spec
    if spec.selector is not None:
        checks.selector(spec.selector.match_labels, "spec.selector.matchLabels", report)
    checks.targets(spec, report)
    for index, tracing in enumerate(spec.tracing):
        path = item("spec.tracing", index)
        if len(tracing.providers) > 1:
            report.error(f"{path}.providers", "more than one tracing provider", "keep one")
        for name, tag in tracing.custom_tags.items():
            where = join(f"{path}.customTags", name)
            if not name:
                report.error(where, "a tag's name may not be empty", "name it")
            if not (tag.literal or tag.environment or tag.header or tag.formatter):
                report.error(
                    where, "has no source", "set literal, environment, header or formatter"
                )
    for index, metrics in enumerate(spec.metrics):
        path = item("spec.metrics", index)
        if metrics.reporting_interval is not None and metrics.reporting_interval < 1:
            text = f"{format_duration(metrics.reporting_interval)} is too short"
            report.error(f"{path}.reportingInterval", text, "use at least 1s")
        for number, override in enumerate(metrics.overrides):
            where = item(f"{path}.overrides", number)
            if override.match and override.match.custom_metric in get_args(StandardMetric):
                report.error(f"{where}.match.customMetric", "is a standard metric", "use metric")
            for label, change in override.tag_overrides.items():
                inner = join(f"{where}.tagOverrides", label)
                if change.operation == "UPSERT" and not change.value:
                    report.error(f"{inner}.value", "is required to set a label", "write CEL")
                if change.operation == "REMOVE" and change.value:
                    report.error(f"{inner}.value", "has no use with REMOVE", "remove it")


def validate_wasm_plugin(config: Config[WasmPlugin], report: Report) -> None:
    """All rules of WasmPlugins."""
    spec = config.spec
    if spec.selector is not None:
        checks.selector(spec.selector.match_labels, "spec.selector.matchLabels", report)
    checks.targets(spec, report)
    _wasm(spec, "spec", report)


def validate_traffic_extension(config: Config[TrafficExtension], report: Report) -> None:
    """All rules of TrafficExtensions."""
    spec = config.spec
    if spec.selector is not None:
        checks.selector(spec.selector.match_labels, "spec.selector.matchLabels", report)
    checks.targets(spec, report)
    if spec.wasm is None and spec.lua is None:
        report.error("spec", "names no extension", "add wasm or lua")
    if spec.wasm is not None:
        _wasm(spec.wasm, "spec.wasm", report)
    if spec.lua is not None and not spec.lua.inline_code:
        report.error("spec.lua.inlineCode", "is required", "write the script")


def _wasm(spec: WasmPlugin | WasmConfig, path: str, report: Report) -> None:
    scheme, found, _ = spec.url.partition("://")
    if not spec.url:
        report.error(f"{path}.url", "is required", "as in oci://registry.example.com/plugin:1.0")
    elif found and scheme not in ("http", "https", "oci", "file"):
        text = f"{quoted(scheme)} is not a supported scheme"
        report.error(f"{path}.url", text, "use oci, https, http or file")
    if spec.sha256 and not _SHA256.match(spec.sha256):
        report.error(f"{path}.sha256", "is not a SHA-256 digest", "write 64 hexadecimal digits")
    seen: set[str] = set()
    for index, env in enumerate(spec.vm_config.env if spec.vm_config else ()):
        where = item(f"{path}.vmConfig.env", index)
        if not env.name:
            report.error(f"{where}.name", "is required", "name the variable")
        if env.name in seen:
            report.error(f"{where}.name", f"{quoted(env.name)} is given twice", "remove one")
        seen.add(env.name)
        if env.value_from == "HOST" and env.value:
            report.error(f"{where}.value", "has no use with valueFrom HOST", "remove it")
        if env.value_from == "INLINE" and not env.value:
            report.warn(f"{where}.value", "is empty", "")
