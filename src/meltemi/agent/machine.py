"""A machine without Kubernetes: the files that its proxy starts from.

``meltemi x workload entry configure`` writes them from a WorkloadGroup, ``meltemi-agent machine`` reads them. Names and variables are
Istio's. In: facts, or the texts of the files. Out: the texts, or the environment of a proxy.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ENVIRONMENT, MESH, ROOT, TOKEN, HOSTS = (
    "cluster.env",
    "mesh.yaml",
    "root-cert.pem",
    "istio-token",
    "hosts",
)
CANONICAL_NAME = "service.istio.io/canonical-name"
CANONICAL_REVISION = "service.istio.io/canonical-revision"


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What a WorkloadGroup and its mesh say of a machine. ``settings`` is the mesh's defaultConfig, ``probe`` the group's, as JSON.

    ``address`` is the machine's own where it cannot find that out itself; ``register``: the machine's WorkloadEntry is made
    when it connects. ``mtls_address`` is where istiod takes certificates: the token is for the first one only.
    """

    group: str
    namespace: str
    service_account: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict)
    network: str = ""
    probe: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    discovery_address: str = "istiod.istio-system.svc:15012"
    mtls_address: str = ""
    cluster_id: str = "Kubernetes"
    trust_domain: str = "cluster.local"
    address: str = ""
    register: bool = False
    dns_capture: bool = True


def render_environment(facts: MachineFacts) -> str:
    """The text of ``cluster.env``: what differs from one group to another, quoted as a shell reads it."""
    labels = dict(facts.labels)
    labels.setdefault(
        CANONICAL_NAME, labels.get("app.kubernetes.io/name") or labels.get("app") or facts.group
    )
    labels.setdefault(
        CANONICAL_REVISION,
        labels.get("app.kubernetes.io/version") or labels.get("version") or "latest",
    )
    values = {
        "CANONICAL_SERVICE": labels[CANONICAL_NAME],
        "CANONICAL_REVISION": labels[CANONICAL_REVISION],
        "CA_ADDR": facts.discovery_address,
        "ISTIO_INBOUND_PORTS": "*",
        "ISTIO_LOCAL_EXCLUDE_PORTS": "22,15090,15021,15020",
        "ISTIO_METAJSON_LABELS": json.dumps(labels, separators=(",", ":"), sort_keys=True),
        "ISTIO_META_CLUSTER_ID": facts.cluster_id,
        "ISTIO_META_MESH_ID": str(facts.settings.get("meshId") or facts.trust_domain),
        "ISTIO_META_NETWORK": facts.network,
        "ISTIO_META_WORKLOAD_NAME": facts.group,
        "ISTIO_NAMESPACE": facts.namespace,
        "ISTIO_SERVICE": f"{facts.group}.{facts.namespace}",
        "ISTIO_SERVICE_CIDR": "*",
        "POD_NAMESPACE": facts.namespace,
        "SERVICE_ACCOUNT": facts.service_account,
        "TRUST_DOMAIN": facts.trust_domain,
    }
    if facts.dns_capture:
        values["ISTIO_META_DNS_CAPTURE"] = "true"
    if facts.register:
        values["ISTIO_META_AUTO_REGISTER_GROUP"] = facts.group
    if facts.mtls_address:
        values["MESH_MTLS_ADDRESS"] = facts.mtls_address
    if facts.address:
        values["ISTIO_SVC_IP"] = facts.address
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(values.items()))


def render_mesh(facts: MachineFacts) -> dict[str, Any]:
    """The content of ``mesh.yaml``: the mesh's settings for proxies, and the group's probe."""
    settings = {**facts.settings, "discoveryAddress": facts.discovery_address}
    if facts.probe:
        settings["readinessProbe"] = dict(facts.probe)
    return {"defaultConfig": settings}


def parse_environment(text: str) -> tuple[dict[str, str], list[str]]:
    """The variables of ``cluster.env``, and messages about lines that are no assignment."""
    found: dict[str, str] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            problems.append(f"{ENVIRONMENT}:{number}: {error}")
            continue
        if words[:1] == ["export"]:
            words = words[1:]
        for word in words:
            name, sign, value = word.partition("=")
            if sign and name.isidentifier():
                found[name] = value
            else:
                problems.append(
                    f"{ENVIRONMENT}:{number}: {word!r} is no assignment like NAME='value'"
                )
    return found, problems


def settings_of(mesh: Any, own: str) -> dict[str, Any]:
    """The proxy's settings: ``defaultConfig`` of the mesh, under what ``own`` (PROXY_CONFIG, JSON) says."""
    base = mesh.get("defaultConfig") if isinstance(mesh, Mapping) else None
    try:
        top = json.loads(own) if own.strip() else {}
    except ValueError:
        top = {}
    return {
        **(base if isinstance(base, Mapping) else {}),
        **(top if isinstance(top, Mapping) else {}),
    }
