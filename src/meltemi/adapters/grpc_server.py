"""The gRPC ports: 15010 plaintext, 15012 TLS, 15013 TLS with client certificates; one server behind all three.

Python's gRPC server either requires client certificates or does not ask for them, hence the third port. Serving
certificates are read anew for each handshake, so a renewed one needs no restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import structlog
from grpc import aio

log = structlog.get_logger("ads")

RECEIVE_MAX = 4 * 1024 * 1024  # ISTIO_GPRC_MAXRECVMSGSIZE
STREAMS_MAX = 100_000  # ISTIO_GPRC_MAXSTREAMS
KEEPALIVE_MS = 30_000
HANDSHAKE_S = 20.0
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    # Who sends endless headers is cut off, as is who calls nothing; streams are calls, so proxies stay.
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.absolute_max_metadata_size", 80 * 1024),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),  # a port already taken must be an error
)


@dataclass(frozen=True, slots=True, repr=False)
class Serving:
    """What the TLS ports show and trust, in PEM."""

    key: bytes
    chain: bytes
    roots: bytes


class PortTaken(Exception):
    """An address cannot be bound; the text says which and what to do."""


def credentials(current: Callable[[], Serving], require_client: bool) -> grpc.ServerCredentials:
    """TLS credentials that follow ``current``."""

    def configuration(serving: Serving) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(serving.key, serving.chain)], root_certificates=serving.roots
        )

    shown = [current()]

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        serving = current()
        if serving is shown[0]:
            return None
        shown[0] = serving
        return configuration(serving)

    return grpc.dynamic_ssl_server_credentials(
        configuration(shown[0]), fetch, require_client_authentication=require_client
    )


class GrpcServer:
    """All gRPC ports of istiod."""

    def __init__(
        self,
        handlers: Sequence[grpc.GenericRpcHandler],
        receive_max: int = RECEIVE_MAX,
        streams_max: int = STREAMS_MAX,
        handshake_s: float = HANDSHAKE_S,
    ) -> None:
        """``receive_max`` bounds a message in bytes, ``streams_max`` the calls at once on one connection, ``handshake_s`` the time
        until TLS and HTTP/2 are there.
        """
        limits = (
            ("grpc.server_handshake_timeout_ms", round(handshake_s * 1000)),
            ("grpc.max_receive_message_length", receive_max),
            ("grpc.max_concurrent_streams", streams_max),
        )
        self._server = aio.server(options=(*OPTIONS, *limits))
        self._server.add_generic_rpc_handlers(tuple(handlers))
        self.ports: dict[str, int] = {}

    def listen(self, name: str, address: str, tls: grpc.ServerCredentials | None = None) -> int:
        """Open a port; returns its number. Raises PortTaken."""
        try:
            port: int = (
                self._server.add_secure_port(address, tls)
                if tls is not None
                else self._server.add_insecure_port(address)
            )
        except RuntimeError as error:
            port = 0
            log.debug("bind failed", error=str(error))
        if port == 0:
            raise PortTaken(
                f"{name}: {address} cannot be bound; another program uses it, or the address is not this machine's"
            )
        self.ports[name] = port
        return port

    async def start(self) -> None:
        """Accept calls."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """No new calls; those running get ``grace_s`` seconds."""
        await self._server.stop(grace_s)
        # The library cancels leftovers asynchronously.
        await asyncio.sleep(0)
