"""Default values of pods, containers, probes and volumes.

In: a pod spec, or the spec that holds a pod template. Out: the same, filled in, in place. The
values are the documented ones of the Kubernetes API reference.
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

PROJECTED_TOKEN_S = 3600
_FILE_MODE = 0o644
_HANDLERS = ("livenessProbe", "readinessProbe", "startupProbe")


def default_pod_template(spec: Object) -> None:
    """Default `spec.template.spec` (of a workload) or `template.spec` (of a PodTemplate)."""
    template = spec.get("template")
    if isinstance(template, dict):
        pod_spec = template.get("spec")
        if isinstance(pod_spec, dict):
            default_pod_spec(pod_spec)


def default_pod_spec(spec: Object) -> None:
    """Default a pod's spec."""
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("securityContext", {})
    if spec.get("enableServiceLinks") is None and "containers" in spec:
        spec["enableServiceLinks"] = True
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        spec["serviceAccountName"] = account
        spec["serviceAccount"] = account  # the deprecated alias always mirrors it
    host_network = bool(spec.get("hostNetwork"))
    for field in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(field) or ():
            default_container(container, host_network=host_network)
    for volume in spec.get("volumes") or ():
        _default_volume(volume)


def default_container(container: Object, *, host_network: bool = False) -> None:
    """Default one container."""
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    container.setdefault("resources", {})
    if not container.get("imagePullPolicy") and container.get("image"):
        latest = image_tag(str(container["image"])) == "latest"
        container["imagePullPolicy"] = "Always" if latest else "IfNotPresent"
    for port in container.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if host_network and "containerPort" in port:
            port.setdefault("hostPort", port["containerPort"])
    for variable in container.get("env") or ():
        field_ref = (variable.get("valueFrom") or {}).get("fieldRef")
        if isinstance(field_ref, dict):
            field_ref.setdefault("apiVersion", "v1")
        resource_ref = (variable.get("valueFrom") or {}).get("resourceFieldRef")
        if isinstance(resource_ref, dict):
            resource_ref.setdefault("divisor", "0")
    for name in _HANDLERS:
        probe = container.get(name)
        if isinstance(probe, dict):
            _default_probe(probe)
    for handler in (container.get("lifecycle") or {}).values():
        if isinstance(handler, dict):
            _default_http(handler)
    _default_requests(container)


def image_tag(image: str) -> str:
    """The tag of an image reference: `latest` without one, empty for a digest alone."""
    name, at, _ = image.partition("@")
    _, colon, tag = name.rpartition("/")[2].partition(":")
    if colon:
        return tag
    return "" if at else "latest"


def _default_requests(container: Object) -> None:
    """A limit without a request is the request."""
    resources = container.get("resources") or {}
    limits = resources.get("limits")
    if isinstance(limits, dict) and limits:
        requests = resources.get("requests") or {}
        for name, quantity in limits.items():
            requests.setdefault(name, quantity)
        resources["requests"] = requests


def _default_probe(probe: Object) -> None:
    for name, value in (
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ):
        if not probe.get(name):
            probe[name] = value
    if isinstance(probe.get("grpc"), dict):
        probe["grpc"].setdefault("service", "")
    _default_http(probe)


def _default_http(handler: Object) -> None:
    http = handler.get("httpGet")
    if isinstance(http, dict):
        http["path"] = http.get("path") or "/"
        http["scheme"] = http.get("scheme") or "HTTP"


def _default_volume(volume: Object) -> None:
    sources = [key for key in volume if key != "name"]
    if not sources:
        volume["emptyDir"] = {}
    for name in ("secret", "configMap", "downwardAPI", "projected"):
        source = volume.get(name)
        if isinstance(source, dict):
            source.setdefault("defaultMode", _FILE_MODE)
            _default_field_refs(source)
    host_path = volume.get("hostPath")
    if isinstance(host_path, dict):
        host_path.setdefault("type", "")
    for source in (volume.get("projected") or {}).get("sources") or ():
        token = source.get("serviceAccountToken")
        if isinstance(token, dict):
            token.setdefault("expirationSeconds", PROJECTED_TOKEN_S)
        if isinstance(source.get("downwardAPI"), dict):
            _default_field_refs(source["downwardAPI"])
    template = (volume.get("ephemeral") or {}).get("volumeClaimTemplate")
    if isinstance(template, dict):
        template.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")


def _default_field_refs(source: Object) -> None:
    for item in source.get("items") or ():
        if isinstance(item, dict) and isinstance(item.get("fieldRef"), dict):
            item["fieldRef"].setdefault("apiVersion", "v1")
