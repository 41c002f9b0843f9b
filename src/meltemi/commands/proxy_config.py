"""``proxy-config``: what an Envoy has, read from the Envoy itself through the API server.

``proxy-config cluster|listener|route|endpoint|secret|bootstrap|log|all POD[.NAMESPACE]``, tables for people, ``-o
json|yaml`` for programs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from meltemi.commands.cluster import connection_flags
from meltemi.commands.failure import CommandError, run, why
from meltemi.model.names import parse_cluster

Dump = Mapping[str, Any]
Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]
_CONFIG = "type.googleapis.com/envoy.admin.v3."


def split_pod(name: str, namespace: str) -> tuple[str, str]:
    """``pod.namespace`` or ``pod`` with a namespace flag."""
    pod, dot, given = name.removeprefix("pod/").partition(".")
    return pod, given if dot else namespace


def section(dump: Dump, kind: str) -> Mapping[str, Any]:
    """One section (``ClustersConfigDump``, ...) of a config dump; empty when it is not there."""
    for entry in dump.get("configs") or []:
        if entry.get("@type") == _CONFIG + kind:
            found: Mapping[str, Any] = entry
            return found
    return {}


def clusters(dump: Dump) -> list[Mapping[str, Any]]:
    """Every cluster, static and dynamic."""
    found = section(dump, "ClustersConfigDump")
    entries = [*(found.get("static_clusters") or []), *(found.get("dynamic_active_clusters") or [])]
    return [entry["cluster"] for entry in entries]


def listeners(dump: Dump) -> list[Mapping[str, Any]]:
    """Every active listener."""
    found = section(dump, "ListenersConfigDump")
    static = [entry["listener"] for entry in found.get("static_listeners") or []]
    dynamic = [
        entry["active_state"]["listener"]
        for entry in found.get("dynamic_listeners") or []
        if "active_state" in entry
    ]
    return [*static, *dynamic]


def routes(dump: Dump) -> list[Mapping[str, Any]]:
    """Every route configuration."""
    found = section(dump, "RoutesConfigDump")
    entries = [
        *(found.get("static_route_configs") or []),
        *(found.get("dynamic_route_configs") or []),
    ]
    return [entry["route_config"] for entry in entries]


def cluster_rows(items: Iterable[Mapping[str, Any]]) -> Rows:
    """The table of clusters, as istioctl's."""
    rows: list[tuple[str, ...]] = []
    for item in items:
        parsed = parse_cluster(item["name"])
        kind = item.get("type") or (item.get("cluster_type") or {}).get("name") or "STATIC"
        if parsed:
            host, port = parsed.hostname or "-", str(parsed.port)
            rows.append((host, port, parsed.subset or "-", parsed.direction, kind))
        else:
            rows.append((item["name"], "-", "-", "-", kind))
    return ("SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE"), sorted(rows)


def _destination(chain: Mapping[str, Any]) -> str:
    for item in chain.get("filters") or []:
        config = item.get("typed_config") or {}
        if "rds" in config:
            return f"Route: {config['rds']['route_config_name']}"
        if "route_config" in config:
            return f"Inline Route: {config['route_config'].get('name', '')}"
        if "cluster" in config:
            return f"Cluster: {config['cluster']}"
        if "weighted_clusters" in config:
            names = (entry["name"] for entry in config["weighted_clusters"]["clusters"])
            return f"Clusters: {', '.join(names)}"
    return "Non-HTTP/Non-TCP"


def _match(chain: Mapping[str, Any]) -> str:
    found = chain.get("filter_chain_match") or {}
    parts = []
    if found.get("transport_protocol"):
        parts.append(f"Trans: {found['transport_protocol']}")
    if found.get("application_protocols"):
        parts.append(f"App: {','.join(found['application_protocols'])}")
    if found.get("server_names"):
        parts.append(f"SNI: {','.join(found['server_names'])}")
    if found.get("prefix_ranges"):
        ranges = (f"{r['address_prefix']}/{r.get('prefix_len', 0)}" for r in found["prefix_ranges"])
        parts.append(f"Addr: {','.join(ranges)}")
    if found.get("destination_port"):
        parts.append(f"Port: {found['destination_port']}")
    return "; ".join(parts) or "ALL"


