"""ConfigMaps and Secrets that this node's pods refer to, kept fresh by one watch per object.

In: (kind, namespace, name). Out: the object's data, and calls on changes. Promises to watch only
what a pod here refers to (what the node authorizer of Kubernetes allows), and to stop when the
last reference goes.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import structlog

from localkube.client import ApiClient, Informer, ResourceType
from localkube.client.resources import CONFIG_MAPS, SECRETS

Reference = tuple[str, str, str]
"""Kind (``ConfigMap`` or ``Secret``), namespace, name."""

_RESOURCES: Final[Mapping[str, ResourceType]] = {"ConfigMap": CONFIG_MAPS, "Secret": SECRETS}
_SYNC_S: Final = 10.0


class ReferencedObjects:
    """A shared cache with one informer per referenced object."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._informers: dict[Reference, Informer] = {}
        self._users: dict[Reference, set[str]] = {}
        self._listeners: dict[str, Callable[[], None]] = {}
        self._log = structlog.get_logger("localkube.node.objects")

    async def use(
        self, user: str, references: Iterable[Reference], on_change: Callable[[], None]
    ) -> None:
        """Make ``user`` (a pod uid) refer to exactly ``references``; return when they are known."""
        wanted = set(references)
        self._listeners[user] = on_change
        for reference in [r for r, users in self._users.items() if user in users]:
            if reference not in wanted:
                await self._drop(user, reference)
        for reference in wanted:
            self._users.setdefault(reference, set()).add(user)
            if reference not in self._informers:
                self._informers[reference] = self._watch(reference)
        for reference in wanted:
            await self._synced(reference)

    async def release(self, user: str) -> None:
        """Forget all references of ``user``."""
        self._listeners.pop(user, None)
        for reference in [r for r, users in self._users.items() if user in users]:
            await self._drop(user, reference)

    async def close(self) -> None:
        """Stop all watches."""
        informers, self._informers = list(self._informers.values()), {}
        for informer in informers:
            await informer.close()

    def get(self, reference: Reference) -> Mapping[str, Any] | None:
        """Return the object as last seen, or None."""
        informer = self._informers.get(reference)
        return informer.get(reference[2], reference[1]) if informer else None

    def text(self, reference: Reference) -> dict[str, str] | None:
        """Return the object's data as text (for environment variables)."""
        data = self.data(reference)
        if data is None:
            return None
        return {key: value.decode(errors="replace") for key, value in data.items()}

    def data(self, reference: Reference) -> dict[str, bytes] | None:
        """Return the object's data as bytes (for files)."""
        found = self.get(reference)
        return None if found is None else decode_data(reference[0], found)

    def _watch(self, reference: Reference) -> Informer:
        kind, namespace, name = reference
        informer = Informer(
            self._client, _RESOURCES[kind], namespace, field_selector=f"metadata.name={name}"
        )

        def changed(_old: object, _new: object) -> None:
            for user in self._users.get(reference, ()):
                listener = self._listeners.get(user)
                if listener:
                    listener()

        informer.on_change(changed)
        informer.start()
        return informer

    async def _synced(self, reference: Reference) -> None:
        informer = self._informers.get(reference)
        if informer is None:
            return
        try:
            await informer.wait_synced(_SYNC_S)
        except TimeoutError:
            self._log.warning("no answer about a referenced object", reference="/".join(reference))

    async def _drop(self, user: str, reference: Reference) -> None:
        users = self._users[reference]
        users.discard(user)
        if not users:
            del self._users[reference]
            informer = self._informers.pop(reference, None)
            if informer is not None:
                await asyncio.shield(informer.close())


def decode_data(kind: str, found: Mapping[str, Any]) -> dict[str, bytes]:
    """Return a ConfigMap's or Secret's keys and values as bytes."""
    data: dict[str, bytes] = {}
    if kind == "Secret":
        for key, value in (found.get("data") or {}).items():
            data[key] = base64.b64decode(value or "")
        return data
    for key, value in (found.get("binaryData") or {}).items():
        data[key] = base64.b64decode(value or "")
    for key, value in (found.get("data") or {}).items():
        data[key] = (value or "").encode()
    return data


def find_references(pod: Mapping[str, Any]) -> set[Reference]:
    """Return every ConfigMap and Secret that a pod's volumes and variables name."""
    namespace = pod["metadata"]["namespace"]
    spec = pod["spec"]
    found: set[Reference] = set()
    for volume in spec.get("volumes") or []:
        sources = [volume, *((volume.get("projected") or {}).get("sources") or [])]
        for source in sources:
            if source.get("configMap"):
                found.add(("ConfigMap", namespace, source["configMap"].get("name", "")))
            secret = source.get("secret")
            if secret:
                found.add(("Secret", namespace, secret.get("secretName") or secret.get("name", "")))
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        for source in container.get("envFrom") or []:
            for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if source.get(key):
                    found.add((kind, namespace, source[key]["name"]))
        for variable in container.get("env") or []:
            value = variable.get("valueFrom") or {}
            for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
                if value.get(key):
                    found.add((kind, namespace, value[key]["name"]))
    return {reference for reference in found if reference[2]}
