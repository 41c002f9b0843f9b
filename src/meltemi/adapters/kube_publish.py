"""Tell the cluster which root to trust: a ConfigMap in every namespace, and the webhooks' caBundle.

In: namespaces, ConfigMaps and webhook configurations as watches report them. Out: writes, only where something
differs. Promises: repairs what somebody changed or deleted; failures are retried with growing pauses and stop
nothing else; replicas may all do it, because they write the same.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from meltemi.adapters.kube_api import MERGE, KubeApi, KubeError, collection
from meltemi.adapters.kube_watch import ObjectKey
from meltemi.adapters.metrics import Metrics
from meltemi.ca import bundle, secrets
from meltemi.kit.backoff import Backoff
from meltemi.model import kubernetes

log = structlog.get_logger("publish")
JSON_PATCH = "application/json-patch+json"
# Namespaces that never get the mesh's root (Istio's list of system namespaces).
IGNORED = frozenset({"kube-system", "kube-public", "kube-node-lease", "local-path-storage"})
_QUIET_CODES = frozenset({403, 404, 409})  # a namespace that is going away, or somebody was faster


class Dirty:
    """Names that need work: a set with a wake-up, and a loop that works it off."""

    def __init__(self, title: str, work: Callable[[str], Awaitable[None]]) -> None:
        self._title = title
        self._work = work
        self._names: dict[str, None] = {}
        self._wake = asyncio.Event()

    def add(self, name: str) -> None:
        """This one needs a look."""
        self._names[name] = None
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled; what fails is tried again."""
        backoff = Backoff(0.2, 30.0)
        while True:
            await self._wake.wait()
            self._wake.clear()
            failed = False
            while self._names:
                name = next(iter(self._names))
                del self._names[name]
                try:
                    await self._work(name)
                except KubeError as error:
                    failed = True
                    again = error.code not in _QUIET_CODES
                    log.warning(f"{self._title} failed", name=name, error=str(error), retry=again)
                    if again:
                        await asyncio.sleep(backoff.next())
                        self.add(name)
            if not failed:
                backoff.reset()


class RootPublisher:
    """A ConfigMap of one name in every namespace: ``istio-ca-root-cert``, or ``istio-ca-crl``."""

    def __init__(
        self,
        api: KubeApi,
        wanted: Callable[[], Mapping[str, str] | None],
        name: str = secrets.ROOT_CONFIG_MAP,
    ) -> None:
        """``wanted`` gives the ConfigMap's data; None while it is not known, empty when there shall be none."""
        self._api = api
        self.name = name
        self._wanted = wanted
        self._namespaces: set[str] = set()
        self._published: dict[str, Mapping[str, str]] = {}
        self._dirty = Dirty("root certificate", self._publish)
        self.namespaces = _NamespaceSink(self)
        self.config_maps = _ConfigMapSink(self)

    def all_changed(self) -> None:
        """The root is another one."""
        for name in self._namespaces:
            self._dirty.add(name)

    async def run(self) -> None:
        """Publish until cancelled."""
        await self._dirty.run()

    def set_namespaces(self, names: set[str]) -> None:
        """These are all."""
        self._namespaces = names - IGNORED
        self.all_changed()

    def add_namespace(self, name: str) -> None:
        """One more."""
        if name not in IGNORED and name not in self._namespaces:
            self._namespaces.add(name)
            self._dirty.add(name)

    def drop_namespace(self, name: str) -> None:
        """One less."""
        self._namespaces.discard(name)
        self._published.pop(name, None)

    def set_published(self, held: dict[str, Mapping[str, str]]) -> None:
        """What the ConfigMaps hold, by namespace."""
        self._published = held
        self.all_changed()

    def note_published(self, namespace: str, data: Mapping[str, str] | None) -> None:
        """One ConfigMap changed, or is gone."""
        if data is None:
            self._published.pop(namespace, None)
        else:
            self._published[namespace] = data
        if namespace in self._namespaces:
            self._dirty.add(namespace)

    def pending(self) -> tuple[str, ...]:
        """Namespaces that do not have the present roots yet."""
        wanted = self._wanted() or {}
        return tuple(n for n in sorted(self._namespaces) if not self._has(n, wanted))

    def _has(self, namespace: str, wanted: Mapping[str, str]) -> bool:
        held = self._published.get(namespace, {})
        return all(held.get(key) == wanted.get(key) for key in (secrets.ROOT_KEY, bundle.CRL))

    async def _publish(self, namespace: str) -> None:
        data = self._wanted()
        if namespace not in self._namespaces or data is None or self._has(namespace, data):
            return
        wanted = secrets.root_config_map(namespace, data, self.name)
        path = collection("v1", "configmaps", namespace)
        if namespace in self._published:
            # A list that is no longer there must not stay in force.
            body = {"data": {bundle.CRL: None, **data}}
            target = f"{path}/{self.name}"
            await self._api.json("PATCH", target, body=body, content_type=MERGE)
        else:
            await self._api.json("POST", path, body=wanted)
        self._published[namespace] = data
        log.debug("published", name=self.name, namespace=namespace)


