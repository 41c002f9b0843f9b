"""A pod's DNS capture as a whole: the server that applications ask, and the stream that keeps its names fresh.

In: ``ProxySettings`` and the pod's resolv.conf. Out: answers on ``settings.dns_address``. Imported only where capture
is on: what it needs doubles the agent's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from meltemi.adapters.agent_dns import DnsProxy
from meltemi.adapters.agent_files import read_text
from meltemi.adapters.agent_names import Hosts, follow_names
from meltemi.agent.bootstrap import build_node
from meltemi.agent.metrics import DnsCounters
from meltemi.agent.name_table import build_name_table
from meltemi.agent.resolv_conf import parse_resolv_conf
from meltemi.agent.settings import ProxySettings

RESOLV_CONF = Path("/etc/resolv.conf")


class PodDns:
    """Start it before Envoy: Envoy's own questions may have to pass through it."""

    def __init__(
        self, settings: ProxySettings, counters: DnsCounters, log: Callable[[str, str], None]
    ) -> None:
        """``log(level, text)`` takes lines for people."""
        self._settings, self._log = settings, log
        resolvers, self._search = parse_resolv_conf(read_text(RESOLV_CONF))
        self._server = DnsProxy(
            resolvers, counters, mark=settings.mark, parallel=settings.dns_parallel
        )
        self._relay = DnsProxy(resolvers, DnsCounters(), mark=settings.mark)

    async def start(self) -> int:
        """Serve. The port for Envoy's own questions, or 0 where capture knows Envoy by its user.

        Where it does not (Envoy's resolver sets no socket mark), they would be captured, and answered with
        addresses that are meant for applications.

        :raises OSError: when the address is taken.
        """
        host, _, port = self._settings.dns_address.rpartition(":")
        await self._server.start(host.strip("[]"), int(port))
        return await self._relay.start("127.0.0.1", 0) if self._settings.mark else 0

    async def follow(self, chance: Callable[[], float]) -> None:
        """Keep the names fresh until cancelled."""
        settings = self._settings
        node = build_node(settings)
        await follow_names(settings.xds_socket, node, self._adopt, self._log, chance)

    async def close(self) -> None:
        """Stop serving."""
        await self._server.close()
        await self._relay.close()

    def describe(self) -> dict[str, Any]:
        """The names, for ``/debug/ndsz``."""
        table = self._server.table
        return {"search": list(table.search), "names": {n: list(a) for n, a in table.names.items()}}

    def _adopt(self, hosts: Hosts) -> None:
        self._server.table = build_name_table(hosts, self._settings.namespace, self._search)
