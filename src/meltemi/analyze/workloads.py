"""Analyzers of pods and the Services that select them: ports that mean two things, images and users that only injection explains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meltemi.analyze.context import Analysis
from meltemi.config.paths import item
from meltemi.model import kubernetes as k8s
from meltemi.registry.index import ServiceTarget

_PROXY_USER = 1337
_PROXY = ("istio-proxy", "istio-init", "istio-validation", "enable-core-dump")


def analyze_shared_ports(context: Analysis) -> None:
    """Two Services give a port of the same pods different protocols (IST0116) or numbers (IST0137): told to both."""
    told: set[tuple[str, str, int]] = set()
    for targets in _by_target(context).values():
        for one in targets:
            others = [other for other in targets if other.service is not one.service]
            for code, differ in (("IST0116", _protocols_differ), ("IST0137", _numbers_differ)):
                against = [other for other in others if differ(one, other)]
                key = (code, one.service.hostname, one.port.number)
                if against and key not in told:
                    told.add(key)
                    _tell(context, code, one, against)


def _protocols_differ(one: ServiceTarget, other: ServiceTarget) -> bool:
    return one.port.protocol is not other.port.protocol


def _numbers_differ(one: ServiceTarget, other: ServiceTarget) -> bool:
    return one.port.number != other.port.number


def _by_target(context: Analysis) -> Mapping[tuple[str, int], list[ServiceTarget]]:
    """What each port of each workload is called by Services, without repetition."""
    found: dict[tuple[str, int], list[ServiceTarget]] = {}
    for workload in context.workloads("", {}):
        owner = f"{workload.namespace}/{workload.workload_name or workload.name}"
        for target in context.registry.service_targets(workload):
            known = found.setdefault((owner, target.target_port), [])
            if all(
                (other.service.hostname, other.port) != (target.service.hostname, target.port)
                for other in known
            ):
                known.append(target)
    return found


def _tell(context: Analysis, code: str, one: ServiceTarget, against: list[ServiceTarget]) -> None:
    config = context.find(one.service.origin.kind, one.service.namespace, one.service.origin.name)
    if config is None or config.kind != "Service":
        return
    ports = config.spec.spec.ports or ()
    index = next((i for i, port in enumerate(ports) if port.port == one.port.number), 0)
    others = ", ".join(sorted({o.service.hostname for o in against}))
    values: dict[str, Any] = {"others": others}
    if code == "IST0116":
        words = dict.fromkeys(target.port.protocol.value for target in (one, *against))
        values |= {"port": one.target_port, "protocols": ", ".join(words)}
        remedy = "name the ports of all of them for the same protocol"
    else:
        numbers = dict.fromkeys(str(target.port.number) for target in (one, *against))
        values |= {"target": one.target_port, "ports": ", ".join(numbers)}
        remedy = "give all of them the same port"
    context.add(code, config, item("spec.ports", index), remedy, **values)


def analyze_containers(context: Analysis) -> None:
    """The application is not the proxy's user (IST0144); ``image: auto`` is replaced by injection only (IST0147)."""
    for config in context.of("Pod"):
        pod: k8s.Pod = config.spec
        for index, container in enumerate(pod.spec.containers or ()):
            path = item("spec.containers", index)
            if container.image == "auto":
                remedy = "label the pod or its namespace for injection, and make the pod anew"
                context.add("IST0147", config, f"{path}.image", remedy, container=container.name)
            user = _user(container, pod.spec)
            if user == _PROXY_USER and container.name not in _PROXY:
                remedy = "choose another user: the proxy's own traffic is not captured"
                path = f"{path}.securityContext.runAsUser"
                context.add("IST0144", config, path, remedy, container=container.name)


def _user(container: k8s.Container, spec: k8s.PodSpec) -> int | None:
    for security in (container.security_context, spec.security_context):
        if security is not None and security.run_as_user is not None:
            return security.run_as_user
    return None


def analyze_subsets(context: Analysis) -> None:
    """Subsets of DestinationRules select some pod of their host (IST0173). Needs a whole cluster."""
    for config in context.of("DestinationRule") if context.whole else ():
        services = context.services_for(config.spec.host, config.meta.namespace)
        members = [
            workload
            for service in services
            for workload in context.workloads(service.namespace, {})
            if any(
                target.service.hostname == service.hostname
                for target in context.registry.service_targets(workload)
            )
        ]
        for index, subset in enumerate(config.spec.subsets) if members else ():
            labels = {k: v for k, v in subset.labels.items() if not k.startswith("topology.")}
            if labels and not any(
                all(member.labels.get(key) == value for key, value in labels.items())
                for member in members
            ):
                path = item("spec.subsets", index) + ".labels"
                remedy = "correct the labels, or start such pods"
                host = config.spec.host
                context.add("IST0173", config, path, remedy, name=subset.name, host=host)
