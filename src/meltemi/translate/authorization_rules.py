"""One rule of an AuthorizationPolicy as conditions.

In: a rule, the mesh's trust domains and what is known where it will be checked (``Facts``). Out: a pair of conditions, or
None when the rule must be left out. Istio's rule for attributes that do not exist at a place (HTTP fields on a TCP
connection): an ALLOW rule with one is left out, other actions go without the field, which makes them wider. The
same holds for what cannot be expressed at all, so a mistake never opens anything.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_network

import re2

from meltemi.ir import authorization as ir
from meltemi.ir.jwt import JWT_FILTER, PAYLOAD
from meltemi.ir.route import StringMatch
from meltemi.model.security import Operation, Rule, Source

# In policies this trust domain stands for the mesh's own, whatever its name (Istio's trust domain migration).
LOCAL_TRUST_DOMAIN = "cluster.local"
_SPIFFE = "spiffe://"
_METADATA_KEY = "experimental."


class Facts(enum.IntEnum):
    """What is known where a rule is checked; each includes those before it."""

    CONNECTION = 0
    REQUEST = 1
    TOKEN = 2  # a request whose JWT was verified


class Unusable(Exception):
    """This field cannot be checked. The text says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a rule is used: its action, its policy's namespace, and what is known there."""

    allow: bool
    namespace: str
    facts: Facts
    trust_domains: tuple[str, ...] = (LOCAL_TRUST_DOMAIN,)


Maker = Callable[[Setting, str], ir.Condition]


def string_match(value: str) -> StringMatch:
    """``*`` is presence, ``abc*`` a prefix, ``*abc`` a suffix, the rest exact."""
    if value == "*":
        return StringMatch("present")
    if value.startswith("*"):
        return StringMatch("suffix", value[1:])
    if value.endswith("*"):
        return StringMatch("prefix", value[:-1])
    return StringMatch("exact", value)


def _glob(value: str, part: str) -> str:
    """A pattern in RE2's syntax for a value with a leading or trailing ``*``, which stands for ``part``."""
    if value == "*":
        return part.replace("*", "+")
    if value.startswith("*"):
        return part + str(re2.escape(value[1:]))
    if value.endswith("*"):
        return str(re2.escape(value[:-1])) + part
    return str(re2.escape(value))


def _peer(pattern: str) -> ir.Condition:
    """A whole SPIFFE id. The scheme is always part of it, so that no other kind of name can match."""
    return ir.PeerName(StringMatch("regex", f"(?s){_SPIFFE}{pattern}"))


def _trust_domains(setting: Setting, value: str) -> list[str]:
    """The principals that ``value`` stands for: those of the mesh's own trust domains are all meant together."""
    parts = value.split("/")
    known = (*setting.trust_domains, LOCAL_TRUST_DOMAIN)
    if len(parts) != 5 or parts[0] == "*" or parts[0] not in known:
        return [value]
    rest = "/".join(parts[1:])
    return list(dict.fromkeys(f"{domain}/{rest}" for domain in setting.trust_domains))


def _principal(setting: Setting, value: str) -> ir.Condition:
    names = _trust_domains(setting, value.removeprefix(_SPIFFE))
    found = tuple(_peer(_glob(name, ".*")) for name in names)
    return found[0] if len(found) == 1 else ir.AnyOf(found)


def _namespace(_: Setting, value: str) -> ir.Condition:
    return _peer(f"[^/]+/ns/{_glob(value, '[^/]*')}/sa/[^/]+")


def _service_account(setting: Setting, value: str) -> ir.Condition:
    namespace, slash, account = value.rpartition("/")
    if "*" in value or "/" in namespace or not account:
        raise Unusable(f"{value!r} is not a service account")
    place = namespace if slash else setting.namespace
    return _peer(f"[^/]+/ns/{re2.escape(place)}/sa/{re2.escape(account)}")


def _trust_domain(setting: Setting, value: str) -> ir.Condition:
    if value in (*setting.trust_domains, LOCAL_TRUST_DOMAIN):
        wanted = "|".join(re2.escape(domain) for domain in setting.trust_domains)
    else:
        wanted = _glob(value, "[^/]*")
    return _peer(f"(?:{wanted})/.*")


def _address(which: str) -> Maker:
    def make(_: Setting, value: str) -> ir.Condition:
        try:
            return ir.Address(which, str(ip_network(value, strict=False)))
        except ValueError:
            raise Unusable(f"{value!r} is not an address or a CIDR") from None

    return make


def _port(_: Setting, value: str) -> ir.Condition:
    if not value.isdecimal() or not 0 < int(value[:6]) < 65536:
        raise Unusable(f"{value!r} is not a port")
    return ir.DestinationPort(int(value))


def _server_name(_: Setting, value: str) -> ir.Condition:
    return ir.ServerName(string_match(value))


def _host(_: Setting, value: str) -> ir.Condition:
    match = string_match(value)
    if match.kind != "present":
        match = StringMatch(match.kind, match.value, ignore_case=True)
    return ir.Header(":authority", match)


