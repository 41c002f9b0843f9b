"""``explain``: walk the IR as Envoy would walk its configuration."""

from __future__ import annotations

from urllib.parse import urlsplit

from meltemi.explain.chains import find_chain, find_listener
from meltemi.explain.request import Explanation, Request, Step
from meltemi.explain.routing import describe, find_route, find_virtual_host
from meltemi.ir.listener import HttpManager, TcpProxy
from meltemi.ir.proxy import ProxyIR
from meltemi.ir.route import DirectResponse, Forward, Redirect, Route, WeightedCluster


def explain(ir: ProxyIR, request: Request) -> Explanation:
    """What this class of proxies does with a request."""
    listener, why = find_listener(ir, request)
    if listener is None:
        return Explanation((Step("listener", "", why),))
    steps = [Step("listener", listener.name, why, listener.origins)]
    chain, why = find_chain(listener, request)
    if chain is None:
        return Explanation((*steps, Step("chain", "", why)))
    secure = ", mTLS required" if chain.tls and chain.tls.client_certificate == "required" else ""
    steps.append(Step("chain", chain.name, why + secure, chain.origins))
    for entry in chain.filters:
        if isinstance(entry, HttpManager):
            return _http(ir, entry, request, steps)
        if isinstance(entry, TcpProxy):
            return _tcp(ir, entry.clusters, steps)
    return Explanation(tuple(steps))


def _cluster_steps(
    ir: ProxyIR, targets: tuple[WeightedCluster, ...]
) -> tuple[list[Step], tuple[str, ...]]:
    known = {cluster.name: cluster for cluster in ir.clusters}
    steps, missing = [], []
    for target in targets:
        cluster = known.get(target.cluster)
        if cluster is None:
            missing.append(target.cluster)
            steps.append(Step("cluster", target.cluster, "does not exist: 503"))
            continue
        tls = (
            "TLS"
            if cluster.tls
            else "mTLS where the endpoint has a sidecar"
            if cluster.auto_tls
            else "plaintext"
        )
        share = f"weight {target.weight}, " if len(targets) > 1 else ""
        steps.append(Step("cluster", cluster.name, f"{share}{tls}", cluster.origins))
    return steps, tuple(missing)


def _tcp(ir: ProxyIR, targets: tuple[WeightedCluster, ...], steps: list[Step]) -> Explanation:
    more, missing = _cluster_steps(ir, targets)
    return Explanation((*steps, *more), clusters=targets, missing=missing)


def _http(ir: ProxyIR, manager: HttpManager, request: Request, steps: list[Step]) -> Explanation:
    if not request.host:
        return Explanation((*steps, Step("action", "", "not HTTP: refused")), status=400)
    config = manager.routes
    if config is None:
        config = next((entry for entry in ir.routes if entry.name == manager.rds), None)
    if config is None:
        return Explanation(
            (*steps, Step("route table", manager.rds, "not there yet: 404")), status=404
        )
    steps.append(Step("route table", config.name, "of this chain", config.origins))
    host = find_virtual_host(config, request)
    if host is None:
        return Explanation(
            (*steps, Step("virtual host", "", f"none for {request.host}")), status=404
        )
    steps.append(Step("virtual host", host.name, f"has {request.host}", host.origins))
    if host.require_tls and request.scheme != "https" and not (request.tls or request.sni):
        location = f"https://{request.host}{request.path}"
        steps.append(Step("action", "redirect", "the server redirects to HTTPS"))
        return Explanation(tuple(steps), status=301, location=location)
    found = find_route(host, request)
    if found is None:
        return Explanation((*steps, Step("route", "", "no route matches")), status=404)
    index, route = found
    steps.append(Step("route", route.name or f"#{index}", describe(route.match), route.origins))
    return _act(ir, route, request, steps)


def _act(ir: ProxyIR, route: Route, request: Request, steps: list[Step]) -> Explanation:
    fault = route.fault
    if fault is not None:
        if fault.delay_s is not None:
            words = f"{fault.delay_percent:g} % wait {fault.delay_s:g} s"
            steps.append(Step("fault", "delay", words, route.origins))
        if fault.abort_status is not None or fault.abort_grpc is not None:
            words = f"{fault.abort_percent:g} % get {fault.abort_status or fault.abort_grpc}"
            steps.append(Step("fault", "abort", words, route.origins))
            if fault.abort_percent >= 100 and fault.abort_status is not None:
                return Explanation(tuple(steps), status=fault.abort_status, route=route)
    action = route.action
    if isinstance(action, Forward):
        more, missing = _cluster_steps(ir, action.clusters)
        return Explanation((*steps, *more), clusters=action.clusters, route=route, missing=missing)
    if isinstance(action, Redirect):
        steps.append(Step("action", "redirect", str(action.code)))
        return Explanation(
            tuple(steps), status=action.code, location=_location(action, request), route=route
        )
    return _answer(action, route, steps)


def _answer(action: DirectResponse, route: Route, steps: list[Step]) -> Explanation:
    steps.append(Step("action", "direct response", str(action.status)))
    return Explanation(tuple(steps), status=action.status, route=route)


def _location(action: Redirect, request: Request) -> str:
    split = urlsplit(request.path)
    scheme = "https" if action.https else action.scheme or request.scheme
    host = action.host or request.host
    port = f":{action.port}" if action.port else ""
    path = action.path or split.path
    query = f"?{split.query}" if split.query and not action.path else ""
    return f"{scheme}://{host}{port}{path}{query}"