def listener_rows(items: Iterable[Mapping[str, Any]]) -> Rows:
    """The table of listeners: one line a filter chain."""
    rows: list[tuple[str, ...]] = []
    for item in items:
        address = (item.get("address") or {}).get("socket_address") or {}
        where = (address.get("address", ""), str(address.get("port_value", "")))
        chains = list(item.get("filter_chains") or [])
        if item.get("default_filter_chain"):
            chains.append(item["default_filter_chain"])
        rows += [(*where, _match(chain), _destination(chain)) for chain in chains]
    return ("ADDRESS", "PORT", "MATCH", "DESTINATION"), rows


def route_rows(items: Iterable[Mapping[str, Any]]) -> Rows:
    """The table of virtual hosts."""
    rows: list[tuple[str, ...]] = []
    for item in items:
        for host in item.get("virtual_hosts") or []:
            domains = host.get("domains") or []
            matches = [entry.get("match") or {} for entry in host.get("routes") or []]
            first = next((m.get("prefix") or m.get("path") or "" for m in matches), "")
            more = f", {len(matches) - 1} more" if len(matches) > 1 else ""
            shown = ", ".join(domains[:2]) + (
                f" + {len(domains) - 2} more" if len(domains) > 2 else ""
            )
            rows.append((item.get("name", ""), host.get("name", ""), shown, f"{first}*{more}"))
    return ("NAME", "VHOST NAME", "DOMAINS", "MATCH"), rows


def endpoint_rows(statuses: Iterable[Mapping[str, Any]]) -> Rows:
    """The table of endpoints, with the health that Envoy sees."""
    rows: list[tuple[str, ...]] = []
    for status in statuses:
        for host in status.get("host_statuses") or []:
            address = (host.get("address") or {}).get("socket_address") or {}
            pipe = (host.get("address") or {}).get("pipe") or {}
            where = (
                pipe.get("path") or f"{address.get('address', '')}:{address.get('port_value', 0)}"
            )
            health = host.get("health_status") or {}
            outlier = "FAILED" if health.get("failed_outlier_check") else "OK"
            rows.append(
                (where, health.get("eds_health_status", "HEALTHY"), outlier, status["name"])
            )
    return ("ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"), sorted(rows)


def secret_rows(dump: Dump) -> Rows:
    """The table of secrets: names and states, never contents."""
    found = section(dump, "SecretsConfigDump")
    rows: list[tuple[str, ...]] = []
    for key, state in (
        ("static_secrets", "STATIC"),
        ("dynamic_active_secrets", "ACTIVE"),
        ("dynamic_warming_secrets", "WARMING"),
    ):
        for entry in found.get(key) or []:
            secret = entry.get("secret") or {}
            kind = "CA" if "validation_context" in secret else "Cert Chain"
            rows.append((entry.get("name", ""), kind, state, entry.get("last_updated", "")))
    return ("RESOURCE NAME", "TYPE", "STATUS", "LAST UPDATED"), rows


async def read_envoy(
    kubeconfig: str, context: str, pod: str, namespace: str, path: str, method: str = "GET"
) -> bytes:
    """The answer of an Envoy's admin endpoint, through ``pilot-agent request`` in its pod."""
    from meltemi.adapters import kube_connection
    from meltemi.adapters.kube_api import KubeApi
    from meltemi.adapters.kube_exec import run_in_pod

    connection = kube_connection.load(kubeconfig, context)
    async with KubeApi(connection, "meltemi") as api:
        return await run_in_pod(
            api,
            namespace or connection.namespace,
            pod,
            "istio-proxy",
            ["pilot-agent", "request", method, path],
        )


