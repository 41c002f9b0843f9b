"""``translate``: one proxy class to its IR."""

from __future__ import annotations

from meltemi.ir.listener import Listener
from meltemi.ir.proxy import ProxyIR
from meltemi.push.classes import ProxyClass
from meltemi.push.context import PushContext
from meltemi.translate.authorization import selected
from meltemi.translate.build import Build
from meltemi.translate.clusters import fixed_clusters, outbound_clusters, own_service
from meltemi.translate.east_west import east_west_clusters
from meltemi.translate.envoy_filters import patches_for
from meltemi.translate.gateways import gateway_listeners
from meltemi.translate.inbound import inbound_listeners
from meltemi.translate.name_table import name_table
from meltemi.translate.outbound import outbound_listeners
from meltemi.translate.proxy_secrets import proxy_secrets
from meltemi.translate.proxy_settings import shaped_resources
from meltemi.translate.request_authentication import key_clusters
from meltemi.translate.scope import build_scope


def translate(context: PushContext, proxy_class: ProxyClass) -> ProxyIR:
    """Everything that proxies of this class shall do. Remembered in the context: once per class."""
    memo = ("ir", proxy_class)
    known = context.memo.get(memo)
    if isinstance(known, ProxyIR):
        return known
    build = Build(context, proxy_class, build_scope(context, proxy_class))
    clusters, needs = outbound_clusters(build)
    needs += own_service(build)
    fixed = fixed_clusters(build)
    listeners: list[Listener]
    if proxy_class.is_gateway:
        listeners, routes = gateway_listeners(build)
        between, their_needs = east_west_clusters(build)
        clusters += between
        needs += their_needs
    else:
        listeners, routes = outbound_listeners(build)
        inbound, own = inbound_listeners(build)
        listeners += inbound
        clusters += own
    clusters += key_clusters(build, selected(build, "RequestAuthentication"))
    secrets = proxy_secrets(build, listeners, [*fixed, *clusters])
    made = ProxyIR(
        listeners=tuple(listeners),
        routes=tuple(routes),
        clusters=tuple(fixed + clusters),
        secrets=secrets,
        endpoint_needs=tuple(needs),
        patches=patches_for(build),
        gateway=proxy_class.is_gateway,
        names=name_table(build),
        findings=tuple(build.findings),
    )
    made = shaped_resources(build, made)
    context.memo[memo] = made
    return made


def overlay_for(ir: ProxyIR, address: str) -> frozenset[str]:
    """Names of listeners that one pod must not get: those on its own address (headless services)."""
    return frozenset(entry.name for entry in ir.listeners if entry.pod_only == address)
