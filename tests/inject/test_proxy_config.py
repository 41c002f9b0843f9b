"""ProxyConfig: what a pod's proxy is started with, and who has the last word."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meltemi.config.decode import load
from meltemi.config.mesh import parse_mesh_config
from meltemi.inject import InjectionConfig, inject
from meltemi.model.config import AnyConfig
from meltemi.model.mesh import MeshConfig


def proxy_config(name: str, namespace: str, spec: dict[str, Any], created: str = "") -> AnyConfig:
    """A ProxyConfig object."""
    metadata = {"name": name, "namespace": namespace}
    if created:
        metadata["creationTimestamp"] = created
    document = {
        "apiVersion": "networking.istio.io/v1beta1",
        "kind": "ProxyConfig",
        "metadata": metadata,
        "spec": spec,
    }
    config, findings = load(document)
    assert config is not None, findings
    return config


def injected(
    *objects: AnyConfig, mesh: MeshConfig | None = None, annotation: str = ""
) -> dict[str, Any]:
    """The settings that are injected into a pod ``app: web`` of namespace ``shop``, and the image (``tag``)."""
    pod = {
        "metadata": {
            "name": "web-1",
            "labels": {"app": "web"},
            "annotations": {"proxy.istio.io/config": annotation} if annotation else {},
        },
        "spec": {"containers": [{"name": "app", "image": "app:1"}]},
    }
    result = inject(
        {"object": pod, "namespace": "shop"},
        {"istio-injection": "enabled"},
        InjectionConfig(),
        mesh or MeshConfig(),
        proxy_configs=objects,
    )
    assert result.patch is not None, result
    import jsonpatch

    made = jsonpatch.apply_patch(pod, result.patch)
    containers = [*made["spec"].get("initContainers", ()), *made["spec"]["containers"]]
    (proxy,) = [c for c in containers if c["name"] == "istio-proxy"]
    env = {entry["name"]: entry.get("value") for entry in proxy["env"]}
    return {**json.loads(env["PROXY_CONFIG"] or "{}"), "tag": proxy["image"]}


@pytest.mark.covers(
    "ProxyConfig.concurrency", "ProxyConfig.environmentVariables", "ProxyConfig.image.imageType"
)
def test_an_object_reaches_the_proxy() -> None:
    found = injected(
        proxy_config(
            "all",
            "shop",
            {
                "concurrency": 3,
                "environmentVariables": {"ONE": "1"},
                "image": {"imageType": "debug"},
            },
        )
    )
    assert found["concurrency"] == 3
    assert found["proxyMetadata"] == {"ONE": "1"}
    assert found["tag"].endswith("-debug")


@pytest.mark.covers("ProxyConfig.selector.matchLabels")
def test_the_most_specific_object_wins() -> None:
    whole = proxy_config("mesh", "istio-system", {"concurrency": 1})
    space = proxy_config("space", "shop", {"concurrency": 2})
    mine = {"selector": {"matchLabels": {"app": "web"}}}
    chosen = proxy_config("mine", "shop", {**mine, "concurrency": 3})
    other = {"selector": {"matchLabels": {"app": "other"}}, "concurrency": 4}
    away = proxy_config("away", "elsewhere", {**mine, "concurrency": 5})
    assert injected(whole)["concurrency"] == 1
    assert injected(space, whole)["concurrency"] == 2
    assert injected(chosen, space, whole)["concurrency"] == 3
    assert injected(proxy_config("other", "shop", other), away, whole)["concurrency"] == 1


def test_of_equal_objects_the_oldest_holds() -> None:
    young = proxy_config("a", "shop", {"concurrency": 1}, "2024-02-01T00:00:00Z")
    old = proxy_config("b", "shop", {"concurrency": 2}, "2024-01-01T00:00:00Z")
    assert injected(young, old)["concurrency"] == 2


def test_objects_win_over_the_annotation_and_that_over_the_mesh() -> None:
    mesh, findings = parse_mesh_config(
        "defaultConfig: {concurrency: 7, drainDuration: 10s, proxyMetadata: {ONE: mesh, TWO: mesh}}"
    )
    assert not findings
    note = "{concurrency: 8, drainDuration: 20s, proxyMetadata: {TWO: note, THREE: note}}"
    assert injected(mesh=mesh)["concurrency"] == 7
    found = injected(mesh=mesh, annotation=note)
    assert (found["concurrency"], found["drainDuration"]) == (8, "20s")
    space = proxy_config(
        "space", "shop", {"concurrency": 9, "environmentVariables": {"THREE": "object"}}
    )
    found = injected(space, mesh=mesh, annotation=note)
    assert (found["concurrency"], found["drainDuration"]) == (9, "20s")
    assert found["proxyMetadata"] == {"ONE": "mesh", "TWO": "note", "THREE": "object"}


def test_settings_of_the_mesh_keep_their_form() -> None:
    """What the injector writes is read again as it was: durations in nested settings included."""
    text = "{connectionSettings: {httpIdleTimeout: 90s}, proxyHeaders: {server: {value: me}}}"
    mesh, findings = parse_mesh_config(f"defaultConfig: {text}")
    assert not findings
    found = injected(mesh=mesh)
    assert found["connectionSettings"] == {"httpIdleTimeout": "90s"}
    assert found["proxyHeaders"] == {"server": {"value": "me"}}
