"""What one proxy is told by its environment.

In: environment variables (Istio's names), the ProxyConfig JSON in ``PROXY_CONFIG``, the pod's labels and
annotations, command-line flags. Out: one frozen ``ProxySettings`` and messages about what was wrong in the
input; a wrong value never stops the proxy, its default is used. Reading files is left to the adapter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from meltemi.agent.health import Probe, parse_probe
from meltemi.model.names import BOOTSTRAP_XDS

VERSION = (
    "1.32.0"  # the Istio API level that istiod and EnvoyFilter matches see in the node metadata
)
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MACHINE_LABELS = "ISTIO_METAJSON_LABELS"
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)(ns|us|µs|ms|s|m|h)")


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """The fields of Istio's mesh ProxyConfig that a proxy itself uses; the defaults are Istio's.

    ``concurrency`` None means: from the CPU limit, else 2. ``raw`` is the JSON as given, which istiod reads
    from the node metadata for what concerns listeners (tracing, gatewayTopology, proxyHeaders).
    """

    discovery_address: str = "istiod.istio-system.svc:15012"
    drain_s: float = 45.0
    termination_drain_s: float = 5.0
    admin_port: int = 15000
    status_port: int = 15020
    concurrency: int | None = None
    service_cluster: str = ""
    binary_path: str = ""
    custom_config_file: str = ""
    control_plane_auth: str = "MUTUAL_TLS"
    stat_name_length: int = 189
    interception_mode: str = "REDIRECT"
    proxy_metadata: Mapping[str, str] = field(default_factory=dict)
    runtime_values: Mapping[str, str] = field(default_factory=dict)
    stats_prefixes: tuple[str, ...] = ()
    stats_suffixes: tuple[str, ...] = ()
    stats_regexps: tuple[str, ...] = ()
    mesh_id: str = ""
    file_flush_interval_s: float = 1.0
    file_flush_min_size_kb: int = 0  # 0: Envoy's own
    downstream_connections: int = 0  # 0: as many as come
    raw: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """All that the bootstrap, the certificates and the supervision depend on."""

    node_type: str = "sidecar"
    config: ProxyConfig = field(default_factory=ProxyConfig)
    pod_name: str = "unknown"
    namespace: str = "default"
    service_account: str = "default"
    instance_ip: str = "127.0.0.1"
    host_ip: str = ""
    node_name: str = ""
    domain: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    trust_domain: str = "cluster.local"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    uid: int = 1337
    cpu_limit: int = 0
    memory_limit_bytes: int = 0
    log_level: str = "warning"
    component_log_level: str = "misc:error"
    health_port: int = 15021
    prometheus_port: int = 15090
    credentials_dir: str = "/var/run/secrets/workload-spiffe-credentials"
    config_dir: str = "/etc/istio/proxy"
    root_file: str = "/var/run/secrets/istio/root-cert.pem"
    token_file: str = "/var/run/secrets/tokens/istio-token"  # noqa: S105 -- a path, not a token
    ca_address: str = ""
    # Where istiod takes the certificate for a proof: a machine's token ends, and nobody brings another. "" where tokens do.
    mtls_address: str = ""
    istiod_san: str = ""
    secret_ttl_s: float = 86400.0
    grace_ratio: float = 0.5
    grace_jitter: float = 0.01
    rsa_key_bits: int = 0
    key_curve: str = "P256"
    minimum_drain_s: float = 5.0
    exit_on_zero_connections: bool = False
    app_probers: str = ""
    scrape: Mapping[str, str] = field(default_factory=dict)
    bootstrap_override: str = ""
    bootstrap_xds: bool = False  # BOOTSTRAP_XDS_AGENT: ask istiod for patches of the bootstrap
    histogram_buckets: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    stats_flush_s: float = 5.0
    output_certs: str = ""
    dns_address: str = "127.0.0.1:15053"
    dns_parallel: bool = False
    probe: Probe | None = None  # of a machine's workload; pods are probed by their kubelet
    # Kubelets rotate a token at 80 % of its hours; a quarter of a minute is soon enough.
    file_watch_s: float = 15.0

    @property
    def node_id(self) -> str:
        """``sidecar~10.1.2.3~reviews-v1-abc.bookinfo~bookinfo.svc.cluster.local``."""
        name = f"{self.pod_name}.{self.namespace}"
        return f"{self.node_type}~{self.instance_ip}~{name}~{self.dns_domain}"

    @property
    def dns_domain(self) -> str:
        """The domain of the node id: ``<namespace>.svc.<cluster domain>``."""
        return self.domain or f"{self.namespace}.svc.cluster.local"

    @property
    def identity(self) -> str:
        """The SPIFFE id that the certificate is asked for."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @property
    def crl_file(self) -> str:
        """The mesh's revocation lists: published together with its roots, so that both change at once."""
        return self.root_file.rpartition("/")[0] + "/ca-crl.pem"

    @property
    def mark(self) -> int:
        """The socket mark of Envoy's upstream connections: where capture cannot know Envoy by its user."""
        captured = self.node_type == "sidecar" and self.config.interception_mode != "NONE"
        return 1337 if captured and self.uid != 1337 else 0

    @property
    def dns_capture(self) -> bool:
        """Whether the agent answers the pod's DNS questions."""
        wanted = str(self.metadata.get("DNS_CAPTURE", "")).lower() in ("true", "1")
        return wanted and self.node_type == "sidecar"

    @property
    def calls_istiod(self) -> bool:
        """Whether the agent itself talks to istiod, through Envoy."""
        return self.dns_capture or self.probe is not None

    @property
    def xds_socket(self) -> str:
        """The Unix socket on which Envoy passes the agent's own calls on to istiod (Istio's path)."""
        return f"{self.config_dir}/XDS"

    @property
    def concurrency(self) -> int:
        """Worker threads: as configured, else one per CPU of the limit, else 2. 0 means one per core."""
        if self.config.concurrency is not None:
            return self.config.concurrency
        return self.cpu_limit or 2