class _NamespaceSink:
    def __init__(self, owner: RootPublisher) -> None:
        self._owner = owner

    def replaced(self, objects: Mapping[ObjectKey, kubernetes.Namespace]) -> None:
        self._owner.set_namespaces(
            {name for (_, name), o in objects.items() if not o.metadata.deletion_timestamp}
        )

    def changed(self, key: ObjectKey, value: kubernetes.Namespace) -> None:
        if value.metadata.deletion_timestamp:
            self._owner.drop_namespace(key[1])
        else:
            self._owner.add_namespace(key[1])

    def deleted(self, key: ObjectKey) -> None:
        self._owner.drop_namespace(key[1])


class _ConfigMapSink:
    """Only the ConfigMap of that name counts, whatever else the watch reports."""

    def __init__(self, owner: RootPublisher) -> None:
        self._owner = owner

    def replaced(self, objects: Mapping[ObjectKey, kubernetes.ConfigMap]) -> None:
        self._owner.set_published(
            {
                namespace: value.data or {}
                for (namespace, name), value in objects.items()
                if name == self._owner.name
            }
        )

    def changed(self, key: ObjectKey, value: kubernetes.ConfigMap) -> None:
        if key[1] == self._owner.name:
            self._owner.note_published(key[0], value.data or {})

    def deleted(self, key: ObjectKey) -> None:
        if key[1] == self._owner.name:
            self._owner.note_published(key[0], None)


class WebhookPatcher:
    """Keeps ``caBundle`` right in webhook configurations that call this istiod; a sink for one kind of them.

    Validation starts with failurePolicy Ignore, so that a cluster whose istiod never ran can be configured; once
    this istiod answers, it is turned to Fail.
    """

    def __init__(
        self,
        api: KubeApi,
        plural: str,
        service: tuple[str, str],
        bundle: Callable[[], str],
        metrics: Metrics,
        *,
        fail_when_ready: bool = False,
    ) -> None:
        """``service`` is (namespace, name) of our own Service."""
        self._api = api
        self._path = collection("admissionregistration.k8s.io/v1", plural)
        self._service = service
        self._bundle = bundle
        self._metrics = metrics
        self._fail = fail_when_ready
        self._objects: dict[str, Mapping[str, Any]] = {}
        self._failed: set[str] = set()
        self._dirty = Dirty("caBundle", self._patch)

    async def run(self) -> None:
        """Patch until cancelled."""
        await self._dirty.run()

    def all_changed(self) -> None:
        """The root is another one."""
        for name in self._objects:
            self._dirty.add(name)

    def replaced(self, objects: Mapping[ObjectKey, Mapping[str, Any]]) -> None:
        """These are all configurations."""
        self._objects = {name: value for (_, name), value in objects.items()}
        self.all_changed()

    def changed(self, key: ObjectKey, value: Mapping[str, Any]) -> None:
        """One is new or different."""
        self._objects[key[1]] = value
        self._dirty.add(key[1])

    def deleted(self, key: ObjectKey) -> None:
        """One is gone."""
        self._objects.pop(key[1], None)

    def operations(self, value: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The JSON patch that puts a configuration right; empty when it is."""
        wanted = base64.b64encode(self._bundle().encode()).decode()
        patch: list[dict[str, Any]] = []
        for index, hook in enumerate(value.get("webhooks") or ()):
            client = hook.get("clientConfig") or {}
            service = client.get("service") or {}
            if (service.get("namespace"), service.get("name")) != self._service:
                continue
            at = f"/webhooks/{index}"
            changes = []
            if client.get("caBundle") != wanted:
                changes.append(
                    {"op": "add", "path": f"{at}/clientConfig/caBundle", "value": wanted}
                )
            if self._fail and hook.get("failurePolicy") != "Fail":
                changes.append({"op": "add", "path": f"{at}/failurePolicy", "value": "Fail"})
            if changes:
                # Somebody may have reordered the list since it was read: then the patch must fail.
                patch.append({"op": "test", "path": f"{at}/name", "value": hook.get("name")})
                patch += changes
        return patch

    async def _patch(self, name: str) -> None:
        value = self._objects.get(name)
        if value is None or not self._bundle():
            return
        operations = self.operations(value)
        if not operations:
            return
        self._metrics.webhook_patch_attempts.labels(name).inc()
        if name in self._failed:
            self._metrics.webhook_patch_retries.labels(name).inc()
        try:
            await self._api.json(
                "PATCH", f"{self._path}/{name}", body=operations, content_type=JSON_PATCH
            )
        except KubeError as error:
            reason = error.reason or "error"
            self._metrics.webhook_patch_failures.labels(name, reason).inc()
            self._failed.add(name)
            if self._fail:
                self._metrics.validation_update_errors.labels(reason).inc()
            raise
        self._failed.discard(name)
        if self._fail:
            self._metrics.validation_updates.inc()
        log.info("webhook configuration patched", name=name)
