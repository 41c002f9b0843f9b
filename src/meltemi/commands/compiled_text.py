"""A proxy's configuration in short: every listener, chain, filter, route and cluster, with the lines that caused it.

In: ``Compiled``. Out: lines of text, one decision each, ``<what>  # <file>:<line> (<object> <field>)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from meltemi.commands.compiled import Compiled
from meltemi.explain.routing import describe
from meltemi.ir.cluster import Cluster
from meltemi.ir.listener import ChainMatch, FilterChain, HttpManager, Listener, TcpProxy
from meltemi.ir.route import DirectResponse, Forward, Redirect, Route, RouteConfig
from meltemi.ir.value import Origins
from meltemi.model.origin import Origin


def lines_of(made: Compiled) -> Iterator[str]:
    """The whole proxy."""
    kind = "gateway" if made.proxy.router else "sidecar"
    yield f"{made.proxy.id}  {kind} of {made.proxy.kind} {made.proxy.workload}" + _from(
        (made.proxy.origin,)
    )
    for listener in made.ir.listeners:
        yield from _listener(listener)
    for route in made.ir.routes:
        yield from _table(route)
    for cluster in made.ir.clusters:
        yield _cluster(cluster)
    for secret in made.ir.secrets:
        yield f"  secret {secret.name}" + _from(secret.origins)
    for patch in made.ir.patches:
        yield f"  patch {patch.apply_to}" + _from(getattr(patch, "origins", ()))
    for finding in made.findings:
        yield f"  {finding}"


def _from(origins: Iterable[Origin], inherited: Origins = ()) -> str:
    """The places, without those that the line above has named."""
    above = set(inherited)
    found = dict.fromkeys(str(origin) for origin in origins if origin not in above)
    return "  # " + "; ".join(found) if found else ""


def _listener(listener: Listener) -> Iterator[str]:
    yield f"  listener {listener.name} {listener.address}:{listener.port}" + _from(listener.origins)
    for chain in listener.chains:
        yield from _chain(chain, listener.origins)
    if listener.default_chain is not None:
        yield from _chain(listener.default_chain, listener.origins)


def _match(match: ChainMatch) -> str:
    parts = []
    if match.destination_port:
        parts.append(f"port {match.destination_port}")
    parts += [*match.prefixes, *(f"from {prefix}" for prefix in match.source_prefixes)]
    parts += [f"SNI {name}" for name in match.server_names]
    if match.transport_protocol:
        parts.append({"raw_buffer": "plaintext"}.get(match.transport_protocol, "TLS"))
    parts += match.application_protocols
    return ", ".join(parts) or "everything"


def _chain(chain: FilterChain, above: Origins) -> Iterator[str]:
    tls = ""
    if chain.tls is not None:
        tls = ", mTLS" if chain.tls.client_certificate == "required" else ", TLS"
    yield f"    chain {chain.name or '-'}: {_match(chain.match)}{tls}" + _from(chain.origins, above)
    known = (*above, *chain.origins)
    for entry in chain.filters:
        if isinstance(entry, HttpManager):
            table = entry.rds or (entry.routes.name if entry.routes is not None else "-")
            yield f"      filter HTTP, routes {table}" + _from(entry.origins, known)
            for http in entry.filters:
                yield f"        filter {type(http).__name__}" + _from(
                    getattr(http, "origins", ()), known
                )
            if entry.routes is not None:
                for host in entry.routes.virtual_hosts:
                    for route in host.routes:
                        yield from _route(route, "        ", known)
        elif isinstance(entry, TcpProxy):
            targets = ", ".join(
                _weighted(target.cluster, target.weight, len(entry.clusters))
                for target in entry.clusters
            )
            yield f"      filter TCP to {targets}" + _from(entry.origins, known)
        else:
            yield f"      filter {type(entry).__name__}" + _from(
                getattr(entry, "origins", ()), known
            )


def _weighted(name: str, weight: int, count: int) -> str:
    return f"{name} ({weight})" if count > 1 else name


def _table(table: RouteConfig) -> Iterator[str]:
    yield f"  routes {table.name}" + _from(table.origins)
    for host in table.virtual_hosts:
        yield f"    host {host.name}" + _from(host.origins, table.origins)
        for route in host.routes:
            yield from _route(route, "      ", (*table.origins, *host.origins))


def _route(route: Route, indent: str, above: Origins) -> Iterator[str]:
    name = f" {route.name!r}" if route.name else ""
    yield f"{indent}route{name}: {describe(route.match)} -> {_action(route)}" + _from(
        route.origins, above
    )


def _action(route: Route) -> str:
    action = route.action
    if isinstance(action, Forward):
        clusters = action.clusters
        return (
            ", ".join(_weighted(t.cluster, t.weight, len(clusters)) for t in clusters) or "nowhere"
        )
    if isinstance(action, Redirect):
        return "redirect"
    if isinstance(action, DirectResponse):
        return f"status {action.status}"
    return type(action).__name__


def _cluster(cluster: Cluster) -> str:
    tls = "plaintext"
    if cluster.tls is not None:
        tls = "TLS"
    elif cluster.auto_tls is not None:
        tls = "auto mTLS"
    return f"  cluster {cluster.name} {cluster.type.value}, {tls}" + _from(cluster.origins)
