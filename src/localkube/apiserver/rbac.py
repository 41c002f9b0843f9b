"""Evaluate Roles, ClusterRoles and their bindings.

In: the stored RBAC objects. Out: an index from subject to rules, the answer for one request, the
rules of one user, and whether a user already holds given rules (the escalation check). Pure but
for reading the store while the index is built. Semantics: the RBAC page of the Kubernetes docs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localkube.apiserver.admission_contract import Object, ObjectReader
    from localkube.apiserver.authn import User
    from localkube.apiserver.authz import Attributes

GROUP = "rbac.authorization.k8s.io"
PLURALS = ("roles", "clusterroles", "rolebindings", "clusterrolebindings")
SERVICE_ACCOUNT_PREFIX = "system:serviceaccount:"

Subject = tuple[str, str]
"""("User", name) or ("Group", name); a service account is the user it authenticates as."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One PolicyRule. Empty `resource_names` means every name."""

    verbs: tuple[str, ...]
    groups: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    resource_names: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()

    @classmethod
    def decode(cls, raw: Object) -> Rule:
        return cls(
            verbs=tuple(raw.get("verbs") or ()),
            groups=tuple(raw.get("apiGroups") or ()),
            resources=tuple(raw.get("resources") or ()),
            resource_names=tuple(raw.get("resourceNames") or ()),
            urls=tuple(raw.get("nonResourceURLs") or ()),
        )

    def matches(self, attributes: Attributes) -> bool:
        if not _has(self.verbs, attributes.verb):
            return False
        if attributes.path:
            return any(_url_matches(url, attributes.path) for url in self.urls)
        return (
            _has(self.groups, attributes.group)
            and self._matches_resource(attributes.resource, attributes.subresource)
            and (not self.resource_names or attributes.name in self.resource_names)
        )

    def _matches_resource(self, resource: str, subresource: str) -> bool:
        for pattern in self.resources:
            if pattern == "*":
                return True
            if subresource:
                if pattern in (f"{resource}/{subresource}", f"*/{subresource}"):
                    return True
            elif pattern == resource:
                return True
        return False

    def units(self) -> Iterator[Rule]:
        """The rule cut into rules of one verb and one resource (and name) or one URL each."""
        for verb in self.verbs:
            for url in self.urls:
                yield Rule((verb,), urls=(url,))
            for group in self.groups:
                for resource in self.resources:
                    if not self.resource_names:
                        yield Rule((verb,), (group,), (resource,))
                    for name in self.resource_names:
                        yield Rule((verb,), (group,), (resource,), (name,))

    def covers(self, unit: Rule) -> bool:
        """Whether holding this rule includes the one-verb, one-resource rule `unit`."""
        if not _has(self.verbs, unit.verbs[0]):
            return False
        if unit.urls:
            return any(_url_matches(url, unit.urls[0]) for url in self.urls)
        if not self.groups or not _has(self.groups, unit.groups[0]):
            return False
        wanted = unit.resources[0]
        _, _, subresource = wanted.partition("/")
        if not any(
            have in ("*", wanted) or (subresource and have == f"*/{subresource}")
            for have in self.resources
        ):
            return False
        if not self.resource_names:
            return True
        return bool(unit.resource_names) and unit.resource_names[0] in self.resource_names

    def encode(self) -> Object:
        """The rule as a PolicyRule dict, without empty fields."""
        fields: Object = {
            "verbs": list(self.verbs),
            "apiGroups": list(self.groups),
            "resources": list(self.resources),
            "resourceNames": list(self.resource_names),
            "nonResourceURLs": list(self.urls),
        }
        return {key: value for key, value in fields.items() if value or key == "verbs"}


def _has(patterns: tuple[str, ...], value: str) -> bool:
    return value in patterns or "*" in patterns


def _url_matches(pattern: str, path: str) -> bool:
    if pattern in ("*", path):
        return True
    return pattern.endswith("*") and path.startswith(pattern.rstrip("*"))


@dataclass(frozen=True, slots=True)
class Grant:
    """Rules that one binding gives to one subject, in `namespace` ("" = everywhere)."""

    namespace: str
    rules: tuple[Rule, ...]
    binding: str


