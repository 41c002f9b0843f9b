"""What makes a Gateway, ServiceEntry, WorkloadEntry, WorkloadGroup, Sidecar or ProxyConfig wrong, beyond its schema.

In: decoded objects. Out: findings in the report.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from meltemi.config import checks
from meltemi.config.paths import item, join
from meltemi.config.reader import Report, quoted
from meltemi.config.validate_destination_rule import connection_pool
from meltemi.model.config import Config
from meltemi.model.topology import (
    Gateway,
    ProxyConfigSpec,
    Server,
    ServerTLSSettings,
    ServiceEntry,
    Sidecar,
    WorkloadEntry,
    WorkloadGroup,
)

_TLS_VERSIONS = ("TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3")
CIPHERS = frozenset(
    {
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
        "ECDHE-ECDSA-AES128-SHA",
        "ECDHE-RSA-AES128-SHA",
        "ECDHE-ECDSA-AES256-SHA",
        "ECDHE-RSA-AES256-SHA",
        "ECDHE-PSK-AES128-CBC-SHA",
        "ECDHE-PSK-AES256-CBC-SHA",
        "ECDHE-PSK-CHACHA20-POLY1305",
        "AES128-GCM-SHA256",
        "AES256-GCM-SHA384",
        "AES128-SHA",
        "AES256-SHA",
        "PSK-AES128-CBC-SHA",
        "PSK-AES256-CBC-SHA",
        "DES-CBC3-SHA",
    }
)

CURVES = frozenset({"P-256", "P-384", "P-521", "X25519", "X25519MLKEM768"})
_SHA256_HEX = re.compile(r"[0-9a-fA-F]{64}|[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){31}")
_SHA256_BASE64 = re.compile(r"[A-Za-z0-9+/]{43}=")


def validate_gateway(config: Config[Gateway], report: Report) -> None:
    """All rules of Gateways."""
    spec = config.spec
    checks.selector(spec.selector, "spec.selector", report)
    if not spec.servers:
        report.error("spec.servers", "is required", "add a server with port and hosts")
    names: dict[str, str] = {}
    for index, server in enumerate(spec.servers):
        path = item("spec.servers", index)
        _server(server, path, report)
        name = server.port.name if server.port else ""
        if name and name in names:
            text = f"the port name {quoted(name)} is used by {names[name]} too"
            report.error(f"{path}.port.name", text, "give each port its own name")
        names.setdefault(name, path)


def _server(server: Server, path: str, report: Report) -> None:
    if not server.hosts:
        report.error(f"{path}.hosts", "is required", 'use "*" to accept all hosts')
    for index, host in enumerate(server.hosts):
        checks.namespaced_host(host, item(f"{path}.hosts", index), report)
    port = server.port
    if port is None:
        return
    if port.number == 0 and not server.bind.startswith("unix://"):
        report.error(f"{path}.port.number", "is required", "use 1 to 65535")
    if not port.name:
        report.error(f"{path}.port.name", "is required", "name the port")
    if not port.protocol:
        report.error(f"{path}.port.protocol", "is required", "as in HTTP, HTTPS or TCP")
    checks.protocol(port.protocol, f"{path}.port.protocol", report)
    if port.protocol.upper() in ("UDP", "HBONE", "DOUBLEHBONE"):
        text = f"a gateway does not serve {port.protocol}"
        report.error(f"{path}.port.protocol", text, "use HTTP, HTTPS, GRPC, TLS or TCP")
    if port.target_port:
        report.warn(f"{path}.port.targetPort", "is deprecated and ignored", "remove it", "IST0002")
    if server.bind and not server.bind.startswith("unix://") and not checks.is_ip(server.bind):
        text = f"{quoted(server.bind)} is neither an IP address nor a Unix socket"
        report.error(f"{path}.bind", text, 'as in "10.0.0.1" or "unix:///path"')
    if server.default_endpoint:
        checks.unix_or_local(server.default_endpoint, f"{path}.defaultEndpoint", report)
    secure = port.protocol.upper() in ("HTTPS", "TLS")
    if secure and server.tls is None:
        remedy = "add tls with mode and credentialName"
        report.error(f"{path}.tls", f"is required by protocol {port.protocol}", remedy)
    plain = port.protocol.upper() in ("HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTP_PROXY")
    redirect_only = (ServerTLSSettings(), ServerTLSSettings(https_redirect=True), None)
    if plain and server.tls not in redirect_only:
        text = f"protocol {port.protocol} allows only httpsRedirect under tls"
        report.error(f"{path}.tls", text, "use protocol HTTPS")
    if server.tls is not None:
        if secure and server.tls.https_redirect:
            text = "a server that speaks TLS cannot redirect to itself"
            report.error(f"{path}.tls.httpsRedirect", text, "set it on the HTTP server")
        if not plain:
            server_tls(server.tls, f"{path}.tls", report)


def server_tls(tls: ServerTLSSettings, path: str, report: Report) -> None:
    """Certificates that the mode needs; versions and ciphers that exist."""
    names = [name for name in (tls.credential_name, *tls.credential_names) if name]
    if tls.credential_name and tls.credential_names:
        report.error(f"{path}.credentialNames", "excludes credentialName", "keep one of them")
    if tls.tls_certificates and names:
        report.error(f"{path}.tlsCertificates", "excludes Secrets", "keep files or Secrets")
    if len(tls.credential_names) > 2 or len(tls.tls_certificates) > 2:
        report.error(path, "more than two certificates", "keep one RSA and one ECDSA certificate")
    if tls.mode in ("PASSTHROUGH", "AUTO_PASSTHROUGH", "ISTIO_MUTUAL"):
        for name, value in (
            ("credentialName", tls.credential_name),
            ("serverCertificate", tls.server_certificate),
            ("privateKey", tls.private_key),
        ):
            if value:
                text = f"mode {tls.mode} does not take a certificate"
                if tls.mode == "ISTIO_MUTUAL":
                    report.error(join(path, name), text, "remove it, or use mode SIMPLE or MUTUAL")
                else:
                    report.warn(join(path, name), text, "remove it, or use mode SIMPLE")
    elif not names and not tls.tls_certificates:
        for name, value in (
            ("serverCertificate", tls.server_certificate),
            ("privateKey", tls.private_key),
        ):
            if not value:
                remedy = "set credentialName to a Secret with tls.crt and tls.key"
                report.error(join(path, name), f"mode {tls.mode} needs a certificate", remedy)
    own = any(entry.ca_certificates for entry in tls.tls_certificates)
    authority = names or tls.ca_cert_credential_name or tls.ca_certificates or own
    if tls.mode in ("MUTUAL", "OPTIONAL_MUTUAL") and not (authority or tls.insecure_skip_verify):
        # Otherwise any certificate would do.
        text = f"mode {tls.mode} needs an authority"
        report.error(f"{path}.caCertificates", text, "set it, or caCertCredentialName")
    low, high = map(_TLS_VERSIONS.index, (tls.min_protocol_version, tls.max_protocol_version))
    if low and high and low > high:
        report.error(f"{path}.minProtocolVersion", "is higher than maxProtocolVersion", "swap them")
    tls_words(f"{path}.cipherSuites", tls.cipher_suites, CIPHERS, "cipher suite", report)
    tls_words(f"{path}.ecdhCurves", tls.ecdh_curves, CURVES, "curve", report)
    for name, values, form, remedy in (
        ("verifyCertificateHash", tls.verify_certificate_hash, _SHA256_HEX, "64 hex digits"),
        ("verifyCertificateSpki", tls.verify_certificate_spki, _SHA256_BASE64, "in base64"),
    ):
        for index, value in enumerate(values):
            if not form.fullmatch(value):
                where = item(f"{path}.{name}", index)
                report.error(
                    where, f"{quoted(value)} is not a SHA-256 digest", f"write it as {remedy}"
                )


def tls_words(
    path: str, words: Iterable[str], known: Collection[str], noun: str, report: Report
) -> None:
    """Names that exist, each once."""
    seen: set[str] = set()
    for index, word in enumerate(words):
        where = item(path, index)
        if word not in known:
            report.warn(where, f"{quoted(word)} is not a known {noun}; it is ignored", "")
        elif word in seen:
            report.warn(where, f"{quoted(word)} is given twice", "remove one")
        seen.add(word)


def validate_service_entry(config: Config[ServiceEntry], report: Report) -> None:
    """All rules of ServiceEntries."""
    spec = config.spec
    if not spec.hosts:
        report.error("spec.hosts", "is required", "name the service's hosts")
    for index, host in enumerate(spec.hosts):
        where = item("spec.hosts", index)
        checks.wildcard_host(host, where, report)
        if host == "*":
            report.error(where, 'the host "*" would be every service', "name the hosts")
        elif "." not in host and checks.is_dns_name(host):
            text = f"{quoted(host)} has no domain; it is not resolved like a short service name"
            report.warn(where, text, "write the full name")
    cidrs = False
    for index, address in enumerate(spec.addresses):
        where = item("spec.addresses", index)
        if not address.startswith("unix://"):
            checks.cidr(address, where, report)
        cidrs = cidrs or "/" in address
    if cidrs and spec.resolution not in ("NONE", "STATIC"):
        text = f"address blocks do not work with resolution {spec.resolution}"
        report.error("spec.addresses", text, "list single addresses")
    checks.export_to(spec.export_to, "spec.exportTo", report)
    if spec.workload_selector is not None:
        checks.selector(spec.workload_selector.labels, "spec.workloadSelector.labels", report)
        if not spec.workload_selector.labels:
            text = "an empty selector selects every workload of the namespace"
            report.warn("spec.workloadSelector", text, "add labels")
    _service_ports(spec, report)
    _resolution(spec, report)


def _service_ports(spec: ServiceEntry, report: Report) -> None:
    names: set[str] = set()
    numbers: set[int] = set()
    for index, port in enumerate(spec.ports):
        path = item("spec.ports", index)
        if not port.number:
            report.error(f"{path}.number", "is required", "use 1 to 65535")
        if port.number in numbers:
            report.error(f"{path}.number", f"port {port.number} is given twice", "remove one")
        if not port.name:
            report.error(f"{path}.name", "is required", "name the port")
        elif port.name in names:
            report.error(f"{path}.name", f"{quoted(port.name)} is given twice", "rename one")
        checks.protocol(port.protocol, f"{path}.protocol", report)
        names.add(port.name)
        numbers.add(port.number)


def _resolution(spec: ServiceEntry, report: Report) -> None:
    """What each resolution asks of endpoints and hosts."""
    kind, wild = spec.resolution, any("*" in host for host in spec.hosts)
    if kind == "NONE" and spec.endpoints:
        text = "endpoints are not used with resolution NONE"
        report.error("spec.endpoints", text, "use resolution STATIC or DNS")
    if kind == "STATIC" and not spec.endpoints and spec.workload_selector is None:
        text = "resolution STATIC has no endpoints"
        report.warn("spec.resolution", text, "add endpoints or a workloadSelector")
    if kind in ("DNS", "DNS_ROUND_ROBIN"):
        if wild and not spec.endpoints:
            text = f"a wildcard host cannot be resolved by {kind}"
            report.error("spec.hosts", text, "add endpoints, or use resolution NONE or DYNAMIC_DNS")
        if kind == "DNS_ROUND_ROBIN" and len(spec.endpoints) > 1:
            text = "resolution DNS_ROUND_ROBIN takes one endpoint"
            report.error("spec.endpoints", text, "keep one, or use resolution DNS")
    if kind == "DYNAMIC_DNS":
        if not wild or spec.location != "MESH_EXTERNAL":
            text = "resolution DYNAMIC_DNS is for wildcard hosts outside the mesh"
            report.error("spec.resolution", text, "use resolution DNS")
        if spec.endpoints or spec.addresses:
            text = "resolution DYNAMIC_DNS takes neither endpoints nor addresses"
            report.error("spec.resolution", text, "remove them")
    if kind == "NONE" and not spec.addresses and wild:
        for index, port in enumerate(spec.ports):
            if port.protocol.upper() in ("TCP", ""):
                text = "without addresses, TCP to any destination on this port would match"
                report.warn(
                    item("spec.ports", index), text, "add addresses, or use protocol TLS", "IST0134"
                )
    known = {port.name for port in spec.ports}
    for index, endpoint in enumerate(spec.endpoints):
        path = item("spec.endpoints", index)
        workload_entry(endpoint, path, report)
        is_ip = checks.is_ip(endpoint.address)
        unix = endpoint.address.startswith("unix://")
        if kind == "STATIC" and endpoint.address and not is_ip and not unix:
            text = f"{quoted(endpoint.address)} is not an IP address, as resolution STATIC needs"
            report.error(f"{path}.address", text, "use resolution DNS")
        for name in endpoint.ports:
            if name not in known:
                text = f"the service has no port {quoted(name)}"
                report.error(join(f"{path}.ports", name), text, f"use one of {sorted(known)}")


def workload_entry(entry: WorkloadEntry, path: str, report: Report, template: bool = False) -> None:
    """One workload outside the platform; a template needs no address, and one that it has is not used."""
    unix = entry.address.startswith("unix://")
    if template:
        if entry.address:
            text = "has no effect: every member of the group brings its own address"
            report.warn(f"{path}.address", text, "remove it")
    elif not entry.address:
        if not entry.network:
            report.error(f"{path}.address", "is required", "write an IP address or a DNS name")
    elif unix:
        if not entry.address.removeprefix("unix://").startswith(("/", "@")):
            report.error(f"{path}.address", "is not an absolute path", 'write "unix:///path"')
        elif entry.address.endswith("/"):
            report.error(f"{path}.address", "is a folder", "name the socket in it")
        if entry.ports:
            report.error(f"{path}.ports", "a Unix socket has no ports", "remove them")
    elif not checks.is_ip(entry.address) and not checks.is_dns_name(entry.address):
        text = f"{quoted(entry.address)} is neither an IP address nor a DNS name"
        report.error(f"{path}.address", text, "")
    for name, number in entry.ports.items():
        if not checks.DNS_LABEL.match(name):
            text = f"{quoted(name)} is not a port's name"
            report.error(join(f"{path}.ports", name), text, "use letters, digits and -")
        if not number:
            report.error(join(f"{path}.ports", name), "0 is not a port", "use 1 to 65535")
    checks.labels(entry.labels, f"{path}.labels", report)


def validate_workload_entry(config: Config[WorkloadEntry], report: Report) -> None:
    """All rules of WorkloadEntries."""
    workload_entry(config.spec, "spec", report)


def validate_workload_group(config: Config[WorkloadGroup], report: Report) -> None:
    """All rules of WorkloadGroups."""
    spec = config.spec
    if spec.metadata is not None:
        checks.labels(spec.metadata.labels, "spec.metadata.labels", report)
    if spec.template is not None:
        workload_entry(spec.template, "spec.template", report, template=True)
    probe = spec.probe
    if probe is None:
        return
    for name, number in (
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ):
        if number < 0:
            report.error(f"spec.probe.{name}", f"{number} is negative", "leave it out, or use 1")
    if not (probe.http_get or probe.tcp_socket or probe.exec or probe.grpc):
        report.error(
            "spec.probe", "does not say how to probe", "add httpGet, tcpSocket, exec or grpc"
        )
    if probe.http_get is not None:
        if not probe.http_get.port:
            report.error("spec.probe.httpGet.port", "is required", "use 1 to 65535")
        if probe.http_get.scheme not in ("", "HTTP", "HTTPS"):
            report.error("spec.probe.httpGet.scheme", "is not known", "use HTTP or HTTPS")
    if probe.tcp_socket is not None and not probe.tcp_socket.port:
        report.error("spec.probe.tcpSocket.port", "is required", "use 1 to 65535")
    if probe.exec is not None and not probe.exec.command:
        report.error("spec.probe.exec.command", "is required", "write the command")


def validate_sidecar(config: Config[Sidecar], report: Report) -> None:
    """All rules of Sidecars."""
    spec = config.spec
    if spec.workload_selector is not None:
        checks.selector(spec.workload_selector.labels, "spec.workloadSelector.labels", report)
    empty = not spec.egress and not spec.ingress and spec.outbound_traffic_policy is None
    if empty and spec.inbound_connection_pool is None:
        report.error("spec", "says nothing", "add egress, ingress or outboundTrafficPolicy")
    ports: set[int] = set()
    for index, listener in enumerate(spec.ingress):
        path = item("spec.ingress", index)
        if listener.port is None or not listener.port.number:
            report.error(f"{path}.port", "is required", "name number, protocol and name")
        elif listener.port.number in ports:
            report.error(
                f"{path}.port", f"port {listener.port.number} is given twice", "remove one"
            )
        else:
            ports.add(listener.port.number)
        if listener.port is not None:
            checks.protocol(listener.port.protocol, f"{path}.port.protocol", report)
        if listener.bind and not checks.is_ip(listener.bind):
            report.error(f"{path}.bind", f"{quoted(listener.bind)} is not an IP address", "")
        if listener.default_endpoint:
            checks.unix_or_local(listener.default_endpoint, f"{path}.defaultEndpoint", report)
        connection_pool(listener.connection_pool, f"{path}.connectionPool", report)
        if listener.tls is not None and listener.tls.mode not in ("SIMPLE", "MUTUAL"):
            text = f"mode {listener.tls.mode} is not for sidecars"
            report.error(f"{path}.tls.mode", text, "use SIMPLE or MUTUAL")
    connection_pool(spec.inbound_connection_pool, "spec.inboundConnectionPool", report)
    _egress(spec, report)


def _egress(spec: Sidecar, report: Report) -> None:
    general = False
    bound: set[tuple[str, int]] = set()
    for index, listener in enumerate(spec.egress):
        path = item("spec.egress", index)
        if not listener.hosts:
            report.error(f"{path}.hosts", "is required", 'as in "./*" for this namespace')
        for number, host in enumerate(listener.hosts):
            where = item(f"{path}.hosts", number)
            if "/" not in host:
                text = f"{quoted(host)} has no namespace"
                report.error(where, text, f'write "*/{host}" or "./{host}"')
            else:
                checks.namespaced_host(host, where, report)
        if listener.port is None or not listener.port.number:
            unix = listener.bind.startswith("unix://")
            if listener.bind and not unix:
                report.error(f"{path}.bind", "needs a port beside it", "add port")
            if general and not unix:
                report.error(path, "only one egress listener may have no port", "join the two")
            general = general or not unix
            continue
        checks.protocol(listener.port.protocol, f"{path}.port.protocol", report)
        key = (listener.bind, listener.port.number)
        if key in bound:
            report.error(f"{path}.port", f"port {key[1]} is given twice", "join the two")
        bound.add(key)
        if general:
            text = "a listener with a port must come before the one without"
            report.error(path, text, "move it up")
    policy = spec.outbound_traffic_policy
    if policy is not None and policy.mode == "ALLOW_ANY_DYNAMIC_DNS":
        text = "is a mode of the mesh, not of a Sidecar"
        report.error("spec.outboundTrafficPolicy.mode", text, "use REGISTRY_ONLY or ALLOW_ANY")
    if policy is not None and policy.egress_proxy is not None:
        where = "spec.outboundTrafficPolicy.egressProxy"
        if policy.mode != "ALLOW_ANY":
            report.error(where, "needs mode ALLOW_ANY", "set the mode")
        checks.destination(policy.egress_proxy, where, report)


def validate_proxy_config(config: Config[ProxyConfigSpec], report: Report) -> None:
    """All rules of the ProxyConfig kind."""
    if config.spec.selector is not None:
        checks.selector(config.spec.selector.match_labels, "spec.selector.matchLabels", report)
    image = config.spec.image
    if image is not None and image.image_type not in ("", "default", "debug", "distroless"):
        report.warn("spec.image.imageType", f"{quoted(image.image_type)} is not published", "")
