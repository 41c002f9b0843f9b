"""What makes a DestinationRule wrong, beyond its schema. In: a decoded object. Out: findings in the report."""

from __future__ import annotations

from collections.abc import Sequence

from meltemi.config import checks
from meltemi.config.paths import item, join
from meltemi.config.reader import Report, quoted
from meltemi.model.config import Config
from meltemi.model.destination_rule import (
    ClientTLSSettings,
    ConnectionPoolSettings,
    DestinationRule,
    LoadBalancerSettings,
    LocalityFailover,
    LocalityLbSetting,
    OutlierDetection,
    PortTrafficPolicy,
    TrafficPolicy,
    ZoneAwareLbSetting,
)
from meltemi.model.origin import Level
from meltemi.model.places import REGION_LABEL, SUBZONE_LABEL, ZONE_LABEL

_PLACES = (REGION_LABEL, ZONE_LABEL, SUBZONE_LABEL)
_MAX_TABLE = 5_000_011  # Envoy's limit for a Maglev table; a prime


def validate_destination_rule(config: Config[DestinationRule], report: Report) -> None:
    """All rules of the kind."""
    spec = config.spec
    if not spec.host:
        report.error("spec.host", "is required", "write the name of a service")
    else:
        checks.wildcard_host(spec.host, "spec.host", report)
    checks.export_to(spec.export_to, "spec.exportTo", report)
    if spec.workload_selector is not None:
        checks.selector(
            spec.workload_selector.match_labels, "spec.workloadSelector.matchLabels", report
        )
    traffic_policy(spec.traffic_policy, "spec.trafficPolicy", report)
    seen: set[str] = set()
    for index, subset in enumerate(spec.subsets):
        where = item("spec.subsets", index)
        if not checks.DNS_LABEL.match(subset.name):
            text = f"{quoted(subset.name)} is not a subset's name"
            report.error(f"{where}.name", text, "use letters, digits and -")
        if subset.name in seen:
            report.error(f"{where}.name", f"{quoted(subset.name)} is given twice", "rename one")
        seen.add(subset.name)
        checks.selector(subset.labels, f"{where}.labels", report)
        traffic_policy(subset.traffic_policy, f"{where}.trafficPolicy", report)


def traffic_policy(policy: TrafficPolicy | None, path: str, report: Report) -> None:
    """A traffic policy, mesh-wide, of a subset or of a rule."""
    if policy is None:
        return
    if policy == TrafficPolicy():
        report.error(path, "is empty", "set loadBalancer, connectionPool, outlierDetection or tls")
    _settings(policy, path, report)
    seen: set[int] = set()
    for index, port in enumerate(policy.port_level_settings):
        where = item(join(path, "portLevelSettings"), index)
        if port.port is None or port.port.number == 0:
            report.error(f"{where}.port", "is required", "write port: {number: 8080}")
        elif port.port.number in seen:
            report.error(f"{where}.port", "is given twice", "join the two settings")
        else:
            seen.add(port.port.number)
        _settings(port, where, report)
    if policy.tunnel is not None:
        where = join(path, "tunnel")
        if policy.tunnel.protocol not in ("", "CONNECT", "POST"):
            report.error(f"{where}.protocol", "is not known", "use CONNECT or POST")
        if not policy.tunnel.target_host or policy.tunnel.target_port == 0:
            report.error(where, "names no target", "set targetHost and targetPort")
        elif "*" in policy.tunnel.target_host:
            report.error(f"{where}.targetHost", "a wildcard is not a target", "name one host")
    if policy.retry_budget is not None:
        where = f"{path}.retryBudget.budgetInterval"
        checks.duration(policy.retry_budget.budget_interval, where, report)


def _settings(policy: TrafficPolicy | PortTrafficPolicy, path: str, report: Report) -> None:
    _load_balancer(policy.load_balancer, join(path, "loadBalancer"), policy, report)
    connection_pool(policy.connection_pool, join(path, "connectionPool"), report)
    outlier_detection(policy.outlier_detection, join(path, "outlierDetection"), report)
    client_tls(policy.tls, join(path, "tls"), report)


