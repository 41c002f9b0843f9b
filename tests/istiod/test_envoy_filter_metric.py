"""``pilot_envoy_filter_status``: which patches of EnvoyFilters had an effect, and which could not be applied."""

from __future__ import annotations

from meltemi.adapters.metrics import Metrics
from meltemi.envoy import PatchRecord, encode
from meltemi.push.classes import class_key
from meltemi.translate import translate
from mesh_world import build_world, pod, service

FILTER = """
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: mixed}
spec:
  configPatches:
  - applyTo: CLUSTER
    patch: {operation: MERGE, value: {connect_timeout: 7s}}
  - applyTo: CLUSTER
    patch: {operation: ADD, value: {name: BlackHoleCluster}}
  - applyTo: LISTENER
    match: {listener: {name: nobody}}
    patch: {operation: REMOVE}
"""


def test_patches_are_counted_by_their_outcome() -> None:
    """A patch that matched nothing is neither applied nor an error."""
    world = build_world(service("web", ("http", 9080)) + pod("client", "10.1.0.6") + FILTER)
    record, metrics = PatchRecord(), Metrics()
    ir = translate(world.context, class_key(world.context, world.proxy("client")))
    encode(ir, record)
    metrics.set_envoy_filters([record])
    text = metrics.exposition().decode()
    name = 'pilot_envoy_filter_status{name="default/mixed",patch='
    assert f'{name}"cluster",result="applied"}} 1.0' in text
    assert f'{name}"cluster",result="error"}} 1.0' in text
    assert '"listener"' not in text
    (finding,) = record.findings
    assert finding.origin.path == "spec.configPatches[1]"
    assert "BlackHoleCluster" in finding.text
