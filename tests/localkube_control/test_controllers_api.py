"""All controllers against a real API server; the tests play the node."""

import asyncio
from typing import Any

from localkube.client import ApiStatusError, ResourceType
from localkube.client.resources import (
    CLUSTER_ROLES,
    CONFIG_MAPS,
    CUSTOM_RESOURCE_DEFINITIONS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    ENDPOINTS,
    EVENTS,
    NAMESPACES,
    NODES,
    PODS,
    REPLICA_SETS,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
)
from localkube.controllers.group import Controllers
from localkube_control.conftest import Api
from localkube_control.objects import template

NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node0"},
    "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]},
}


def deployment(name: str = "web", replicas: int = 2) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": template("busybox:1"),
        },
    }


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": 8000}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ports": ports, **spec},
    }


async def pods_of(api: Api, count: int) -> list[dict[str, Any]]:
    async def ask() -> list[dict[str, Any]] | None:
        items = (await api.client.list(PODS, "default"))["items"]
        alive = [p for p in items if not p["metadata"].get("deletionTimestamp")]
        bound = all(p["spec"].get("nodeName") for p in alive)
        return alive if len(alive) == count and bound else None

    found: list[dict[str, Any]] = await api.until(ask)
    return found


async def make_ready(api: Api, pod: dict[str, Any], ip: str) -> None:
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-03-01T11:00:00Z"}]
    status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": conditions}
    await api.client.patch(
        PODS, pod["metadata"]["name"], {"status": status}, "default", subresource="status"
    )


async def endpoints(api: Api) -> dict[str, dict[str, bool]]:
    slices = await api.client.list(
        ENDPOINT_SLICES, "default", label_selector="kubernetes.io/service-name=web"
    )
    return {
        endpoint["addresses"][0]: endpoint["conditions"]
        for item in slices["items"]
        for endpoint in item.get("endpoints") or []
    }


async def test_a_deployment_becomes_endpoints_and_a_deleted_pod_leaves_them_at_once(
    api: Api, controllers: Controllers
) -> None:
    await api.client.create(NODES, NODE)
    await api.client.create(SERVICES, service(type="LoadBalancer"))
    await api.client.create(DEPLOYMENTS, deployment())
    first, second = await pods_of(api, 2)
    await make_ready(api, first, "10.244.0.2")
    await make_ready(api, second, "10.244.0.3")

    async def both_ready() -> bool:
        found = await endpoints(api)
        return len(found) == 2 and all(c["ready"] for c in found.values())

    await api.until(both_ready)

    async def available() -> bool:
        found = await api.client.get(DEPLOYMENTS, "web", "default")
        return bool((found.get("status") or {}).get("availableReplicas") == 2)

    await api.until(available)
    balanced = await api.client.get(SERVICES, "web", "default")
    assert balanced["status"]["loadBalancer"]["ingress"][0]["ip"] == "127.99.7.1"
    assert [s["addresses"] for s in await subsets(api)] == [
        [
            {"ip": ip, "nodeName": "node0", "targetRef": _target(pod)}
            for ip, pod in (("10.244.0.2", first), ("10.244.0.3", second))
        ]
    ]

    await api.client.delete(PODS, first["metadata"]["name"], "default")

    async def draining() -> dict[str, bool] | None:
        conditions = (await endpoints(api)).get("10.244.0.2")
        return conditions if conditions and conditions["terminating"] else None

    conditions = await api.until(draining)
    assert conditions == {"ready": False, "serving": True, "terminating": True}
    replacement = await pods_of(api, 2)
    assert first["metadata"]["uid"] not in {p["metadata"]["uid"] for p in replacement}


def _target(pod: dict[str, Any]) -> dict[str, Any]:
    meta = pod["metadata"]
    return {
        "kind": "Pod",
        "namespace": "default",
        "name": meta["name"],
        "uid": meta["uid"],
    }


async def subsets(api: Api) -> list[dict[str, Any]]:
    async def ask() -> list[dict[str, Any]] | None:
        found = await api.client.get(ENDPOINTS, "web", "default")
        whole = found.get("subsets") or []
        return whole if whole and len(whole[0].get("addresses") or []) == 2 else None

    found: list[dict[str, Any]] = await api.until(ask)
    return found


