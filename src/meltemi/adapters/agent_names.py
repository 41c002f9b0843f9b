"""Follow istiod's name table, for a pod with DNS capture.

In: the Unix socket on which Envoy passes calls on to istiod (it adds TLS and the pod's token), and the xDS node.
Out: each new table to a callback. Promises: one stream, incremental, acknowledged; it comes back by itself with
growing, jittered pauses; until then the last table stays in force. Speaks gRPC by h2 alone: a gRPC library would
double the agent's memory for one stream that is nearly always silent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from meltemi.adapters.agent_h2 import GrpcCall, converse, keep_conversing
from meltemi.agent.name_table import NameInfo
from meltemi.model.names import NDS_TYPE
from meltemi.protos import nds_pb2

Hosts = Mapping[str, NameInfo]


async def follow_names(
    socket_path: str,
    node: Mapping[str, Any],
    adopt: Callable[[Hosts], None],
    log: Callable[[str, str], None],
    chance: Callable[[], float],
) -> None:
    """Run until cancelled. ``adopt`` gets all hosts whenever they change."""
    stream = _Names(node, adopt)
    await keep_conversing(
        lambda: converse(socket_path, stream.talk),
        "DNS names do not come from istiod",
        log,
        chance,
    )


class _Names:
    """One Delta conversation about one type."""

    def __init__(self, node: Mapping[str, Any], adopt: Callable[[Hosts], None]) -> None:
        self._node, self._adopt = node, adopt

    async def talk(self, call: GrpcCall) -> None:
        """Until the stream ends, which raises."""
        first = discovery_pb2.DeltaDiscoveryRequest(type_url=NDS_TYPE)
        ParseDict(dict(self._node), first.node, ignore_unknown_fields=True)
        call.send(first.SerializeToString())
        async for data in call.messages():
            call.send(self._answer_to(data).SerializeToString())

    def _answer_to(self, data: bytes) -> discovery_pb2.DeltaDiscoveryRequest:
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=NDS_TYPE)
        try:
            response = discovery_pb2.DeltaDiscoveryResponse.FromString(data)
            request.response_nonce = response.nonce
            hosts: dict[str, NameInfo] = {}
            for resource in response.resources:
                hosts.update(_hosts(resource.resource.value))
        except DecodeError as error:
            request.error_detail.code = 3  # INVALID_ARGUMENT
            request.error_detail.message = f"the name table cannot be read: {error}"
        else:
            # An answer without resources says that nothing changed, or that there are none yet.
            if response.resources or response.removed_resources:
                self._adopt(hosts)
        return request


def _hosts(body: bytes) -> dict[str, NameInfo]:
    table = nds_pb2.NameTable.FromString(body).table
    return {
        host: NameInfo(tuple(info.ips), info.shortname, info.namespace)
        for host, info in table.items()
    }
