"""Built-in admission of pods."""

from __future__ import annotations

import asyncio

import pytest

from localkube.apiserver.errors import ApiError
from localkube_policy.policy_world import World, pod

MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


async def test_token_volume(world: World) -> None:
    """Every container gets the account's token, the CA and the namespace, read-only."""
    stored, _ = await world.create(pod(initContainers=[{"name": "i", "image": "x:1"}]))
    spec = stored["spec"]
    assert (spec["serviceAccountName"], spec["serviceAccount"]) == ("default", "default")
    (volume,) = spec["volumes"]
    assert volume["name"].startswith("kube-api-access-")
    sources = volume["projected"]["sources"]
    assert sources[0]["serviceAccountToken"] == {"expirationSeconds": 3607, "path": "token"}
    assert sources[1]["configMap"]["name"] == "kube-root-ca.crt"
    assert sources[2]["downwardAPI"]["items"][0]["path"] == "namespace"
    for container in spec["containers"] + spec["initContainers"]:
        (mount,) = container["volumeMounts"]
        assert mount == {"name": volume["name"], "readOnly": True, "mountPath": MOUNT}


async def test_own_mount_is_respected(world: World) -> None:
    """A container that mounts something there itself gets no second mount."""
    container = {
        "name": "a",
        "image": "x:1",
        "volumeMounts": [{"name": "mine", "mountPath": MOUNT}],
    }
    stored, _ = await world.create(
        pod(containers=[container], volumes=[{"name": "mine", "emptyDir": {}}])
    )
    assert [volume["name"] for volume in stored["spec"]["volumes"]] == ["mine"]


@pytest.mark.parametrize("where", ["pod", "account"])
async def test_automount_can_be_turned_off(world: World, where: str) -> None:
    off = {"automountServiceAccountToken": False}
    metadata = {"name": "default", "namespace": "default"}
    if where == "account":
        world.put("serviceaccounts", {"metadata": metadata, **off})
        stored, _ = await world.create(pod())
    else:
        stored, _ = await world.create(pod(**off))
    assert "volumes" not in stored["spec"]


async def test_pull_secrets_come_from_the_account(world: World) -> None:
    metadata = {"name": "puller", "namespace": "default"}
    world.put("serviceaccounts", {"metadata": metadata, "imagePullSecrets": [{"name": "reg"}]})
    stored, _ = await world.create(pod(serviceAccountName="puller"))
    assert stored["spec"]["imagePullSecrets"] == [{"name": "reg"}]


async def test_missing_account_is_refused(world: World) -> None:
    with pytest.raises(ApiError) as caught:
        await world.create(pod(serviceAccountName="absent"))
    assert caught.value.message == (
        'pods "web" is forbidden: error looking up service account default/absent: '
        'serviceaccount "absent" not found'
    )


async def test_account_that_is_just_being_made_is_waited_for(world: World) -> None:
    """In a new namespace a pod may be created before its default account."""
    world.put("namespaces", {"metadata": {"name": "new"}})
    creating = asyncio.ensure_future(world.create(pod("p", "new")))
    await asyncio.sleep(0)
    world.put("serviceaccounts", {"metadata": {"name": "default", "namespace": "new"}})
    stored, _ = await creating
    assert stored["spec"]["serviceAccountName"] == "default"


async def test_priorities(world: World) -> None:
    """A class gives its value; an unknown one is refused."""
    world.put(
        "priorityclasses",
        {"metadata": {"name": "high"}, "value": 1000},
        "scheduling.k8s.io",
    )
    stored, _ = await world.create(pod(priorityClassName="high"))
    assert stored["spec"]["priority"] == 1000
    stored, _ = await world.create(pod("p2", priorityClassName="system-node-critical"))
    assert stored["spec"]["priority"] == 2000001000
    with pytest.raises(ApiError, match="no PriorityClass with name odd was found"):
        await world.create(pod("p3", priorityClassName="odd"))
