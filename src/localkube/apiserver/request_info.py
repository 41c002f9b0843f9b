"""What a request asks for, read from its method, path and query.

In: method, raw path, query. Out: `RequestInfo`, which authorization and dispatch share. Pure.
The path forms are those of https://kubernetes.io/docs/reference/using-api/api-concepts/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from localkube.apiserver.selectors import selected_name

_TRUE = frozenset({"1", "true", "True", "TRUE", "t", "T"})
_WRITE_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}
# A namespace's own subresources; anything else after its name is a resource inside it.
_NAMESPACE_SUBRESOURCES = frozenset({"status", "finalize"})


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """One request. Resource fields are empty when `is_resource` is off.

    `tail` is what follows the subresource (only proxies have it), with its leading slash.
    """

    is_resource: bool
    verb: str
    path: str
    group: str = ""
    version: str = ""
    namespace: str = ""
    plural: str = ""
    name: str = ""
    subresource: str = ""
    tail: str = ""


def is_true(value: str | None) -> bool:
    """Tell whether a query parameter is a true boolean, as Go reads one."""
    return value in _TRUE


def parse_request(method: str, raw_path: str, query: Mapping[str, str]) -> RequestInfo:
    """Return what the request asks for."""
    parts = [unquote(part) for part in raw_path.split("/") if part]
    path = unquote(raw_path)
    plain = RequestInfo(False, method.lower(), path)
    if parts[:1] == ["api"] and len(parts) >= 3:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[:1] == ["apis"] and len(parts) >= 4:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return plain
    watching = is_true(query.get("watch"))
    if rest[0] == "watch" and len(rest) > 1:  # the old form of a watch
        rest, watching = rest[1:], True
    namespace, rest = _split_namespace(rest)
    plural, name = rest[0], rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    tail = ""
    if len(rest) > 3 or (subresource == "proxy" and raw_path.endswith("/")):
        tail = "/" + "/".join(raw_path.lstrip("/").split("/")[len(parts) - len(rest) + 3 :])
    if method in ("GET", "HEAD"):
        verb = "get" if name else ("watch" if watching else "list")
    elif method == "DELETE":
        verb = "delete" if name else "deletecollection"
    else:
        verb = _WRITE_VERBS.get(method, method.lower())
    if verb in ("list", "watch", "deletecollection") and not name:
        name = selected_name(query.get("fieldSelector", ""))
        return RequestInfo(True, verb, path, group, version, namespace, plural, name)
    return RequestInfo(True, verb, path, group, version, namespace, plural, name, subresource, tail)


def _split_namespace(rest: list[str]) -> tuple[str, list[str]]:
    if rest[0] != "namespaces" or len(rest) == 1:
        return "", rest
    if len(rest) == 2 or (len(rest) == 3 and rest[2] in _NAMESPACE_SUBRESOURCES):
        # RBAC counts a namespace as lying in itself.
        return rest[1], rest
    return rest[1], rest[2:]
