"""Why a request went where it went: what each proxy did, and the lines of YAML that told it to.

In: an exchange, the proxies' intermediate representation, the sources. Out: text. The decisions are those of
``meltemi.explain`` for the very configuration that the proxies had; what happened is what the proxies reported.
"""

from __future__ import annotations

from dataclasses import replace

from meltemi.explain import Explanation, Request, explain
from meltemi.model.config import Key
from meltemi.model.origin import Origin
from meltemi.testing.hops import Hop
from meltemi.testing.response import Destination, Exchange, Response, destination_of
from meltemi.testing.rig import Rig
from meltemi.testing.sources import Sources

_FLAGS = {
    "UH": "no healthy endpoint",
    "UF": "the connection to the endpoint failed",
    "UO": "a circuit breaker is open",
    "NR": "no route matched",
    "NC": "the cluster does not exist",
    "URX": "all retries are used up",
    "UT": "the request timed out",
    "UC": "the endpoint closed the connection",
    "UR": "the endpoint reset the request",
    "DC": "the client closed the connection",
    "DI": "a delay was injected",
    "FI": "a fault was injected",
    "RL": "rate limited",
    "UAEX": "denied by external authorization",
}


class Explanations:
    """Explains exchanges of one rig."""

    def __init__(self, rig: Rig, sources: Sources) -> None:
        self._rig = rig
        self._sources = sources

    def destination(self, hop: Hop) -> Destination:
        """Whom a proxy sent to, with the pod behind the endpoint."""
        made = destination_of(hop.cluster)
        host, _, port = hop.endpoint.rpartition(":")
        if not host:
            return made
        proxy = self._rig.proxy_at(host)
        if proxy is not None:
            return replace(made, workload=proxy.workload, pod=proxy.name, address=hop.endpoint)
        who = self._rig.who_at(host, int(port)) if port.isdecimal() else None
        if who is not None:
            return replace(made, workload=who.workload, pod=who.pod, address=hop.endpoint)
        return replace(made, address=hop.endpoint)

    def explain(self, exchange: Exchange) -> str:
        """The whole way, as text."""
        sent = exchange.sent
        lines = [self._title(exchange)]
        if not exchange.hops:
            if sent.client:
                lines += self._expected(exchange, sent.client, inbound=False)
            else:
                lines.append("  no proxy on the way reported anything")
        for hop in exchange.hops:
            lines += self._hop(exchange, hop)
        return "\n".join(lines)

    def _title(self, exchange: Exchange) -> str:
        sent = exchange.sent
        who = sent.client or "a client outside the mesh"
        words = f"{sent.method} {sent.url} from {who}"
        if sent.headers:
            words += " with " + ", ".join(f"{k}: {v}" for k, v in sent.headers.items())
        if isinstance(exchange, Response):
            answered = f" from {exchange.workload}" if exchange.workload else ""
            return f"{words}\n  => {exchange.status}{answered}"
        return words + (f"\n  => {exchange.failure}" if exchange.failure else "")

    def _hop(self, exchange: Exchange, hop: Hop) -> list[str]:
        inbound = hop.direction == "inbound"
        kind = {"inbound": "the server's proxy", "gateway": "the gateway"}.get(
            hop.direction, "the client's proxy"
        )
        lines = [f"  at {kind} {hop.proxy}:"]
        lines += self._decisions(exchange, hop.proxy, hop)
        if inbound:
            lines.append(
                f"    mTLS from {hop.peer}"
                if hop.peer
                else "    plaintext: the client proved no identity"
            )
        target = self.destination(hop)
        if hop.endpoint or hop.cluster:
            tries = f" after {hop.attempts} attempts" if hop.attempts > 1 else ""
            lines.append(f"    sent to {target}{tries}")
        for flag in filter(None, hop.flags.split(",")):
            lines.append(f"    flag {flag}: {_FLAGS.get(flag, 'see Envoy RESPONSE_FLAGS')}")
        if hop.details and hop.details != "via_upstream":
            lines.append(f"    details: {hop.details}")
        return lines

    def _expected(self, exchange: Exchange, proxy: str, *, inbound: bool) -> list[str]:
        return [
            "  nothing was reported; by its configuration",
            f"  the client's proxy {proxy} would:",
            *self._decisions(exchange, proxy, None),
        ]

    def _decisions(self, exchange: Exchange, proxy: str, hop: Hop | None) -> list[str]:
        ir = self._rig.ir_of(proxy)
        if ir is None:
            return []
        found = explain(ir, self._request(exchange, hop))
        return self._steps(found, hop)

    def _request(self, exchange: Exchange, hop: Hop | None) -> Request:
        """The pretend request that this proxy saw."""
        sent = exchange.sent
        http = isinstance(exchange, Response) or sent.method not in ("TCP", "TLS")
        headers = {name.lower(): value for name, value in sent.headers.items()}
        inbound = hop is not None and hop.direction == "inbound"
        address, port = "0.0.0.0", sent.port
        if hop is not None and ":" in hop.local:
            host, _, text = hop.local.rpartition(":")
            address = host
            port = self._rig.block.logical_port(int(text)) if text.isdecimal() else port
        later = hop is not None and exchange.first is not hop
        return Request(
            port=port,
            host=(hop.host if later and hop and hop.host else sent.host) if http else "",
            path=hop.path if later and hop and hop.path else sent.path,
            method=sent.method,
            headers=headers,
            address=address,
            sni=(hop.sni if hop is not None else sent.sni) or "",
            tls=bool(hop.tls) if hop is not None else bool(sent.sni),
            alpn=_alpn(inbound, sent.http2, http) if hop is not None and hop.tls else (),
            http2=sent.http2,
            inbound=inbound,
            scheme="https" if sent.scheme == "https" else "http",
        )

    def _steps(self, found: Explanation, hop: Hop | None) -> list[str]:
        lines = []
        named: set[Origin] = set()
        for step in found.steps:
            if step.kind == "cluster" and hop is not None and hop.cluster not in ("", step.name):
                continue
            lines.append(f"    {step.kind} {step.name or '(unnamed)'}: {step.why}")
            for origin in dict.fromkeys(step.origins):
                if origin not in named:
                    named.add(origin)
                    lines.append(f"        {self._origin(origin)}")
        return lines

    def _origin(self, origin: Origin) -> str:
        if not origin.source and origin.kind:
            known = self._rig.objects.places.get(Key(origin.kind, origin.namespace, origin.name))
            if known is not None:
                origin = replace(origin, source=known.source, line=known.line)
        text = self._sources.line(origin)
        return f"{origin}" + (f"  | {text}" if text else "")


def _alpn(inbound: bool, http2: bool, http: bool) -> tuple[str, ...]:
    if not inbound:
        return ()
    if not http:
        return ("istio-peer-exchange", "istio")
    return ("istio-h2", "istio") if http2 else ("istio-http/1.1", "istio")
