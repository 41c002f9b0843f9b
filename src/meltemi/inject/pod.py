"""Put a proxy into a pod.

In: a pod (or a pod template) that is to be injected. Out: the new pod, warnings, or errors that refuse it.
The input is never changed. Built-in templates are ``sidecar`` and ``gateway``; users add overlays by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from meltemi.config.proxy_config import proxy_config_objects
from meltemi.inject import containers as build
from meltemi.inject.annotations import PodSettings, read_annotations
from meltemi.inject.decision import REVISION, STATUS
from meltemi.inject.overlay import fill_template, merge, merge_container
from meltemi.inject.probes import rewrite_probes
from meltemi.inject.settings import InjectionConfig
from meltemi.inject.workload import Workload, find_workload
from meltemi.model.config import AnyConfig
from meltemi.model.mesh import MeshConfig

TEMPLATES = "inject.istio.io/templates"
NETWORK_LABEL = "topology.istio.io/network"
_SCRAPE = "prometheus.io/"
_BUILT_IN = {"sidecar": "sidecar", "gateway": "router"}
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_DEFAULT_LOGS = "kubectl.kubernetes.io/default-logs-container"


@dataclass(frozen=True, slots=True)
class InjectedPod:
    """``pod`` is None when ``errors`` refuse it."""

    pod: dict[str, Any] | None
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def inject_pod(
    pod: Mapping[str, Any],
    namespace: str,
    config: InjectionConfig,
    mesh: MeshConfig,
    url_values: Mapping[str, str] | None = None,
    proxy_configs: Iterable[AnyConfig] = (),
) -> InjectedPod:
    """The pod with its proxy. ``url_values`` are those of the webhook's path (``cluster``, ``net``)."""
    metadata = dict(pod.get("metadata") or {})
    spec = dict(pod.get("spec") or {})
    annotations = {**config.injected_annotations, **(metadata.get("annotations") or {})}
    names, errors = _templates(annotations, config)
    objects = proxy_config_objects(
        proxy_configs, namespace, metadata.get("labels") or {}, mesh.root_namespace
    )
    settings, wrong, warnings = read_annotations(
        annotations, config, mesh.default_config, mesh.enable_prometheus_merge, objects
    )
    errors += wrong
    if errors:
        return InjectedPod(None, tuple(errors), tuple(warnings))
    role = _BUILT_IN[next((name for name in names if name in _BUILT_IN), "sidecar")]
    workload = find_workload(metadata, namespace)
    containers = [dict(container) for container in spec.get("containers") or ()]
    probes: dict[str, Any] = {}
    if settings.rewrite_probes and role == "sidecar":
        containers, probes, wrong = rewrite_probes(
            containers, settings.health_port, build.PROXY_CONTAINER
        )
        if wrong:
            return InjectedPod(None, tuple(wrong), tuple(warnings))
    facts = _facts(metadata, containers, workload, probes, settings, config, mesh, url_values or {})
    spec["containers"] = containers
    new_spec, status = _new_spec(spec, settings, config, facts, role)
    new_metadata = _new_metadata(metadata, annotations, settings, config, facts, status, role)
    made: dict[str, Any] = {**pod, "metadata": new_metadata, "spec": new_spec}
    for name in names:
        if name not in _BUILT_IN:
            made = merge(
                made, fill_template(config.templates[name], _variables(settings, facts, namespace))
            )
    return InjectedPod(made, (), tuple(warnings))


def _templates(
    annotations: Mapping[str, str], config: InjectionConfig
) -> tuple[tuple[str, ...], list[str]]:
    text = annotations.get(TEMPLATES)
    if text is None:
        names = config.default_templates
    else:
        names = tuple(name.strip() for name in text.split(",") if name.strip())
    known = (*_BUILT_IN, *config.templates)
    errors = [
        f'annotation {TEMPLATES}: there is no template "{name}"; there are {", ".join(known)}'
        for name in names
        if name not in known
    ]
    return names, errors


def _facts(
    metadata: Mapping[str, Any],
    containers: list[dict[str, Any]],
    workload: Workload,
    probes: Mapping[str, Any],
    settings: PodSettings,
    config: InjectionConfig,
    mesh: MeshConfig,
    url_values: Mapping[str, str],
) -> build.PodFacts:
    apps = [c for c in containers if c.get("name") != build.PROXY_CONTAINER]
    labels = metadata.get("labels") or {}
    return build.PodFacts(
        workload=workload,
        app_containers=tuple(str(c.get("name")) for c in apps),
        ports=tuple(port for c in apps for port in c.get("ports") or ()),
        probes=probes,
        scrape=_scrape(metadata.get("annotations") or {}, settings),
        trust_domain=mesh.trust_domain,
        mesh_id=mesh.default_config.mesh_id or config.mesh_id or mesh.trust_domain,
        network=labels.get(NETWORK_LABEL) or url_values.get("net") or config.network,
        cluster_id=url_values.get("cluster") or config.cluster_id,
    )


def _merges_metrics(annotations: Mapping[str, str], settings: PodSettings) -> bool:
    """A pod that says it shall not be scraped is left alone."""
    return settings.merge_metrics and annotations.get(f"{_SCRAPE}scrape", "") != "false"


