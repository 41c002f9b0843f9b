"""The operator against a real API server on which no pod ever starts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import kopf

from localkube_control.conftest import Api, api
from meltemi.adapters import kube_connection
from meltemi.adapters.kube_api import KubeApi, KubeError, collection
from meltemi.config.crds import crd_manifests
from meltemi.programs.operator import Reconciler, _register

__all__ = ["api"]

PATH = collection("install.istio.io/v1alpha1", "istiooperators", "istio-system")
NEVER_READY = {"profile": "empty", "components": {"pilot": {"enabled": True}}}


@asynccontextmanager
async def cluster(server: Api) -> AsyncIterator[KubeApi]:
    """A client, with the kinds and the resource in place."""
    async with KubeApi(kube_connection.load(str(server.kubeconfig), ""), "test") as client:
        for manifest in crd_manifests():
            await client.apply(manifest)
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}}
        await client.apply(namespace)
        resource = {
            "apiVersion": "install.istio.io/v1alpha1",
            "kind": "IstioOperator",
            "metadata": {"name": "istio", "namespace": "istio-system"},
            "spec": NEVER_READY,
        }
        async with asyncio.timeout(20):
            while True:
                try:
                    await client.request("POST", PATH, body=resource)
                    break
                except KubeError:
                    await asyncio.sleep(0.02)  # the kind is not served yet
        yield client


async def status_of(client: KubeApi) -> dict[str, Any]:
    return (await client.json("GET", f"{PATH}/istio")).get("status") or {}


async def test_what_never_gets_ready_does_not_hold_up_its_correction(api: Api) -> None:
    async with cluster(api) as client:
        reconciler = Reconciler(client)
        resource = await client.json("GET", f"{PATH}/istio")
        work = asyncio.ensure_future(reconciler.reconcile(resource))
        async with asyncio.timeout(20):
            while (await status_of(client)).get("status") != "RECONCILING":
                await asyncio.sleep(0.02)
            await client.merge_patch(f"{PATH}/istio", {"spec": {"components": None}})
            assert await work is None
        assert (await status_of(client))["observedGeneration"] == 2
        assert (await status_of(client))["status"] == "NONE"

        # An error says what to correct, is not repeated in vain, and goes with its cause.
        await client.merge_patch(f"{PATH}/istio", {"spec": {"profile": "prod"}})
        wrong = await client.json("GET", f"{PATH}/istio")
        assert await reconciler.reconcile(wrong) is None
        assert "there is no profile 'prod'" in (await status_of(client))["message"]
        spec = {"profile": "empty", "components": {"base": {"enabled": True}}}
        await client.merge_patch(f"{PATH}/istio", {"spec": spec})
        assert await reconciler.reconcile(await client.json("GET", f"{PATH}/istio")) is None
        assert (await status_of(client))["componentStatus"] == {"Base": {"status": "HEALTHY"}}


async def test_handlers_have_names_that_kubernetes_takes_for_their_progress(api: Api) -> None:
    registry = kopf.OperatorRegistry()
    async with KubeApi(kube_connection.load(str(api.kubeconfig), ""), "test") as client:
        _register(registry, Reconciler(client))
    handlers = [*registry._changing.get_all_handlers(), *registry._spawning.get_all_handlers()]
    assert len(handlers) >= 4
    for handler in handlers:
        assert re.fullmatch("[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?", handler.id), handler.id