def _method(_: Setting, value: str) -> ir.Condition:
    return ir.Header(":method", string_match(value))


def _path(_: Setting, value: str) -> ir.Condition:
    if "{*}" in value or "{**}" in value:
        return ir.Path(StringMatch("regex", path_template(value)))
    return ir.Path(string_match(value))


def path_template(value: str) -> str:
    """A pattern for a path template: ``{*}`` is one segment that is not empty, ``{**}`` anything."""
    parts = []
    for segment in value.split("/"):
        if segment == "{*}":
            parts.append("[^/]+")
        elif segment == "{**}":
            parts.append(".*")
        elif "{" in segment or "}" in segment:
            raise Unusable(f"{value!r} is not a path template")
        else:
            parts.append(str(re2.escape(segment)))
    return "(?s)" + "/".join(parts)


def _header(name: str) -> Maker:
    if not name:
        raise Unusable("the header has no name")
    return lambda _, value: ir.Header(name.lower(), string_match(value))


def _claim(*path: str, text: bool = True, lists: bool = True) -> Maker:
    return lambda _, value: ir.Metadata(
        JWT_FILTER, (PAYLOAD, *path), string_match(value), text, lists
    )


def _token(issuer: StringMatch, subject: StringMatch) -> ir.Condition:
    """Issuer and subject of a verified token; both must be there."""
    return ir.All(
        tuple(
            ir.Metadata(JWT_FILTER, (PAYLOAD, claim), match, lists=False)
            for claim, match in (("iss", issuer), ("sub", subject))
        )
    )


_ANY = StringMatch("present")


def _request_principal(_: Setting, value: str) -> ir.Condition:
    """``issuer/subject`` is compared without joining the two: every slash may be the one between them."""
    match = string_match(value)
    if match.kind == "present":
        return _token(_ANY, _ANY)
    found: list[ir.Condition] = []
    for place in (index for index, sign in enumerate(match.value) if sign == "/"):
        left, right = match.value[:place], match.value[place + 1 :]
        if match.kind == "exact" and left and right:
            found.append(_token(StringMatch("exact", left), StringMatch("exact", right)))
        elif match.kind == "prefix" and left:
            found.append(
                _token(StringMatch("exact", left), StringMatch("prefix", right) if right else _ANY)
            )
        elif match.kind == "suffix" and right:
            found.append(
                _token(StringMatch("suffix", left) if left else _ANY, StringMatch("exact", right))
            )
    if match.kind == "prefix":
        found.append(_token(match, _ANY))
    elif match.kind == "suffix":
        found.append(_token(_ANY, match))
    return _either(found)


def _filter_metadata(key: str) -> Maker:
    """``experimental.envoy.filters.network.mysql_proxy[table]``; a value in brackets is an element of a list."""
    name, bracket, rest = key.removeprefix(_METADATA_KEY).partition("[")
    if not bracket or not rest.endswith("]") or not rest[:-1]:
        raise Unusable(f"{key!r} does not name a metadata field in brackets")
    field = rest[:-1]

    def make(_: Setting, value: str) -> ir.Condition:
        if value.startswith("[") and value.endswith("]") and len(value) > 2:
            return ir.Metadata(name, (field,), string_match(value[1:-1]), text=False, lists=True)
        return ir.Metadata(name, (field,), string_match(value), text=True, lists=False)

    return make


@dataclass(frozen=True, slots=True)
class _Attribute:
    """How an attribute is checked. ``principal``: it belongs to the source, else to the operation."""

    make: Maker
    needs: Facts = Facts.CONNECTION
    principal: bool = True


_REQUEST, _TOKEN = Facts.REQUEST, Facts.TOKEN
_ATTRIBUTES = {
    "source.ip": _Attribute(_address("source")),
    "remote.ip": _Attribute(_address("remote")),
    "source.namespace": _Attribute(_namespace),
    "source.principal": _Attribute(_principal),
    "source.serviceAccount": _Attribute(_service_account),
    "source.trustDomain": _Attribute(_trust_domain),
    "request.auth.principal": _Attribute(_request_principal, _TOKEN),
    "request.auth.audiences": _Attribute(_claim("aud"), _TOKEN),
    "request.auth.presenter": _Attribute(_claim("azp", lists=False), _TOKEN),
    "destination.ip": _Attribute(_address("destination"), principal=False),
    "destination.port": _Attribute(_port, principal=False),
    "connection.sni": _Attribute(_server_name, principal=False),
    "host": _Attribute(_host, _REQUEST, principal=False),
    "method": _Attribute(_method, _REQUEST, principal=False),
    "path": _Attribute(_path, _REQUEST, principal=False),
}
_SOURCE = {
    "principals": "source.principal",
    "request_principals": "request.auth.principal",
    "namespaces": "source.namespace",
    "service_accounts": "source.serviceAccount",
    "trust_domains": "source.trustDomain",
    "ip_blocks": "source.ip",
    "remote_ip_blocks": "remote.ip",
}
_OPERATION = {
    "hosts": "host",
    "ports": "destination.port",
    "methods": "method",
    "paths": "path",
}


