"""Kubernetes Ingress and IngressClass (networking.k8s.io/v1): the parts that the mesh reads.

In: JSON bytes. Out: frozen structs; see ``model.kubernetes`` for the promises.
"""

from __future__ import annotations

from meltemi.model.kubernetes import Decoder, K8s, LoadBalancerIngress, ObjectMeta


class ServiceBackendPort(K8s, frozen=True):
    """A port by number or name."""

    number: int = 0
    name: str = ""


class IngressServiceBackend(K8s, frozen=True):
    """A Service of the Ingress's namespace."""

    name: str = ""
    port: ServiceBackendPort = ServiceBackendPort()


class IngressBackend(K8s, frozen=True):
    """Where requests go; ``service`` is None for other resources, which the mesh does not serve."""

    service: IngressServiceBackend | None = None


class HTTPIngressPath(K8s, frozen=True):
    """One path of a rule. ``path_type``: Exact, Prefix or ImplementationSpecific."""

    path: str = ""
    path_type: str = "ImplementationSpecific"
    backend: IngressBackend = IngressBackend()


class HTTPIngressRuleValue(K8s, frozen=True):
    """Paths of a rule."""

    paths: tuple[HTTPIngressPath, ...] | None = None


class IngressRule(K8s, frozen=True):
    """Paths of one host; an empty host is every host."""

    host: str = ""
    http: HTTPIngressRuleValue | None = None


class IngressTLS(K8s, frozen=True):
    """A certificate for some hosts."""

    hosts: tuple[str, ...] | None = None
    secret_name: str = ""


class IngressSpec(K8s, frozen=True):
    """What an Ingress asks for."""

    ingress_class_name: str | None = None
    default_backend: IngressBackend | None = None
    tls: tuple[IngressTLS, ...] | None = None
    rules: tuple[IngressRule, ...] | None = None


class IngressLoadBalancerStatus(K8s, frozen=True):
    """Addresses at which the Ingress answers."""

    ingress: tuple[LoadBalancerIngress, ...] | None = None


class IngressStatus(K8s, frozen=True):
    """What was reported."""

    load_balancer: IngressLoadBalancerStatus = IngressLoadBalancerStatus()


class Ingress(K8s, frozen=True):
    """An Ingress."""

    metadata: ObjectMeta = ObjectMeta()
    spec: IngressSpec = IngressSpec()
    status: IngressStatus = IngressStatus()


class IngressClassSpec(K8s, frozen=True):
    """Who serves a class."""

    controller: str = ""


class IngressClass(K8s, frozen=True):
    """A class of Ingresses."""

    metadata: ObjectMeta = ObjectMeta()
    spec: IngressClassSpec = IngressClassSpec()


decode_ingress = Decoder(Ingress)
decode_ingress_class = Decoder(IngressClass)