def parse_duration_s(value: Any) -> float:
    """Seconds of ``45s``, ``1m30s`` or a number.

    :raises ValueError: when it is neither.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    parts = _DURATION.findall(str(value))
    if not parts or "".join(number + unit for number, unit in parts) != str(value):
        raise ValueError(f"'{value}' is not a duration; write it as 45s or 1m30s")
    return float(sum(float(number) * _UNITS_S[unit] for number, unit in parts))


class _Reader:
    """Typed reads that note what was wrong and go on with the default."""

    def __init__(self, values: Mapping[str, Any], where: str, problems: list[str]) -> None:
        self.values, self.where, self.problems = values, where, problems

    def _get(self, name: str, default: Any, convert: Any) -> Any:
        value = self.values.get(name)
        if value is None or value == "":
            return default
        try:
            return convert(value)
        except (ValueError, TypeError) as error:
            self.problems.append(f"{self.where} {name}: {error}; using {default}")
            return default

    def text(self, name: str, default: str = "") -> str:
        return str(self._get(name, default, str))

    def number(self, name: str, default: int) -> int:
        return int(self._get(name, default, _integer))

    def real(self, name: str, default: float) -> float:
        return float(self._get(name, default, float))

    def seconds(self, name: str, default: float) -> float:
        return float(self._get(name, default, parse_duration_s))

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        def chosen(value: Any) -> str:
            if value not in choices:
                raise ValueError(f"use one of {', '.join(choices)}")
            return str(value)

        return str(self._get(name, default, chosen))

    def boolean(self, name: str, default: bool = False) -> bool:
        return bool(self._get(name, default, _boolean))

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._get(name, {}, lambda v: _mapping(json.loads(v) if isinstance(v, str) else v))
        return dict(value)

    def strings(self, name: str) -> tuple[str, ...]:
        value = self.values.get(name) or ()
        return tuple(str(item) for item in value) if isinstance(value, (list, tuple)) else ()


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError("not a JSON object")
    return value


def _integer(value: Any) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"'{value}' is not a whole number") from None


def _boolean(value: Any) -> bool:
    text = str(value).lower()
    if text in ("true", "1", "yes", "on"):
        return True
    if text in ("false", "0", "no", "off"):
        return False
    raise ValueError(f"'{value}' is neither true nor false")


def parse_proxy_config(value: Any) -> tuple[ProxyConfig, list[str]]:
    """A ProxyConfig of its JSON text or object, with messages about wrong fields."""
    problems: list[str] = []
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except ValueError as error:
            return ProxyConfig(), [f"PROXY_CONFIG is not JSON ({error}); using the defaults"]
    if not isinstance(value, Mapping):
        return ProxyConfig(), ["PROXY_CONFIG is not a JSON object; using the defaults"]
    read = _Reader(value, "ProxyConfig", problems)
    default = ProxyConfig()
    matcher = _Reader(read.mapping("proxyStatsMatcher"), "proxyStatsMatcher", problems)
    connections = _Reader(read.mapping("connectionSettings"), "connectionSettings", problems)
    concurrency = read.number("concurrency", -1)
    config = ProxyConfig(
        discovery_address=read.text("discoveryAddress", default.discovery_address),
        drain_s=read.seconds("drainDuration", default.drain_s),
        termination_drain_s=read.seconds("terminationDrainDuration", default.termination_drain_s),
        admin_port=read.number("proxyAdminPort", default.admin_port),
        status_port=read.number("statusPort", default.status_port),
        concurrency=None if concurrency < 0 else concurrency,
        service_cluster=read.text("serviceCluster"),
        binary_path=read.text("binaryPath"),
        custom_config_file=read.text("customConfigFile"),
        control_plane_auth=read.text("controlPlaneAuthPolicy", default.control_plane_auth),
        stat_name_length=read.number("statNameLength", default.stat_name_length),
        interception_mode=read.text("interceptionMode", default.interception_mode),
        proxy_metadata={k: str(v) for k, v in read.mapping("proxyMetadata").items()},
        runtime_values={k: str(v) for k, v in read.mapping("runtimeValues").items()},
        stats_prefixes=matcher.strings("inclusionPrefixes"),
        stats_suffixes=matcher.strings("inclusionSuffixes"),
        stats_regexps=matcher.strings("inclusionRegexps"),
        mesh_id=read.text("meshId"),
        file_flush_interval_s=read.seconds("fileFlushInterval", default.file_flush_interval_s),
        file_flush_min_size_kb=read.number("fileFlushMinSizeKb", 0),
        downstream_connections=connections.number("globalDownstreamConnectionLimit", 0),
        raw=dict(value),
    )
    return config, problems


def parse_labels(text: str) -> dict[str, str]:
    """The map of a downward API file: lines of ``key="value"`` with Go's escapes."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, sign, value = line.partition("=")
        if not sign:
            continue
        try:
            found[key] = str(json.loads(value))
        except ValueError:
            found[key] = value.strip('"')
    return found


