"""What proxies report of TCP connections: their access log entries, joined by addresses.

In: entries, as the log service gets them. Out: the hops of one connection, found by the client's own address. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from envoy.data.accesslog.v3 import accesslog_pb2

from meltemi.testing.hops import Hop

_KEPT = 5_000
Address = tuple[str, int]
_FLAGS = {
    "failed_local_healthcheck": "LH",
    "no_healthy_upstream": "UH",
    "upstream_connection_failure": "UF",
    "upstream_connection_termination": "UC",
    "upstream_overflow": "UO",
    "no_route_found": "NR",
    "no_cluster_found": "NC",
    "downstream_connection_termination": "DC",
    "upstream_max_stream_duration_reached": "UMSDR",
}


class TcpLogs:
    """The latest entries."""

    def __init__(self) -> None:
        self._by_remote: OrderedDict[Address, tuple[Hop, Address]] = OrderedDict()
        self._changed = threading.Condition()

    def add(self, name: str, entry: Any) -> None:
        """Take one entry; a later one of the same connection says more."""
        common = entry.common_properties
        remote = _address(common.downstream_direct_remote_address) or _address(
            common.downstream_remote_address
        )
        if remote is None:
            return
        upstream = _address(common.upstream_local_address) or ("", 0)
        with self._changed:
            for key in {remote, _address(common.downstream_remote_address) or remote}:
                self._by_remote[key] = (_hop(name, common), upstream)
                self._by_remote.move_to_end(key)
            while len(self._by_remote) > _KEPT:
                self._by_remote.popitem(last=False)
            self._changed.notify_all()

    def hops(
        self, client: Address, is_last: Callable[[Hop], bool], *, deadline_s: float = 2.0
    ) -> tuple[Hop, ...]:
        """The proxies of the connection that ``client`` made; waits for one that ``is_last``."""

        def complete() -> bool:
            found = self._walk(client)
            return bool(found) and is_last(found[-1])

        with self._changed:
            self._changed.wait_for(complete, deadline_s)
            return tuple(self._walk(client))

    def _walk(self, client: Address) -> list[Hop]:
        found: list[Hop] = []
        here = client
        while (known := self._by_remote.get(here)) is not None and len(found) < 8:
            found.append(known[0])
            here = known[1]
        return found


def _address(address: Any) -> Address | None:
    if address.WhichOneof("address") != "socket_address":
        return None
    return address.socket_address.address, address.socket_address.port_value


def _text(address: Any) -> str:
    found = _address(address)
    return f"{found[0]}:{found[1]}" if found else ""


def _hop(name: str, common: Any) -> Hop:
    proxy, _, direction = name.partition("/")
    tls = common.tls_properties
    peer = [entry.uri for entry in tls.peer_certificate_properties.subject_alt_name if entry.uri]
    set_flags = [
        short for long, short in _FLAGS.items() if getattr(common.response_flags, long, False)
    ]
    version = accesslog_pb2.TLSProperties.TLSVersion.Name(tls.tls_version)
    return Hop(
        proxy=proxy,
        direction=direction,
        route=common.route_name,
        cluster=common.upstream_cluster,
        endpoint=_text(common.upstream_remote_address),
        flags=",".join(set_flags),
        details=common.connection_termination_details,
        peer=",".join(peer),
        tls="" if version == "VERSION_UNSPECIFIED" else version,
        sni=tls.tls_sni_hostname,
        local=_text(common.downstream_local_address),
        protocol="TCP",
    )
