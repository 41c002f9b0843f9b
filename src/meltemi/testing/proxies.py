"""The Envoys of a session: started when first needed, then reconfigured over xDS, stopped with the session.

In: an ``OfflineProxy`` and where it lives. Out: a running, unmodified Envoy with that workload's identity. Promises: no
Envoy outlives the process; a failure to start shows what Envoy said.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meltemi.adapters.envoy_process import find_envoy, signal_envoy
from meltemi.agent.bootstrap import build_environment, build_node
from meltemi.agent.offline import offline_settings
from meltemi.agent.own_service import add_own_service
from meltemi.agent.settings import ProxySettings
from meltemi.envoy.patch_bootstrap import merged_bootstrap
from meltemi.model.resource import Resource
from meltemi.registry.offline import OfflineProxy
from meltemi.testing.rewire import RIG_CLUSTER, Place

EPOCH = "meltemi-testing-epoch"
EPOCH_PORT = 15021
ADMIN_PORT = 15000
IDENTITY_HEADER = "x-meltemi-testing-identity"
START_S = 20.0
_TYPE = "type.googleapis.com/envoy."
_HTTP_OPTIONS = "extensions.upstreams.http.v3.HttpProtocolOptions"


class ProxyFailed(RuntimeError):
    """An Envoy did not start or ended; the text holds its log."""


def build_bootstrap(settings: ProxySettings, place: Place, socket: Path) -> dict[str, Any]:
    """The smallest bootstrap that gives a proxy its node, its stream, and a listener that tells which configuration it has."""
    source = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    node = build_node(settings)
    node["metadata"].pop("UNPRIVILEGED_POD", None)
    made: dict[str, Any] = {
        "node": node,
        "admin": {"address": _address(place.address, ADMIN_PORT)},
        "stats_config": {"use_all_default_tags": False},
        "layered_runtime": {
            "layers": [
                {"name": "static", "static_layer": {"re2.max_program_size.error_level": "32768"}},
                {"name": "admin", "admin_layer": {}},
            ]
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [
                    {
                        "envoy_grpc": {"cluster_name": RIG_CLUSTER},
                        "initial_metadata": [{"key": IDENTITY_HEADER, "value": settings.identity}],
                    }
                ],
            },
            "lds_config": source,
            "cds_config": source,
        },
        "static_resources": {
            "clusters": [_rig_cluster(socket)],
            "listeners": [_epoch_listener(place.address, source)],
        },
    }
    add_own_service(made, settings)
    return made


def _address(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


def _rig_cluster(socket: Path) -> dict[str, Any]:
    options = {
        "@type": _TYPE + _HTTP_OPTIONS,
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    return {
        "name": RIG_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {"envoy." + _HTTP_OPTIONS: options},
        "load_assignment": {
            "cluster_name": RIG_CLUSTER,
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }


def _epoch_listener(address: str, source: dict[str, Any]) -> dict[str, Any]:
    manager = {
        "@type": _TYPE
        + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "meltemi-testing",
        "rds": {"route_config_name": EPOCH, "config_source": source},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _TYPE + "extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    chain = {
        "filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
        ]
    }
    return {"name": EPOCH, "address": _address(address, EPOCH_PORT), "filter_chains": [chain]}


@dataclass(eq=False)
class Running:
    """One Envoy."""

    proxy: OfflineProxy
    place: Place
    folder: Path
    process: asyncio.subprocess.Process
    patches: tuple[Resource, ...] = ()  # of the bootstrap
    connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None] = field(
        default_factory=lambda: [None, None]
    )

    @property
    def id(self) -> str:
        """``pod.namespace``."""
        return self.proxy.id

    def log(self) -> str:
        """What Envoy said."""
        path = self.folder / "envoy.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def check(self) -> None:
        """Raise ProxyFailed when Envoy has ended."""
        if self.process.returncode is not None:
            raise ProxyFailed(
                f"the Envoy of {self.id} ended with status {self.process.returncode}:\n{self.log()[-4000:]}"
            )

    async def epoch(self) -> str:
        """Which configuration the proxy's worker thread has."""
        return (await self._get(0, EPOCH_PORT, "/")).decode()

    async def admin(self, path: str) -> bytes:
        """An answer of the admin interface."""
        return await self._get(1, ADMIN_PORT, path)

    async def changing(self) -> int:
        """Listeners and clusters that wait for something, and old listeners and chains that still have connections."""
        text = await self.admin(
            "/stats?filter=^(listener_manager.total_(listeners_warming|listeners_draining|filter_chains_draining)"
            "|cluster_manager.warming_clusters)$"
        )
        return sum(int(line.rpartition(b":")[2]) for line in text.splitlines() if line)

    async def _get(self, index: int, port: int, path: str) -> bytes:
        """One request on a kept connection, which is made anew when it broke."""
        for attempt in (0, 1):
            kept = self.connections[index]
            try:
                if kept is None:
                    kept = await asyncio.open_connection(self.place.address, port)
                    self.connections[index] = kept
                return await _exchange(kept, path)
            except (OSError, asyncio.IncompleteReadError, ValueError):
                if kept is not None:
                    kept[1].close()
                self.connections[index] = None
                if attempt:
                    raise
        raise AssertionError("unreachable")

    async def stop(self) -> None:
        """End it."""
        for kept in self.connections:
            if kept is not None:
                kept[1].close()
        if self.process.returncode is None:
            # It holds nothing that a signal handler would have to save.
            signal_envoy(self.process, kill=True)
        await self.process.wait()


async def _exchange(kept: tuple[asyncio.StreamReader, asyncio.StreamWriter], path: str) -> bytes:
    reader, writer = kept
    writer.write(f"GET {path} HTTP/1.1\r\nhost: rig\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if headers.get(b"transfer-encoding") == b"chunked":
        body = b""
        while size := int(await reader.readline() or b"0", 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return body
    return await reader.readexactly(int(headers[b"content-length"]))


async def start_proxy(
    proxy: OfflineProxy,
    place: Place,
    socket: Path,
    folder: Path,
    trust_domain: str,
    patches: tuple[Resource, ...] = (),
) -> Running:
    """Start an Envoy; it is not configured yet when this returns. ``patches`` are those of its bootstrap.

    :raises EnvoyMissingError: when there is no Envoy binary.
    """
    settings = offline_settings(proxy, trust_domain)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    bootstrap = folder / "bootstrap.json"
    made = build_bootstrap(settings, place, socket)
    if patches:
        made = merged_bootstrap(made, [(patch.name, patch.body) for patch in patches])
    bootstrap.write_text(json.dumps(made), encoding="utf-8")
    arguments = [
        *("-c", str(bootstrap)),
        *("--concurrency", "1"),
        # What an apply replaces serves nobody any more when the apply returns.
        *("--drain-time-s", "0"),
        *("--drain-strategy", "immediate"),
        *("-l", os.environ.get("MELTEMI_TESTING_ENVOY_LOG", "warning")),
        "--disable-hot-restart",
        # A test that reads a log does not wait for Envoy's ten seconds.
        *("--file-flush-interval-msec", "100"),
    ]
    environment: Mapping[str, str] = {
        **os.environ,
        **settings.config.proxy_metadata,
        **build_environment(settings),
    }
    with (folder / "envoy.log").open("wb") as log:
        # A session of its own: Ctrl-C is for the tests, which then end their proxies. No preexec_fn, hence no
        # fork of a process full of threads; the keeper sees to it that no Envoy is left.
        process = await asyncio.create_subprocess_exec(
            find_envoy(),
            *arguments,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Running(proxy, place, folder, process, patches)
