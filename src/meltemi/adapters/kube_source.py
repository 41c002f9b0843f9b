"""Feed ``World`` from a Kubernetes API server: one watch per kind.

In: a ``WatchSession``. Out: calls of the world's methods; ``synced`` when every kind has been listed once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec

from meltemi.adapters.kube_watch import Collection, ObjectKey, Sink, Watcher, WatchSession
from meltemi.adapters.metrics import Metrics
from meltemi.adapters.object_status import StatusBook
from meltemi.adapters.world import World
from meltemi.config.decode import load
from meltemi.config.kinds import KINDS
from meltemi.kit.tasks import Tasks
from meltemi.model import kubernetes as k8s
from meltemi.model.config import AnyConfig, Key
from meltemi.model.ingress import decode_ingress, decode_ingress_class
from meltemi.model.origin import Finding

Loaded: TypeAlias = tuple[AnyConfig | None, tuple[Finding, ...], int, Mapping[str, Any]]
# As Istio does: large Secrets that no gateway can use are never sent to us.
SECRET_FIELDS = "type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token"  # noqa: S105 - a field selector
NATIVE: Mapping[str, tuple[str, Callable[[msgspec.Raw], Any], str]] = {
    "Namespace": ("/api/v1/namespaces", k8s.decode_namespace, ""),
    "Node": ("/api/v1/nodes", k8s.decode_node, ""),
    "Service": ("/api/v1/services", k8s.decode_service, ""),
    "Pod": ("/api/v1/pods", k8s.decode_pod, ""),
    "EndpointSlice": ("/apis/discovery.k8s.io/v1/endpointslices", k8s.decode_endpoint_slice, ""),
    "Secret": ("/api/v1/secrets", k8s.decode_secret, SECRET_FIELDS),
    "Ingress": ("/apis/networking.k8s.io/v1/ingresses", decode_ingress, ""),
    "IngressClass": ("/apis/networking.k8s.io/v1/ingressclasses", decode_ingress_class, ""),
}
NOT_WATCHED = frozenset({"IstioOperator"})
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class _NativeSink:
    """One of Kubernetes' own kinds."""

    def __init__(self, world: World, kind: str, metrics: Metrics) -> None:
        self._world, self._kind, self._metrics = world, kind, metrics

    def replaced(self, objects: Mapping[ObjectKey, k8s.K8s]) -> None:
        self._world.replace_native(self._kind, objects)

    def changed(self, key: ObjectKey, value: k8s.K8s) -> None:
        self._metrics.k8s_reg_events.labels(self._kind, "update").inc()
        self._world.put_native(value)

    def deleted(self, key: ObjectKey) -> None:
        self._metrics.k8s_reg_events.labels(self._kind, "delete").inc()
        self._world.drop_native(self._kind, *key)


class _ConfigSink:
    """One of the mesh's kinds."""

    def __init__(self, world: World, kind: str, metrics: Metrics, book: StatusBook) -> None:
        self._world, self._kind, self._metrics, self._book = world, kind, metrics, book

    def replaced(self, objects: Mapping[ObjectKey, Loaded]) -> None:
        usable = {where: (config, found) for where, (config, found, _, _) in objects.items()}
        self._world.replace_configs(self._kind, usable)
        for key in [key for key in self._book.held if key.kind == self._kind]:
            if (key.namespace, key.name) not in objects:
                self._book.drop(key)
        for where, (_, _, generation, status) in objects.items():
            self._book.note(Key(self._kind, *where), generation, status)

    def changed(self, key: ObjectKey, value: Loaded) -> None:
        self._metrics.k8s_cfg_events.labels(self._kind, "update").inc()
        config, found, generation, status = value
        self._world.put_config(Key(self._kind, *key), config, found)
        self._book.note(Key(self._kind, *key), generation, status)

    def deleted(self, key: ObjectKey) -> None:
        self._metrics.k8s_cfg_events.labels(self._kind, "delete").inc()
        self._world.drop_config(Key(self._kind, *key))
        self._book.drop(Key(self._kind, *key))


