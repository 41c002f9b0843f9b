"""The control plane's metrics, under Istio's names, in Prometheus' text format.

In: counts and durations from the other adapters. Out: ``exposition()``. Istio's counters do not end in
``_total`` where the client library would add it, hence ``BareCounter``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from meltemi.envoy import PatchRecord

# Istio has no such metrics, and nothing reads them.
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.01, 0.1, 0.5, 1, 3, 5, 10, 20, 30)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class BareCounter(Counter):
    """A counter whose sample has exactly the given name."""

    def _child_samples(self) -> Iterable[Sample]:
        return (Sample("", {}, self._value.get(), None, None),)


class Metrics:
    """Every metric of istiod. One instance per process (and per test)."""

    def __init__(self, version: str = "0.1.0") -> None:
        self.registry = CollectorRegistry()
        self._bare: list[str] = []
        self._pilot()
        self._authority()
        self._webhooks()
        self.info = self._gauge("pilot_info", "Version of this control plane", ("version",))
        self.info.labels(version).set(1)
        build = self._gauge("istio_build", "Build of this component", ("component", "tag"))
        build.labels("pilot", version).set(1)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        if name.endswith("_total"):
            return Counter(name, text, labels, registry=self.registry)
        self._bare.append(name)
        return BareCounter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...] = (), buckets: Any = _SECONDS
    ) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)

    def _pilot(self) -> None:
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.xds = gauge("pilot_xds", "Proxies connected", ("version",))
        self.xds_pushes = counter("pilot_xds_pushes", "Responses written, by type", ("type",))
        self.xds_push_time = histogram(
            "pilot_xds_push_time", "Seconds to make a response", ("type",)
        )
        self.xds_send_time = histogram("pilot_xds_send_time", "Seconds to write a response")
        self.xds_config_size = histogram(
            "pilot_xds_config_size_bytes",
            "Bytes of a response",
            ("type",),
            (1, 10_000, 1_000_000, 4_000_000, 10_000_000, 40_000_000),
        )
        self.rejects = {
            kind: counter(
                f"pilot_xds_{kind}_reject", f"{kind.upper()} refused by proxies", ("node", "err")
            )
            for kind in ("cds", "eds", "lds", "rds")
        }
        self.total_rejects = counter(
            "pilot_total_xds_rejects", "Responses refused by proxies", ("type",)
        )
        self.internal_errors = counter("pilot_total_xds_internal_errors", "Our own failures")
        self.expired_nonce = counter(
            "pilot_xds_expired_nonce", "Requests with a stale nonce", ("type",)
        )
        self.write_timeout = counter(
            "pilot_xds_write_timeout", "Responses that a proxy did not take in time"
        )
        self.recv_max = gauge("pilot_xds_recv_max", "Bytes of the largest request")
        self.convergence = histogram(
            "pilot_proxy_convergence_time", "Seconds from a change to its being written to a proxy"
        )
        self.queue_time = histogram(
            "pilot_proxy_queue_time", "Seconds that a push waited for its proxy"
        )
        self.debounce_time = histogram("pilot_debounce_time", "Seconds that changes were collected")
        self.context_init = histogram(
            "pilot_pushcontext_init_seconds", "Seconds to build a snapshot"
        )
        self.push_triggers = counter("pilot_push_triggers", "Pushes by their cause", ("type",))
        self.inbound_updates = counter("pilot_inbound_updates", "Changes heard of", ("type",))
        self.services = gauge("pilot_services", "Services known")
        self.virtual_services = gauge("pilot_virt_services", "VirtualServices known")
        self.no_instances = gauge("pilot_eds_no_instances", "Services without endpoints")
        self.not_ready = gauge("pilot_endpoint_not_ready", "Endpoints that are not ready")
        self.dns_without_endpoints = gauge(
            "pilot_dns_cluster_without_endpoints", "Services found by DNS that name no address"
        )
        self.dup_domains = gauge(
            "pilot_vservice_dup_domain", "Hosts that several VirtualServices claim"
        )
        self.dup_subsets = gauge(
            "pilot_destrule_subsets", "Subsets that several DestinationRules of a host name"
        )
        self.unknown_pods = gauge("pilot_no_ip", "Proxies whose pod is not known")
        self.no_targets = gauge(
            "pilot_k8s_proxies_with_no_service_targets", "Sidecars that serve no Service"
        )
        self.inbound_conflicts = gauge(
            "pilot_conflict_inbound_listener", "Services that lost a workload's port to another"
        )
        self.outbound_conflicts = gauge(
            "pilot_conflict_outbound_listener_tcp_over_current_tcp",
            "Services that lost an address and port to another",
        )
        self.cache_size = gauge("xds_cache_size", "Endpoint assignments that are kept")
        self.cache_reads = counter(
            "xds_cache_reads", "Endpoint assignments asked for: kept or made", ("type",)
        )
        self.secret_errors = counter(
            "pilot_sds_certificate_errors_total", "Secrets that are missing or cannot be used"
        )
        self.rejected_configs = gauge(
            "pilot_total_rejected_configs", "Objects that are not used because they are wrong"
        )
        self.jwks_fetch_success = counter(
            "pilot_jwks_resolver_network_fetch_success_total", "Answers of token issuers"
        )
        self.jwks_fetch_fail = counter(
            "pilot_jwks_resolver_network_fetch_fail_total", "Token issuers that did not answer"
        )
        self.pending_pods = gauge(
            "pilot_k8s_endpoints_pending_pod",
            "Pods that endpoints name and no watch has told of yet",
        )
        self.k8s_cfg_events = counter(
            "pilot_k8s_cfg_events", "Configuration events", ("type", "event")
        )
        self.k8s_reg_events = counter("pilot_k8s_reg_events", "Registry events", ("type", "event"))
        self.envoy_filters = gauge(
            "pilot_envoy_filter_status",
            "Whether patches of EnvoyFilters had an effect or could not be applied",
            ("name", "patch", "result"),
        )
        self.uptime = gauge("istiod_uptime_seconds", "Seconds since start")
        self.clusters = gauge("istiod_managed_clusters", "Clusters watched", ("cluster_type",))

        self.registrations = {
            event: counter(f"auto_registration_{event}_total", text)
            for event, text in (
                ("success", "Machines registered"),
                ("updates", "Machines that came back to their WorkloadEntry"),
                ("unregister", "Machines whose connection ended"),
                ("deletes", "WorkloadEntries removed after the grace period"),
                ("errors", "WorkloadEntries that could not be written"),
            )
        }

    def _authority(self) -> None:
        counter, gauge = self._counter, self._gauge
        self.csr_count = counter("citadel_server_csr_count", "Signing requests received")
        self.authn_failures = counter(
            "citadel_server_authentication_failure_count", "Callers that could not be identified"
        )
        self.csr_parsing_errors = counter(
            "citadel_server_csr_parsing_err_count", "Requests that cannot be read"
        )
        self.id_extraction_errors = counter(
            "citadel_server_id_extraction_err_count",
            "Requests for an identity that the caller may not have",
        )
        self.sign_errors = counter(
            "citadel_server_csr_sign_err_count", "Requests that were not signed", ("error",)
        )
        self.certs_issued = counter(
            "citadel_server_success_cert_issuance_count", "Certificates issued"
        )
        self.root_expiry = gauge(
            "citadel_server_root_cert_expiry_timestamp",
            "When the root ends, seconds since the epoch",
        )
        self.root_expiry_s = gauge(
            "citadel_server_root_cert_expiry_seconds", "Seconds until the root ends"
        )
        self.chain_expiry = gauge(
            "citadel_server_cert_chain_expiry_timestamp",
            "When the signing certificate ends, seconds since the epoch",
        )
        self.chain_expiry_s = gauge(
            "citadel_server_cert_chain_expiry_seconds", "Seconds until the signing certificate ends"
        )

    def _webhooks(self) -> None:
        counter, histogram = self._counter, self._histogram
        labels = ("group", "version", "resource")
        self.validation_passed = counter("galley_validation_passed", "Objects accepted", labels)
        self.validation_failed = counter(
            "galley_validation_failed", "Objects refused", (*labels, "reason")
        )
        self.validation_http_error = counter(
            "galley_validation_http_error", "Bad webhook calls", ("status",)
        )
        self.validation_updates = counter(
            "galley_validation_config_updates", "Webhook configurations patched"
        )
        self.validation_update_errors = counter(
            "galley_validation_config_update_error",
            "Failed patches of webhook configurations",
            ("reason",),
        )
        self.inject_requests = counter("sidecar_injection_requests_total", "Pods looked at")
        self.inject_success = counter("sidecar_injection_success_total", "Pods injected")
        self.inject_failure = counter("sidecar_injection_failure_total", "Pods that failed")
        self.inject_skip = counter("sidecar_injection_skip_total", "Pods left as they are")
        self.inject_time = histogram(
            "sidecar_injection_time_seconds",
            "Seconds per pod",
            (),
            (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1),
        )
        self.webhook_patch_attempts = counter(
            "webhook_patch_attempts_total", "caBundle patches", ("name",)
        )
        self.webhook_patch_retries = counter(
            "webhook_patch_retries_total", "caBundle patches tried again", ("name",)
        )
        self.webhook_patch_failures = counter(
            "webhook_patch_failures_total", "Failed patches", ("name", "reason")
        )

    def set_envoy_filters(self, records: Iterable[PatchRecord]) -> None:
        """What has come of the patches of EnvoyFilters, in all classes of proxies."""
        self.envoy_filters.clear()
        for record in records:
            for result, patches in (("applied", record.applied), ("error", record.failed)):
                for patch in patches:
                    kind = patch.apply_to.lower()
                    self.envoy_filters.labels(patch.filter, kind, result).set(1)

    def exposition(self) -> bytes:
        """All metrics as text."""
        text = generate_latest(self.registry)
        for name in self._bare:
            wrong = f"{name}_total".encode()
            for word in (b"# HELP ", b"# TYPE "):
                text = text.replace(word + wrong + b" ", word + name.encode() + b" ")
        return text

    def value(self, name: str, **labels: str) -> float:
        """One sample's value, 0.0 when there is none; for debug pages and tests."""
        metric: Metric
        for metric in self.registry.collect():
            for sample in metric.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return 0.0
