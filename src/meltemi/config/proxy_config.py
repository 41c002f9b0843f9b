"""What the settings of one workload's proxy are: the annotation and the ProxyConfig objects laid over each other.

Precedence, lowest first: the mesh's ``defaultConfig``, the annotation ``proxy.istio.io/config``, then ProxyConfig objects of the root
namespace, of the workload's namespace, and those that select it. In: settings as JSON. Out: settings as JSON, for the agent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from meltemi.config.yaml_source import read_value
from meltemi.model.config import AnyConfig
from meltemi.model.frozen import freeze
from meltemi.model.mesh import MeshConfig
from meltemi.model.topology import ProxyConfigSpec

ANNOTATION = "proxy.istio.io/config"
_MERGED = ("proxyMetadata", "runtimeValues")  # maps merge by key, all else is replaced


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with what ``top`` says."""
    merged = {**base, **top}
    for key in _MERGED:
        if isinstance(base.get(key), Mapping) and isinstance(top.get(key), Mapping):
            merged[key] = {**base[key], **top[key]}
    return merged


def proxy_config_objects(
    configs: Iterable[AnyConfig], namespace: str, labels: Mapping[str, str], root_namespace: str
) -> list[ProxyConfigSpec]:
    """The ProxyConfigs that concern a workload, the most specific last. Of several that are equal, the oldest holds."""
    whole: dict[str, ProxyConfigSpec] = {}
    selecting: ProxyConfigSpec | None = None
    ordered = sorted(configs, key=lambda config: (config.meta.created, config.meta.name))
    for config in ordered:
        spec = config.spec
        if not isinstance(spec, ProxyConfigSpec):
            continue
        if config.meta.namespace not in (namespace, root_namespace):
            continue
        wanted = spec.selector.match_labels if spec.selector is not None else {}
        if not wanted:
            whole.setdefault(config.meta.namespace, spec)
        elif (
            selecting is None
            and config.meta.namespace == namespace
            and all(labels.get(key) == value for key, value in wanted.items())
        ):
            selecting = spec
    found = [whole[name] for name in dict.fromkeys((root_namespace, namespace)) if name in whole]
    return [*found, selecting] if selecting is not None else found


def as_proxy_config(spec: ProxyConfigSpec) -> dict[str, Any]:
    """A ProxyConfig object in the words of the mesh's ProxyConfig."""
    found: dict[str, Any] = {}
    if spec.concurrency is not None:
        found["concurrency"] = spec.concurrency
    if spec.environment_variables:
        found["proxyMetadata"] = dict(spec.environment_variables)
    if spec.image is not None and spec.image.image_type:
        found["image"] = {"imageType": spec.image.image_type}
    return found


def with_objects(base: Mapping[str, Any], objects: Iterable[ProxyConfigSpec]) -> dict[str, Any]:
    """``base`` (mesh and annotation) with the objects of ``proxy_config_objects`` over it."""
    merged = dict(base)
    for spec in objects:
        merged = overlay(merged, as_proxy_config(spec))
    return merged


def own_settings(
    mesh: MeshConfig,
    configs: Iterable[AnyConfig],
    namespace: str,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
) -> Mapping[str, Any]:
    """What a proxy brings along, deeply frozen: annotation, objects, and the mesh's metadata for proxies.

    The rest of the mesh's defaults istiod knows itself. A wrong annotation is the injector's to refuse.
    """
    text = annotations.get(ANNOTATION, "")
    value = read_value(text, "")[0] if text else None
    base: dict[str, Any] = {}
    if mesh.default_config.proxy_metadata:
        base["proxyMetadata"] = dict(mesh.default_config.proxy_metadata)
    objects = proxy_config_objects(configs, namespace, labels, mesh.root_namespace)
    found: Mapping[str, Any] = freeze(
        with_objects(overlay(base, value if isinstance(value, Mapping) else {}), objects)
    )
    return found
