"""Volumes in running pods: what is mounted, and how it changes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from localkube.client.resources import CONFIG_MAPS, PODS, SECRETS
from localkube_node import isolated
from localkube_node.world import (
    container_status,
    is_ready,
    log_text,
    node,
    phase,
    pod,
    run_to_end,
    shell,
)


def here(name: str, directory: Path) -> None:
    isolated.run(f"localkube_node.test_volume_scenarios:{name}", directory)


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default"}, "data": data}


async def scenario_kinds(directory: Path) -> None:
    host = directory / "host"
    host.mkdir()
    (host / "file").write_text("of the host")
    async with node(directory) as (api, agent):
        api.put(CONFIG_MAPS, config_map("settings", color="red", size="big"))
        secret = base64.b64encode(b"hidden").decode()
        meta = {"name": "keys", "namespace": "default"}
        api.put(SECRETS, {"metadata": meta, "data": {"key": secret}})
        text = await run_to_end(
            api,
            agent,
            "look",
            "cat /config/colour /usr/share/made/here/key /etc/podinfo/labels /host/file /one; echo;"
            "stat -L -c %a /config/colour; wc -c < /tokens/token; stat -c %a /tokens/..data/token;"
            "df -t tmpfs /fast | tail -1 | cut -d' ' -f1; touch /config/x 2>&1 | grep -o Read-only;"
            "touch /host/x 2>&1 | grep -o Read-only; touch /disk/sub/y && ls /disk; echo $COLOR $KEY",
            volumeMounts=[
                {"name": "config", "mountPath": "/config"},
                {"name": "keys", "mountPath": "/usr/share/made/here"},
                {"name": "info", "mountPath": "/etc/podinfo"},
                {"name": "host", "mountPath": "/host", "readOnly": True},
                {"name": "tokens", "mountPath": "/tokens"},
                {"name": "fast", "mountPath": "/fast"},
                {"name": "disk", "mountPath": "/disk"},
                {"name": "disk", "mountPath": "/disk/sub", "subPath": "inner"},
                {"name": "whole", "mountPath": "/one", "subPath": "size"},
            ],
            env=[
                {
                    "name": "COLOR",
                    "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}},
                },
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}},
            ],
            volumes=[
                {
                    "name": "config",
                    "configMap": {
                        "name": "settings",
                        "defaultMode": 0o400,
                        "items": [{"key": "color", "path": "colour"}],
                    },
                },
                {"name": "whole", "configMap": {"name": "settings"}},
                {"name": "keys", "secret": {"secretName": "keys"}},
                {
                    "name": "info",
                    "downwardAPI": {
                        "items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]
                    },
                },
                {"name": "host", "hostPath": {"path": str(host), "type": "Directory"}},
                {
                    "name": "tokens",
                    "projected": {
                        "sources": [
                            {
                                "serviceAccountToken": {
                                    "path": "token",
                                    "audience": "istio-ca",
                                    "expirationSeconds": 3600,
                                }
                            },
                            {"configMap": {"name": "absent", "optional": True}},
                        ]
                    },
                },
                {"name": "fast", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "disk", "emptyDir": {}},
            ],
        )
        assert 'redhiddenapp="look"of the hostbig' in text, text
        assert "\n400\n" in text
        assert "\n600\n" in text
        assert "\ntmpfs\n" in text
        assert text.count("Read-only") == 2
        assert "inner" in text
        assert text.rstrip().endswith("red hidden")


def test_every_kind_of_volume_is_where_the_pod_wants_it(tmp_path: Path) -> None:
    here("scenario_kinds", tmp_path)


async def scenario_update(directory: Path) -> None:
    async with node(directory) as (api, agent):
        api.put(CONFIG_MAPS, config_map("settings", value="old", gone="x"))
        watch = "while true; do echo $(cat /c/value) $(ls /c | tr '\\n' ' '); sleep 0.05; done"
        api.put(
            PODS,
            pod(
                "watcher",
                shell(watch, volumeMounts=[{"name": "c", "mountPath": "/c"}]),
                volumes=[{"name": "c", "configMap": {"name": "settings"}}],
            ),
        )
        await api.until(lambda: "old gone value" in log_text(agent, "watcher"))
        api.put(CONFIG_MAPS, config_map("settings", value="new", more="y"))
        await api.until(lambda: "new more value" in log_text(agent, "watcher"))


def test_a_changed_config_map_arrives_in_the_running_pod(tmp_path: Path) -> None:
    here("scenario_update", tmp_path)


async def scenario_missing(directory: Path) -> None:
    async with node(directory) as (api, _):
        api.put(
            PODS,
            pod(
                "waits",
                shell("sleep 100", envFrom=[{"configMapRef": {"name": "vars"}}]),
                volumes=[{"name": "c", "configMap": {"name": "later"}}],
            ),
        )
        await api.until(
            lambda: (
                ("FailedMount", True)
                in [(reason, '"later" not found' in text) for reason, text in api.events("waits")]
            )
        )
        await api.until(lambda: phase(api, "waits") == "Pending")
        api.put(CONFIG_MAPS, config_map("later", a="b"))
        await api.until(
            lambda: (
                container_status(api, "waits").get("state", {}).get("waiting", {}).get("reason")
                == "CreateContainerConfigError"
            )
        )
        api.put(CONFIG_MAPS, config_map("vars", a="b"))
        await api.until(lambda: is_ready(api, "waits"))


def test_a_pod_waits_for_its_config_maps_and_says_so(tmp_path: Path) -> None:
    here("scenario_missing", tmp_path)
