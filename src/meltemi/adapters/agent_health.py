"""Probe a machine's workload and tell istiod when the verdict changes.

In: the probe, and the Unix socket on which Envoy passes calls on to istiod (it adds TLS and the proof of identity). Out: reports
(``istio.v1.HealthInformation``: an xDS request, with ``error_detail`` when the workload is not healthy). Promises: one stream; after a
new connection the verdict is told anew; nothing is told before there is a verdict and Envoy serves. Imported only where there is a probe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.json_format import ParseDict

from meltemi.adapters.agent_checks import check_health
from meltemi.adapters.agent_h2 import GrpcCall, StreamEndedError, converse, keep_conversing
from meltemi.adapters.agent_http import fetch
from meltemi.agent.bootstrap import build_node
from meltemi.agent.health import Health, Probe
from meltemi.agent.settings import ProxySettings
from meltemi.model.names import HEALTH_TYPE

_UNHEALTHY_CODE = 500  # Istio's
Log = Callable[[str, str], None]


class HealthWatch:
    """The probe of one proxy. ``run`` is its life."""

    def __init__(self, settings: ProxySettings, probe: Probe, log: Log) -> None:
        """``log(level, text)`` takes lines for people."""
        self._settings, self._probe, self._log = settings, probe, log
        self._health = Health()
        self._changed = asyncio.Event()

    async def run(self, chance: Callable[[], float]) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._check())
            await self._changed.wait()
            await keep_conversing(
                self._report, "health is not reported to istiod", self._log, chance
            )

    def describe(self) -> Mapping[str, Any]:
        """The verdict, for the agent's debug page."""
        return {"healthy": self._health.healthy, "problem": self._health.problem}

    async def _check(self) -> None:
        probe = self._probe
        await asyncio.sleep(probe.initial_delay_s)
        while True:
            problem = await check_health(probe.check, self._settings.instance_ip, probe.timeout_s)
            before, self._health = self._health, self._health.step(probe, problem)
            if self._health.healthy is not before.healthy:
                text = f"is not healthy: {problem}" if problem else "is healthy"
                self._log("warning" if problem else "info", f"the workload {text}")
                self._changed.set()
            await asyncio.sleep(probe.period_s)

    async def _report(self) -> None:
        if not await self._serves():
            raise ConnectionError("Envoy does not serve yet")
        await converse(self._settings.xds_socket, self._talk)

    async def _serves(self) -> bool:
        try:
            status, _ = await fetch(self._settings.config.admin_port, "GET", "/ready")
        except (OSError, TimeoutError):
            return False
        return status == 200

    async def _talk(self, call: GrpcCall) -> None:
        """Tell the verdict now, and whenever it changes, until the stream ends, which raises."""
        ended = asyncio.ensure_future(_listen(call))
        node: Mapping[str, Any] = build_node(self._settings)
        try:
            while True:
                self._changed.clear()
                call.send(self._message(node).SerializeToString())
                node = {}
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait((ended, changed), return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if ended.done():
                    ended.result()
        finally:
            ended.cancel()

    def _message(self, node: Mapping[str, Any]) -> discovery_pb2.DeltaDiscoveryRequest:
        message = discovery_pb2.DeltaDiscoveryRequest(type_url=HEALTH_TYPE)
        ParseDict(dict(node), message.node, ignore_unknown_fields=True)
        if not self._health.healthy:
            message.error_detail.code = _UNHEALTHY_CODE
            message.error_detail.message = self._health.problem
        return message


async def _listen(call: GrpcCall) -> None:
    async for _ in call.messages():
        pass  # istiod has nothing to say here
    raise StreamEndedError("istiod ended the stream")
