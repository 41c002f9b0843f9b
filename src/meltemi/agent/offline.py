"""What an agent would know about a proxy that is only described in files."""

from __future__ import annotations

from dataclasses import replace

from meltemi.agent.settings import ProxySettings, parse_proxy_config
from meltemi.model.frozen import thaw
from meltemi.model.names import BOOTSTRAP_XDS
from meltemi.registry.offline import OfflineProxy


def offline_settings(proxy: OfflineProxy, trust_domain: str) -> ProxySettings:
    """The settings of the proxy that runs beside a workload."""
    config, _ = parse_proxy_config(thaw(proxy.settings))
    if proxy.router:
        config = replace(config, interception_mode="NONE")
    return ProxySettings(
        node_type="router" if proxy.router else "sidecar",
        config=config,
        pod_name=proxy.name,
        namespace=proxy.namespace,
        service_account=proxy.service_account,
        instance_ip=proxy.address,
        node_name=proxy.node,
        labels=dict(proxy.labels),
        annotations=dict(proxy.annotations),
        trust_domain=trust_domain,
        bootstrap_xds=proxy.metadata.get(BOOTSTRAP_XDS, "").lower() in ("true", "1"),
        metadata={
            **proxy.metadata,
            "WORKLOAD_NAME": proxy.workload,
            "CLUSTER_ID": "Kubernetes",
        },
    )