class _CrdSink:
    """CRDs came or went: absent kinds are looked for again."""

    def __init__(self, appeared: list[asyncio.Event]) -> None:
        self._appeared = appeared

    def replaced(self, objects: Mapping[ObjectKey, Any]) -> None:
        self._ring()

    def changed(self, key: ObjectKey, value: Any) -> None:
        self._ring()

    def deleted(self, key: ObjectKey) -> None:
        self._ring()

    def _ring(self) -> None:
        for event in self._appeared:
            event.set()


class ConfigMapSink:
    """One ConfigMap's data, {} when it is not there."""

    def __init__(self, take: Callable[[Mapping[str, str]], None]) -> None:
        self._take = take

    def replaced(self, objects: Mapping[ObjectKey, k8s.ConfigMap]) -> None:
        """The one object, or none."""
        self._take(next((o.data or {} for o in objects.values()), {}))

    def changed(self, key: ObjectKey, value: k8s.ConfigMap) -> None:
        """It is new or different."""
        self._take(value.data or {})

    def deleted(self, key: ObjectKey) -> None:
        """It is gone."""
        self._take({})


class KubeSource:
    """All watches of the control plane."""

    def __init__(self, session: WatchSession, tasks: Tasks, metrics: Metrics) -> None:
        self._session = session
        self._tasks = tasks
        self._metrics = metrics
        self.statuses = StatusBook()
        self._watchers: list[Watcher[Any]] = []
        self._appeared: list[asyncio.Event] = []

    def watch(
        self, collection: Collection, decode: Callable[[msgspec.Raw], Any], sink: Sink[Any]
    ) -> Watcher[Any]:
        """Start one watch; it counts for ``synced``."""
        appeared = asyncio.Event()
        self._appeared.append(appeared)
        watcher: Watcher[Any] = Watcher(self._session, collection, decode, sink, appeared=appeared)
        self._watchers.append(watcher)
        self._tasks.spawn(f"watch {collection.path}", watcher.run, restart=True)
        return watcher

    def feed(self, world: World) -> None:
        """Watch every kind that the mesh reads."""
        for kind, (path, decode, fields) in NATIVE.items():
            sink = _NativeSink(world, kind, self._metrics)
            self.watch(Collection(path, field_selector=fields), decode, sink)
        for kind, info in KINDS.items():
            if kind in NOT_WATCHED:
                continue
            path = f"/apis/{info.group}/{info.storage}/{info.plural}"
            self.watch(
                Collection(path),
                _loader(info.api_version, kind),
                _ConfigSink(world, kind, self._metrics, self.statuses),
            )
        self.watch(Collection(CRDS), _nothing, _CrdSink(self._appeared))

    def config_map(
        self, namespace: str, name: str, take: Callable[[Mapping[str, str]], None]
    ) -> None:
        """Follow one ConfigMap."""
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        collection = Collection(path, field_selector=f"metadata.name={name}")
        self.watch(collection, k8s.decode_config_map, ConfigMapSink(take))

    def secret(self, namespace: str, name: str, sink: Sink[Any]) -> None:
        """Follow one Secret; the sink hears that it changed, not what is in it."""
        path = f"/api/v1/namespaces/{namespace}/secrets"
        self.watch(Collection(path, field_selector=f"metadata.name={name}"), _nothing, sink)

    async def synced(self) -> None:
        """Return when every kind has been listed once."""
        await asyncio.gather(*(watcher.synced.wait() for watcher in self._watchers))

    def waiting(self) -> list[str]:
        """Collections that have not been listed yet."""
        return [w.path for w in self._watchers if not w.synced.is_set()]


def _loader(api_version: str, kind: str) -> Callable[[msgspec.Raw], Loaded]:
    """Decode and validate one object; items of lists carry no kind, so it is put in."""

    def decode(raw: msgspec.Raw) -> Loaded:
        body = k8s.decode_object(raw)
        # Served in the storage version, whatever the object was written in.
        config, findings = load({**body, "apiVersion": api_version, "kind": kind})
        meta, status = body.get("metadata"), body.get("status")
        generation = meta.get("generation", 0) if isinstance(meta, Mapping) else 0
        return config, tuple(findings), generation, status if isinstance(status, Mapping) else {}

    return decode


def _nothing(raw: msgspec.Raw) -> bool:
    """Only the event matters."""
    return True
