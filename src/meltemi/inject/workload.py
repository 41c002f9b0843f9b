"""What a pod belongs to, told from its own metadata: workload name, owner, canonical service.

In: a pod (a request's object, before a name exists). Out: names, by Istio's rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# ReplicaSets of a Deployment are named <deployment>-<pod-template-hash>; Jobs of a CronJob <cronjob>-<minutes>.
_CRON_JOB = re.compile(r"^(.+)-(\d{8,11})$")


@dataclass(frozen=True, slots=True)
class Workload:
    """``owner`` is the API address of the controller, as Istio's node metadata has it."""

    name: str
    kind: str
    owner: str
    canonical_name: str
    canonical_revision: str


def find_workload(metadata: Mapping[str, Any], namespace: str) -> Workload:
    """The workload of a pod's metadata."""
    labels = metadata.get("labels") or {}
    owners = metadata.get("ownerReferences") or ()
    owner = next((o for o in owners if o.get("controller")), None)
    name = str(metadata.get("name") or "")
    kind, version = "Pod", "v1"
    if owner:
        name, kind = str(owner.get("name", "")), str(owner.get("kind", ""))
        version = str(owner.get("apiVersion", ""))
        suffix = f"-{labels.get('pod-template-hash')}"
        cron = _CRON_JOB.match(name) if kind == "Job" else None
        if kind == "ReplicaSet" and "pod-template-hash" in labels and name.endswith(suffix):
            name, kind = name.removesuffix(suffix), "Deployment"
        elif kind == "ReplicationController" and labels.get("deploymentconfig"):
            name, kind, version = (
                labels["deploymentconfig"],
                "DeploymentConfig",
                "apps.openshift.io/v1",
            )
        elif cron:
            name, kind = cron[1], "CronJob"
    if not name:
        name = str(metadata.get("generateName") or "").rstrip("-")
    path = f"kubernetes://apis/{version}/namespaces/{namespace}/{kind.lower()}s/{name}"
    canonical = (
        labels.get("service.istio.io/canonical-name")
        or labels.get("app.kubernetes.io/name")
        or labels.get("app")
        or name
    )
    revision = (
        labels.get("service.istio.io/canonical-revision")
        or labels.get("app.kubernetes.io/version")
        or labels.get("version")
        or "latest"
    )
    return Workload(name, kind, path, canonical, revision)
