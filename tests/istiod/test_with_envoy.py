"""A real gateway Envoy over ADS, both variants, fed by a whole control plane from a folder of YAML."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from istiod.plane import files, running
from istiod.waiting import until
from meltemi.adapters.envoy_process import find_envoy

pytestmark = pytest.mark.envoy

WORLD = """
apiVersion: v1
kind: Service
metadata: {{name: echo, namespace: shop}}
spec:
  clusterIP: 10.96.7.7
  selector: {{app: echo}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: front, namespace: shop}}
spec:
  selector: {{istio: ingressgateway}}
  servers: [{{port: {{number: {port}, name: http, protocol: HTTP}}, hosts: ["*"]}}]
---
# The test's Envoy has no certificate files.
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: echo, namespace: shop}}
spec: {{host: echo, trafficPolicy: {{tls: {{mode: DISABLE}}}}}}
"""
ROUTE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: echo, namespace: shop}}
spec:
  hosts: ["*"]
  gateways: [front]
  http:
  - headers: {{response: {{set: {{x-config: {tag}}}}}}}
    route: [{{destination: {{host: echo, port: {{number: 80}}}}}}]
"""
SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: echo-1, namespace: shop, labels: {{kubernetes.io/service-name: echo}}}}
addressType: IPv4
ports: [{{name: http, port: {port}}}]
endpoints: [{{addresses: [127.0.0.1], conditions: {{ready: true}}}}]
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bootstrap(xds_port: int, api_type: str) -> dict[str, Any]:
    http2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    ads = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    return {
        "node": {
            "id": "router~127.0.0.1~gw-1.shop~shop.svc.cluster.local",
            "cluster": "gw",
            "metadata": {
                "NAMESPACE": "shop",
                "LABELS": {"istio": "ingressgateway"},
                "ISTIO_VERSION": "1.30.0",
            },
        },
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type,
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "xds",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": {
                        http2: {
                            "@type": f"type.googleapis.com/{http2}",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                    "load_assignment": {
                        "cluster_name": "xds",
                        "endpoints": [
                            {
                                "lb_endpoints": [
                                    {
                                        "endpoint": {
                                            "address": {
                                                "socket_address": {
                                                    "address": "127.0.0.1",
                                                    "port_value": xds_port,
                                                }
                                            }
                                        }
                                    }
                                ]
                            }
                        ],
                    },
                }
            ]
        },
    }


class Envoy:
    """One Envoy process."""

    def __init__(self, folder: Path, xds_port: int, api_type: str) -> None:
        self._config = folder / "envoy.json"
        self._admin = folder / "admin"
        self._log = folder / "envoy.log"
        self._config.write_text(json.dumps(bootstrap(xds_port, api_type)))

    async def __aenter__(self) -> Envoy:
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                str(find_envoy()), "-c", str(self._config), "--disable-hot-restart",
                "--concurrency", "1", "--admin-address-path", str(self._admin), "-l", "warning",
                stderr=log,
            )  # fmt: skip
        await until(lambda: self._admin.exists() and self._admin.read_text())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        await self._process.wait()

    def complaints(self) -> list[str]:
        """Warnings about configuration that Envoy refused."""
        return [
            line
            for line in self._log.read_text(errors="replace").splitlines()
            if "rejected" in line or "error adding" in line.lower()
        ]


async def ask(session: aiohttp.ClientSession, port: int) -> tuple[int, str, str]:
    """(status, x-config, body); status 0 when nobody answers."""
    try:
        async with session.get(f"http://127.0.0.1:{port}/") as answer:
            return answer.status, answer.headers.get("x-config", ""), await answer.text()
    except (aiohttp.ClientError, OSError):
        return 0, "", ""


async def reach(session: aiohttp.ClientSession, port: int, wanted: tuple[int, str, str]) -> None:
    async with asyncio.timeout(20):
        while (await ask(session, port)) != wanted:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("api_type", ["GRPC", "DELTA_GRPC"])
