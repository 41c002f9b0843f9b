"""Proxy classes: what makes two proxies share their configuration, and what does not."""

from __future__ import annotations

from meltemi.model.config import Key
from meltemi.model.names import LDS_TYPE, RDS_TYPE, SDS_TYPE
from meltemi.model.proxy import NodeType, Proxy
from meltemi.push import affected, class_key
from meltemi.translate import overlay_for, translate
from mesh_world import World, build_world, pod, service

RULES = """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: rule}
spec:
  hosts: [web]
  http:
  - match: [{sourceLabels: {tier: gold}}]
    route: [{destination: {host: web, subset: gold}}]
  - route: [{destination: {host: web}}]
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{name: tcp, port: 5432}]
"""


def _world() -> World:
    text = service("web", ("http", 80)) + RULES
    text += pod(
        "web-1", "10.0.0.1", labels={"app": "web", "statefulset.kubernetes.io/pod-name": "web-1"}
    )
    text += pod(
        "web-2", "10.0.0.2", labels={"app": "web", "statefulset.kubernetes.io/pod-name": "web-2"}
    )
    text += pod("web-3", "10.0.0.3", labels={"app": "web", "tier": "gold"})
    text += pod("far", "10.0.1.1", namespace="other", labels={"app": "web"})
    return build_world(text)


def test_labels_that_nothing_selects_do_not_split_a_class() -> None:
    """Two pods of a StatefulSet share one class, and with it one translation."""
    world = _world()
    one, two = (class_key(world.context, world.proxy(name)) for name in ("web-1", "web-2"))
    assert one == two
    assert translate(world.context, one) is translate(world.context, two)


def test_results_of_selectors_split_classes() -> None:
    """A label that a rule selects, and the namespace, make a difference."""
    world = _world()
    keys = {class_key(world.context, world.proxy(name)) for name in ("web-1", "web-3", "far.other")}
    assert len(keys) == 3


def test_a_pod_leaves_out_the_listener_on_its_own_address() -> None:
    """Headless TCP services listen on every pod's address but the proxy's own."""
    ir = _world().ir("web-1")
    assert {"10.0.0.1_5432", "10.0.0.2_5432"} <= {entry.name for entry in ir.listeners}
    assert overlay_for(ir, "10.0.0.1") == {"10.0.0.1_5432"}


def test_equal_classes_get_equal_versions_in_another_context() -> None:
    """Versions are digests of bytes: a rebuilt snapshot changes nothing that is sent."""
    one, two = _world().resources("web-1"), _world().resources("web-1")
    assert one == two


def test_who_hears_of_a_change() -> None:
    """A Gateway concerns routers, a Secret those of its namespace, a Sidecar its namespace, a Service everybody."""
    context = _world().context
    sidecar = Proxy("a.default", NodeType.SIDECAR, ("10.0.0.1",), "default")
    router = Proxy("g.edge", NodeType.ROUTER, ("10.0.0.9",), "edge")

    def concerns(change: Key | str, proxy: Proxy) -> bool:
        return affected([change], context).concerns(proxy)

    assert concerns(Key("Gateway", "default", "g"), router)
    assert not concerns(Key("Gateway", "default", "g"), sidecar)
    assert concerns(Key("Secret", "edge", "s"), router)
    assert not concerns(Key("Secret", "other", "s"), router)
    assert not concerns(Key("Sidecar", "other", "s"), sidecar)
    assert concerns(Key("Sidecar", "istio-system", "s"), sidecar)
    assert concerns("web.default.svc.cluster.local", sidecar)
    assert not affected([], context).concerns(sidecar)
    assert affected([Key("Secret", "edge", "s")], context).types == {SDS_TYPE}
    assert affected([Key("VirtualService", "d", "v")], context).types == {LDS_TYPE, RDS_TYPE}


def test_only_proxies_that_compare_zones_are_told_apart_by_their_template() -> None:
    """Every other class has pods of all templates."""
    shared = {"app": "web", "service.istio.io/workload-name": "web"}
    text = service("web", ("http", 80)) + "".join(
        pod(f"web-{n}", f"10.0.0.{n}", labels={**shared, "pod-template-hash": hash})
        for n, hash in ((1, "x"), (2, "x"), (3, "y"))
    )
    world = build_world(text)

    def classes(**metadata: str) -> int:
        names = ("web-1", "web-2", "web-3")
        proxies = [world.proxy(name, metadata=metadata) for name in names]
        return len({class_key(world.context, proxy) for proxy in proxies})

    assert classes() == 1
    assert classes(ENABLE_SELF_DISCOVERY="true") == 2


def test_a_proxy_without_a_service_is_answered_all_the_same() -> None:
    """Envoy waits for its own service's endpoints before it asks for clusters."""
    world = build_world(pod("web-1", "10.0.0.1", labels={"app": "web"}))
    ir = world.ir("web-1", metadata={"ENABLE_SELF_DISCOVERY": "true"})
    assert ir.needs()["local_cluster"].hostname == ""