def _load_balancer(
    settings: LoadBalancerSettings | None,
    path: str,
    policy: TrafficPolicy | PortTrafficPolicy,
    report: Report,
) -> None:
    if settings is None:
        return
    if settings.simple == "LEAST_CONN":
        report.warn(f"{path}.simple", "LEAST_CONN is deprecated", "use LEAST_REQUEST", "IST0002")
    hashing = settings.consistent_hash
    if hashing is not None:
        where = f"{path}.consistentHash"
        keys = (hashing.http_header_name, hashing.http_cookie, hashing.use_source_ip)
        if not any(keys) and not hashing.http_query_parameter_name:
            report.error(
                where, "names nothing to hash", "set httpHeaderName, httpCookie or useSourceIp"
            )
        if hashing.http_header_name is not None:
            checks.header_name(hashing.http_header_name, f"{where}.httpHeaderName", report)
        if hashing.http_cookie is not None and not hashing.http_cookie.name:
            report.error(f"{where}.httpCookie.name", "is required", "name the cookie")
        if hashing.minimum_ring_size:
            remedy = "use ringHash.minimumRingSize"
            report.warn(f"{where}.minimumRingSize", "is deprecated", remedy, "IST0002")
        if hashing.maglev is not None and not _is_prime(hashing.maglev.table_size):
            text = f"{hashing.maglev.table_size} is not a prime below {_MAX_TABLE + 1}"
            report.error(f"{where}.maglev.tableSize", text, "use a prime such as 65537")
    if settings.warmup is not None:
        checks.duration(settings.warmup.duration, f"{path}.warmup.duration", report, 1.0)
    if settings.warmup_duration_secs is not None:
        where = f"{path}.warmupDurationSecs"
        report.warn(where, "is deprecated", "use warmup.duration", "IST0002")
        checks.duration(settings.warmup_duration_secs, where, report, 1.0)
    locality(settings.locality_lb_setting, f"{path}.localityLbSetting", report)
    zone_aware(settings.zone_aware_lb_setting, f"{path}.zoneAwareLbSetting", report)
    fails_over = settings.locality_lb_setting and (
        settings.locality_lb_setting.failover or settings.locality_lb_setting.failover_priority
    )
    if fails_over and policy.outlier_detection is None:
        text = "fails over only when outlierDetection is set too"
        report.warn(f"{path}.localityLbSetting", text, "add outlierDetection beside loadBalancer")


def locality(setting: LocalityLbSetting | None, path: str, report: Report) -> None:
    """Weights sum up to 100, localities do not overlap, regions fail over to others."""
    if setting is None:
        return
    seen: list[str] = []
    for index, distribute in enumerate(setting.distribute):
        where = item(f"{path}.distribute", index)
        _no_overlap(distribute.from_, seen, f"{where}.from", report)
        total = sum(distribute.to.values())
        if distribute.to and total != 100:
            report.error(f"{where}.to", f"the weights add up to {total}", "make them add up to 100")
        inner: list[str] = []
        for name in distribute.to:
            _no_overlap(name, inner, join(f"{where}.to", name), report)
    _failover(setting.failover, f"{path}.failover", report)


def zone_aware(setting: ZoneAwareLbSetting | None, path: str, report: Report) -> None:
    """Regions fail over to others; places are no labels here, because they are compared anyway."""
    if setting is None:
        return
    _failover(setting.failover, f"{path}.failover", report)
    for index, entry in enumerate(setting.failover_priority):
        name = entry.partition("=")[0]
        if name in _PLACES:
            text = f"{quoted(name)} is compared in any case, after the labels"
            report.error(item(f"{path}.failoverPriority", index), text, "remove it")


def _failover(failovers: Sequence[LocalityFailover], path: str, report: Report) -> None:
    for index, failover in enumerate(failovers):
        where = item(path, index)
        if failover.from_ == failover.to:
            report.error(f"{where}.to", "is the same region as from", "name another region")
        for name, region in (("from", failover.from_), ("to", failover.to)):
            if "/" in region or "*" in region:
                report.error(
                    f"{where}.{name}", f"{quoted(region)} is not a region", "name a region"
                )


def _no_overlap(name: str, seen: list[str], path: str, report: Report) -> None:
    """A locality ``region/zone/subzone`` with ``*`` only at its end, that repeats none of ``seen``."""
    parts = name.split("/")
    if not name or len(parts) > 3 or "*" in "".join(parts[:-1]) or "" in parts:
        remedy = 'write "region/zone/subzone" or "region/*"'
        report.error(path, f"{quoted(name)} is not a locality", remedy)
        return
    plain = name.removesuffix("/*").removesuffix("*")
    for other in seen:
        wide = other.removesuffix("/*").removesuffix("*")
        if (
            plain == wide
            or (name.endswith("*") and wide.startswith(plain + "/" if plain else ""))
            or (other.endswith("*") and plain.startswith(wide + "/" if wide else ""))
        ):
            report.error(path, f"{quoted(name)} overlaps {quoted(other)}", "make them distinct")
            return
    seen.append(name)