def _scrape(annotations: Mapping[str, str], settings: PodSettings) -> dict[str, str]:
    """The application's own metrics annotations, for the agent to merge."""
    keys = ("scrape", "path", "port", "scheme")
    found = {k: annotations[_SCRAPE + k] for k in keys if _SCRAPE + k in annotations}
    own_port = found.get("port") == str(settings.status_port)
    wanted = found.get("scrape") == "true" and _merges_metrics(annotations, settings)
    return found if wanted and not own_port else {}


def _new_spec(
    spec: dict[str, Any],
    settings: PodSettings,
    config: InjectionConfig,
    facts: build.PodFacts,
    role: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The new spec, and what was added for the status annotation."""
    template = build.build_proxy_container(settings, config, facts, role)
    native = role == "sidecar" and settings.native_sidecar
    inits = [dict(c) for c in spec.get("initContainers") or ()]
    own = [c for c in (*spec["containers"], *inits) if c.get("name") == build.PROXY_CONTAINER]
    proxy = merge_container(template, own[0]) if own else template
    others = [c for c in spec["containers"] if c.get("name") != build.PROXY_CONTAINER]
    inits = [c for c in inits if c.get("name") != build.PROXY_CONTAINER]
    added_inits = []
    if role == "sidecar" and settings.interception_mode != "NONE" and not config.cni_enabled:
        init = build.build_init_container(settings, config)
        given = next((c for c in inits if c.get("name") == build.INIT_CONTAINER), None)
        inits = [c for c in inits if c.get("name") != build.INIT_CONTAINER]
        added_inits.append(merge_container(init, given) if given else init)
    new = dict(spec)
    if native:
        added_inits.append(proxy)
        # First, so that the init containers that follow are in the mesh already.
        inits, new["containers"] = [*added_inits, *inits], others
    else:
        inits = [*inits, *added_inits]
        new["containers"] = [proxy, *others] if settings.hold_application else [*others, proxy]
    if inits:
        new["initContainers"] = inits
    volumes = build.build_volumes(settings, config)
    new["volumes"] = merge([dict(v) for v in spec.get("volumes") or ()], volumes, "volumes")
    secrets = [{"name": name} for name in config.image_pull_secrets]
    if secrets:
        present = list(spec.get("imagePullSecrets") or ())
        new["imagePullSecrets"] = merge(present, secrets, "imagePullSecrets")
    if config.priority_class and not spec.get("priorityClassName") and role == "router":
        new["priorityClassName"] = config.priority_class
    status = {
        "initContainers": [c["name"] for c in added_inits] or None,
        "containers": None if native else [build.PROXY_CONTAINER],
        "volumes": [v["name"] for v in volumes],
        "imagePullSecrets": [s["name"] for s in secrets] or None,
        "revision": config.revision_name,
    }
    return new, status


def _new_metadata(
    metadata: dict[str, Any],
    annotations: dict[str, str],
    settings: PodSettings,
    config: InjectionConfig,
    facts: build.PodFacts,
    status: Mapping[str, Any],
    role: str,
) -> dict[str, Any]:
    labels = dict(metadata.get("labels") or {})
    if role == "sidecar":
        # Whether a gateway's port takes mutual TLS is said by its Gateway, not by the pod.
        labels.setdefault("security.istio.io/tlsMode", "istio")
    labels.setdefault("service.istio.io/canonical-name", facts.workload.canonical_name[:63])
    labels.setdefault("service.istio.io/canonical-revision", facts.workload.canonical_revision)
    if facts.network:
        labels.setdefault(NETWORK_LABEL, facts.network)
    added = dict(annotations)
    added[REVISION] = config.revision_name
    added[STATUS] = json.dumps(status, separators=(",", ":"))
    first = facts.app_containers[0] if role == "sidecar" and facts.app_containers else ""
    if first:
        added.setdefault(_DEFAULT_CONTAINER, first)
        added.setdefault(_DEFAULT_LOGS, first)
    if _merges_metrics(annotations, settings):
        added[f"{_SCRAPE}scrape"] = "true"
        added[f"{_SCRAPE}port"] = str(settings.status_port)
        added[f"{_SCRAPE}path"] = "/stats/prometheus"
    return {**metadata, "labels": labels, "annotations": added}


def _variables(settings: PodSettings, facts: build.PodFacts, namespace: str) -> dict[str, str]:
    """What a user's template may name as ``${NAME}``."""
    return {
        "PROXY_IMAGE": settings.image,
        "NAMESPACE": namespace,
        "WORKLOAD": facts.workload.name,
        "CANONICAL_NAME": facts.workload.canonical_name,
        "CANONICAL_REVISION": facts.workload.canonical_revision,
        "CLUSTER_ID": facts.cluster_id,
        "MESH_ID": facts.mesh_id,
        "NETWORK": facts.network,
        "TRUST_DOMAIN": facts.trust_domain,
        "STATUS_PORT": str(settings.status_port),
        "HEALTH_PORT": str(settings.health_port),
        "DISCOVERY_ADDRESS": str(settings.proxy_config.get("discoveryAddress", "")),
    }
