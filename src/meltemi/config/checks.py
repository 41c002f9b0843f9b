"""Rules that several kinds share: host names, labels, addresses, regexes, durations.

Each check takes a value, the field it stands in, and the ``Report`` that it adds its findings to; nothing is returned
and nothing is raised. The rules are Istio's and Kubernetes' documented ones.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any

import re2

from meltemi.config.durations import format_duration
from meltemi.config.paths import item, join
from meltemi.config.reader import Report, nearest, quoted
from meltemi.model.security import PolicyTargetReference
from meltemi.model.traffic import Destination, PortSelector, StringMatch

DNS_LABEL = re.compile(r"[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?$")
WILDCARD_LABEL = re.compile(r"(\*|\*?-?[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?)$")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+$")
# Istio's ports protocols, as written in Gateways and ServiceEntries.
PROTOCOLS = (
    "HTTP",
    "HTTPS",
    "HTTP2",
    "GRPC",
    "GRPC-WEB",
    "TLS",
    "TCP",
    "UDP",
    "MONGO",
    "REDIS",
    "MYSQL",
    "HBONE",
    "DoubleHBONE",
    "HTTP_PROXY",
)
TARGETS = {
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
    ("", "Service"),
    ("core", "Service"),
    ("networking.istio.io", "ServiceEntry"),
}


def duration(value: float | None, path: str, report: Report, least_s: float = 0.001) -> None:
    """At least ``least_s`` seconds, when set."""
    if value is not None and value < least_s:
        least = format_duration(least_s)
        report.error(path, f"{format_duration(value)} is too short", f"use at least {least}")


def regex(text: str | None, path: str, report: Report) -> None:
    """A regular expression that Envoy can compile (RE2), at most 1024 bytes."""
    if text is None:
        return
    if len(text) > 1024:
        report.error(path, "the regular expression is longer than 1024 characters", "shorten it")
        return
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(text, options)
    except re2.error as error:
        why = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        remedy = "use RE2's syntax, which has no look-around and no back-references"
        report.error(path, f"{quoted(text)} is not a regular expression: {why}", remedy)


def string_match(match: StringMatch | None, path: str, report: Report) -> None:
    """The regex of a match compiles; a prefix is not empty."""
    if match is None:
        return
    regex(match.regex, join(path, "regex"), report)
    if match.prefix == "":
        report.error(join(path, "prefix"), "an empty prefix matches everything", "remove the match")


def labels(values: Mapping[str, str], path: str, report: Report) -> None:
    """Label names and values that Kubernetes accepts."""
    for key, value in values.items():
        where = join(path, key)
        prefix, slash, name = key.rpartition("/")
        if not _LABEL_NAME.match(name) or (slash and not is_dns_name(prefix)):
            report.error(where, f"{quoted(key)} is not a label name", "use letters, digits, - _ .")
        if value and not _LABEL_NAME.match(value):
            report.error(
                where, f"{quoted(value)} is not a label value", "use letters, digits, - _ ."
            )


def selector(values: Mapping[str, str] | None, path: str, report: Report) -> None:
    """Labels of a selector: no wildcards, no empty names."""
    if values is None:
        return
    for key, value in values.items():
        if "*" in key or "*" in value:
            text = "wildcards are not supported in selectors"
            report.error(join(path, key), text, "name the label's exact value")
            return
    labels(values, path, report)


def is_ip(text: str) -> bool:
    """True for an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_cidr(text: str) -> bool:
    """True for an address or a block in CIDR notation."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return "/" not in text or text.rpartition("/")[2].isdecimal()


def cidr(text: str, path: str, report: Report) -> None:
    """An address or a CIDR block."""
    if not is_cidr(text):
        remedy = 'write "10.1.2.3" or "10.1.0.0/16"'
        report.error(path, f"{quoted(text)} is neither an IP address nor a CIDR block", remedy)


def is_dns_name(text: str) -> bool:
    """True for a DNS name, short or full, without wildcard."""
    parts = text.removesuffix(".").split(".")
    return 0 < len(text) <= 255 and all(DNS_LABEL.match(part) for part in parts)


def wildcard_host(text: str, path: str, report: Report) -> None:
    """A DNS name or an IP address whose first label may be ``*``."""
    if not text:
        report.error(path, "a host may not be empty", "write a host name")
        return
    if is_ip(text) or text == "*":
        return
    first, dot, rest = text.partition(".")
    good = WILDCARD_LABEL.match(first) and (not dot or is_dns_name(rest)) and len(text) <= 255
    if not good:
        remedy = 'write a DNS name such as "reviews.default.svc.cluster.local" or "*.example.com"'
        report.error(path, f"{quoted(text)} is not a host name", remedy)


def namespaced_host(text: str, path: str, report: Report) -> None:
    """``namespace/host`` or ``host``, as gateways and sidecars write it."""
    namespace, slash, host = text.partition("/")
    if not slash:
        namespace, host = "*", text
    if namespace not in ("*", ".", "~") and not DNS_LABEL.match(namespace):
        remedy = 'use a namespace, "." for this one, or "*" for all'
        report.error(path, f"{quoted(namespace)} is not a namespace", remedy)
    wildcard_host(host, path, report)


def gateway_names(names: Sequence[str], path: str, report: Report) -> None:
    """Names of gateways: ``name``, ``namespace/name`` or ``mesh``."""
    for index, name in enumerate(names):
        namespace, slash, short = name.rpartition("/")
        bad = not is_dns_name(short) or (
            slash and namespace != "." and not DNS_LABEL.match(namespace)
        )
        if bad:
            remedy = 'write "name", "namespace/name" or "mesh"'
            report.error(item(path, index), f"{quoted(name)} is not a gateway's name", remedy)


def export_to(names: Sequence[str], path: str, report: Report) -> None:
    """Namespaces, ``.``, ``*`` or ``~``; the last two stand alone."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        where = item(path, index)
        if name in seen:
            report.error(where, f"{quoted(name)} is given twice", "remove one")
        seen.add(name)
        if name not in (".", "*", "~") and not DNS_LABEL.match(name):
            remedy = 'use a namespace, "." for this one, or "*" for all'
            report.error(where, f"{quoted(name)} is not a namespace", remedy)
    for alone in ("*", "~"):
        if alone in seen and len(seen) > 1:
            report.error(
                path, f'"{alone}" cannot be combined with other values', f'keep only "{alone}"'
            )
            return


