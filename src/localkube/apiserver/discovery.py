"""Discovery: which groups, versions and resources are served.

In: the resource table. Out: the classic documents (APIVersions, APIGroupList, APIResourceList) and
the aggregated one (apidiscovery.k8s.io/v2), built when first asked for after a change.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from localkube.apiserver.resources import Resource, ResourceTable

JsonObject = dict[str, Any]
Gvk = tuple[str, str, str]

AGGREGATED = "APIGroupDiscoveryList"
AGGREGATED_GROUP = "apidiscovery.k8s.io"
_READ_WRITE = ("get", "patch", "update")
_STREAM = ("create", "get")
_ANY = ("create", "delete", "get", "patch", "update")
# What a subresource answers with: (kind, verbs); None is the resource's own kind.
_SUBRESOURCES: dict[str, tuple[Gvk | None, tuple[str, ...]]] = {
    "status": (None, _READ_WRITE),
    "approval": (None, _READ_WRITE),
    "finalize": (None, ("update",)),
    "scale": (("autoscaling", "v1", "Scale"), _READ_WRITE),
    "log": (None, ("get",)),
    "exec": (("", "v1", "PodExecOptions"), _STREAM),
    "attach": (("", "v1", "PodAttachOptions"), _STREAM),
    "portforward": (("", "v1", "PodPortForwardOptions"), _STREAM),
    "binding": (("", "v1", "Binding"), ("create",)),
    "eviction": (("policy", "v1", "Eviction"), ("create",)),
    "token": (("authentication.k8s.io", "v1", "TokenRequest"), ("create",)),
}
_VERSION = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?")


def version_rank(version: str) -> tuple[int, int, int, str]:
    """Return a key that sorts versions as Kubernetes prefers them: v2, v1, v1beta2, v1alpha1, x."""
    match = _VERSION.fullmatch(version)
    if match is None:
        return (3, 0, 0, version)
    stage = {None: 0, "beta": 1, "alpha": 2}[match[2]]
    return (stage, -int(match[1]), -int(match[3] or 0), version)


def _subresource(resource: Resource, name: str) -> tuple[Gvk, tuple[str, ...]]:
    if name == "proxy":
        return ("", "v1", f"{resource.kind}ProxyOptions"), _ANY
    kind, verbs = _SUBRESOURCES[name]
    return kind or (resource.group, resource.version, resource.kind), verbs


@dataclass(slots=True)
class Discovery:
    """The documents over one resource table."""

    table: ResourceTable
    _built: dict[str, tuple[int, bytes, str]] = field(default_factory=dict)

    def _cached(self, key: str, build: Callable[[], JsonObject | None]) -> tuple[bytes, str] | None:
        known = self._built.get(key)
        if known is None or known[0] != self.table.generation:
            document = build()
            if document is None:
                return None
            body = msgspec.json.encode(document)
            etag = hashlib.sha256(body).hexdigest().upper()
            known = self._built[key] = (self.table.generation, body, f'"{etag}"')
        return known[1], known[2]

    def document(self, path: str, *, aggregated: str = "") -> tuple[bytes, str] | None:
        """Return the document at a path as (JSON, ETag), None if nothing is there.

        `aggregated` is the version of the aggregated form that the client wants, "" for classic.
        """
        parts = [part for part in path.split("/") if part]
        if aggregated and len(parts) == 1:
            core = parts == ["api"]
            return self._cached(
                f"{path}?{aggregated}", lambda: self._aggregated(aggregated, core=core)
            )
        match parts:
            case ["api"]:
                return self._cached(path, self._versions)
            case ["apis"]:
                return self._cached(path, self._groups)
            case ["api", version]:
                return self._cached(path, lambda: self._resources("", version))
            case ["apis", group]:
                return self._cached(path, lambda: self._group(group))
            case ["apis", group, version]:
                return self._cached(path, lambda: self._resources(group, version))
        return None

    def _by_group(self) -> dict[str, dict[str, list[Resource]]]:
        groups: dict[str, dict[str, list[Resource]]] = {}
        for resource in self.table.all():
            versions = groups.setdefault(resource.group, {})
            versions.setdefault(resource.version, []).append(resource)
        return groups

    @staticmethod
    def _versions() -> JsonObject:
        return {
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [],
        }

    def _groups(self) -> JsonObject:
        groups = [
            self._describe(group, list(versions))
            for group, versions in self._by_group().items()
            if group
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

    @staticmethod
    def _describe(group: str, versions: list[str]) -> JsonObject:
        named = [
            {"groupVersion": f"{group}/{version}", "version": version}
            for version in sorted(versions, key=version_rank)
        ]
        return {"name": group, "versions": named, "preferredVersion": named[0]}

    def _group(self, group: str) -> JsonObject | None:
        versions = self._by_group().get(group)
        if not versions:
            return None
        return {"kind": "APIGroup", "apiVersion": "v1", **self._describe(group, list(versions))}

    def _resources(self, group: str, version: str) -> JsonObject | None:
        found = self._by_group().get(group, {}).get(version)
        if not found:
            return None
        listed: list[JsonObject] = []
        for resource in found:
            entry: JsonObject = {
                "name": resource.plural,
                "singularName": resource.singular,
                "namespaced": resource.namespaced,
                "kind": resource.kind,
                "verbs": list(resource.verbs),
            }
            if resource.short_names:
                entry["shortNames"] = list(resource.short_names)
            if resource.categories:
                entry["categories"] = list(resource.categories)
            listed.append(entry)
            for name in sorted(resource.subresources):
                (kind_group, kind_version, kind), verbs = _subresource(resource, name)
                entry = {
                    "name": f"{resource.plural}/{name}",
                    "singularName": "",
                    "namespaced": resource.namespaced,
                    "kind": kind,
                    "verbs": list(verbs),
                }
                if (kind_group, kind_version) != (group, version):
                    entry["group"], entry["version"] = kind_group, kind_version
                listed.append(entry)
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": f"{group}/{version}" if group else version,
            "resources": listed,
        }

    def _aggregated(self, form: str, *, core: bool) -> JsonObject:
        items: list[JsonObject] = []
        for group, versions in self._by_group().items():
            if (group == "") != core:
                continue
            metadata: JsonObject = {"creationTimestamp": None}
            if group:
                metadata["name"] = group
            items.append(
                {
                    "metadata": metadata,
                    "versions": [
                        {
                            "version": version,
                            "resources": [_entry(one) for one in versions[version]],
                            "freshness": "Current",
                        }
                        for version in sorted(versions, key=version_rank)
                    ],
                }
            )
        return {
            "kind": AGGREGATED,
            "apiVersion": f"{AGGREGATED_GROUP}/{form}",
            "metadata": {},
            "items": items,
        }


def _gvk(kind: Gvk) -> JsonObject:
    return {"group": kind[0], "version": kind[1], "kind": kind[2]}


def _entry(resource: Resource) -> JsonObject:
    entry: JsonObject = {
        "resource": resource.plural,
        "responseKind": _gvk((resource.group, resource.version, resource.kind)),
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    subresources: list[JsonObject] = []
    for name in sorted(resource.subresources):
        kind, verbs = _subresource(resource, name)
        subresources.append({"subresource": name, "responseKind": _gvk(kind), "verbs": list(verbs)})
    if subresources:
        entry["subresources"] = subresources
    return entry


def wanted_aggregation(accept: str) -> str:
    """Return the version of aggregated discovery that an Accept header asks for, "" for none."""
    for clause in accept.split(","):
        media_type, _, rest = clause.strip().partition(";")
        parameters = dict(
            part.strip().partition("=")[::2] for part in rest.split(";") if "=" in part
        )
        if media_type.strip() in ("application/json", "*/*"):
            if parameters.get("as") != AGGREGATED:
                return ""
            if parameters.get("g") == AGGREGATED_GROUP and parameters.get("v") in ("v2", "v2beta1"):
                return parameters["v"]
    return ""
