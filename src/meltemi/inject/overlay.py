"""Lay one pod fragment over another, as Kubernetes' strategic merge does for the fields of a pod.

In: two parsed fragments. Out: a new one. Lists whose items have an identity (containers, env, mounts, ports,
volumes) merge by it; other lists and all scalars are replaced; ``null`` removes. ``fill_template`` puts values
into the ``${VARIABLE}`` places of a user's template.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
}


def merge(under: Any, over: Any, name: str = "") -> Any:
    """``over`` laid on ``under``; ``name`` is the field they stand in."""
    if isinstance(under, Mapping) and isinstance(over, Mapping):
        merged = dict(under)
        for key, value in over.items():
            if value is None:
                merged.pop(key, None)
            elif key in merged:
                merged[key] = merge(merged[key], value, key)
            else:
                merged[key] = value
        return merged
    if isinstance(under, list) and isinstance(over, list) and name in _KEYS:
        return _merge_lists(under, over, _KEYS[name])
    return over


def _merge_lists(under: list[Any], over: list[Any], key: str) -> list[Any]:
    merged = list(under)
    places = {item.get(key): at for at, item in enumerate(merged) if isinstance(item, Mapping)}
    for item in over:
        identity = item.get(key) if isinstance(item, Mapping) else None
        if identity in places and identity is not None:
            merged[places[identity]] = merge(merged[places[identity]], item)
        else:
            merged.append(item)
    return merged


def merge_container(template: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The template's container with what the user wrote for it; image ``auto`` means the template's.

    An environment variable that the user gives a plain value loses the template's ``valueFrom``.
    """
    own = {key: value for key, value in own.items() if not (key == "image" and value == "auto")}
    merged: dict[str, Any] = merge(template, own)
    plain = {item["name"] for item in own.get("env") or () if "value" in item}
    if plain:
        merged["env"] = [
            {k: v for k, v in item.items() if not (k == "valueFrom" and item["name"] in plain)}
            for item in merged["env"]
        ]
    return merged


def fill_template(fragment: Any, values: Mapping[str, str]) -> Any:
    """The fragment with ``${NAME}`` replaced in all strings; unknown names stay as they are."""
    if isinstance(fragment, str):
        return string.Template(fragment).safe_substitute(values)
    if isinstance(fragment, Mapping):
        return {key: fill_template(value, values) for key, value in fragment.items()}
    if isinstance(fragment, list):
        return [fill_template(item, values) for item in fragment]
    return fragment
