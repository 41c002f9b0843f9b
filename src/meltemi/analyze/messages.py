"""The analysis messages: Istio's codes, names and levels; the wording is ours.

Codes are stable and never reused. Codes of this project's own start with MLT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from meltemi.model.origin import Level


@dataclass(frozen=True, slots=True)
class Message:
    """One kind of finding. ``text`` is a format string; each analyzer says with what it is filled."""

    code: str
    name: str
    level: Level
    text: str


_E, _W, _I = Level.ERROR, Level.WARNING, Level.INFO
_ALL = (
    Message("IST0002", "Deprecated", _W, "{} is deprecated"),
    Message("IST0101", "ReferencedResourceNotFound", _E, "{kind} {name} does not exist"),
    Message("IST0102", "NamespaceNotInjected", _I, "pods of this namespace get no sidecar"),
    Message("IST0103", "PodMissingProxy", _W, "the pod has no sidecar, though its namespace asks for one"),
    Message("IST0106", "SchemaValidationError", _E, "{}"),
    Message("IST0107", "MisplacedAnnotation", _W, 'the annotation "{name}" belongs on {kinds}'),
    Message("IST0108", "UnknownAnnotation", _W, 'the annotation "{name}" is not known'),
    Message("IST0109", "ConflictingMeshGatewayVirtualServiceHosts", _E, 'the host {host} is routed by {others} too; only the oldest counts'),
    Message("IST0110", "ConflictingSidecarWorkloadSelectors", _E, "the Sidecars {names} select the same pod {pod}"),
    Message("IST0111", "MultipleSidecarsWithoutWorkloadSelectors", _E, "the Sidecars {names} all apply to the whole namespace"),
    Message("IST0112", "VirtualServiceDestinationPortSelectorRequired", _E, "{host} has several ports ({ports}) and none is chosen"),
    Message("IST0116", "DeploymentAssociatedToMultipleServices", _W, "{others} gives port {port} of the same pods another protocol ({protocols}); the oldest Service's holds"),
    Message("IST0118", "PortNameIsNotUnderNamingConvention", _I, 'the port "{name}" ({port}) does not say what it speaks'),
    Message("IST0123", "NamespaceMultipleInjectionLabels", _W, "istio-injection and istio.io/rev are both set; istio-injection wins"),
    Message("IST0125", "InvalidAnnotation", _W, 'the annotation "{name}" is not valid: {reason}'),
    Message("IST0127", "NoMatchingWorkloadsFound", _W, "no pod has the labels {labels}"),
    Message("IST0128", "NoServerCertificateVerificationDestinationLevel", _I, "{}"),
    Message("IST0129", "NoServerCertificateVerificationPortLevel", _I, "{}"),
    Message("IST0130", "VirtualServiceUnreachableRule", _W, "the rule is never reached: {reason}"),
    Message("IST0131", "VirtualServiceIneffectiveMatch", _I, "the match has no effect: rule {rule} already has it"),
    Message("IST0132", "VirtualServiceHostNotFoundInGateway", _W, "the gateway {gateway} serves none of the hosts {hosts}"),
    Message("IST0133", "SchemaWarning", _W, "{}"),
    Message("IST0134", "ServiceEntryAddressesRequired", _W, "{}"),
    Message("IST0135", "DeprecatedAnnotation", _I, 'the annotation "{name}" is deprecated'),
    Message("IST0137", "DeploymentConflictingPorts", _W, "{others} reaches port {target} of the same pods by another port ({ports})"),
    Message("IST0138", "GatewayDuplicateCertificate", _W, "the Secret {secret} is used by {others} too"),
    Message("IST0144", "InvalidApplicationUID", _W, "the container {container} runs as user 1337, which is the proxy's"),
    Message("IST0145", "ConflictingGateways", _E, "port {port} and host {host} are served by {others} too"),
    Message("IST0147", "ImageAutoWithoutInjectionError", _E, "the container {container} has the image auto, and nothing injects this pod"),
    Message("IST0149", "JwtClaimBasedRoutingWithoutRequestAuthN", _E, "routing by {key} needs tokens, and no RequestAuthentication selects the pods of gateway {gateway}"),
    Message("IST0150", "ExternalNameServiceTypeInvalidPortName", _W, 'the port "{name}" of an ExternalName Service does not say what it speaks'),
    Message("IST0151", "EnvoyFilterUsesRelativeOperation", _W, "{operation} depends on the order in which filters are patched and sets no priority"),
    Message("IST0155", "EnvoyFilterUsesRelativeOperationWithProxyVersion", _W, "{operation} for some proxy versions only depends on the order in which filters are patched and sets no priority"),
    Message("IST0157", "InvalidTelemetryProvider", _W, "the mesh configuration has no provider {name}"),
    Message("IST0159", "ConflictingTelemetryWorkloadSelectors", _E, "the Telemetries {names} select the same pod {pod}"),
    Message("IST0160", "MultipleTelemetriesWithoutWorkloadSelectors", _E, "the Telemetries {names} all apply to the whole namespace"),
    Message("IST0161", "InvalidGatewayCredential", _E, "the Secret {secret} has no usable certificate: {reason}"),
    Message("IST0162", "GatewayPortNotDefinedOnService", _W, "no Service of the gateway's pods has port {port}"),
    Message("IST0173", "DestinationRuleSubsetNotSelectPods", _E, "the subset {name} selects no pod of {host}"),
    Message("MLT0001", "InvalidYAML", _E, "{}"),
    Message("MLT0011", "FieldWithoutEffect", _W, "{}"),
    Message("MLT0012", "FieldWithOtherEffect", _I, "{}"),
    Message("MLT0013", "PolicyReplaced", _E, "{}"),
    Message("MLT0021", "ConflictingDestinationRules", _W, "{others} is for the host {host} too: {what}"),
    Message("MLT0023", "DelegateNeverMatches", _W, "rule {rule} of the delegate {name} can never hold together with this one's match"),
    Message("MLT0022", "OverlappingGatewayRoutes", _W, "{others} has a rule with the same match for {host} on {gateway}: the oldest object's comes first"),
)  # fmt: skip

MESSAGES: Mapping[str, Message] = MappingProxyType({message.code: message for message in _ALL})
