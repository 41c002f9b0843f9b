"""Machines that register themselves: the WorkloadEntry of a proxy that names a WorkloadGroup.

In: the group, the proxy, what it has proven, the annotations of the entry as it is. Out: the entry's name and manifest, the
reason for a refusal, what the annotations say of its connection, its condition ``Healthy``. Names, annotations and precedence
are Istio's (https://istio.io/latest/docs/reference/config/networking/workload-group/). Times are seconds since the epoch.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from meltemi.config.encode import as_json
from meltemi.config.kinds import KINDS
from meltemi.model.config import Config
from meltemi.model.proxy import Proxy
from meltemi.model.topology import WorkloadEntry, WorkloadGroup
from meltemi.registry.from_service_entry import HEALTH_CHECKS

GROUP = "istio.io/autoRegistrationGroup"
CONTROLLER = "istio.io/workloadController"
CONNECTED = "istio.io/connectedAt"
DISCONNECTED = "istio.io/disconnectedAt"
HEALTHY = "Healthy"
_NAME_MAX = 253
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


def group_of(proxy: Proxy) -> str:
    """The WorkloadGroup that a proxy asks to be registered in, "" for none."""
    return _text(proxy, "AUTO_REGISTER_GROUP")


def entry_name(proxy: Proxy) -> str:
    """The WorkloadEntry that stands for this proxy: ``<group>-<address>[-<network>]``, or one that exists already; "" for none.

    A name that is too long keeps its end, in which machines differ.
    """
    group = group_of(proxy)
    if not group:
        return _text(proxy, "WORKLOAD_ENTRY")
    parts = [group, proxy.addresses[0].replace(":", "-"), *filter(None, (proxy.network,))]
    return "-".join(parts)[-_NAME_MAX:].lstrip("-.")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _text(proxy: Proxy, key: str) -> str:
    value = proxy.metadata.get(key)
    return value if isinstance(value, str) else ""


def refusal(
    proxy: Proxy, proven: tuple[str, str] | None, found: Config[Any] | None
) -> tuple[str, bool]:
    """Why this proxy cannot be that machine, and whether that may change by itself; ("", False) when it can.

    ``proven`` is the (namespace, service account) that the caller has proven; ``found`` is its WorkloadGroup or, where it asks for
    none, its WorkloadEntry.
    """
    group, where, name = group_of(proxy), proxy.namespace, entry_name(proxy)
    what = f"WorkloadGroup {where}/{group}" if group else f"WorkloadEntry {where}/{name}"
    if not _NAME.fullmatch(name) or (group and not _is_address(proxy.addresses[0])):
        return f"{name[:300]!r} (group, address, network) is no name of a WorkloadEntry", False
    if proven is None:
        return f"a machine must prove who it is to be registered as {what}", False
    if proven[0] != where:
        return (
            f"{what} takes machines of namespace {where!r}, the caller is of {proven[0]!r}",
            False,
        )
    if found is None:
        return f"there is no {what}", True
    spec = found.spec.template if group else found.spec
    account = spec.service_account if spec is not None else ""
    if account and account != proven[1]:
        return f"{what} takes service account {account!r}, the caller is {proven[1]!r}", False
    return "", False


def entry_of(
    group: Config[WorkloadGroup], proxy: Proxy, controller: str, since: float
) -> dict[str, Any]:
    """The WorkloadEntry of a proxy that has connected to ``controller``.

    The address, and the labels, locality and network that it knows itself, are the proxy's own; all else is the template's.
    """
    spec = group.spec
    template = spec.template or WorkloadEntry()
    extra = spec.metadata
    labels = {**template.labels, **(extra.labels if extra else {}), **proxy.labels}
    annotations = {
        **(extra.annotations if extra else {}),
        GROUP: group.meta.name,
        **connected(controller, since),
    }
    settings = proxy.metadata.get("PROXY_CONFIG")
    if isinstance(settings, Mapping) and settings.get("readinessProbe"):
        annotations[HEALTH_CHECKS] = "true"
    entry = as_json(template)
    entry.update(address=proxy.addresses[0], labels=labels)
    for name, own in (("locality", proxy.locality), ("network", proxy.network)):
        if own:
            entry[name] = own
    owner = {
        "apiVersion": KINDS["WorkloadGroup"].api_version,
        "kind": "WorkloadGroup",
        "name": group.meta.name,
        "uid": group.meta.uid,
        "controller": True,
    }
    return {
        "apiVersion": KINDS["WorkloadEntry"].api_version,
        "kind": "WorkloadEntry",
        "metadata": {
            "name": entry_name(proxy),
            "namespace": proxy.namespace,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner],
        },
        "spec": entry,
    }


# --- connected, disconnected ------------------------------------------------------------------------------


def connected(controller: str, since: float) -> dict[str, str]:
    """Annotations of an entry whose machine is connected."""
    return {CONTROLLER: controller, CONNECTED: stamp(since)}


@dataclass(frozen=True, slots=True)
class Presence:
    """What an entry's annotations say. ``since``: the machine came; ``until``: it went. None when they do not say."""

    group: str
    controller: str
    since: float | None
    until: float | None

    def held_by(self, controller: str, since: float) -> bool:
        """Whether nothing has to be written for a machine that came to ``controller`` at ``since``: it says so, or the machine
        has gone on to another istiod."""
        if self.since is None or self.until is not None:
            return False
        return self.since >= since - 0.001 or self.controller == controller


def presence(annotations: Mapping[str, str]) -> Presence:
    """Read the annotations; a time that is none counts as long ago."""
    return Presence(
        annotations.get(GROUP, ""),
        annotations.get(CONTROLLER, ""),
        _seconds(annotations.get(CONNECTED, "")),
        _seconds(annotations.get(DISCONNECTED, "")),
    )


def removal(entry: Presence, grace_s: float) -> float | None:
    """When the entry of a machine that went is to be removed; None while it is connected, or not registered by itself."""
    if not entry.group or entry.since is not None or entry.until is None:
        return None
    return entry.until + grace_s


def stamp(seconds: float) -> str:
    """RFC 3339 with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _seconds(text: str) -> float | None:
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


# --- health -----------------------------------------------------------------------------------------------


def conditions_with_health(
    before: Iterable[Any], healthy: bool, message: str, now: float
) -> list[dict[str, Any]]:
    """The conditions of an entry's status with what its agent found; the time of change is kept while it stays the same."""
    held = [dict(condition) for condition in before if isinstance(condition, Mapping)]
    old = next((condition for condition in held if condition.get("type") == HEALTHY), {})
    status = "True" if healthy else "False"
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    same = old.get("status") == status
    condition = {
        "type": HEALTHY,
        "status": status,
        "lastProbeTime": moment,
        "lastTransitionTime": old.get("lastTransitionTime", moment) if same else moment,
    }
    if message:
        condition["message"] = message
    return [*(other for other in held if other.get("type") != HEALTHY), condition]
