"""Analyzer of annotations in Istio's domains (IST0108)."""

from __future__ import annotations

from meltemi.analyze.context import Analysis
from meltemi.config.reader import nearest

_SIDECAR = (
    "rewriteAppHTTPProbers proxyImage proxyImageType proxyCPU proxyCPULimit proxyMemory proxyMemoryLimit interceptionMode "
    "bootstrapOverride logLevel componentLogLevel agentLogLevel nativeSidecar userVolume userVolumeMount statsHistogramBuckets "
    "statsHistogramBins statsFlushInterval statsEvictionInterval inject discoveryAddress statsInclusionPrefixes "
    "statsInclusionSuffixes statsInclusionRegexps extraStatTags statsCompression status controlPlaneAuthPolicy enableCoreDump"
)
_TRAFFIC = (
    "includeOutboundIPRanges excludeOutboundIPRanges includeInboundPorts excludeInboundPorts includeOutboundPorts "
    "excludeOutboundPorts excludeInterfaces kubevirtInterfaces"
)
KNOWN = frozenset(
    [f"sidecar.istio.io/{name}" for name in _SIDECAR.split()]
    + [f"traffic.sidecar.istio.io/{name}" for name in _TRAFFIC.split()]
    + [
        f"readiness.status.sidecar.istio.io/{name}"
        for name in ("initialDelaySeconds", "periodSeconds", "failureThreshold", "applicationPorts")
    ]
    + [
        "status.sidecar.istio.io/port",
        "istio.io/reroute-virtual-interfaces",
        "proxy.istio.io/config",
        "proxy.istio.io/overrides",
        "prometheus.istio.io/merge-metrics",
        "istio.io/rev",
        "istio.io/dry-run",
        "istio.io/autoRegistrationGroup",
        "istio.io/workloadController",
        "istio.io/connectedAt",
        "istio.io/disconnectedAt",
        "istio.io/workloadName",
        "inject.istio.io/templates",
        "networking.istio.io/exportTo",
        "networking.istio.io/traffic-distribution",
        "networking.istio.io/service-type",
        "networking.istio.io/address-type",
        "networking.istio.io/gatewayPort",
        "networking.istio.io/cluster",
        "traffic.istio.io/nodeSelector",
        "galley.istio.io/analyze-suppress",
        "topology.istio.io/controlPlaneClusters",
        "topology.istio.io/network",
        "ambient.istio.io/redirection",
        "ambient.istio.io/bypass-inbound-capture",
        "ambient.istio.io/dns-capture",
        "alpha.istio.io/kubernetes-serviceaccounts",
        "alpha.istio.io/canonical-serviceaccounts",
    ]
)


def analyze_annotations(context: Analysis) -> None:
    """Annotations of Istio's domains are known ones."""
    for group in context.kinds.values():
        for config in group:
            for name in config.meta.annotations:
                domain = name.partition("/")[0]
                ours = domain == "istio.io" or domain.endswith(".istio.io")
                # Operators and charts keep their own state under these.
                if not ours or name in KNOWN or domain in ("operator.istio.io", "install.istio.io"):
                    continue
                guess = nearest(name, KNOWN)
                remedy = f"did you mean {guess}?" if guess else "remove it"
                context.add("IST0108", config, f"metadata.annotations[{name}]", remedy, name=name)
