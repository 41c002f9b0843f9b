"""Carry out an installation on a cluster: apply, wait, prune, report.

In: an ``Installation`` (pure, from ``install.render``). Out: the health of each component. Promises: components are
installed in order, each after the one before it is ready; applying what is there already changes nothing; an
object that the API server refuses fails its component and not the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from meltemi.adapters.kube_api import KubeApi, KubeError
from meltemi.install.context import NAMESPACE_LABELS, OWNER, OWNER_NAMESPACE, REVISION
from meltemi.install.plan import (
    OWNED_KINDS,
    ComponentHealth,
    deployment_ready,
    keep_live_fields,
    object_id,
    to_prune,
)
from meltemi.install.render import Component, Installation

Object = dict[str, Any]
Report = Callable[[ComponentHealth], Awaitable[None]]

_POLL_S = 0.1
READY_TIMEOUT_S = 300.0
_APPLY_AT_ONCE = 8


async def _quiet(_health: ComponentHealth) -> None:
    return None


class Installer:
    """Installs into the cluster that ``api`` is connected to."""

    def __init__(self, api: KubeApi, *, ready_timeout_s: float = READY_TIMEOUT_S) -> None:
        self._api = api
        self._ready_timeout_s = ready_timeout_s

    async def install(
        self, installation: Installation, report: Report = _quiet
    ) -> list[ComponentHealth]:
        """Apply every component and wait until it is ready; then prune what the spec no longer names."""
        await self._namespace(installation.context.namespace)
        healths: list[ComponentHealth] = []
        for component in installation.components:
            await report(ComponentHealth(component.name, "RECONCILING"))
            health = await self.component(component)
            healths.append(health)
            await report(health)
        await self._prune(installation)
        return healths

    async def _namespace(self, name: str) -> None:
        """Make the namespace; one that is on its way out is waited for."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._ready_timeout_s
        while live := await self._api.find("v1", "Namespace", "", name):
            if not live["metadata"].get("deletionTimestamp") or loop.time() > deadline:
                return
            await asyncio.sleep(_POLL_S)
        metadata = {"name": name, "labels": NAMESPACE_LABELS}
        await self._api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    async def component(self, component: Component) -> ComponentHealth:
        """Apply one component and wait until it is ready."""
        errors = await self._apply_all(component.manifests)
        if errors:
            return ComponentHealth(component.name, "ERROR", "; ".join(errors))
        missing = await self._wait_ready(component.workloads)
        if missing:
            return ComponentHealth(component.name, "ERROR", missing)
        return ComponentHealth(component.name, "HEALTHY")

    async def _apply_all(self, manifests: Sequence[Object]) -> list[str]:
        """Apply in waves: CRDs, identities and roles before what refers to them. Errors as texts."""
        first = ("CustomResourceDefinition", "ServiceAccount", "ConfigMap", "Role", "ClusterRole")
        waves = (
            [item for item in manifests if item["kind"] in first],
            [item for item in manifests if item["kind"] not in first],
        )
        gate = asyncio.Semaphore(_APPLY_AT_ONCE)

        async def one(item: Object) -> str:
            async with gate:
                try:
                    await self._apply(item)
                except KubeError as error:
                    return f"{item['kind']}/{item['metadata']['name']}: {error}"
                return ""

        errors: list[str] = []
        for wave in waves:
            errors += filter(None, await asyncio.gather(*(one(item) for item in wave)))
        return errors

    async def _apply(self, item: Object) -> None:
        if item["kind"] == "ValidatingWebhookConfiguration":
            live = await self._api.find(
                item["apiVersion"], item["kind"], "", item["metadata"]["name"]
            )
            item = keep_live_fields(item, live)
        await self._api.apply(item)

    async def _wait_ready(self, workloads: Sequence[tuple[str, str]]) -> str:
        """Wait until every Deployment is ready; what is missing when the time is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._ready_timeout_s
        for namespace, name in workloads:
            while True:
                live = await self._api.find("apps/v1", "Deployment", namespace, name)
                ready, missing = deployment_ready(live)
                if ready:
                    break
                if loop.time() > deadline:
                    return f"Deployment {namespace}/{name}: {missing}"
                await asyncio.sleep(_POLL_S)
        return ""

    async def owned(self, name: str, namespace: str) -> list[Object]:
        """Everything in the cluster that belongs to IstioOperator ``namespace/name``, CRDs left out."""
        selector = f"{OWNER}={name},{OWNER_NAMESPACE}={namespace}"
        listed = await asyncio.gather(
            *(
                self._api.list(api_version, plural, selector=selector)
                for api_version, plural, _ in OWNED_KINDS
            )
        )
        return [item for items in listed for item in items]

    async def _prune(self, installation: Installation) -> None:
        context = installation.context
        owned = await self.owned(context.name, context.owner_namespace)
        for item in to_prune(installation, owned):
            await self._api.delete(item)

    async def remove(self, name: str, namespace: str) -> list[str]:
        """Delete everything that belongs to IstioOperator ``namespace/name``; what was deleted."""
        removed = []
        for item in await self.owned(name, namespace):
            if await self._api.delete(item):
                removed.append(label_of(item))
        return removed

    async def remove_revision(self, revision: str) -> AsyncIterator[str]:
        """Delete the control plane and gateways of one revision; yields what was deleted."""
        for api_version, plural, _ in OWNED_KINDS:
            selector = f"{OWNER},{REVISION}={revision}"
            for item in await self._api.list(api_version, plural, selector=selector):
                if await self._api.delete(item):
                    yield label_of(item)


def label_of(item: Object) -> str:
    """``Kind/name in namespace``, for people."""
    found = object_id(item)
    return f"{found.kind}/{found.name}" + (f" in {found.namespace}" if found.namespace else "")