def port_selector(port: PortSelector | None, path: str, report: Report) -> None:
    """A port number, when the selector is given."""
    if port is not None and port.number == 0:
        report.error(join(path, "number"), "is required", "write the service's port number")


def destination(value: Destination, path: str, report: Report) -> None:
    """A host and, if given, a port and a subset."""
    host = value.host
    if not host:
        report.error(join(path, "host"), "is required", "write the name of a service")
    elif host == "*" or "*" in host:
        report.error(join(path, "host"), "a wildcard is not a destination", "name one service")
    else:
        wildcard_host(host, join(path, "host"), report)
    if value.subset and not DNS_LABEL.match(value.subset):
        report.error(join(path, "subset"), f"{quoted(value.subset)} is not a subset's name", "")
    port_selector(value.port, join(path, "port"), report)


def protocol(text: str, path: str, report: Report) -> None:
    """A protocol name in any case; empty means unknown."""
    if text and text.upper() not in {name.upper() for name in PROTOCOLS}:
        guess = nearest(text, PROTOCOLS)
        remedy = f"did you mean {guess}?" if guess else f"use one of {', '.join(PROTOCOLS)}"
        report.error(path, f"unsupported protocol {quoted(text)}", remedy)


def header_name(text: str, path: str, report: Report) -> None:
    """A header name."""
    if not _HEADER.match(text):
        report.error(path, f"{quoted(text)} is not a header name", "use letters, digits and -")


def unix_or_local(text: str, path: str, report: Report) -> None:
    """An endpoint of the workload itself: ``127.0.0.1:port``, ``[::1]:port``, ``0.0.0.0:port`` or a Unix socket."""
    if text.startswith("unix://"):
        if not text.removeprefix("unix://").startswith(("/", "@")):
            report.error(path, f"{quoted(text)} is not an absolute path", 'write "unix:///path"')
        return
    host, colon, port = text.rpartition(":")
    known = host in ("127.0.0.1", "[::1]", "0.0.0.0", "[::]", "")
    if not colon or not known or not port.isdecimal() or not 0 < int(port[:6]) < 65536:
        remedy = 'write "127.0.0.1:8080", "[::1]:8080", "0.0.0.0:8080" or "unix:///path"'
        report.error(path, f"{quoted(text)} is not an endpoint of the workload itself", remedy)


def targets(
    spec: Any,
    report: Report,
    kinds: Sequence[str] = ("Gateway", "Service", "ServiceEntry", "GatewayClass"),
) -> None:
    """``targetRef`` and ``targetRefs`` of a policy name kinds that policies can attach to, in this namespace."""
    refs: list[tuple[str, PolicyTargetReference]] = []
    if getattr(spec, "target_ref", None) is not None:
        refs.append(("spec.targetRef", spec.target_ref))
    refs.extend((item("spec.targetRefs", i), ref) for i, ref in enumerate(spec.target_refs))
    if len(spec.target_refs) > 16:
        report.error("spec.targetRefs", "more than 16 targets", "split the object")
    for path, ref in refs:
        if not ref.name:
            report.error(join(path, "name"), "is required", "name the target")
        if (ref.group, ref.kind) not in TARGETS or ref.kind not in kinds:
            remedy = 'as in "group: gateway.networking.k8s.io, kind: Gateway"'
            text = f"{quoted(ref.group + '/' + ref.kind)} is not a kind that policies attach to"
            report.error(join(path, "kind"), text, remedy)
