"""EnvoyFilter patches of the start configuration: for proxies whose agents ask for them."""

from __future__ import annotations

import pytest

from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

URL = "http://reviews:9080/"
ASKS = "annotations: {proxy.istio.io/config: \"proxyMetadata: {BOOTSTRAP_XDS_AGENT: 'true'}\"}"
# A fault for nobody, but for a runtime value that says how many it is for.
FAULT = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - fault: {abort: {httpStatus: 555, percentage: {value: 0}}}
    route: [{destination: {host: reviews}}]
---
"""


def _caller(note: str) -> str:
    return f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: caller}}
spec:
  template:
    metadata:
      labels: {{app: caller, team: blue}}
      {note}
    spec: {{serviceAccountName: caller, containers: [{{name: app}}]}}
---
"""


def _patch(percent: int, operation: str = "MERGE", context: str = "ANY") -> str:
    layer = f"{{name: patched, static_layer: {{fault.http.abort.abort_percent: {percent}}}}}"
    return f"""
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {{name: start}}
spec:
  configPatches:
  - applyTo: BOOTSTRAP
    match: {{context: {context}}}
    patch: {{operation: {operation}, value: {{layered_runtime: {{layers: [{layer}]}}}}}}
"""


@pytest.mark.covers("EnvoyFilter.configPatches.applyTo", "EnvoyFilter.configPatches.patch.value")
def test_a_proxy_starts_with_the_patch(shop: Mesh) -> None:
    """A list grows; what is patched is there for requests, and gone with the patch."""
    shop.apply(FAULT + _caller(ASKS) + _patch(100))
    assert shop.client("caller").get(URL).status == 555
    shop.delete("EnvoyFilter", "start")
    assert shop.client("caller").get(URL).status == 200


def test_lists_can_be_replaced(shop: Mesh) -> None:
    shop.apply(_caller(ASKS) + _patch(100, "MERGE_AND_REPLACE_LIST"))
    (dump,) = (
        part for part in shop.config("caller")["configs"] if "BootstrapConfigDump" in part["@type"]
    )
    layers = dump["bootstrap"]["layered_runtime"]["layers"]
    assert [layer["name"] for layer in layers] == ["patched"]


def test_gateways_patches_are_for_gateways(shop: Mesh) -> None:
    shop.apply(FAULT + _caller(ASKS) + _patch(100, context="GATEWAY"))
    assert shop.client("caller").get(URL).status == 200


def test_who_does_not_ask_is_told(shop: Mesh) -> None:
    """As in Istio the patch has no effect on a proxy that does not ask for it."""
    shop.apply(FAULT + _patch(100))
    assert shop.client("caller").get(URL).status == 200
