"""A proxy's side of gRPC, for tests."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import json_format
from grpc import aio

from meltemi.adapters.xds_requests import METHODS, SERVICE
from meltemi.discovery.protocol import Mode


def node_of(pod: str = "reviews-1", namespace: str = "bookinfo", **metadata: Any) -> base_pb2.Node:
    metadata = {"NAMESPACE": namespace, "SERVICE_ACCOUNT": "reviews", **metadata}
    node = base_pb2.Node(id=f"sidecar~10.0.0.1~{pod}.{namespace}~{namespace}.svc.cluster.local")
    json_format.ParseDict(metadata, node.metadata)
    return node


class XdsClient:
    """One stream. Sends the node with its first request."""

    def __init__(self, channel: aio.Channel, mode: Mode, node: Any, token: str = "") -> None:
        answers = {
            Mode.SOTW: discovery_pb2.DiscoveryResponse,
            Mode.DELTA: discovery_pb2.DeltaDiscoveryResponse,
        }
        self.mode = mode
        self._node = node
        call = channel.stream_stream(
            f"/{SERVICE}/{METHODS[mode]}",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=answers[mode].FromString,
        )
        metadata = [("authorization", f"Bearer {token}")] if token else []
        self.call = call(metadata=metadata)

    async def ask(self, type_url: str, *names: str, nonce: str = "", error: str = "") -> None:
        if self.mode is Mode.SOTW:
            message: Any = discovery_pb2.DiscoveryRequest(
                type_url=type_url, resource_names=names, response_nonce=nonce
            )
        else:
            message = discovery_pb2.DeltaDiscoveryRequest(
                type_url=type_url, resource_names_subscribe=names, response_nonce=nonce
            )
        if self._node is not None:
            message.node.CopyFrom(self._node)
            self._node = None
        if error:
            message.error_detail.code = 13
            message.error_detail.message = error
        await self.call.write(message)

    async def answer(self) -> Any:
        """The next response, or grpc.aio.EOF."""
        async with asyncio.timeout(20):
            return await self.call.read()

    async def status(self) -> tuple[grpc.StatusCode, str]:
        async with asyncio.timeout(20):
            return await self.call.code(), await self.call.details()
