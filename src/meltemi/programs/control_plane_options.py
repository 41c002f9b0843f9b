"""istiod's flags and environment, as Istio spells them, read once into one value.

Go's flags may be written ``--flag value`` or ``--flag=value``; addresses as ``:15010``. Wrong values end the
program with a sentence, exit code 2.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, TypeVar

import click

from meltemi.adapters.ca_store import Making
from meltemi.adapters.oidc import parse_rules
from meltemi.ca import secrets
from meltemi.config.durations import parse_duration

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Options:
    """How this istiod runs. Durations are seconds; addresses are ``host:port``, an empty host means all."""

    http: str = ":8080"
    monitoring: str = ":15014"
    https: str = ":15017"
    grpc: str = ":15010"
    secure_grpc: str = ":15012"
    mtls_grpc: str = ":15013"
    kubeconfig: str = ""
    registries: tuple[str, ...] = ("Kubernetes",)
    config_dir: Path | None = None
    mesh_config: Path = Path("etc/istio/config/mesh")
    namespace: str = "istio-system"
    pod: str = "istiod"
    revision: str = "default"
    domain: str = "cluster.local"
    cluster_id: str = "Kubernetes"
    cacerts: Path = Path("/etc/cacerts")
    shutdown_s: float = 10.0
    debounce_after_s: float = 0.1
    debounce_max_s: float = 10.0
    debounce_endpoints: bool = True
    streams_max: int = 100_000
    receive_max: int = 4 * 1024 * 1024
    starts_per_s: float = 0.0
    authenticate_plaintext: bool = False
    send_s: float = 20.0
    workload_ttl_s: float = 24 * 3600.0
    workload_ttl_max_s: float = 90 * 24 * 3600.0
    root_ttl_s: float = 3650 * 24 * 3600.0
    root_rsa_bits: int = 2048
    root_check_s: float = 3600.0
    root_grace_percentile: int = 20
    root_jitter: bool = True
    root_in_cacerts: bool = False
    jwt_rule: str = ""
    external_ca: str = ""
    external_ca_root: str = ""
    external_ca_token: str = ""
    kubernetes_signer: str = ""
    signer_domain: str = ""
    trusted_node_accounts: tuple[str, ...] = ()
    trusted_gateways: tuple[IPv4Network | IPv6Network, ...] = ()
    keys_by_proxies: bool = True
    keys_refresh_s: float = 0.0
    rotation_pause_s: float = 1.0
    rotation_settle_s: float = 30.0
    entry_grace_s: float = 10.0
    log_level: str = "default:info"
    log_json: bool = False

    @property
    def making(self) -> Making:
        """How the mesh's own root is made and renewed."""
        return Making(
            self.root_ttl_s,
            self.root_rsa_bits,
            self.root_check_s,
            self.root_grace_percentile,
            self.root_jitter,
            secrets.PLUGGED_SECRET if self.root_in_cacerts else secrets.SELF_SIGNED_SECRET,
        )

    @property
    def kubernetes(self) -> bool:
        """Whether an API server is used at all."""
        return "Kubernetes" in self.registries

    @property
    def suffix(self) -> str:
        """``-canary`` for a revision, nothing for the default one."""
        return "" if self.revision in ("", "default") else f"-{self.revision}"


class DurationType(click.ParamType[float]):
    """Go's notation: 100ms, 10s."""

    name = "duration"

    def convert(self, value: Any, param: Any, context: Any) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        seconds = parse_duration(str(value))
        if seconds is None or seconds < 0:
            self.fail(f"{value!r} is not a duration; write one like 100ms or 10s", param, context)
        return seconds


