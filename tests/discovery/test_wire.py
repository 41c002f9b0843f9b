"""Spliced responses are what protobuf would have written."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given
from hypothesis import strategies as st

from meltemi.discovery import wire
from meltemi.model.names import CDS_TYPE
from meltemi.model.resource import Resource, resource_of


def cluster(name: str) -> Resource:
    return resource_of(name, cluster_pb2.Cluster(name=name).SerializeToString())


TEXTS = st.text(max_size=300)
RESOURCES = st.lists(
    st.builds(
        Resource, st.text(min_size=1), st.text(), st.binary(max_size=400), st.tuples(st.text())
    ),
    max_size=5,
)


@given(TEXTS, TEXTS, TEXTS, RESOURCES)
def test_sotw_equals_protobuf(
    type_url: str, version: str, nonce: str, resources: list[Resource]
) -> None:
    """A DiscoveryResponse parses to exactly the fields that went in."""
    entries = [wire.sotw_entry(type_url, r) for r in resources]
    data = b"".join(wire.sotw_parts(type_url, version, nonce, entries))
    wanted = discovery_pb2.DiscoveryResponse(version_info=version, type_url=type_url, nonce=nonce)
    wanted.control_plane.identifier = wire.IDENTIFIER
    for r in resources:
        wanted.resources.add(type_url=type_url, value=r.body)
    assert discovery_pb2.DiscoveryResponse.FromString(data) == wanted
    assert len(data) == wanted.ByteSize()


@given(TEXTS, TEXTS, TEXTS, RESOURCES, st.lists(TEXTS, max_size=4))
def test_delta_equals_protobuf(
    type_url: str, version: str, nonce: str, resources: list[Resource], removed: list[str]
) -> None:
    """A DeltaDiscoveryResponse parses to exactly the fields that went in."""
    entries = [wire.delta_entry(type_url, r) for r in resources]
    data = b"".join(wire.delta_parts(type_url, version, nonce, entries, removed))
    wanted = discovery_pb2.DeltaDiscoveryResponse(
        system_version_info=version, type_url=type_url, nonce=nonce, removed_resources=removed
    )
    wanted.control_plane.identifier = wire.IDENTIFIER
    for r in resources:
        added = wanted.resources.add(name=r.name, version=r.version, aliases=r.aliases)
        added.resource.type_url, added.resource.value = type_url, r.body
    assert discovery_pb2.DeltaDiscoveryResponse.FromString(data) == wanted


def test_entries_are_shared_and_bounded() -> None:
    """The same content gives the same bytes object; old entries leave when the limit is reached."""
    entries = wire.Entries(limit_bytes=300)
    one = entries.delta(CDS_TYPE, cluster("one"))
    assert entries.delta(CDS_TYPE, cluster("one")) is one
    for index in range(20):
        entries.delta(CDS_TYPE, cluster(f"c{index}"))
    assert entries.size_bytes <= 300
    assert entries.delta(CDS_TYPE, cluster("one")) == one
