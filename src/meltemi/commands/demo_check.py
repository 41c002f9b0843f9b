"""The proof behind ``demo --check``: traffic through the ingress, and what the sidecars say about it.

Every row of the table is checked; the result is good only when all are. Who called whom, with which identity, is
read from the receiving sidecar's ``istio_requests_total``, whose principals come from the certificates of the
connection itself.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from meltemi.adapters import kube_connection
from meltemi.adapters.kube_api import KubeApi, KubeError
from meltemi.model.names import parse_spiffe

REQUESTS = 300
AT_ONCE = 10
SHARE_MIN = 1 / 6
METRICS_DEADLINE_S = 20.0
TRUST_DOMAIN = "cluster.local"
_SERVED = re.compile(r'class="served">Reviews served by <code>(reviews-v\d+)')


@dataclass(frozen=True, slots=True)
class Hop:
    """Requests of one caller to one workload, as the callee's sidecar counted them."""

    source: str
    destination: str
    protocol: str
    security: str
    source_principal: str
    destination_principal: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result."""

    good: bool
    what: str
    found: str


def expected_hops(namespace: str) -> dict[tuple[str, str], tuple[str, str]]:
    """(caller, callee) -> (caller's, callee's) SPIFFE ids that must be seen."""

    def app(name: str) -> str:
        return f"spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/bookinfo-{name}"

    gateway = f"spiffe://{TRUST_DOMAIN}/ns/istio-system/sa/istio-ingressgateway-service-account"
    hops = {("istio-ingressgateway", "productpage-v1"): (gateway, app("productpage"))}
    hops["productpage-v1", "details-v1"] = (app("productpage"), app("details"))
    for version in ("v1", "v2", "v3"):
        hops["productpage-v1", f"reviews-{version}"] = (app("productpage"), app("reviews"))
    for version in ("v2", "v3"):
        hops[f"reviews-{version}", "ratings-v1"] = (app("reviews"), app("ratings"))
    return hops


def parse_hops(text: str) -> dict[Hop, float]:
    """Requests per hop from one sidecar's Prometheus text, counted by the receiving side."""
    from prometheus_client.parser import text_string_to_metric_families

    hops: dict[Hop, float] = {}
    for family in text_string_to_metric_families(text):
        if family.name != "istio_requests":
            continue
        for sample in family.samples:
            labels = sample.labels
            if labels.get("reporter") != "destination":
                continue
            hop = Hop(
                labels.get("source_workload", "unknown"),
                labels.get("destination_workload", "unknown"),
                labels.get("request_protocol", ""),
                labels.get("connection_security_policy", "unknown"),
                labels.get("source_principal", "unknown"),
                labels.get("destination_principal", "unknown"),
            )
            hops[hop] = hops.get(hop, 0.0) + sample.value
    return hops


def share_rows(versions: Mapping[str, int]) -> list[Row]:
    """Every version of reviews must take part.

    The mesh prefers whoever has the fewest requests in flight, so a version that answers faster (v1 asks nobody
    for stars) gets more than its third; a version below a sixth would be one that the mesh avoids.
    """
    total = sum(versions.values())
    rows = []
    for version in ("reviews-v1", "reviews-v2", "reviews-v3"):
        count = versions.get(version, 0)
        percent = 100 * count / total if total else 0.0
        good = total > 0 and count >= total * SHARE_MIN
        rows.append(Row(good, version, f"{count} ({percent:.0f} %)"))
    return rows


def hop_rows(hops: Mapping[Hop, float], namespace: str) -> list[Row]:
    """Each expected hop must have been seen over mutual TLS with the right identities, and in no other way."""
    rows = []
    for (source, destination), (caller, callee) in expected_hops(namespace).items():
        seen = {h: n for h, n in hops.items() if (h.source, h.destination) == (source, destination)}
        good = bool(seen) and all(
            hop.security == "mutual_tls"
            and hop.source_principal == caller
            and hop.destination_principal == callee
            for hop in seen
        )
        found = (
            "; ".join(
                f"{n:.0f} × {h.protocol}, {h.security}, as {_identity(h.source_principal)}"
                for h, n in seen.items()
            )
            or "not seen"
        )
        rows.append(Row(good, f"{source} → {destination}", found))
    return rows


def _identity(principal: str) -> str:
    parts = parse_spiffe(principal)
    return f"{parts[1]}/{parts[2]}" if parts else principal


async def _traffic(base: str) -> tuple[Counter[int], Counter[str]]:
    codes: Counter[int] = Counter()
    versions: Counter[str] = Counter()
    gate = asyncio.Semaphore(AT_ONCE)
    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def one() -> None:
            async with gate:
                try:
                    async with session.get(f"{base}/productpage") as answer:
                        text = await answer.text()
                        codes[answer.status] += 1
                        if found := _SERVED.search(text):
                            versions[found[1]] += 1
                except (aiohttp.ClientError, TimeoutError):
                    codes[0] += 1

        await asyncio.gather(*(one() for _ in range(REQUESTS)))
    return codes, versions


async def _hops(
    api: KubeApi, pods: Iterable[Mapping[str, Any]], namespace: str
) -> dict[Hop, float]:
    async def one(pod: str) -> dict[Hop, float]:
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}:15020/proxy/stats/prometheus"
        return parse_hops((await api.request("GET", path)).decode())

    total: dict[Hop, float] = {}
    for found in await asyncio.gather(*(one(pod["metadata"]["name"]) for pod in pods)):
        for hop, count in found.items():
            total[hop] = total.get(hop, 0.0) + count
    return total


def _sidecars(pods: Iterable[Mapping[str, Any]]) -> Row:
    states = [
        status["ready"]
        for pod in pods
        for status in (pod["status"].get("containerStatuses") or [])
        if status["name"] == "istio-proxy"
    ]
    return Row(
        len(states) == 6 and all(states), "sidecars ready", f"{sum(states)} of {len(states)}"
    )


async def check_demo(kubeconfig: str, base: str, namespace: str, console: Console) -> bool:
    """Send traffic to ``base`` and print the table; True when every row is as it should be."""
    with console.status(f"sending {REQUESTS} requests"):
        codes, versions = await _traffic(base)
    async with KubeApi(kube_connection.load(kubeconfig), "meltemi-demo") as api:
        pods = await api.list("v1", "pods", namespace)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + METRICS_DEADLINE_S
        while True:
            try:
                hops = hop_rows(await _hops(api, pods, namespace), namespace)
            except KubeError as error:
                hops = [Row(False, "metrics of the sidecars", str(error))]
            # Counters reach the scrape a moment after the requests.
            if all(row.good for row in hops) or loop.time() > deadline:
                break
            await asyncio.sleep(0.5)
    rows = [
        Row(
            set(codes) == {200},
            "answers",
            ", ".join(f"{n} × {c or 'no answer'}" for c, n in sorted(codes.items())),
        ),
        *share_rows(versions),
        *hops,
        _sidecars(pods),
    ]
    table = Table(title=f"{REQUESTS} requests through the ingress gateway", title_justify="left")
    table.add_column("")
    table.add_column("What", no_wrap=True)
    table.add_column("Found", overflow="fold")
    for row in rows:
        table.add_row("[green]✔[/green]" if row.good else "[red]✘[/red]", row.what, row.found)
    console.print(table)
    good = all(row.good for row in rows)
    console.print(
        "[green]All is as it should be.[/green]"
        if good
        else "[red]Something is not as it should be.[/red]"
    )
    return good