def parse_settings(
    environment: Mapping[str, str],
    *,
    node_type: str = "sidecar",
    uid: int = 1337,
    labels: str = "",
    annotations: str = "",
    flags: Mapping[str, str] | None = None,
) -> tuple[ProxySettings, list[str]]:
    """The settings of a proxy; ``labels`` and ``annotations`` are the contents of the podinfo files."""
    config, problems = parse_proxy_config(environment.get("PROXY_CONFIG", ""))
    environment = {**config.proxy_metadata, **environment}
    read = _Reader(environment, "environment variable", problems)
    flag = {name: value for name, value in (flags or {}).items() if value}
    default = ProxySettings()
    pod_annotations = parse_labels(annotations)
    probe, wrong = parse_probe(config.raw.get("readinessProbe"))
    problems += wrong
    mode = read.text("ISTIO_META_INTERCEPTION_MODE", config.interception_mode)
    if node_type != "sidecar":
        mode = "NONE"
    config = _replace_mode(config, mode, flag, problems)
    on_curve = bool(read.choice("ECC_SIGNATURE_ALGORITHM", "", ("ECDSA",)))
    settings = ProxySettings(
        node_type=node_type,
        config=config,
        pod_name=read.text("POD_NAME", read.text("HOSTNAME", default.pod_name)),
        namespace=read.text("POD_NAMESPACE", default.namespace),
        service_account=read.text("SERVICE_ACCOUNT", default.service_account),
        instance_ip=read.text("INSTANCE_IP", default.instance_ip).split(",")[0],
        host_ip=read.text("HOST_IP"),
        node_name=read.text("ISTIO_META_NODE_NAME"),
        domain=flag.get("domain", ""),
        labels=parse_labels(labels) or _machine_labels(environment),
        annotations=pod_annotations,
        trust_domain=flag.get("trust-domain", read.text("TRUST_DOMAIN", default.trust_domain)),
        metadata=derive_metadata(environment, problems),
        uid=uid,
        cpu_limit=read.number("ISTIO_CPU_LIMIT", 0),
        memory_limit_bytes=_bytes(read.text("ISTIO_MEMORY_LIMIT", read.text("GOMEMLIMIT"))),
        log_level=flag.get("proxyLogLevel", default.log_level),
        component_log_level=flag.get("proxyComponentLogLevel", default.component_log_level),
        health_port=read.number("ENVOY_STATUS_PORT", default.health_port),
        prometheus_port=read.number("ENVOY_PROMETHEUS_PORT", default.prometheus_port),
        credentials_dir=read.text("MESH_CREDENTIALS_DIR", default.credentials_dir),
        config_dir=read.text("MESH_CONFIG_DIR", config.raw.get("configPath") or default.config_dir),
        root_file=read.text("XDS_ROOT_CA", default.root_file),
        token_file=read.text("MESH_TOKEN_FILE", default.token_file),
        ca_address=read.text("CA_ADDR", config.discovery_address),
        mtls_address=read.text("MESH_MTLS_ADDRESS"),
        istiod_san=read.text("ISTIOD_SAN"),
        secret_ttl_s=read.seconds("SECRET_TTL", default.secret_ttl_s),
        grace_ratio=read.real("SECRET_GRACE_PERIOD_RATIO", default.grace_ratio),
        grace_jitter=read.real("SECRET_GRACE_PERIOD_RATIO_JITTER", default.grace_jitter),
        rsa_key_bits=0 if on_curve else read.number("WORKLOAD_RSA_KEY_SIZE", 0),
        key_curve=read.choice("ECC_CURVE", default.key_curve, ("P256", "P384")),
        minimum_drain_s=read.seconds("MINIMUM_DRAIN_DURATION", default.minimum_drain_s),
        exit_on_zero_connections=read.boolean("EXIT_ON_ZERO_ACTIVE_CONNECTIONS"),
        app_probers=read.text("ISTIO_KUBE_APP_PROBERS"),
        scrape={
            key: str(value) for key, value in read.mapping("ISTIO_PROMETHEUS_ANNOTATIONS").items()
        },
        bootstrap_override=read.text("ISTIO_BOOTSTRAP_OVERRIDE"),
        bootstrap_xds=read.boolean(BOOTSTRAP_XDS),
        histogram_buckets=_buckets(pod_annotations, problems),
        stats_flush_s=_Reader(pod_annotations, "annotation", problems).seconds(
            "sidecar.istio.io/statsFlushInterval", default.stats_flush_s
        ),
        output_certs=read.text("OUTPUT_CERTS"),
        dns_address=read.text("DNS_PROXY_ADDR", default.dns_address).replace(
            "localhost:", "127.0.0.1:"
        ),
        dns_parallel=read.boolean("DNS_FORWARD_PARALLEL"),
        probe=probe,
        file_watch_s=max(0.05, read.seconds("MESH_FILE_WATCH_INTERVAL", default.file_watch_s)),
    )
    return settings, problems