DURATION = DurationType()
_FLAGS: tuple[tuple[str, str, Any, Any, str], ...] = (
    ("--httpAddr", "http", str, ":8080", "debug and readiness"),
    ("--monitoringAddr", "monitoring", str, ":15014", "metrics and version"),
    ("--httpsAddr", "https", str, ":15017", "injection and validation webhooks"),
    ("--grpcAddr", "grpc", str, ":15010", "plaintext xDS and CA"),
    ("--secureGRPCAddr", "secure_grpc", str, ":15012", "xDS and CA over TLS, with a token"),
    (
        "--mtlsGRPCAddr",
        "mtls_grpc",
        str,
        ":15013",
        "xDS and CA over TLS, with a client certificate",
    ),
    ("--kubeconfig", "kubeconfig", str, "", "kubeconfig file; the pod's account by default"),
    ("--registries", "registries", str, None, "platforms: Kubernetes, or none with --configDir"),
    ("--configDir", "config_dir", str, "", "folder of YAML to use instead of an API server"),
    ("--meshConfig", "mesh_config", str, "./etc/istio/config/mesh", "mesh configuration file"),
    ("--namespace", "namespace", str, None, "namespace of the control plane"),
    ("--domain", "domain", str, "cluster.local", "DNS domain of the cluster"),
    ("--clusterID", "cluster_id", str, None, "name of this cluster"),
    ("--shutdownDuration", "shutdown_s", DURATION, "10s", "time for streams to end"),
    ("--caCertDir", "cacerts", str, "/etc/cacerts", "folder of a plugged-in authority"),
    (
        "--log_output_level",
        "log_level",
        str,
        "default:info",
        "levels by scope, default:info,ads:debug",
    ),
)
# Flags that Istio's manifests pass and that need nothing from us.
_IGNORED = (
    "--clusterRegistriesNamespace", "--networksConfig", "--cniNamespace", "--clusterAliases",
    "--profile", "--caCertFile", "--tlsCertFile", "--tlsKeyFile", "--tls-cipher-suites",
    "--tls-min-version", "--kubernetesApiQPS", "--kubernetesApiBurst", "--log_target",
    "--log_caller", "--log_stacktrace_level", "--keepaliveInterval", "--keepaliveTimeout",
    "--keepaliveMaxServerConnectionAge", "--ctrlz_address", "--ctrlz_port",
)  # fmt: skip


def flags(command: F) -> F:
    """Add all flags to a click command."""
    for name, field, kind, default, text in reversed(_FLAGS):
        command = click.option(
            name, field, type=kind, default=default, show_default=default is not None, help=text
        )(command)
    command = click.option("--log_as_json", "log_json", is_flag=True, help="logs as JSON")(command)
    for name in _IGNORED:
        command = click.option(name, expose_value=False, hidden=True)(command)
    return command