class RbacIndex:
    """Grants by subject, and rules by role; immutable once built."""

    def __init__(
        self,
        grants: dict[Subject, tuple[Grant, ...]],
        roles: dict[tuple[str, str], tuple[Rule, ...]],
    ) -> None:
        self._grants = grants
        self._roles = roles

    @classmethod
    def build(cls, reader: ObjectReader) -> RbacIndex:
        roles = _read_roles(reader)
        grants: dict[Subject, list[Grant]] = defaultdict(list)
        for plural in ("clusterrolebindings", "rolebindings"):
            for binding in reader.read_all(GROUP, plural):
                namespace = binding["metadata"].get("namespace", "")
                ref = binding.get("roleRef") or {}
                rules = _rules_of(roles, ref, namespace)
                if not rules:
                    continue
                grant = Grant(namespace, rules, _describe_binding(binding, ref, namespace))
                for subject in binding.get("subjects") or ():
                    key = subject_key(subject, namespace)
                    if key is not None:
                        grants[key].append(grant)
        return cls({key: tuple(value) for key, value in grants.items()}, roles)

    def grants_of(self, user: User) -> Iterator[Grant]:
        yield from self._grants.get(("User", user.name), ())
        for group in user.groups:
            yield from self._grants.get(("Group", group), ())

    def allows(self, user: User, attributes: Attributes) -> str | None:
        """The reason (which binding) when some grant allows the request, else None."""
        for grant in self.grants_of(user):
            if grant.namespace and grant.namespace != attributes.namespace:
                continue
            if any(rule.matches(attributes) for rule in grant.rules):
                return f"RBAC: allowed by {grant.binding}"
        return None

    def rules_of(self, user: User, namespace: str) -> list[Rule]:
        """All rules that the user holds in `namespace` ("" = at the cluster scope)."""
        return [
            rule
            for grant in self.grants_of(user)
            if grant.namespace in ("", namespace)
            for rule in grant.rules
        ]

    def rules_of_role(self, ref: Object, namespace: str) -> tuple[Rule, ...] | None:
        """The rules a roleRef points to, or None when that role does not exist."""
        key = (
            ("", ref.get("name", ""))
            if ref.get("kind") == "ClusterRole"
            else (
                namespace,
                ref.get("name", ""),
            )
        )
        return self._roles.get(key)

    def missing_rules(self, user: User, namespace: str, wanted: Iterable[Rule]) -> list[Rule]:
        """Those parts of `wanted` that the user does not hold: empty means no escalation."""
        held = self.rules_of(user, namespace)
        return [
            unit
            for rule in wanted
            for unit in rule.units()
            if not any(have.covers(unit) for have in held)
        ]


def _describe_binding(binding: Object, ref: Object, namespace: str) -> str:
    kind = "RoleBinding" if namespace else "ClusterRoleBinding"
    name = binding["metadata"].get("name", "")
    where = f"{name}/{namespace}" if namespace else name
    return f'{kind} "{where}" of {ref.get("kind", "")} "{ref.get("name", "")}"'


def subject_key(subject: Object, namespace: str) -> Subject | None:
    """The index key of a binding's subject; None for one that names nobody."""
    kind, name = subject.get("kind"), subject.get("name", "")
    if kind == "ServiceAccount":
        owner = subject.get("namespace") or namespace
        return ("User", f"{SERVICE_ACCOUNT_PREFIX}{owner}:{name}") if owner else None
    if kind in ("User", "Group"):
        return (kind, name)
    return None


def decode_rules(role: Object) -> tuple[Rule, ...]:
    return tuple(Rule.decode(raw) for raw in role.get("rules") or ())


def _read_roles(reader: ObjectReader) -> dict[tuple[str, str], tuple[Rule, ...]]:
    cluster_roles = list(reader.read_all(GROUP, "clusterroles"))
    roles: dict[tuple[str, str], tuple[Rule, ...]] = {}
    for role in cluster_roles:
        roles["", role["metadata"]["name"]] = aggregate_rules(role, cluster_roles)
    for role in reader.read_all(GROUP, "roles"):
        metadata = role["metadata"]
        roles[metadata.get("namespace", ""), metadata["name"]] = decode_rules(role)
    return roles


def aggregate_rules(role: Object, cluster_roles: Iterable[Object]) -> tuple[Rule, ...]:
    """A ClusterRole's own rules, or, with an aggregationRule, those of the roles it selects.

    A selected role that aggregates itself contributes through its own selectors, so that
    admin <- edit <- view works whether or not anything has written the rules down.
    """
    candidates = list(cluster_roles)
    collected: dict[Rule, None] = {}
    seen: set[str] = set()
    pending = [role]
    while pending:
        current = pending.pop()
        name = current["metadata"]["name"]
        if name in seen:
            continue
        seen.add(name)
        selectors = (current.get("aggregationRule") or {}).get("clusterRoleSelectors")
        if not selectors:
            collected.update(dict.fromkeys(decode_rules(current)))
            continue
        for candidate in candidates:
            labels = candidate["metadata"].get("labels") or {}
            if any(label_selector_matches(selector, labels) for selector in selectors):
                pending.append(candidate)
    return tuple(collected)


def _rules_of(
    roles: dict[tuple[str, str], tuple[Rule, ...]], ref: Object, namespace: str
) -> tuple[Rule, ...]:
    if ref.get("kind") == "ClusterRole":
        return roles.get(("", ref.get("name", "")), ())
    return roles.get((namespace, ref.get("name", "")), ()) if namespace else ()


def label_selector_matches(selector: Object | None, labels: dict[str, str]) -> bool:
    """metav1.LabelSelector: None selects nothing, {} everything."""
    if selector is None:
        return False
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    return all(
        _requirement_matches(requirement, labels)
        for requirement in selector.get("matchExpressions") or ()
    )


def _requirement_matches(requirement: dict[str, Any], labels: dict[str, str]) -> bool:
    key = requirement.get("key", "")
    values = requirement.get("values") or ()
    match requirement.get("operator"):
        case "In":
            return key in labels and labels[key] in values
        case "NotIn":
            return key not in labels or labels[key] not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case _:
            return False