def _replace_mode(
    config: ProxyConfig, mode: str, flags: Mapping[str, str], problems: list[str]
) -> ProxyConfig:
    changes: dict[str, Any] = {"interception_mode": mode}
    if "concurrency" in flags:
        try:
            changes["concurrency"] = _integer(flags["concurrency"])
        except ValueError as error:
            problems.append(f"flag --concurrency: {error}")
    if "serviceCluster" in flags:
        changes["service_cluster"] = flags["serviceCluster"]
    return replace(config, **changes)


def derive_metadata(environment: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    """Node metadata of ``ISTIO_META_X=v`` (as text) and ``ISTIO_METAJSON_X=json`` (its top-level keys)."""
    found: dict[str, Any] = {}
    for name, value in sorted(environment.items()):
        if name.startswith("ISTIO_METAJSON_"):
            try:
                parsed = json.loads(value)
            except ValueError as error:
                problems.append(f"environment variable {name} is not JSON: {error}")
                continue
            if isinstance(parsed, Mapping):
                # A machine's labels are no keys of the metadata.
                found.update(parsed if name != _MACHINE_LABELS else {})
            else:
                found[name.removeprefix("ISTIO_METAJSON_")] = parsed
        elif name.startswith("ISTIO_META_"):
            found[name.removeprefix("ISTIO_META_")] = value
    return found


def _machine_labels(environment: Mapping[str, str]) -> dict[str, str]:
    """Where no pod has labels: those that ``meltemi x workload entry configure`` wrote. What is wrong with them is told elsewhere."""
    try:
        found = _mapping(json.loads(environment.get(_MACHINE_LABELS) or "{}"))
    except (ValueError, TypeError):
        return {}
    return {str(name): str(value) for name, value in found.items()}


def _bytes(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() else 0


def _buckets(annotations: Mapping[str, str], problems: list[str]) -> dict[str, tuple[float, ...]]:
    text = annotations.get("sidecar.istio.io/statsHistogramBuckets", "")
    if not text:
        return {}
    try:
        return {
            str(prefix): tuple(sorted(float(bound) for bound in bounds))
            for prefix, bounds in _mapping(json.loads(text)).items()
        }
    except (ValueError, TypeError) as error:
        problems.append(
            f"annotation sidecar.istio.io/statsHistogramBuckets: {error}; "
            'write it as {"istiocustom": [1, 5, 10, 50]}'
        )
        return {}
