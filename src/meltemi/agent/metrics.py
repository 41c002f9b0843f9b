"""The merged metrics of a pod: Envoy's, the application's, the agent's own.

In: pieces of Prometheus text as they arrive from Envoy. Out: the same text with Istio's names
(``envoy_istio_requests_total`` -> ``istio_requests_total``) and Istio's word for an absent label
(``unknown``). Works piece by piece, so a scrape of any size needs little memory. Fetching is left to the
adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_OURS = b"envoy_istio_"
# Labels whose emptiness is a value: Istio leaves the gRPC status empty for HTTP.
_MAY_BE_EMPTY = b'grpc_response_status=""'
_KEPT = b'grpc_response_status="\x00"'


def rewrite_line(line: bytes) -> bytes:
    """One line with Istio's name and no empty label; other lines come back unchanged."""
    if line.startswith(_OURS):
        line = line[len(b"envoy_") :]
        if b'=""' in line:
            line = line.replace(_MAY_BE_EMPTY, _KEPT).replace(b'=""', b'="unknown"')
            line = line.replace(_KEPT, _MAY_BE_EMPTY)
        return line
    if line.startswith(b"# ") and _OURS in line:
        return line.replace(_OURS, b"istio_", 1)
    return line


@dataclass(slots=True)
class Rewriter:
    """Rewrites a stream of pieces; call ``feed`` for each and ``close`` at the end."""

    rest: bytes = b""

    def feed(self, piece: bytes) -> bytes:
        """All complete lines so far, rewritten."""
        text = self.rest + piece
        complete, newline, self.rest = text.rpartition(b"\n")
        if not newline:
            return b""
        if _OURS not in complete:
            return complete + b"\n"
        return b"\n".join(rewrite_line(line) for line in complete.split(b"\n")) + b"\n"

    def close(self) -> bytes:
        """The last line, if it had no end."""
        return rewrite_line(self.rest) + b"\n" if self.rest else b""


@dataclass(frozen=True, slots=True)
class ScrapeTarget:
    """The application's own metrics, from its ``prometheus.io/*`` annotations."""

    port: int
    path: str = "/metrics"


def find_scrape_target(
    annotations: Mapping[str, str], agent_port: int
) -> tuple[ScrapeTarget | None, str]:
    """Where the application's metrics are, or None with the reason when the annotations are wrong."""
    if annotations.get("scrape", "").lower() != "true":
        return None, ""
    text = annotations.get("port") or "80"  # Istio's default for a missing port
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 65536):
        return None, f"annotation prometheus.io/port: '{text}' is not a port"
    if int(text) == agent_port:
        return None, f"annotation prometheus.io/port: {agent_port} is the agent's own port"
    path = annotations.get("path") or "/metrics"
    return ScrapeTarget(int(text), path if path.startswith("/") else "/" + path), ""


# Upper bounds of the histogram of resolvers' times, in seconds (Prometheus' defaults).
_DNS_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(slots=True)
class DnsCounters:
    """What the DNS of a pod with capture has done."""

    requests: int = 0
    upstream_requests: int = 0
    upstream_failures: int = 0
    upstream_sum_s: float = 0.0
    upstream_buckets: list[int] = field(default_factory=lambda: [0] * len(_DNS_BOUNDS_S))
    upstream_count: int = 0

    def observe(self, seconds: float) -> None:
        """Note how long the resolvers took for one question."""
        self.upstream_count += 1
        self.upstream_sum_s += seconds
        for index, bound in enumerate(_DNS_BOUNDS_S):
            self.upstream_buckets[index] += seconds <= bound

    def lines(self) -> Iterator[str]:
        """Prometheus text."""
        for name, value in (
            ("requests", self.requests),
            ("upstream_requests", self.upstream_requests),
            ("upstream_failures", self.upstream_failures),
        ):
            yield f"# TYPE istio_agent_dns_{name}_total counter"
            yield f"istio_agent_dns_{name}_total {value}"
        name = "istio_agent_dns_upstream_request_duration_seconds"
        yield f"# TYPE {name} histogram"
        for bound, count in zip(_DNS_BOUNDS_S, self.upstream_buckets, strict=True):
            yield f'{name}_bucket{{le="{bound:g}"}} {count}'
        yield f'{name}_bucket{{le="+Inf"}} {self.upstream_count}'
        yield f"{name}_sum {self.upstream_sum_s:.6f}"
        yield f"{name}_count {self.upstream_count}"


@dataclass(slots=True)
class AgentCounters:
    """The agent's own metrics; names are Istio's, with the prefix ``istio_agent_``."""

    startup_s: float = 0.0
    scrapes: int = 0
    scrape_failures: dict[str, int] = field(default_factory=dict)
    cert_requests: int = 0
    cert_failures: int = 0
    cert_failures_in_row: int = 0
    envoy_restarts: int = 0
    cert_not_after: float = 0.0
    dns: DnsCounters | None = None  # with DNS capture

    def count_scrape_failure(self, kind: str) -> None:
        """Note a scrape of ``kind`` (envoy, application) that failed."""
        self.scrape_failures[kind] = self.scrape_failures.get(kind, 0) + 1

    def render(self, now: float) -> bytes:
        """Prometheus text."""
        return "".join(f"{line}\n" for line in self._lines(now)).encode()

    def _lines(self, now: float) -> Iterator[str]:
        yield "# TYPE istio_agent_startup_duration_seconds gauge"
        yield f"istio_agent_startup_duration_seconds {self.startup_s:.3f}"
        yield "# TYPE istio_agent_scrapes_total counter"
        yield f"istio_agent_scrapes_total {self.scrapes}"
        yield "# TYPE istio_agent_scrape_failures_total counter"
        for kind, count in sorted(self.scrape_failures.items()):
            yield f'istio_agent_scrape_failures_total{{type="{kind}"}} {count}'
        yield "# TYPE istio_agent_num_outgoing_requests counter"
        yield f'istio_agent_num_outgoing_requests{{request_type="csr"}} {self.cert_requests}'
        yield "# TYPE istio_agent_num_failed_outgoing_requests counter"
        yield f'istio_agent_num_failed_outgoing_requests{{request_type="csr"}} {self.cert_failures}'
        yield "# TYPE istio_agent_envoy_connection_terminations counter"
        yield f"istio_agent_envoy_connection_terminations {self.envoy_restarts}"
        yield "# TYPE istio_agent_cert_renewal_failures_in_row gauge"
        yield f"istio_agent_cert_renewal_failures_in_row {self.cert_failures_in_row}"
        if self.cert_not_after:
            yield "# TYPE istio_agent_cert_expiry_seconds gauge"
            yield f'istio_agent_cert_expiry_seconds{{resource_name="default"}} {self.cert_not_after - now:.0f}'
        if self.dns is not None:
            yield from self.dns.lines()
