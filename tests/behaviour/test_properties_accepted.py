"""Random objects of every kind, all their fields: what validation accepts, real Envoys accept.

``ROUTING_EXAMPLES`` (default 12) is the number of random configurations; each goes to all proxies of the shop.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from meltemi.config.shapes import record
from meltemi.model.mesh import MeshConfig
from meltemi.testing.mesh import Mesh, Session
from random_api import fields_of, object_of
from random_filters import envoy_filters

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(36000)]
EXAMPLES = int(os.environ.get("ROUTING_EXAMPLES", "12"))
SERVICES = Path(__file__).parent / "services.yaml"
GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8080, name: http, protocol: HTTP}, hosts: ["*"]}
"""
KINDS = (
    "VirtualService",
    "VirtualService",
    "VirtualService",
    "DestinationRule",
    "DestinationRule",
    "Gateway",
    "ServiceEntry",
    "WorkloadEntry",
    "WorkloadGroup",
    "Sidecar",
    "AuthorizationPolicy",
    "RequestAuthentication",
    "PeerAuthentication",
    "Telemetry",
    "ProxyConfig",
)
_object = st.one_of(*(st.sampled_from(KINDS).flatmap(object_of) for _ in range(4)), envoy_filters())
_objects = st.lists(_object, min_size=3, max_size=6)


def _unique(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last of each name, as an API server would have it."""
    found = {
        (entry["kind"], entry["metadata"]["namespace"], entry["metadata"]["name"]): entry
        for entry in objects
    }
    return list(found.values())


@settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
@given(objects=_objects)
def test_what_is_valid_is_accepted_by_envoy(
    meltemi_session: Session, objects: list[dict[str, Any]]
) -> None:
    """Wrong objects are left out with findings; of the rest every proxy takes everything."""
    mesh = Mesh(meltemi_session, SERVICES.parent)
    known = _unique(objects)
    text = yaml.safe_dump_all(known, sort_keys=False)
    secret = mesh.tls_secret("cred", "a.example.com", ca=True)
    mesh.apply(SERVICES, GATEWAY, secret, text, strict=False)
    used = sum(1 for key in mesh.objects.configs if key.name in ("one", "two"))
    event(f"{used} of {len(known)} are valid")


@settings(
    max_examples=max(4, EXAMPLES // 4),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(settings_=fields_of(record(MeshConfig), 0))
def test_what_is_a_valid_mesh_configuration_is_accepted_by_envoy(
    meltemi_session: Session, settings_: dict[str, Any]
) -> None:
    """The mesh's own settings."""
    for name in ("trustDomain", "proxyListenPort", "proxyInboundListenPort", "rootNamespace"):
        settings_.pop(name, None)
    mesh = Mesh(meltemi_session, SERVICES.parent)
    text = yaml.safe_dump(settings_)
    mesh.apply(SERVICES, GATEWAY, mesh_config=text, strict=False)
