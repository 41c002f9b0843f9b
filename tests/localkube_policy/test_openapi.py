"""The documents that kubectl reads."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from localkube_policy.policy_world import World, crd

Object = dict[str, Any]


def refs(node: Any) -> set[str]:
    if isinstance(node, dict):
        found = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return found.union(*(refs(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(refs(value) for value in node))
    return set()


def index(world: World) -> dict[str, Any]:
    paths: dict[str, Any] = msgspec.json.decode(world.policy.openapi_v3_index())["paths"]
    return paths


def test_every_document_is_complete(world: World) -> None:
    """Each listed document exists, and every reference in it resolves in it."""
    for path in index(world):
        document = msgspec.json.decode(world.policy.openapi_v3(path) or b"{}")
        schemas = document["components"]["schemas"]
        for ref in refs(document):
            assert ref.removeprefix("#/components/schemas/") in schemas, (path, ref)


def test_patch_tells_what_the_server_can_do(world: World) -> None:
    """kubectl looks at PATCH for fieldValidation, dryRun and the patch types."""
    document = msgspec.json.decode(world.policy.openapi_v3("apis/apps/v1") or b"{}")
    patch = document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    names = {parameter["name"] for parameter in patch["parameters"]}
    assert {"fieldValidation", "dryRun", "fieldManager", "force"} <= names
    assert "application/strategic-merge-patch+json" in patch["requestBody"]["content"]
    kind = {"group": "apps", "version": "v1", "kind": "Deployment"}
    assert patch["x-kubernetes-group-version-kind"] == kind


async def test_hash_changes_only_with_content(world: World) -> None:
    """A new CRD changes the hash of its own group and of no other."""
    schema: Object = {"type": "object", "properties": {"spec": {"type": "object"}}}
    await world.create(crd(schema))
    before = index(world)
    assert index(world) == before
    await world.create(crd({"type": "object"}, group="other.example.com"))
    after = index(world)
    assert {k: after[k] for k in before} == before
    changed = crd({**schema, "description": "new"})
    world.remove("customresourcedefinitions", "widgets.example.com", group="apiextensions.k8s.io")
    await world.create(changed)
    assert index(world)["apis/example.com/v1"] != before["apis/example.com/v1"]


def test_version_2_is_complete(world: World) -> None:
    """The Swagger document resolves in itself."""
    document = msgspec.json.decode(world.policy.openapi_v2())
    assert document["swagger"] == "2.0"
    missing = {
        r for r in refs(document) if r.removeprefix("#/definitions/") not in document["definitions"]
    }
    assert missing == set()


@pytest.mark.parametrize("path", ["apis/nope/v1", "api/v9", ""])
def test_unknown_documents(world: World, path: str) -> None:
    assert world.policy.openapi_v3(path) is None
