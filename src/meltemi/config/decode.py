"""Raw objects -> typed configuration: the front of the config stage.

In: a ``RawObject`` (from ``parse_yaml``) or a plain mapping (from the API server: ``model.kubernetes.decode_object``). Out: a
``Config`` and findings. Promises: total (never raises on user input, whatever its shape) and complete (all mistakes of an
object are reported at once, each with its field and line, and with what to write instead).

* ``decode`` reads. A ``Config`` comes out unless a value has the wrong type or a required one is missing. Unknown fields are
  findings of level ERROR that do not stop the object: an API server prunes them, and so does this stage.
* ``validate`` applies the kind's rules to what was read.
* ``load`` does both: what istiod calls for every object. None when an error makes it unusable; then it is as if the object did
  not exist, and its findings go to its status (but see ``FAIL_CLOSED``). Whoever has to refuse an object (the webhook, ``meltemi validate``)
  refuses it for any finding of level ERROR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from meltemi.config.fail_closed import closed
from meltemi.config.kinds import GROUPS, KINDS
from meltemi.config.limits import report_limits
from meltemi.config.reader import SCHEMA, Report, decode_as, decode_meta, nearest, quoted
from meltemi.config.yaml_source import RawObject, parse_yaml, raw_object
from meltemi.model import ingress, kubernetes
from meltemi.model.config import Config, Meta
from meltemi.model.origin import Finding, Level

# An object of these that breaks its kind's rules is used all the same: without it a workload would be open. Translation leaves
# out what it cannot express, so that less is allowed, never more. For one that cannot even be decoded see ``config.fail_closed``.
FAIL_CLOSED = frozenset({"AuthorizationPolicy", "RequestAuthentication", "PeerAuthentication"})

__all__ = [
    "FAIL_CLOSED",
    "KUBERNETES_KINDS",
    "RawObject",
    "decode",
    "load",
    "parse_yaml",
    "raw_object",
    "validate",
]

# Kubernetes' own kinds that the mesh reads: (apiVersion, kind) -> struct.
KUBERNETES_KINDS: Mapping[tuple[str, str], type[kubernetes.K8s]] = MappingProxyType(
    {
        ("v1", "Service"): kubernetes.Service,
        ("v1", "Pod"): kubernetes.Pod,
        ("v1", "Namespace"): kubernetes.Namespace,
        ("v1", "Node"): kubernetes.Node,
        ("v1", "Secret"): kubernetes.Secret,
        ("v1", "ConfigMap"): kubernetes.ConfigMap,
        ("discovery.k8s.io/v1", "EndpointSlice"): kubernetes.EndpointSlice,
        ("networking.k8s.io/v1", "Ingress"): ingress.Ingress,
        ("networking.k8s.io/v1", "IngressClass"): ingress.IngressClass,
    }
)


def decode(raw: RawObject | Mapping[str, Any]) -> tuple[Config[Any] | None, list[Finding]]:
    """One object. ``(None, [])`` for kinds that the mesh does not read (Deployments, ...)."""
    if not isinstance(raw, RawObject):
        raw = raw_object(raw)
    group, _, version = raw.api_version.rpartition("/")
    info = KINDS.get(raw.kind)
    if info is not None and group == info.group:
        config, findings = decode_as(raw, info.kind, info.spec, _rules)
        if version not in info.versions:
            text = f"{info.kind} has no version {quoted(version)}"
            versions = ", ".join(f"{info.group}/{v}" for v in info.versions)
            findings.insert(0, _finding(raw, "apiVersion", text, f"use {versions}"))
            return None, findings
        return config, findings
    if group in GROUPS:
        guess = nearest(raw.kind, [kind for kind, known in KINDS.items() if known.group == group])
        remedy = f'did you mean "{guess}"?' if guess else ""
        return None, [_finding(raw, "kind", f"{group} has no kind {quoted(raw.kind)}", remedy)]
    if info is not None and group.endswith("istio.io"):
        text = f"{info.kind} is not in the group {quoted(group)}"
        return None, [_finding(raw, "apiVersion", text, f"use {info.api_version}")]
    native = KUBERNETES_KINDS.get((raw.api_version, raw.kind))
    return _native(raw, native) if native is not None else (None, [])


def _finding(raw: RawObject, path: str, text: str, remedy: str) -> Finding:
    place = Config(raw.kind, Meta(raw.name, raw.namespace), None, raw.source_map)
    return Finding(SCHEMA, Level.ERROR, text, place.origin(path), remedy)


def _native(raw: RawObject, cls: type[kubernetes.K8s]) -> tuple[Config[Any] | None, list[Finding]]:
    """A Kubernetes object; its whole struct is the spec."""
    meta, wrong = decode_meta(raw)
    report = Report(Config(raw.kind, meta, None, raw.source_map))
    for path, text, remedy in wrong:
        report.error(path, text, remedy)
    try:
        spec = msgspec.convert(raw.body, cls, strict=False)
    except (msgspec.ValidationError, RecursionError) as error:
        # msgspec's message ends with " - at `$.spec.ports[0].port`".
        text, _, where = str(error).partition(" - at `$")
        report.error(where.strip("`.") or "spec", text, "")
        return None, report.findings
    return (Config(raw.kind, meta, spec, raw.source_map) if not wrong else None), report.findings


def validate(config: Config[Any]) -> list[Finding]:
    """What the kind's own rules say about a decoded object; empty for Kubernetes' own kinds."""
    info = KINDS.get(config.kind)
    if info is None or not isinstance(config.spec, info.spec):
        return []
    report = Report(config)
    _rules(config, report)
    return report.findings


def _rules(config: Config[Any], report: Report) -> None:
    """The rules of the object's kind, and the limits of this mesh."""
    rules: Callable[[Config[Any], Report], None] = KINDS[config.kind].validate
    rules(config, report)
    report_limits(config.kind, config.spec, "spec", report)


def load(raw: RawObject | Mapping[str, Any]) -> tuple[Config[Any] | None, list[Finding]]:
    """``decode`` and ``validate``: the object if it can be used, and all that is wrong with it."""
    if not isinstance(raw, RawObject):
        raw = raw_object(raw)
    config, findings = decode(raw)
    if config is None:
        instead = closed(raw) if findings else None
        return (instead[0], [*findings, instead[1]]) if instead else (None, findings)
    semantic = validate(config)
    usable = config.kind in FAIL_CLOSED or not any(
        finding.level is Level.ERROR for finding in semantic
    )
    return (config if usable else None), findings + semantic
