"""Take every installation out of a cluster, with all that istiod wrote into it while it ran.

In: a cluster. Out: what was removed, as it goes, and what had to stay. Promises: whatever would put things back (the
operator, istiod) is gone before what it would put back; when it is over an installation can begin anew; objects of
others, and plugged-in authorities, are left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any

from meltemi.adapters.installer import label_of
from meltemi.adapters.kube_api import KubeApi
from meltemi.ca import rotation, secrets
from meltemi.install import operator_manifests
from meltemi.install.context import NAMESPACE_LABELS, OWNER, RELEASE
from meltemi.install.plan import CRDS, OWNED_KINDS

Object = dict[str, Any]
Kind = tuple[str, str]

OPERATORS: Kind = ("install.istio.io/v1alpha1", "istiooperators")
# By name: these are Istio's, and a user's object of such a name would have been overwritten long ago.
WRITTEN: tuple[tuple[Kind, frozenset[str]], ...] = (
    (
        ("v1", "configmaps"),
        frozenset({secrets.ROOT_CONFIG_MAP, secrets.CRL_CONFIG_MAP, rotation.PROXIES_MAP}),
    ),
    (("v1", "secrets"), frozenset({secrets.SELF_SIGNED_SECRET, rotation.SECRET})),
)
LEASE_PREFIX = "istio-status-leader"
# What may be somebody's work in a namespace that an installation made.
_PRECIOUS: tuple[Kind, ...] = (
    ("apps/v1", "deployments"),
    ("apps/v1", "statefulsets"),
    ("apps/v1", "daemonsets"),
    ("batch/v1", "jobs"),
    ("v1", "pods"),
    ("v1", "services"),
    ("v1", "secrets"),
    ("v1", "configmaps"),
    ("v1", "persistentvolumeclaims"),
)
_CLUSTERS_OWN = frozenset({"kube-root-ca.crt"})
_POLL_S = 0.1
WAIT_S = 60.0


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


class Uninstaller:
    """One purge of the cluster that ``api`` is connected to."""

    def __init__(self, api: KubeApi, *, wait_s: float = WAIT_S) -> None:
        """``wait_s`` bounds each wait for something to end."""
        self._api = api
        self._wait_s = wait_s
        self.kept: list[str] = []
        self._running: list[Object] = []

    async def purge(self) -> AsyncIterator[str]:
        """Remove everything; yields what was removed. Afterwards ``kept`` says what stays, and why."""
        # Looked up first: an operator's finalizer may remove them before we do.
        self._running = await self._api.list("apps/v1", "deployments", selector=OWNER)
        steps = (self._operators, self._installations, self._written, self._namespaces)
        for step in steps:
            for removed in await step():
                yield removed

    async def _operators(self) -> list[str]:
        """The IstioOperators while somebody serves their finalizer; then the operator itself."""
        removed = await self._delete(await self._api.list(*OPERATORS))
        selector = f"name={operator_manifests.NAME}"
        serving = await self._api.list("apps/v1", "deployments", selector=selector)
        if removed and serving:
            await self._until_none(lambda: self._api.list(*OPERATORS))
        for left in await self._api.list(*OPERATORS):
            meta = left["metadata"]
            path = await self._api.path(
                left["apiVersion"], left["kind"], meta["namespace"], meta["name"]
            )
            await self._api.merge_patch(path, {"metadata": {"finalizers": None}})
        for api_version, plural, _ in OWNED_KINDS:
            removed += await self._delete(
                await self._api.list(api_version, plural, selector=selector)
            )
        await self._pods_end(serving)
        return removed

    async def _installations(self) -> list[str]:
        """All that has an owner, and the CRDs with every object of their kinds."""
        removed: list[str] = []
        # The operator's own CRD is no installation's; what all of ours share is the release.
        selectors = [(kind, OWNER) for kind in OWNED_KINDS] + [(CRDS, RELEASE)]
        for (api_version, plural, _), selector in selectors:
            removed += await self._delete(
                await self._api.list(api_version, plural, selector=selector)
            )
        await self._pods_end(self._running)
        await self._until_none(lambda: self._api.list(*CRDS[:2], selector=RELEASE))
        return removed

    async def _written(self) -> list[str]:
        """What istiod wrote: roots in every namespace, its own authority, its lease."""
        removed: list[str] = []
        for kind, names in WRITTEN:
            found = await self._api.list(*kind)
            removed += await self._delete([o for o in found if o["metadata"]["name"] in names])
        leases = await self._api.list("coordination.k8s.io/v1", "leases")
        ours = [o for o in leases if o["metadata"]["name"].startswith(LEASE_PREFIX)]
        return removed + await self._delete(ours)

    async def _namespaces(self) -> list[str]:
        """Namespaces that an installation made, unless somebody else uses them too."""
        selector = _selector(NAMESPACE_LABELS)
        removed: list[str] = []
        for namespace in await self._api.list("v1", "namespaces", selector=selector):
            name = namespace["metadata"]["name"]
            precious = await self._precious(name)
            if precious:
                self.kept.append(f"Namespace/{name}, because of {', '.join(precious[:5])}")
                continue
            removed += await self._delete([namespace])
        gone = {label.partition("/")[2] for label in removed}
        await self._until_none(lambda: self._named("namespaces", gone))
        return removed

    async def _precious(self, namespace: str) -> list[str]:
        found: list[str] = []
        for api_version, plural in _PRECIOUS:
            for item in await self._api.list(api_version, plural, namespace):
                if item["metadata"]["name"] not in _CLUSTERS_OWN:
                    found.append(f"{item['kind']}/{item['metadata']['name']}")
        return found

    async def _named(self, plural: str, names: Collection[str]) -> list[Object]:
        return [o for o in await self._api.list("v1", plural) if o["metadata"]["name"] in names]

    async def _delete(self, items: list[Object]) -> list[str]:
        return [label_of(item) for item in items if await self._api.delete(item)]

    async def _pods_end(self, deployments: list[Object]) -> None:
        """Wait until nobody of these runs any more: istiod would write again what is taken away."""
        for deployment in deployments:
            labels = deployment["spec"]["selector"].get("matchLabels") or {}
            selector = _selector(labels)
            namespace = deployment["metadata"]["namespace"]

            async def pods(namespace: str = namespace, selector: str = selector) -> list[Object]:
                return await self._api.list("v1", "pods", namespace, selector)

            await self._until_none(pods)

    async def _until_none(self, find: Callable[[], Awaitable[list[Object]]]) -> None:
        deadline = asyncio.get_running_loop().time() + self._wait_s
        while left := await find():
            if asyncio.get_running_loop().time() > deadline:
                self.kept += [f"{label_of(item)}, which does not end" for item in left]
                return
            await asyncio.sleep(_POLL_S)