def _print(rows: Rows, body: Any, output: str) -> None:
    if output == "json":
        click.echo(json.dumps(body, indent=2))
        return
    if output == "yaml":
        import yaml

        click.echo(yaml.safe_dump(body, sort_keys=False), nl=False)
        return
    header, lines = rows
    table = Table(*header, box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for line in lines:
        table.add_row(*line)
    Console(width=None if Console().is_terminal else 250).print(table)


def _flags(command: Callable[..., Any]) -> Any:
    command = click.option(
        "-o", "--output", type=click.Choice(["short", "json", "yaml"]), default="short"
    )(command)
    command = click.option("-n", "--namespace", default="", help="namespace of the pod")(command)
    command = click.option(
        "-f", "--file", "path", default="", help="a config dump instead of a live Envoy"
    )(command)
    command = click.argument("name", required=False)(command)
    return connection_flags(command)


def _fetch(
    path: str, name: str | None, namespace: str, kubeconfig: str, context: str, url: str
) -> Any:
    if path:
        from pathlib import Path

        try:
            return json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CommandError(f"{path}: {why(error)}") from error
    if not name:
        raise CommandError("name a pod, as POD or POD.NAMESPACE, or a file with -f")
    pod, where = split_pod(name, namespace)
    return json.loads(run(read_envoy(kubeconfig, context, pod, where, url)))


@click.group(name="proxy-config")
def proxy_config() -> None:
    """What an Envoy has."""


def _verb(
    verb: str, text: str, url: str, rows: Callable[[Any], Rows], body: Callable[[Any], Any]
) -> None:
    @_flags
    def command(
        name: str | None,
        path: str,
        namespace: str,
        output: str,
        kubeconfig: str,
        context: str,
    ) -> None:
        dump = _fetch(path, name, namespace, kubeconfig, context, url)
        _print(rows(dump), body(dump), output)

    command.__doc__ = text
    for alias in (verb, f"{verb}s"):
        proxy_config.add_command(click.command(alias, hidden=alias != verb)(command))


_verb(
    "cluster",
    "Clusters: whom it can send to.",
    "config_dump",
    lambda d: cluster_rows(clusters(d)),
    clusters,
)
_verb(
    "listener",
    "Listeners: what it accepts.",
    "config_dump",
    lambda d: listener_rows(listeners(d)),
    listeners,
)
_verb(
    "route", "Routes: how HTTP is routed.", "config_dump", lambda d: route_rows(routes(d)), routes
)
_verb(
    "endpoint",
    "Endpoints, with the health that Envoy sees.",
    "clusters?format=json",
    lambda d: endpoint_rows(d.get("cluster_statuses") or []),
    lambda d: d.get("cluster_statuses") or [],
)
_verb(
    "secret",
    "Secrets: certificates by name and state.",
    "config_dump",
    secret_rows,
    lambda d: section(d, "SecretsConfigDump"),
)


@proxy_config.command()
@_flags
def bootstrap(
    name: str | None, path: str, namespace: str, output: str, kubeconfig: str, context: str
) -> None:
    """The bootstrap that it was started with."""
    dump = _fetch(path, name, namespace, kubeconfig, context, "config_dump")
    body = section(dump, "BootstrapConfigDump").get("bootstrap") or {}
    _print(((), []), body, "json" if output == "short" else output)


@proxy_config.command(name="all")
@_flags
def everything(
    name: str | None, path: str, namespace: str, output: str, kubeconfig: str, context: str
) -> None:
    """Everything: clusters, listeners, routes and secrets."""
    dump = _fetch(path, name, namespace, kubeconfig, context, "config_dump")
    if output != "short":
        _print(((), []), dump, output)
        return
    for rows in (
        cluster_rows(clusters(dump)),
        listener_rows(listeners(dump)),
        route_rows(routes(dump)),
        secret_rows(dump),
    ):
        _print(rows, None, output)
        click.echo()


@proxy_config.command()
@click.argument("name")
@click.option("--level", default="", help="a level for all loggers, or logger:level,...")
@click.option("-n", "--namespace", default="")
@connection_flags
def log(name: str, level: str, namespace: str, kubeconfig: str, context: str) -> None:
    """Show or set the log levels of an Envoy."""
    pod, where = split_pod(name, namespace)
    query = ""
    if level:
        query = f"?paths={level}" if ":" in level else f"?level={level}"
    click.echo(run(read_envoy(kubeconfig, context, pod, where, f"logging{query}", "POST")).decode())