def connection_pool(settings: ConnectionPoolSettings | None, path: str, report: Report) -> None:
    """Limits are not negative, durations not too short, and at least one is given."""
    if settings is None:
        return
    if settings.tcp is None and settings.http is None:
        report.error(path, "is empty", "add tcp or http")
    if settings.http is not None:
        http = settings.http
        for name, value in (
            ("http1MaxPendingRequests", http.http1_max_pending_requests),
            ("http2MaxRequests", http.http2_max_requests),
            ("maxRequestsPerConnection", http.max_requests_per_connection),
            ("maxRetries", http.max_retries),
            ("maxConcurrentStreams", http.max_concurrent_streams),
        ):
            _not_negative(value, f"{path}.http.{name}", report)
        checks.duration(http.idle_timeout, f"{path}.http.idleTimeout", report)
        if http.h2_upgrade_policy == "UPGRADE" and http.use_client_protocol:
            text = "cannot be combined with h2UpgradePolicy UPGRADE"
            report.error(f"{path}.http.useClientProtocol", text, "keep one of them")
        if http.http2_keep_alive is not None:
            where = f"{path}.http.http2KeepAlive"
            checks.duration(http.http2_keep_alive.interval, f"{where}.interval", report)
            checks.duration(http.http2_keep_alive.timeout, f"{where}.timeout", report)
    if settings.tcp is not None:
        tcp = settings.tcp
        _not_negative(tcp.max_connections, f"{path}.tcp.maxConnections", report)
        checks.duration(tcp.connect_timeout, f"{path}.tcp.connectTimeout", report)
        checks.duration(tcp.max_connection_duration, f"{path}.tcp.maxConnectionDuration", report)
        if tcp.idle_timeout:
            checks.duration(tcp.idle_timeout, f"{path}.tcp.idleTimeout", report)
        if tcp.tcp_keepalive is not None:
            where = f"{path}.tcp.tcpKeepalive"
            checks.duration(tcp.tcp_keepalive.time, f"{where}.time", report, 1.0)
            checks.duration(tcp.tcp_keepalive.interval, f"{where}.interval", report, 1.0)


def _not_negative(value: int, path: str, report: Report) -> None:
    if value < 0:
        report.error(path, f"{value} is negative", "use 0 for the default, or a limit")


def outlier_detection(settings: OutlierDetection | None, path: str, report: Report) -> None:
    """Intervals are not too short; deprecated fields are reported."""
    if settings is None:
        return
    checks.duration(settings.interval, f"{path}.interval", report)
    checks.duration(settings.base_ejection_time, f"{path}.baseEjectionTime", report)
    if settings.consecutive_errors:
        remedy = "use consecutive5xxErrors or consecutiveGatewayErrors"
        report.warn(f"{path}.consecutiveErrors", "is deprecated", remedy, "IST0002")
    if (
        settings.consecutive_local_origin_failures
        and not settings.split_external_local_origin_errors
    ):
        text = "has no effect unless splitExternalLocalOriginErrors is true"
        report.error(f"{path}.consecutiveLocalOriginFailures", text, "set that too")


def client_tls(settings: ClientTLSSettings | None, path: str, report: Report) -> None:
    """Certificates that the mode needs, and none that it does not take."""
    if settings is None:
        return
    files = {
        "clientCertificate": settings.client_certificate,
        "privateKey": settings.private_key,
        "caCertificates": settings.ca_certificates,
    }
    given = [name for name, value in files.items() if value]
    if settings.credential_name and given and settings.mode != "DISABLE":
        text = f"cannot be combined with {' and '.join(given)}"
        report.error(f"{path}.credentialName", text, "keep either files or a Secret")
    secrets = {
        "credentialName": settings.credential_name,
        "caCertCredentialName": settings.ca_cert_credential_name,
    }
    if settings.mode == "ISTIO_MUTUAL":
        for name in (*given, *(name for name, value in secrets.items() if value)):
            text = "ISTIO_MUTUAL uses the workload's own certificate"
            report.error(join(path, name), text, "remove it, or use mode MUTUAL")
    for index, subject in enumerate(settings.subject_alt_names):
        if not subject:
            report.error(item(f"{path}.subjectAltNames", index), "may not be empty", "remove it")
    if settings.mode == "MUTUAL" and not settings.credential_name:
        for name in ("clientCertificate", "privateKey"):
            if not files[name]:
                report.error(
                    join(path, name), "is required by mode MUTUAL", "or set credentialName"
                )
    if settings.insecure_skip_verify and (settings.ca_certificates or settings.subject_alt_names):
        text = "turns off the verification that caCertificates and subjectAltNames ask for"
        report.error(f"{path}.insecureSkipVerify", text, "remove one of them")
    if (
        settings.mode == "SIMPLE"
        and not settings.insecure_skip_verify
        and not (settings.ca_certificates or any(secrets.values()))
    ):
        text = "no caCertificates: the server is verified against the system's authorities"
        remedy = "set caCertificates to verify against another authority"
        code = "IST0129" if "portLevelSettings" in path else "IST0128"
        report.add(path, text, remedy, level=Level.INFO, code=code)


def _is_prime(number: int) -> bool:
    if not 1 < number <= _MAX_TABLE:
        return False
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))