async def test_a_quickly_scaled_set_never_has_too_many_pods(
    api: Api, controllers: Controllers
) -> None:
    """The cache lags behind our own writes; that must not create pods twice."""
    await api.client.create(NODES, NODE)
    await api.client.create(DEPLOYMENTS, deployment(replicas=0))
    created: set[str] = set()

    async def count() -> None:
        start = await api.client.list(PODS, "default")
        async for event in api.client.watch(
            PODS, "default", resource_version=start["metadata"]["resourceVersion"]
        ):
            if event.type == "ADDED":
                created.add(event.object["metadata"]["uid"])

    watching = asyncio.ensure_future(count())
    for replicas in (5, 12, 20):
        scale = {"spec": {"replicas": replicas}}
        await api.client.patch(DEPLOYMENTS, "web", scale, "default")
        await pods_of(api, replicas)
    watching.cancel()
    assert len(created) == 20


async def test_a_refused_pod_is_told_on_the_deployment(api: Api, controllers: Controllers) -> None:
    broken = deployment()
    broken["spec"]["template"]["spec"]["serviceAccountName"] = "missing"
    await api.client.create(DEPLOYMENTS, broken)

    async def failure() -> str | None:
        found = await api.client.get(DEPLOYMENTS, "web", "default")
        for condition in (found.get("status") or {}).get("conditions") or []:
            if condition["type"] == "ReplicaFailure":
                return str(condition["message"])
        return None

    assert "missing" in await api.until(failure)

    async def told() -> bool:
        events = await api.client.list(EVENTS, "default")
        return any(e["reason"] == "FailedCreate" for e in events["items"])

    await api.until(told)


async def test_namespaces_get_their_contents_and_lose_everything(
    api: Api, controllers: Controllers
) -> None:
    crd = _crd()
    await api.client.create(CUSTOM_RESOURCE_DEFINITIONS, crd)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
    await api.client.create(NAMESPACES, namespace)
    await api.until(lambda: api.client.get(SERVICE_ACCOUNTS, "default", "team"))
    root = await api.until(lambda: api.client.get(CONFIG_MAPS, "kube-root-ca.crt", "team"))
    assert root["data"]["ca.crt"] == api.ca_pem
    await api.client.delete(CONFIG_MAPS, "kube-root-ca.crt", "team")
    await api.until(lambda: api.client.get(CONFIG_MAPS, "kube-root-ca.crt", "team"))
    widgets = ResourceType("example.com", "v1", "widgets", "Widget")
    widget = {
        "apiVersion": "example.com/v1",
        "kind": "Widget",
        "metadata": {"name": "w", "namespace": "team", "finalizers": ["example.com/hold"]},
    }
    await api.until(lambda: _created(api, widgets, widget))
    await api.client.delete(NAMESPACES, "team")

    async def held() -> str | None:
        found = await api.client.get(NAMESPACES, "team")
        conditions = (found.get("status") or {}).get("conditions") or []
        return next((c["message"] for c in conditions), None)

    assert "widgets.example.com" in await api.until(held)
    patch = {"metadata": {"finalizers": None}}
    await api.client.patch(widgets, "w", patch, "team")

    async def gone() -> bool:
        try:
            await api.client.get(NAMESPACES, "team")
        except ApiStatusError as error:
            return error.not_found
        return False

    await api.until(gone)


async def _created(api: Api, resource: ResourceType, obj: dict[str, Any]) -> dict[str, Any]:
    return await api.client.create(resource, obj)


def _crd() -> dict[str, Any]:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "singular": "widget"},
            "versions": [version],
        },
    }


def config_map(name: str, owner: dict[str, Any] | None = None, **reference: Any) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": name, "namespace": "default"}
    if owner is not None:
        meta["ownerReferences"] = [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"],
                **reference,
            }
        ]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}


async def _gone(api: Api, name: str) -> bool:
    try:
        await api.client.get(CONFIG_MAPS, name, "default")
    except ApiStatusError as error:
        return error.not_found
    return False


async def test_dependents_follow_their_owner(api: Api, controllers: Controllers) -> None:
    owner = await api.client.create(CONFIG_MAPS, config_map("owner"))
    child = await api.client.create(CONFIG_MAPS, config_map("child", owner))
    await api.client.create(CONFIG_MAPS, config_map("grandchild", child))
    await api.client.delete(CONFIG_MAPS, "owner", "default", propagation_policy="Background")
    await api.until(lambda: _gone(api, "grandchild"))
    assert await _gone(api, "child")