def _in_brackets(text: str) -> tuple[str, ...]:
    """``[a][b]`` -> (a, b)."""
    if not (text.startswith("[") and text.endswith("]") and len(text) > 2):
        raise Unusable(f"{text!r} is not a name in brackets")
    return tuple(text[1:-1].split("]["))


def _attribute(key: str) -> _Attribute:
    known = _ATTRIBUTES.get(key)
    if known is not None and "." in key:
        return known
    if key.startswith("request.headers"):
        path = _in_brackets(key.removeprefix("request.headers"))
        return _Attribute(_header(path[0]), _REQUEST)
    if key.startswith("request.auth.claims"):
        return _Attribute(_claim(*_in_brackets(key.removeprefix("request.auth.claims"))), _TOKEN)
    if key.startswith("experimental.envoy.filters."):
        return _Attribute(_filter_metadata(key), principal=False)
    raise Unusable(f"{key!r} is not a known attribute")


_WHY = {
    Facts.REQUEST: "exists for HTTP only",
    Facts.TOKEN: "needs a verified token, which does not exist here",
}


def _either(found: list[ir.Condition]) -> ir.Condition:
    return found[0] if len(found) == 1 else ir.AnyOf(tuple(found))


def _both(found: list[ir.Condition]) -> ir.Condition:
    return found[0] if len(found) == 1 else ir.All(tuple(found))


class RuleBuilder:
    """Builds the conditions of rules at one setting. ``skipped`` collects (path, reason) of fields that are left out."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.skipped: list[tuple[str, str]] = []

    def _values(
        self, attribute: _Attribute, name: str, values: Iterable[str], path: str
    ) -> tuple[list[ir.Condition], bool]:
        """The conditions of those values that can be used here, and whether these are all. An ALLOW rule needs all."""
        found: list[ir.Condition] = []
        complete = True
        for value in values:
            try:
                if attribute.needs > self.setting.facts:
                    raise Unusable(f"{name} {_WHY[attribute.needs]}")
                if not value:
                    raise Unusable(f"{name} has an empty value")
                found.append(attribute.make(self.setting, value))
            except Unusable as problem:
                self.skipped.append((path, str(problem)))
                complete = False
                if self.setting.allow:
                    raise
        return found, complete

    def _field(
        self,
        attribute: _Attribute,
        name: str,
        values: tuple[str, ...],
        not_values: tuple[str, ...],
        path: str,
    ) -> list[ir.Condition]:
        """Leaving out must make the rule wider: all of the values, or single ones of those that must not be."""
        found: list[ir.Condition] = []
        wanted, complete = self._values(attribute, name, values, path)
        if wanted and complete:
            found.append(_either(wanted))
        unwanted, _ = self._values(attribute, name, not_values, path)
        if unwanted:
            found.append(ir.Not(_either(unwanted)))
        return found

    def _fields(
        self, spec: Source | Operation | None, names: dict[str, str], path: str
    ) -> ir.Condition:
        """All fields of a source or an operation. An empty one is a mistake: it would match everything."""
        if spec is None or spec == type(spec)():
            self.skipped.append((path, "is empty"))
            if self.setting.allow:
                raise Unusable("is empty")
            return ir.ALWAYS
        found: list[ir.Condition] = []
        for name, key in names.items():
            values, unwanted = getattr(spec, name), getattr(spec, f"not_{name}")
            wire = name.split("_")[0] + "".join(part.capitalize() for part in name.split("_")[1:])
            found += self._field(_ATTRIBUTES[key], wire, values, unwanted, f"{path}.{wire}")
        return _both(found)

    def build(self, rule: Rule, path: str) -> tuple[ir.Condition, ir.Condition] | None:
        """(who, what), or None when the rule has to be left out."""
        try:
            return self._build(rule, path)
        except Unusable:
            return None

    def _build(self, rule: Rule, path: str) -> tuple[ir.Condition, ir.Condition]:
        who: list[ir.Condition] = []
        what: list[ir.Condition] = []
        sources = [
            self._fields(entry.source, _SOURCE, f"{path}.from[{index}].source")
            for index, entry in enumerate(rule.from_)
        ]
        operations = [
            self._fields(entry.operation, _OPERATION, f"{path}.to[{index}].operation")
            for index, entry in enumerate(rule.to)
        ]
        for alternatives, place in ((sources, who), (operations, what)):
            if alternatives:
                place.append(_either(alternatives))
        for index, condition in enumerate(rule.when):
            where = f"{path}.when[{index}]"
            try:
                attribute = _attribute(condition.key)
                if not condition.values and not condition.not_values:
                    raise Unusable("has no values")
            except Unusable as problem:
                self.skipped.append((where, str(problem)))
                if self.setting.allow:
                    raise
                continue
            found = self._field(
                attribute, condition.key, condition.values, condition.not_values, where
            )
            (who if attribute.principal else what).extend(found)
        return _both(who), _both(what)