def options_from(given: Mapping[str, Any], environ: Mapping[str, str]) -> Options:
    """Flags first, then the environment. Raises click.BadParameter."""

    def seconds(name: str, default: float) -> float:
        text = environ.get(name, "")
        found = parse_duration(text) if text else default
        if found is None or found < 0:
            raise click.BadParameter(f"{name}={text} is not a duration; write one like 100ms")
        return found

    folder = Path(given["config_dir"]) if given["config_dir"] else None
    if folder is not None and not folder.is_dir():
        raise click.BadParameter(f"--configDir {folder} is not a folder")
    registries = given["registries"]
    if registries is None:
        registries = "" if folder else "Kubernetes"

    def number(name: str, default: int) -> int:
        text = environ.get(name) or str(default)
        if not text.isdecimal():
            raise click.BadParameter(f"{name}={text} is not a number")
        return int(text)

    return Options(
        **{
            n: given[n] for n in ("http", "monitoring", "https", "grpc", "secure_grpc", "mtls_grpc")
        },
        kubeconfig=given["kubeconfig"],
        registries=tuple(filter(None, registries.split(","))),
        config_dir=folder,
        mesh_config=Path(given["mesh_config"]),
        namespace=given["namespace"] or environ.get("POD_NAMESPACE") or "istio-system",
        pod=environ.get("POD_NAME") or "istiod",
        revision=environ.get("REVISION") or "default",
        domain=given["domain"],
        cluster_id=given["cluster_id"] or environ.get("CLUSTER_ID") or "Kubernetes",
        cacerts=Path(given["cacerts"]),
        shutdown_s=given["shutdown_s"],
        debounce_after_s=seconds("PILOT_DEBOUNCE_AFTER", 0.1),
        debounce_max_s=seconds("PILOT_DEBOUNCE_MAX", 10.0),
        debounce_endpoints=environ.get("PILOT_ENABLE_EDS_DEBOUNCE", "true").lower() != "false",
        streams_max=number("ISTIO_GPRC_MAXSTREAMS", 100_000),
        receive_max=number("ISTIO_GPRC_MAXRECVMSGSIZE", 4 * 1024 * 1024),
        # 0 goes by the machine, as in Istio.
        starts_per_s=number("PILOT_MAX_REQUESTS_PER_SECOND", 0) or 100.0 * (os.cpu_count() or 1),
        authenticate_plaintext=environ.get("XDS_AUTH_PLAINTEXT", "false").lower() == "true",
        send_s=seconds("PILOT_XDS_SEND_TIMEOUT", 20.0) or 20.0,
        workload_ttl_s=seconds("DEFAULT_WORKLOAD_CERT_TTL", 24 * 3600.0),
        workload_ttl_max_s=seconds("MAX_WORKLOAD_CERT_TTL", 90 * 24 * 3600.0),
        root_ttl_s=seconds("CITADEL_SELF_SIGNED_CA_CERT_TTL", 3650 * 24 * 3600.0),
        root_rsa_bits=_rsa_bits(environ.get("CITADEL_SELF_SIGNED_CA_RSA_KEY_SIZE") or "2048"),
        root_check_s=seconds("CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL", 3600.0) or 3600.0,
        root_grace_percentile=number("CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE", 20),
        root_jitter=environ.get("CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR", "true").lower()
        != "false",
        root_in_cacerts=environ.get("USE_CACERTS_FOR_SELF_SIGNED_CA", "false").lower() == "true",
        external_ca=environ.get("MESH_EXTERNAL_CA_ADDR", ""),
        external_ca_root=environ.get("MESH_EXTERNAL_CA_ROOT", ""),
        external_ca_token=environ.get("MESH_EXTERNAL_CA_TOKEN", ""),
        kubernetes_signer=_kubernetes_signer(environ),
        signer_domain=environ.get("CERT_SIGNER_DOMAIN", ""),
        jwt_rule=_checked_rule(environ.get("JWT_RULE", "")),
        trusted_gateways=_networks(environ.get("TRUSTED_GATEWAY_CIDR", "")),
        trusted_node_accounts=_accounts(environ.get("CA_TRUSTED_NODE_ACCOUNTS", "")),
        # Unlike Istio, proxies fetch key sets unless told otherwise: a new key then changes no listener (docs/decisions/0006).
        keys_by_proxies=environ.get("PILOT_JWT_ENABLE_REMOTE_JWKS", "envoy").lower()
        not in ("false", "istiod"),
        keys_refresh_s=seconds("PILOT_JWT_PUB_KEY_REFRESH_INTERVAL", 0.0),
        entry_grace_s=seconds("PILOT_WORKLOAD_ENTRY_GRACE_PERIOD", 10.0),
        log_level=given["log_level"],
        log_json=given["log_json"],
    )


def _kubernetes_signer(environ: Mapping[str, str]) -> str:
    """K8S_SIGNER when EXTERNAL_CA says that the cluster signs."""
    kind, signer = environ.get("EXTERNAL_CA", ""), environ.get("K8S_SIGNER", "")
    if not kind:
        return ""
    if kind != "ISTIOD_RA_KUBERNETES_API":
        raise click.BadParameter(f"EXTERNAL_CA={kind} is not ISTIOD_RA_KUBERNETES_API")
    domain = environ.get("CERT_SIGNER_DOMAIN", "")
    if "/" not in signer and not domain:
        raise click.BadParameter(
            f"K8S_SIGNER={signer} does not name a signer like example.com/mesh, and there is no CERT_SIGNER_DOMAIN"
        )
    return signer or f"{domain}/default"


def _rsa_bits(text: str) -> int:
    if text not in ("2048", "3072", "4096"):
        name = "CITADEL_SELF_SIGNED_CA_RSA_KEY_SIZE"
        raise click.BadParameter(f"{name}={text} is not 2048, 3072 or 4096")
    return int(text)


def _checked_rule(text: str) -> str:
    try:
        parse_rules(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return text


def _accounts(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for part in found:
        if len(list(filter(None, part.split("/")))) != 2:
            raise click.BadParameter(
                f"CA_TRUSTED_NODE_ACCOUNTS: {part!r} is not <namespace>/<service account>"
            )
    return found


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise click.BadParameter(f"TRUSTED_GATEWAY_CIDR: {error}") from error
