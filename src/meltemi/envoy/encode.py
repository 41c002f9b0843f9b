"""``encode``: a whole ProxyIR to resources, each cached by its IR value.

EnvoyFilter patches change messages, so a type that has patches is built anew; the other types still come
from the caches.
"""

from __future__ import annotations

from collections.abc import Mapping

from meltemi.envoy.clusters import build_cluster
from meltemi.envoy.listeners import build_listener
from meltemi.envoy.name_table import name_table_resource
from meltemi.envoy.patch_bootstrap import bootstrap_patches
from meltemi.envoy.patch_edit import PatchRecord
from meltemi.envoy.patching import (
    extension_configs,
    patch_clusters,
    patch_listeners,
    patch_routes,
    patched_kinds,
)
from meltemi.envoy.routes import build_route_config, route_config_bytes
from meltemi.envoy.secrets import build_secret
from meltemi.ir.cluster import Cluster
from meltemi.ir.listener import Listener
from meltemi.ir.proxy import ProxyIR
from meltemi.ir.route import RouteConfig
from meltemi.ir.secret import Secret
from meltemi.ir.value import per_value
from meltemi.model.names import (
    BOOTSTRAP_TYPE,
    CDS_TYPE,
    ECDS_TYPE,
    LDS_TYPE,
    NDS_TYPE,
    RDS_TYPE,
    SDS_TYPE,
)
from meltemi.model.resource import Resource, resource_of


@per_value
def _cluster(cluster: Cluster) -> Resource:
    return resource_of(cluster.name, build_cluster(cluster).SerializeToString(deterministic=True))


@per_value
def _listener(listener: Listener) -> Resource:
    return resource_of(
        listener.name, build_listener(listener).SerializeToString(deterministic=True)
    )


@per_value
def _route(config: RouteConfig) -> Resource:
    return resource_of(config.name, route_config_bytes(config))


@per_value
def _secret(secret: Secret) -> Resource:
    return resource_of(secret.name, build_secret(secret).SerializeToString(deterministic=True))


def encode(ir: ProxyIR, record: PatchRecord | None = None) -> Mapping[str, tuple[Resource, ...]]:
    """Resources by type URL: clusters, listeners, routes, filters, secrets and names. Endpoints have ``encode_endpoints``.

    ``record`` learns which EnvoyFilter patches had an effect, and which could not be applied.
    """
    record = PatchRecord() if record is None else record
    kinds = patched_kinds(ir.patches)
    if "cluster" in kinds:
        clusters = patch_clusters([build_cluster(c) for c in ir.clusters], ir, record)
    else:
        clusters = tuple(_cluster(cluster) for cluster in ir.clusters)
    if "listener" in kinds:
        built = [build_listener(entry) for entry in ir.listeners]
        listeners = patch_listeners(built, ir, record)
    else:
        listeners = tuple(_listener(listener) for listener in ir.listeners)
    if "route" in kinds:
        routes = patch_routes([build_route_config(config) for config in ir.routes], ir, record)
    else:
        routes = tuple(_route(config) for config in ir.routes)
    return {
        CDS_TYPE: clusters,
        LDS_TYPE: listeners,
        RDS_TYPE: routes,
        SDS_TYPE: tuple(_secret(secret) for secret in ir.secrets),
        NDS_TYPE: (name_table_resource(ir.names),) if ir.names is not None else (),
        ECDS_TYPE: extension_configs(ir, record) if "extension" in kinds else (),
        BOOTSTRAP_TYPE: bootstrap_patches(ir, record) if "bootstrap" in kinds else (),
    }
