"""The child's side of ``adapters.agent_bootstrap``: one Delta request to istiod, and the merge."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.json_format import ParseDict

from meltemi.adapters.agent_bootstrap import BootstrapQuestion, PatchedBootstrap
from meltemi.adapters.agent_channel import RequestError, open_channel
from meltemi.envoy.patch_bootstrap import merged_bootstrap
from meltemi.model.names import BOOTSTRAP_TYPE

_METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


def ask(question: BootstrapQuestion) -> PatchedBootstrap:
    """The bootstrap with istiod's patches, or the reason why there is none."""
    try:
        patches = _fetch(question)
        if not patches:
            return PatchedBootstrap()
        merged = merged_bootstrap(question.bootstrap, patches)
    except (RequestError, ValueError) as error:
        return PatchedBootstrap(error=str(error))
    return PatchedBootstrap(json.dumps(merged, indent=1), tuple(name for name, _ in patches))


def _fetch(question: BootstrapQuestion) -> list[tuple[str, bytes]]:
    """The patches by name, in no order."""
    request = discovery_pb2.DeltaDiscoveryRequest(type_url=BOOTSTRAP_TYPE)
    ParseDict(dict(question.bootstrap["node"]), request.node, ignore_unknown_fields=True)
    done = threading.Event()

    def requests() -> Iterator[discovery_pb2.DeltaDiscoveryRequest]:
        yield request
        done.wait()  # the stream stays open until it is answered

    with open_channel(question) as (channel, metadata):
        converse = channel.stream_stream(
            _METHOD,
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )
        answers = converse(
            requests(), timeout=question.deadline_s, metadata=metadata, wait_for_ready=True
        )
        try:
            first = next(answers)
        finally:
            done.set()
            answers.cancel()
    return [(resource.name, resource.resource.value) for resource in first.resources]
