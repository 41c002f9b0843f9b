"""What a sidecar's workload listens on: its services' ports, or what its Sidecar's ``ingress`` says instead."""

from __future__ import annotations

from dataclasses import dataclass

from meltemi.ir.tls import DownstreamTls
from meltemi.ir.value import Origins
from meltemi.model.topology import IstioIngressListener
from meltemi.push.classes import ServiceTarget
from meltemi.registry.protocol import parse_protocol
from meltemi.translate.build import Build
from meltemi.translate.gateway_tls import server_tls
from meltemi.translate.mtls import PeerPolicy


@dataclass(frozen=True, eq=False)
class InboundPort:
    """One port. ``captured`` False asks for a listener of its own at ``bind``. ``tls`` ends clients' own TLS."""

    target: ServiceTarget
    listener: IstioIngressListener | None = None
    captured: bool = True
    bind: str = ""
    tls: DownstreamTls | None = None
    origins: Origins = ()

    @property
    def number(self) -> int:
        """The port that clients' proxies connect to."""
        return self.target.target_port


def inbound_ports(build: Build, policy: PeerPolicy) -> list[InboundPort]:
    """All ports, lowest first. A Sidecar with ``ingress`` replaces what services say."""
    sidecar = build.scope.sidecar
    if sidecar is not None and sidecar.spec.ingress:
        made = [_from_sidecar(build, policy, index) for index in range(len(sidecar.spec.ingress))]
        chosen: dict[int, InboundPort] = {}
        for port in made:
            if port is not None:
                chosen.setdefault(port.number, port)
        return [chosen[number] for number in sorted(chosen)]
    return _from_services(build)


def _from_services(build: Build) -> list[InboundPort]:
    """Of two services on one port the older's protocol holds."""
    targets: dict[int, ServiceTarget] = {}
    for target in build.proxy.targets:
        known = targets.setdefault(target.target_port, target)
        if known.protocol is not target.protocol:
            service = build.scope.by_host.get(target.hostname)
            older = build.scope.by_host.get(known.hostname)
            if service is not None and older is not None:
                build.report_both(
                    "MLT0102",
                    f"{target.hostname} and {known.hostname} give port {target.target_port} different "
                    f"protocols ({target.protocol.value}, {known.protocol.value}); the older holds",
                    (service.origin, older.origin),
                    "name the ports of both Services for the same protocol",
                )
    captured = build.proxy.interception != "NONE"
    return [
        InboundPort(target, origins=_service_origins(build, target))
        for _, target in sorted(targets.items())
        if captured
    ]


def _service_origins(build: Build, target: ServiceTarget) -> Origins:
    service = build.scope.by_host.get(target.hostname)
    return (service.origin,) if service is not None else ()


def _from_sidecar(build: Build, policy: PeerPolicy, index: int) -> InboundPort | None:
    sidecar = build.scope.sidecar
    if sidecar is None:
        return None
    listener = sidecar.spec.ingress[index]
    if listener.port is None or not listener.port.number:
        return None
    number = listener.port.number
    served = next((t for t in build.proxy.targets if t.target_port == number), None)
    protocol = parse_protocol(listener.port.protocol or listener.port.name.partition("-")[0])
    target = ServiceTarget(
        hostname=served.hostname if served is not None else "",
        namespace=served.namespace if served is not None else build.proxy.namespace,
        service_name=served.service_name if served is not None else "",
        port=served.port if served is not None else number,
        port_name=listener.port.name,
        protocol=protocol,
        target_port=number,
    )
    origin = sidecar.origin(f"spec.ingress[{index}]")
    tls = None
    if listener.tls is not None and listener.tls.mode in ("SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL"):
        if policy.at(number) == "DISABLE":
            tls = server_tls(listener.tls, build.context.mesh, http=protocol.is_http)
        else:
            build.report(
                "MLT0106",
                f"the TLS of port {number} has no effect while the workload accepts mTLS of the mesh there",
                sidecar.origin(f"spec.ingress[{index}].tls"),
                f"set portLevelMtls {number} to DISABLE in a PeerAuthentication of the workload",
            )
    captured = listener.capture_mode != "NONE" and build.proxy.interception != "NONE"
    return InboundPort(
        target,
        listener,
        captured=captured,
        bind=listener.bind,
        tls=tls,
        origins=(origin, *(_service_origins(build, served) if served is not None else ())),
    )
