"""Changes of the configuration do not pile up in the caches of the encoding."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from meltemi.envoy import encode
from mesh_world import build_world, pod

SERVICE = """
---
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
"""
ROUTE = """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http: [{timeout: %ds, route: [{destination: {host: reviews}}]}]
"""


def test_what_was_replaced_is_forgotten() -> None:
    """Of twenty snapshots the last is alive, with what was encoded for it; the others are gone."""
    text = (
        pod("client", "10.1.0.1") + pod("reviews", "10.1.0.2", labels={"app": "reviews"}) + SERVICE
    )
    seen: list[weakref.ref[Any]] = []
    kept: tuple[Any, ...] = ()
    for number in range(1, 21):
        world = build_world(text + ROUTE % number)
        ir = world.ir("client")
        resources = encode(ir)
        seen.append(weakref.ref(next(r for r in ir.routes if r.name == "9080")))
        kept = (world, ir, resources)
    del world, ir, resources
    gc.collect()
    assert [ref() is not None for ref in seen] == [False] * 19 + [True]
    del kept
    gc.collect()
    assert seen[-1]() is None
