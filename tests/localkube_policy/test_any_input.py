"""Whatever JSON a client sends, the answer is an object or an ApiError, never a crash."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from localkube.apiserver.crd import build_resources
from localkube.apiserver.errors import ApiError
from localkube_policy.policy_world import World, crd, deployment, pod, widget

Object = dict[str, Any]
Path = tuple[str | int, ...]

RUBBISH: list[Any] = [None, 0, -1, 1.5, "", "x", [], [None], [{}], {}, {"a": None}, True, 1 << 70]
SELECTOR = {
    "matchLabels": {"a": "b"},
    "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}],
}
RICH_POD = {
    "containers": [
        {
            "name": "a",
            "image": "i",
            "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
            "ports": [{"containerPort": 1}],
            "livenessProbe": {"httpGet": {"port": 1}},
            "lifecycle": {"preStop": {"httpGet": {"port": 1}}},
            "volumeMounts": [{"name": "v", "mountPath": "/x"}],
            "resources": {"limits": {"cpu": 1}},
        }
    ],
    "volumes": [
        {"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "x"}}]}},
    ],
    "hostAliases": [{"ip": "1.1.1.1"}],
}
WIDGETS = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "a": {
                    "type": "array",
                    "items": {"type": "string"},
                    "x-kubernetes-list-type": "set",
                },
                "b": {"type": "integer", "default": 1, "minimum": 1},
            },
            "oneOf": [{"required": ["a"]}],
            "x-kubernetes-validations": [{"rule": "self.b > 0"}],
        }
    },
}
WEBHOOK = {
    "name": "a.b.c",
    "admissionReviewVersions": ["v1"],
    "sideEffects": "None",
    "clientConfig": {"service": {"name": "a", "namespace": "b"}},
    "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}],
    "namespaceSelector": SELECTOR,
}


def obj(api_version: str, kind: str, **fields: Any) -> Object:
    cluster = kind.startswith(("Cluster", "Mutating"))
    metadata = {"name": "x"} if cluster else {"name": "x", "namespace": "default"}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}


RBAC = "rbac.authorization.k8s.io/v1"
SUBJECTS = [{"kind": "User", "name": "u"}]
ROLE_RULES = [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]
OBJECTS = [
    pod(**RICH_POD),
    deployment(strategy={"rollingUpdate": {"maxSurge": 1}}),
    obj("v1", "Service", spec={"ports": [{"port": 1, "name": "a"}], "selector": {"a": "b"}}),
    obj("v1", "Secret", data={"a": "eA=="}, stringData={"b": "c"}),
    obj("discovery.k8s.io/v1", "EndpointSlice", endpoints=[{"addresses": ["1.1.1.1"]}]),
    obj("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", webhooks=[WEBHOOK]),
    obj(RBAC, "ClusterRoleBinding", roleRef={"kind": "x", "name": "x"}, subjects=SUBJECTS),
    obj(RBAC, "ClusterRole", rules=ROLE_RULES),
    crd(WIDGETS, subresources={"scale": {"specReplicasPath": ".spec.a"}}),
    widget(spec={"a": ["x"], "b": 2}),
]


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    yield path
    if isinstance(value, dict):
        for key, member in value.items():
            yield from paths(member, (*path, key))
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from paths(member, (*path, index))


def damaged(whole: Object) -> Iterator[Object]:
    """The object with one place after another replaced by each piece of rubbish."""
    kept = {(), ("apiVersion",), ("kind",), ("metadata",)}  # the HTTP side checks these first
    kept |= {("metadata", "name"), ("metadata", "namespace")}
    for path in paths(whole):
        if path in kept:
            continue
        for value in RUBBISH:
            copied = copy.deepcopy(whole)
            place: Any = copied
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = copy.deepcopy(value)
            yield copied


@pytest.mark.parametrize("whole", OBJECTS, ids=lambda o: str(o["kind"]))
async def test_rubbish_anywhere(world: World, whole: Object) -> None:
    await world.create(crd(WIDGETS))
    tried = 0
    for candidate in damaged(whole):
        tried += 1
        try:
            world.check(candidate)
            world.check_update(candidate, whole)
            if candidate["kind"] == "CustomResourceDefinition":
                stored, _ = await world.create(candidate)
                build_resources(stored)
        except ApiError:
            continue
    assert tried > 10