async def test_a_gateway_lives_through_changes(
    tmp_path: Path, backends: dict[str, int], api_type: str
) -> None:
    """Traffic flows; routes and endpoints change live; both sides agree on what is in force."""
    config = tmp_path / "config"
    config.mkdir()
    gateway = free_port()
    (config / "world.yaml").write_text(WORLD.format(port=gateway))
    (config / "route.yaml").write_text(ROUTE.format(tag="first"))
    (config / "slice.yaml").write_text(SLICE.format(port=backends["one"]))
    async with aiohttp.ClientSession() as session, running(files(config)) as plane:
        xds_port = plane.ports["grpc"]
        envoy = Envoy(tmp_path, xds_port, api_type)
        async with envoy:
            await reach(session, gateway, (200, "first", "one"))
            (config / "route.yaml").write_text(ROUTE.format(tag="second"))
            await reach(session, gateway, (200, "second", "one"))
            (config / "slice.yaml").write_text(SLICE.format(port=backends["two"]))
            await reach(session, gateway, (200, "second", "two"))
            sync = await syncz(session, plane.ports["http"])
            assert sync["proxy"] == "gw-1.shop"
            assert {sync[f"{t}_status"] for t in ("cluster", "listener", "route", "endpoint")} == {
                "SYNCED"
            }
            dump = await config_dump(session, plane.ports["http"])
            assert "outbound|80||echo.shop.svc.cluster.local" in dump
            assert envoy.complaints() == []


async def syncz(session: aiohttp.ClientSession, port: int) -> Any:
    async def synced() -> Any:
        async with session.get(f"http://127.0.0.1:{port}/debug/syncz") as answer:
            (found,) = await answer.json()
            return found

    async with asyncio.timeout(20):
        while "STALE" in str(found := await synced()):
            await asyncio.sleep(0.02)
        return found


async def config_dump(session: aiohttp.ClientSession, port: int) -> str:
    url = f"http://127.0.0.1:{port}/debug/config_dump?proxyID=gw-1.shop"
    async with session.get(url) as answer:
        assert answer.status == 200
        return await answer.text()


async def test_istiod_restarts_under_traffic(tmp_path: Path, backends: dict[str, int]) -> None:
    """While istiod is away traffic flows; when it is back, changes arrive."""
    config = tmp_path / "config"
    config.mkdir()
    gateway, xds_port = free_port(), free_port()
    (config / "world.yaml").write_text(WORLD.format(port=gateway))
    (config / "route.yaml").write_text(ROUTE.format(tag="first"))
    (config / "slice.yaml").write_text(SLICE.format(port=backends["one"]))
    options = replace(files(config), grpc=f"127.0.0.1:{xds_port}")
    async with aiohttp.ClientSession() as session, Envoy(tmp_path, xds_port, "DELTA_GRPC") as envoy:
        async with running(options):
            await reach(session, gateway, (200, "first", "one"))
        for _ in range(20):
            assert (await ask(session, gateway)) == (200, "first", "one")
        (config / "route.yaml").write_text(ROUTE.format(tag="after"))
        async with running(options):
            await reach(session, gateway, (200, "after", "one"))
        assert envoy.complaints() == []


async def test_one_bad_object_leaves_the_rest(tmp_path: Path, backends: dict[str, int]) -> None:
    """A broken VirtualService and a broken file are reported; the good route is served."""
    config = tmp_path / "config"
    config.mkdir()
    gateway = free_port()
    (config / "world.yaml").write_text(WORLD.format(port=gateway))
    (config / "route.yaml").write_text(ROUTE.format(tag="good"))
    (config / "slice.yaml").write_text(SLICE.format(port=backends["one"]))
    (config / "bad.yaml").write_text(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n"
        "metadata: {name: bad, namespace: shop}\nspec: {hosts: [x], htpp: []}\n"
    )
    (config / "broken.yaml").write_text("kind: [unclosed\n")
    async with aiohttp.ClientSession() as session, running(files(config)) as plane:
        async with Envoy(tmp_path, plane.ports["grpc"], "DELTA_GRPC"):
            await reach(session, gateway, (200, "good", "one"))
        async with session.get(
            f"http://127.0.0.1:{plane.ports['http']}/debug/push_status"
        ) as answer:
            status = await answer.json()
        assert "htpp" in str(status["objects"]["VirtualService/shop/bad"])
