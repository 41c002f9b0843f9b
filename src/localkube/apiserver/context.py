"""What handlers share: the server's parts, and one request with what is known about it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from localkube.apiserver.errors import ApiError, internal
from localkube.apiserver.policy import Policy
from localkube.apiserver.request_info import RequestInfo, is_true
from localkube.apiserver.resources import Resource, ResourceTable
from localkube.apiserver.responses import Representation, negotiate
from localkube.apiserver.schema_nodes import SchemaNode, root_node
from localkube.apiserver.store import Store
from localkube.kit import clock

if TYPE_CHECKING:
    from localkube.apiserver.authn import User

JsonObject = dict[str, Any]


@dataclass(slots=True)
class Server:
    """The parts of one API server. `closing` is set when watches and proxies must end."""

    store: Store
    table: ResourceTable
    policy: Policy
    now: Callable[[], datetime] = clock.now
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    wake_on_close: set[Callable[[], None]] = field(default_factory=set)
    _nodes: dict[tuple[str, str, str], tuple[Any, SchemaNode]] = field(default_factory=dict)

    def timestamp(self) -> str:
        """The time now as Kubernetes writes it."""
        return clock.rfc3339(self.now())

    def close(self) -> None:
        """End all watches and other long answers; they see `closing` and return."""
        self.closing.set()
        for wake in tuple(self.wake_on_close):
            wake()

    def schema_node(self, resource: Resource) -> SchemaNode:
        """Return the schema cursor of a resource's kind."""
        key = (resource.group, resource.version, resource.kind)
        schema = self.policy.schemas.for_kind(*key)
        known = self._nodes.get(key)
        if known is None or known[0] is not schema:
            known = self._nodes[key] = (schema, root_node(self.policy.schemas, *key))
        return known[1]

    def resource(self, group: str, plural: str) -> Resource:
        """Return a resource that is always there, in any version."""
        found = self.table.versions(group, plural)
        if not found:
            raise internal(f"{plural}.{group} is not served")
        return found[0]


@dataclass(slots=True)
class Call:
    """One authorized request for a resource."""

    server: Server
    request: web.Request
    info: RequestInfo
    user: User
    resource: Resource
    warnings: list[str] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        """The namespace in the path, "" for cluster-scoped resources and for all namespaces."""
        return self.info.namespace if self.resource.namespaced else ""

    @property
    def name(self) -> str:
        """The object's name in the path."""
        return self.info.name

    def option(self, name: str) -> str:
        """Return a query parameter, "" without it."""
        return self.request.query.get(name, "")

    def flag(self, name: str) -> bool:
        """Return a boolean query parameter."""
        return is_true(self.request.query.get(name))

    def representation(self) -> Representation:
        """Return the form of answer that the client wants. Raises ApiError 406."""
        return negotiate(self.request.headers.get("Accept", ""))


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How a write is to be done; the query parameters of create, update, patch and delete."""

    user: User
    dry_run: bool
    field_manager: str
    field_validation: str
    force: bool
    warnings: list[str]


_VALIDATIONS = ("Ignore", "Warn", "Strict")


def write_options(call: Call) -> WriteOptions:
    """Read the write options of a request. Raises ApiError 400 or 422 for unknown values."""
    dry_run = call.request.query.getall("dryRun", [])
    if any(value not in ("", "All") for value in dry_run):
        raise _invalid_option("dryRun", dry_run[0], ("All",))
    validation = call.option("fieldValidation") or "Warn"
    if validation not in _VALIDATIONS:
        raise _invalid_option("fieldValidation", validation, _VALIDATIONS)
    manager = call.option("fieldManager")
    if not manager:
        manager = call.request.headers.get("User-Agent", "").partition("/")[0] or "unknown"
    return WriteOptions(
        user=call.user,
        dry_run="All" in dry_run,
        field_manager=manager[:128],
        field_validation=validation,
        force=call.flag("force"),
        warnings=call.warnings,
    )


def _invalid_option(name: str, value: str, supported: tuple[str, ...]) -> ApiError:
    listed = ", ".join(f'"{one}"' for one in supported)
    return ApiError(
        422,
        "Invalid",
        f' "" is invalid: {name}: Unsupported value: "{value}": supported values: {listed}',
    )