async def test_foreground_deletion_ends_with_the_owner(api: Api, controllers: Controllers) -> None:
    owner = await api.client.create(CONFIG_MAPS, config_map("owner"))
    blocking = config_map("child", owner, blockOwnerDeletion=True)
    blocking["metadata"]["finalizers"] = ["example.com/hold"]
    await api.client.create(CONFIG_MAPS, blocking)
    await api.client.delete(CONFIG_MAPS, "owner", "default", propagation_policy="Foreground")

    async def child_deleting() -> bool:
        child = await api.client.get(CONFIG_MAPS, "child", "default")
        return bool(child["metadata"].get("deletionTimestamp"))

    await api.until(child_deleting)
    assert not await _gone(api, "owner")
    patch = {"metadata": {"finalizers": None}}
    await api.client.patch(CONFIG_MAPS, "child", patch, "default")
    await api.until(lambda: _gone(api, "owner"))


async def test_orphaned_dependents_stay_without_their_reference(
    api: Api, controllers: Controllers
) -> None:
    owner = await api.client.create(CONFIG_MAPS, config_map("owner"))
    await api.client.create(CONFIG_MAPS, config_map("child", owner))
    await api.client.delete(CONFIG_MAPS, "owner", "default", propagation_policy="Orphan")
    await api.until(lambda: _gone(api, "owner"))
    child = await api.client.get(CONFIG_MAPS, "child", "default")
    assert "ownerReferences" not in child["metadata"]


async def test_an_owner_that_never_existed_takes_its_dependent_along(
    api: Api, controllers: Controllers
) -> None:
    ghost = {"metadata": {"name": "ghost", "uid": "00000000-0000-0000-0000-000000000000"}}
    other = await api.client.create(CONFIG_MAPS, config_map("other"))
    both = config_map("both", ghost)
    both["metadata"]["ownerReferences"] += config_map("x", other)["metadata"]["ownerReferences"]
    await api.client.create(CONFIG_MAPS, both)
    await api.client.create(CONFIG_MAPS, config_map("child", ghost))
    await api.until(lambda: _gone(api, "child"))

    async def only_other() -> bool:
        found = await api.client.get(CONFIG_MAPS, "both", "default")
        return [r["name"] for r in found["metadata"]["ownerReferences"]] == ["other"]

    await api.until(only_other)


async def test_replica_sets_go_with_their_deployment(api: Api, controllers: Controllers) -> None:
    await api.client.create(DEPLOYMENTS, deployment())
    await pods_unbound(api, 2)
    await api.client.delete(DEPLOYMENTS, "web", "default", propagation_policy="Background")

    async def empty() -> bool:
        sets = (await api.client.list(REPLICA_SETS, "default"))["items"]
        pods = (await api.client.list(PODS, "default"))["items"]
        return not sets and not pods

    await api.until(empty)


async def pods_unbound(api: Api, count: int) -> None:
    async def ask() -> bool:
        return len((await api.client.list(PODS, "default"))["items"]) == count

    await api.until(ask)


async def test_a_token_secret_is_filled(api: Api, controllers: Controllers) -> None:
    await api.until(lambda: api.client.get(SERVICE_ACCOUNTS, "default", "default"))
    annotations = {"kubernetes.io/service-account.name": "default"}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "token", "namespace": "default", "annotations": annotations},
    }
    await api.client.create(SECRETS, secret)

    async def filled() -> dict[str, str] | None:
        found = await api.client.get(SECRETS, "token", "default")
        data: dict[str, str] = found.get("data") or {}
        return data if data.get("token") else None

    assert set(await api.until(filled)) == {"token", "ca.crt", "namespace"}


async def test_the_dns_service_is_there_and_comes_back(api: Api, controllers: Controllers) -> None:
    for _ in range(2):
        found = await api.until(lambda: api.client.get(SERVICES, "kube-dns", "kube-system"))
        assert found["spec"]["clusterIP"] == "10.96.0.10"
        await api.client.delete(SERVICES, "kube-dns", "kube-system")


async def test_aggregated_roles_have_their_rules_written_down(
    api: Api, controllers: Controllers
) -> None:
    rule = {"verbs": ["get"], "apiGroups": [""], "resources": ["nodes"]}
    selector = {"matchLabels": {"part-of": "watchers"}}
    aggregate = {"metadata": {"name": "watchers"}}
    part = {"metadata": {"name": "part", "labels": {"part-of": "watchers"}}, "rules": [rule]}
    await api.client.create(
        CLUSTER_ROLES, {**aggregate, "aggregationRule": {"clusterRoleSelectors": [selector]}}
    )
    await api.client.create(CLUSTER_ROLES, part)

    async def rules() -> bool:
        return (await api.client.get(CLUSTER_ROLES, "watchers")).get("rules") == [rule]

    await api.until(rules)
