"""The files that a node writes for a pod: resolv.conf, hosts, hostname. Pure text.

Rules: https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_HOSTNAME_LIMIT = 63


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """What the node knows about DNS."""

    cluster_ip: str
    domain: str
    host_search: Sequence[str] = ()


def pod_hostname(pod: Mapping[str, Any]) -> str:
    """Return the pod's host name: spec.hostname, or its name cut to 63 characters."""
    name: str = pod["spec"].get("hostname") or pod["metadata"]["name"]
    return name[:_HOSTNAME_LIMIT].rstrip("-.")


def build_resolv_conf(pod: Mapping[str, Any], dns: DnsSettings) -> str:
    """Return /etc/resolv.conf for the pod's dnsPolicy and dnsConfig.

    ``Default`` also asks the cluster's server: pods have no other way to the host's resolvers,
    but then without the cluster's search path.
    """
    policy = pod["spec"].get("dnsPolicy") or "ClusterFirst"
    if policy == "ClusterFirst" and pod["spec"].get("hostNetwork"):
        policy = "Default"
    namespace = pod["metadata"]["namespace"]
    servers: list[str] = [] if policy == "None" else [dns.cluster_ip]
    search: list[str] = []
    options: list[str] = []
    if policy in ("ClusterFirst", "ClusterFirstWithHostNet"):
        search = [f"{namespace}.svc.{dns.domain}", f"svc.{dns.domain}", dns.domain]
        options = ["ndots:5"]
    if policy != "None":
        search += [name for name in dns.host_search if name not in search]
    config = pod["spec"].get("dnsConfig") or {}
    servers += [s for s in config.get("nameservers") or [] if s not in servers]
    search += [s for s in config.get("searches") or [] if s not in search]
    for option in config.get("options") or []:
        name, value = option["name"], option.get("value")
        options = [o for o in options if o.split(":")[0] != name]
        options.append(f"{name}:{value}" if value else name)
    lines = [f"nameserver {server}" for server in servers]
    if search:
        lines.append(f"search {' '.join(search)}")
    if options:
        lines.append(f"options {' '.join(options)}")
    return "\n".join(lines) + "\n"


def build_hosts(pod: Mapping[str, Any], address: str, dns: DnsSettings) -> str:
    """Return /etc/hosts: loopback, the pod itself, and spec.hostAliases."""
    hostname = pod_hostname(pod)
    subdomain = pod["spec"].get("subdomain")
    names = [hostname]
    if subdomain:
        namespace = pod["metadata"]["namespace"]
        names.insert(0, f"{hostname}.{subdomain}.{namespace}.svc.{dns.domain}")
    lines = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        f"{address}\t{' '.join(names)}",
    ]
    for alias in pod["spec"].get("hostAliases") or []:
        lines.append(f"{alias['ip']}\t{' '.join(alias.get('hostnames') or [])}")
    return "\n".join(lines) + "\n"
