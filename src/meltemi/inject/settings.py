"""What the injector is configured with: ConfigMap ``istio-sidecar-injector``.

In: the texts of its keys ``config`` (YAML) and ``values`` (JSON), in the installer's and Istio's names. Out:
one frozen ``InjectionConfig``, and messages about wrong values (the default is used instead).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

IGNORED_NAMESPACES = ("kube-system", "kube-public", "kube-node-lease", "local-path-storage")
DEFAULT_RESOURCES: Mapping[str, Any] = {
    "requests": {"cpu": "100m", "memory": "128Mi"},
    "limits": {"cpu": "2000m", "memory": "1024Mi"},
}


@dataclass(frozen=True, slots=True)
class InjectionConfig:
    """The injector's settings; the defaults are those of a default installation.

    ``templates`` are users' own: name -> pod overlay (parsed YAML) with ``${VARIABLE}`` in its strings.
    Selectors are Kubernetes label selectors as mappings.
    """

    policy: str = "enabled"
    default_templates: tuple[str, ...] = ("sidecar",)
    templates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    always_inject: tuple[Mapping[str, Any], ...] = ()
    never_inject: tuple[Mapping[str, Any], ...] = ()
    ignored_namespaces: tuple[str, ...] = IGNORED_NAMESPACES
    injected_annotations: Mapping[str, str] = field(default_factory=dict)
    enable_namespaces_by_default: bool = False
    revision: str = ""
    revision_tags: tuple[str, ...] = ()
    hub: str = "docker.io/meltemi"
    tag: str = "0.1.0"
    image: str = "proxy"
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    istio_namespace: str = "istio-system"
    cluster_id: str = "Kubernetes"
    cluster_domain: str = "cluster.local"
    network: str = ""
    mesh_id: str = ""
    ca_address: str = ""
    log_level: str = "warning"
    component_log_level: str = "misc:error"
    agent_log_level: str = "default:info"
    log_as_json: bool = False
    resources: Mapping[str, Any] = field(default_factory=lambda: DEFAULT_RESOURCES)
    init_resources: Mapping[str, Any] | None = None
    privileged: bool = False
    include_cidrs: str = "*"
    exclude_cidrs: str = ""
    include_inbound_ports: str = "*"
    exclude_inbound_ports: str = ""
    include_outbound_ports: str = ""
    exclude_outbound_ports: str = ""
    rewrite_probes: bool = True
    hold_application: bool = False
    native_sidecar: bool = False
    cni_enabled: bool = False
    readiness_period_s: int = 15
    readiness_failures: int = 4
    readiness_delay_s: int = 0
    startup_failures: int = 600
    priority_class: str = ""
    token_seconds: int = 43200

    @property
    def revision_name(self) -> str:
        """The value of label ``istio.io/rev``: ``default`` for the unnamed revision."""
        return self.revision or "default"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _load(text: str, name: str, problems: list[str]) -> Mapping[str, Any]:
    try:
        # JSON first: it is by far the faster parser, and `values` is JSON.
        value = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text or "{}")
    except (ValueError, yaml.YAMLError) as error:
        problems.append(f"ConfigMap istio-sidecar-injector, key {name}: {error}")
        return {}
    if not isinstance(value, Mapping):
        problems.append(f"ConfigMap istio-sidecar-injector, key {name}: not a mapping")
        return {}
    return value


class _Values:
    """Reads of one mapping that fall back to a default where a value has the wrong type."""

    def __init__(self, value: Any, where: str, problems: list[str]) -> None:
        self.value, self.where, self.problems = _mapping(value), where, problems

    def get(self, name: str, default: Any) -> Any:
        found = self.value.get(name)
        if found is None or found == "":
            return default
        if isinstance(default, str) and isinstance(found, int | float) and found is not True:
            return str(found)
        wanted = list if isinstance(default, tuple) else type(default)
        if not isinstance(found, wanted):
            self.problems.append(f"{self.where}{name}: {found!r} is not of type {wanted.__name__}")
            return default
        return tuple(found) if isinstance(found, list) else found


def parse_injection_config(config: str, values: str) -> tuple[InjectionConfig, list[str]]:
    """The settings of the ConfigMap's two keys, and messages about what was wrong in them."""
    problems: list[str] = []
    outer = _Values(_load(config, "config", problems), "config.", problems)
    root = _Values(_load(values, "values", problems), "values.", problems)
    everything = _Values(root.value.get("global"), "values.global.", problems)
    proxy = _Values(everything.value.get("proxy"), "values.global.proxy.", problems)
    webhook = _Values(
        root.value.get("sidecarInjectorWebhook"), "values.sidecarInjectorWebhook.", problems
    )
    cluster = _Values(everything.value.get("multiCluster"), "values.global.multiCluster.", problems)
    logging = _Values(everything.value.get("logging"), "values.global.logging.", problems)
    default = InjectionConfig()
    settings = InjectionConfig(
        policy=outer.get("policy", default.policy),
        default_templates=outer.get("defaultTemplates", default.default_templates),
        templates=_templates(outer, webhook, problems),
        always_inject=outer.get("alwaysInjectSelector", webhook.get("alwaysInjectSelector", ())),
        never_inject=outer.get("neverInjectSelector", webhook.get("neverInjectSelector", ())),
        ignored_namespaces=outer.get("ignoredNamespaces", default.ignored_namespaces),
        injected_annotations=outer.get(
            "injectedAnnotations", webhook.get("injectedAnnotations", {})
        ),
        enable_namespaces_by_default=webhook.get("enableNamespacesByDefault", False),
        revision=root.get("revision", ""),
        revision_tags=root.get("revisionTags", ()),
        hub=everything.get("hub", default.hub),
        tag=everything.get("tag", default.tag),
        image=proxy.get("image", default.image),
        image_pull_policy=everything.get("imagePullPolicy", default.image_pull_policy),
        image_pull_secrets=everything.get("imagePullSecrets", ()),
        istio_namespace=everything.get("istioNamespace", default.istio_namespace),
        cluster_id=cluster.get("clusterName", default.cluster_id),
        cluster_domain=proxy.get("clusterDomain", default.cluster_domain),
        network=everything.get("network", ""),
        mesh_id=everything.get("meshID", ""),
        ca_address=everything.get("caAddress", ""),
        log_level=proxy.get("logLevel", default.log_level),
        component_log_level=proxy.get("componentLogLevel", default.component_log_level),
        agent_log_level=logging.get("level", default.agent_log_level),
        log_as_json=everything.get("logAsJson", False),
        resources=proxy.get("resources", dict(default.resources)),
        privileged=proxy.get("privileged", False),
        include_cidrs=proxy.get("includeIPRanges", default.include_cidrs),
        exclude_cidrs=proxy.get("excludeIPRanges", ""),
        include_inbound_ports=proxy.get("includeInboundPorts", default.include_inbound_ports),
        exclude_inbound_ports=proxy.get("excludeInboundPorts", ""),
        include_outbound_ports=proxy.get("includeOutboundPorts", ""),
        exclude_outbound_ports=proxy.get("excludeOutboundPorts", ""),
        rewrite_probes=webhook.get("rewriteAppHTTPProbe", True),
        hold_application=proxy.get("holdApplicationUntilProxyStarts", False),
        native_sidecar=_native(root),
        cni_enabled=_cni(root),
        readiness_period_s=proxy.get("readinessPeriodSeconds", default.readiness_period_s),
        readiness_failures=proxy.get("readinessFailureThreshold", default.readiness_failures),
        readiness_delay_s=proxy.get("readinessInitialDelaySeconds", default.readiness_delay_s),
        startup_failures=_mapping(proxy.value.get("startupProbe")).get(
            "failureThreshold", default.startup_failures
        ),
        priority_class=everything.get("priorityClassName", ""),
    )
    return settings, problems


def _native(root: _Values) -> bool:
    env = _mapping(_mapping(root.value.get("pilot")).get("env"))
    return str(env.get("ENABLE_NATIVE_SIDECARS", "")).lower() == "true"


def _cni(root: _Values) -> bool:
    cni = _mapping(_mapping(root.value.get("pilot")).get("cni"))
    return bool(cni.get("enabled") or _mapping(root.value.get("istio_cni")).get("enabled"))


def _templates(
    outer: _Values, webhook: _Values, problems: list[str]
) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    given = {**_mapping(webhook.value.get("templates")), **_mapping(outer.value.get("templates"))}
    for name, text in given.items():
        try:
            overlay = yaml.safe_load(text) if isinstance(text, str) else text
        except yaml.YAMLError as error:
            problems.append(f"injection template {name} is not YAML: {error}")
            continue
        if isinstance(overlay, Mapping):
            found[str(name)] = overlay
        else:
            problems.append(f"injection template {name} is not a mapping with a pod's spec")
    return found
