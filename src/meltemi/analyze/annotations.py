"""Analyzer of annotations in Istio's domains: known (IST0108), in their place (IST0107), not deprecated (IST0135), readable (IST0125)."""

from __future__ import annotations

from meltemi.analyze.context import Analysis
from meltemi.config.checks import is_cidr
from meltemi.config.mesh import parse_proxy_config, proxy_config_findings
from meltemi.config.reader import nearest
from meltemi.model.config import Config
from meltemi.model.origin import Level

_POD = frozenset({"Pod"})
_SIDECAR = (
    "rewriteAppHTTPProbers proxyImage proxyImageType proxyCPU proxyCPULimit proxyMemory proxyMemoryLimit interceptionMode "
    "bootstrapOverride logLevel componentLogLevel agentLogLevel nativeSidecar userVolume userVolumeMount statsHistogramBuckets "
    "statsHistogramBins statsFlushInterval statsEvictionInterval status controlPlaneAuthPolicy enableCoreDump"
)
_DEPRECATED_SIDECAR = "inject discoveryAddress statsInclusionPrefixes statsInclusionSuffixes statsInclusionRegexps extraStatTags statsCompression"
_PORTS = "includeInboundPorts excludeInboundPorts includeOutboundPorts excludeOutboundPorts"
_RANGES = "includeOutboundIPRanges excludeOutboundIPRanges"
_PROBES = "initialDelaySeconds periodSeconds failureThreshold applicationPorts"
_OF_PODS = (
    "status.sidecar.istio.io/port",
    "istio.io/reroute-virtual-interfaces",
    "istio.io/rev",
    "proxy.istio.io/config",
    "proxy.istio.io/overrides",
    "prometheus.istio.io/merge-metrics",
    "inject.istio.io/templates",
    "ambient.istio.io/redirection",
    "ambient.istio.io/bypass-inbound-capture",
    "ambient.istio.io/dns-capture",
)
# Kinds that an annotation is for; None: any.
KNOWN: dict[str, frozenset[str] | None] = {
    **{f"sidecar.istio.io/{n}": _POD for n in f"{_SIDECAR} {_DEPRECATED_SIDECAR}".split()},
    **{
        f"traffic.sidecar.istio.io/{n}": _POD
        for n in f"{_PORTS} {_RANGES} excludeInterfaces kubevirtInterfaces".split()
    },
    **{f"readiness.status.sidecar.istio.io/{n}": _POD for n in _PROBES.split()},
    **dict.fromkeys(_OF_PODS, _POD),
    "networking.istio.io/exportTo": frozenset({"Service"}),
    "traffic.istio.io/nodeSelector": frozenset({"Service"}),
    "alpha.istio.io/kubernetes-serviceaccounts": frozenset({"Service"}),
    "alpha.istio.io/canonical-serviceaccounts": frozenset({"Service"}),
    "networking.istio.io/traffic-distribution": frozenset({"Namespace", "Service", "ServiceEntry"}),
    "istio.io/use-waypoint-canary-weight": frozenset({"Namespace", "Service", "ServiceEntry"}),
    "istio.io/dry-run": frozenset({"AuthorizationPolicy"}),
    "topology.istio.io/controlPlaneClusters": frozenset({"Namespace"}),
    **{
        f"istio.io/{n}": frozenset({"WorkloadEntry"})
        for n in ["autoRegistrationGroup", "workloadController", "connectedAt", "disconnectedAt"]
    },
    # Of Gateway API objects, of Secrets, or of anything.
    **dict.fromkeys(
        (
            "galley.istio.io/analyze-suppress",
            "gateway.istio.io/controller-version",
            "gateway.istio.io/service-account",
            "gateway.istio.io/name-override",
            "ambient.istio.io/waypoint-inbound-binding",
            "networking.istio.io/service-type",
            "networking.istio.io/address-type",
            "networking.istio.io/gatewayPort",
            "networking.istio.io/cluster",
            "istio.io/workloadName",
            "topology.istio.io/network",
        )
    ),
}
_INSTEAD = {
    "sidecar.istio.io/inject": "use the label of the same name",
    **{
        f"sidecar.istio.io/{n}": "set it in proxy.istio.io/config"
        for n in _DEPRECATED_SIDECAR.split()[1:]
    },
    "traffic.sidecar.istio.io/kubevirtInterfaces": "use istio.io/reroute-virtual-interfaces",
    "alpha.istio.io/kubernetes-serviceaccounts": "remove it",
    "alpha.istio.io/canonical-serviceaccounts": "remove it",
}


def analyze_annotations(context: Analysis) -> None:
    """All annotations of all objects."""
    for group in context.kinds.values():
        for config in group:
            for name, value in config.meta.annotations.items():
                _annotation(context, config, name, value)


def _annotation(context: Analysis, config: Config[object], name: str, value: str) -> None:
    domain = name.partition("/")[0]
    ours = domain == "istio.io" or domain.endswith(".istio.io")
    # Operators and charts keep their own state under these.
    if not ours or domain in ("operator.istio.io", "install.istio.io"):
        return
    path = f"metadata.annotations[{name}]"
    if name not in KNOWN:
        guess = nearest(name, KNOWN)
        remedy = f"did you mean {guess}?" if guess else "remove it"
        context.add("IST0108", config, path, remedy, name=name)
        return
    kinds = KNOWN[name]
    if kinds is not None and config.kind not in kinds:
        remedy = f"it has no effect on a {config.kind}: move it"
        context.add("IST0107", config, path, remedy, name=name, kinds=", ".join(sorted(kinds)))
        return
    if name in _INSTEAD:
        context.add("IST0135", config, path, _INSTEAD[name], name=name)
    reason = _problem(context, name.rpartition("/")[2], name, value)
    if name == "proxy.istio.io/config":
        found = proxy_config_findings(value, config.origin(path), context.mesh.default_config)
        context.findings += [finding for finding in found if finding.level is not Level.ERROR]
    if reason:
        context.add("IST0125", config, path, "correct it", name=name, reason=reason)


def _problem(context: Analysis, short: str, name: str, value: str) -> str:
    """Why a value cannot be used; '' when it can."""
    if name == "sidecar.istio.io/interceptionMode" and value not in ("REDIRECT", "TPROXY", "NONE"):
        return "it is REDIRECT, TPROXY or NONE"
    if name == "sidecar.istio.io/inject" and value not in ("true", "false"):
        return 'it is "true" or "false"'
    items = [entry.strip() for entry in value.split(",") if entry.strip()]
    if short in _RANGES.split() and items != ["*"]:
        wrong = [entry for entry in items if not is_cidr(entry)]
        return f"{', '.join(wrong)} is no address block" if wrong else ""
    if (short in _PORTS.split() or short == "applicationPorts") and items != ["*"]:
        wrong = [entry for entry in items if not (entry.isdigit() and 0 < int(entry[:6]) < 65536)]
        return f"{', '.join(wrong)} is no port" if wrong else ""
    if name == "proxy.istio.io/config":
        _, findings = parse_proxy_config(value, context.mesh.default_config)
        errors = [f"{f.origin.path}: {f.text}" for f in findings if f.level is Level.ERROR]
        return "; ".join(errors)
    return ""
