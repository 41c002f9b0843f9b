"""A whole istiod against a real HTTP server that speaks the Kubernetes API."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from grpc import aio

from istiod.kube_server import KubeServer, started_cluster
from istiod.plane import LOCAL, files, running
from istiod.waiting import until
from istiod.xds_client import XdsClient, node_of
from meltemi.adapters.grpc_server import PortTaken
from meltemi.adapters.kube_connection import Connection
from meltemi.discovery.protocol import Mode
from meltemi.model.names import CDS_TYPE, EDS_TYPE
from meltemi.programs.control_plane import ControlPlane
from pki import make_authority

VS = "/apis/networking.istio.io/v1/virtualservices"
SE = "/apis/networking.istio.io/v1/serviceentries"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
CLUSTER = "outbound|80||echo.shop.svc.cluster.local"


@pytest.fixture
async def kube() -> AsyncIterator[KubeServer]:
    server = await started_cluster("istio-system", "shop")
    yield server
    await server.stop()


async def echo(kube: KubeServer, *addresses: str) -> None:
    """A service with these endpoints."""
    await kube.put(
        "/api/v1/services",
        {
            "metadata": {"name": "echo", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.1.1", "ports": [{"name": "http", "port": 80}]},
        },
    )
    await kube.put(
        SLICES,
        {
            "metadata": {
                "name": "echo-1",
                "namespace": "shop",
                "labels": {"kubernetes.io/service-name": "echo"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 80}],
            "endpoints": [{"addresses": [a], "conditions": {"ready": True}} for a in addresses],
        },
    )


def router() -> Any:
    node = node_of("gw-1", "shop", SERVICE_ACCOUNT="gw")
    node.id = "router~10.0.0.9~gw-1.shop~shop.svc.cluster.local"
    return node


def route(name: str, host: str, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "shop", "generation": 3},
        "spec": {"hosts": ["echo"], "http": [{"route": [{"destination": {"host": host}}]}], **spec},
    }


async def test_endpoints_reach_a_proxy_and_nothing_else_is_sent(kube: KubeServer) -> None:
    """An endpoint change is one EDS response; an equal object is nothing at all."""
    await echo(kube, "10.0.0.1")
    async with (
        running(LOCAL, Connection(kube.url)) as plane,
        aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel,
    ):
        client = XdsClient(channel, Mode.DELTA, router())
        await client.ask(CDS_TYPE)
        clusters = await client.answer()
        assert CLUSTER in [r.name for r in clusters.resources]
        await client.ask(EDS_TYPE, CLUSTER)
        assert b"10.0.0.1" in (await client.answer()).resources[0].resource.value
        await echo(kube, "10.0.0.1")
        await echo(kube, "10.0.0.2")
        update = await client.answer()
        assert update.type_url == EDS_TYPE
        assert b"10.0.0.2" in update.resources[0].resource.value
        assert b"10.0.0.1" not in update.resources[0].resource.value
        client.call.cancel()
        # What the metrics say of it.
        assert plane.metrics.value("pilot_eds_no_instances") == 0
        await kube.remove(SLICES, "shop", "echo-1")
        await until(lambda: plane.metrics.value("pilot_eds_no_instances") == 1)
        assert plane.metrics.value("pilot_debounce_time_sum") < 60, "not since the machine's start"
        assert b"_created" not in plane.metrics.exposition()


async def test_last_known_configuration_outlives_the_api_server(kube: KubeServer) -> None:
    """With the API server gone, new proxies still get what was known; it is followed again when back."""
    await echo(kube, "10.0.0.1")
    async with running(LOCAL, Connection(kube.url)) as plane:
        port = kube.port
        await kube.stop()
        async with aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel:
            client = XdsClient(channel, Mode.DELTA, router())
            await client.ask(EDS_TYPE, CLUSTER)
            assert b"10.0.0.1" in (await client.answer()).resources[0].resource.value
            await kube.start(port)
            await echo(kube, "10.0.0.5")
            assert b"10.0.0.5" in (await client.answer()).resources[0].resource.value
            client.call.cancel()


async def test_status_says_what_is_wrong(kube: KubeServer) -> None:
    """An unknown host is a message in the status, gone once the host exists; a broken object is not used."""
    await kube.put(VS, route("lost", "nowhere"))
    await kube.put(VS, route("broken", "echo", http=[{"timeout": "soon"}]))

    def status(name: str) -> dict[str, Any]:
        found: dict[str, Any] = kube.objects[VS]["shop", name].get("status", {})
        return found

    async with running(LOCAL, Connection(kube.url)):
        await until(lambda: "nowhere" in str(status("lost").get("validationMessages")))
        assert status("lost")["observedGeneration"] == "3"
        await until(lambda: "timeout" in str(status("broken").get("validationMessages")))
        (condition,) = status("broken")["conditions"]
        assert (condition["type"], condition["status"]) == ("Reconciled", "False")
        await kube.put(
            "/api/v1/services",
            {
                "metadata": {"name": "nowhere", "namespace": "shop"},
                "spec": {"clusterIP": "10.96.1.9", "ports": [{"name": "http", "port": 80}]},
            },
        )
        await until(lambda: "nowhere" not in str(status("lost")["validationMessages"]))


async def test_what_is_odd_in_the_mesh_is_counted(kube: KubeServer) -> None:
    """Two rules for one host, two of a subset, a name without addresses, a proxy that nobody knows, a Secret that is missing."""
    await echo(kube, "10.0.0.1")
    await kube.put(VS, route("a", "echo"))
    await kube.put(VS, route("b", "echo"))
    for name in ("a", "b"):
        subsets = [{"name": "v1", "labels": {"version": "v1"}}]
        await kube.put(
            "/apis/networking.istio.io/v1/destinationrules",
            {
                "metadata": {"name": name, "namespace": "shop"},
                "spec": {"host": "echo", "subsets": subsets},
            },
        )
    await kube.put(
        "/apis/networking.istio.io/v1/gateways",
        {
            "metadata": {"name": "door", "namespace": "shop"},
            "spec": {
                "servers": [
                    {
                        "port": {"number": 443, "name": "https", "protocol": "HTTPS"},
                        "hosts": ["*"],
                        "tls": {"mode": "SIMPLE", "credentialName": "gone"},
                    }
                ]
            },
        },
    )
    async with (
        running(LOCAL, Connection(kube.url)) as plane,
        aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel,
    ):
        client = XdsClient(channel, Mode.DELTA, router())
        await client.ask(EDS_TYPE, CLUSTER)
        await client.answer()
        value = plane.metrics.value
        assert value("pilot_vservice_dup_domain") == 1
        assert value("pilot_destrule_subsets") == 1
        assert value("pilot_no_ip") == 1
        assert value("pilot_k8s_proxies_with_no_service_targets") == 0, "gateways serve none"
        assert value("pilot_sds_certificate_errors_total") == 1
        assert value("pilot_conflict_inbound_listener") == 0
        assert value("xds_cache_size") >= 1
        assert value("xds_cache_reads", type="hit") >= 1
        client.call.cancel()


async def test_automatic_addresses_are_written_and_kept(kube: KubeServer) -> None:
    """An address is in the entry's status, and stays when an older entry would have it now."""
    spec = {
        "hosts": ["books.example"],
        "resolution": "DNS",
        "ports": [{"number": 80, "name": "http"}],
    }
    meta = {"name": "books", "namespace": "shop"}
    taken = [{"value": "240.240.9.9", "host": "books.example"}]
    await kube.put(SE, {"metadata": meta, "spec": spec, "status": {"addresses": taken}})
    await kube.put(
        SE, {"metadata": {**meta, "name": "films"}, "spec": {**spec, "hosts": ["films.example"]}}
    )

    def addresses(name: str) -> list[dict[str, str]]:
        found: list[dict[str, str]] = (
            kube.objects[SE]["shop", name].get("status", {}).get("addresses", [])
        )
        return found

    async with running(LOCAL, Connection(kube.url)):
        await until(lambda: len(addresses("films")) == 2)
        await until(lambda: len(addresses("books")) == 2)
        assert addresses("books")[0] == taken[0]
        assert addresses("films")[0]["value"].startswith("240.240.")
        assert addresses("films")[1]["value"].startswith("2001:2:")


async def test_mesh_configuration_is_followed(kube: KubeServer) -> None:
    """ConfigMap istio is read at the start and live; nonsense leaves the last good one in force."""
    config = {
        "metadata": {"name": "istio", "namespace": "istio-system"},
        "data": {"mesh": "trustDomain: corp.example"},
    }
    await kube.put("/api/v1/configmaps", config)
    async with running(LOCAL, Connection(kube.url)) as plane, aiohttp.ClientSession() as session:

        async def mesh() -> str:
            async with session.get(f"http://127.0.0.1:{plane.ports['http']}/debug/mesh") as answer:
                return await answer.text()

        assert "corp.example" in await mesh()
        for text in ("{nonsense", "trustDomain: corp.example\naccessLogFile: /dev/stdout"):
            await kube.put("/api/v1/configmaps", {**config, "data": {"mesh": text}})
        while "/dev/stdout" not in (now := await mesh()):
            assert "corp.example" in now


async def test_webhooks_over_tls(kube: KubeServer, tmp_path: Path) -> None:
    """The injector patches a pod, validation refuses a typo; both verify against the published root."""
    await kube.put(
        "/api/v1/namespaces",
        {"metadata": {"name": "shop", "labels": {"istio-injection": "enabled"}}},
    )
    async with running(LOCAL, Connection(kube.url)) as plane, aiohttp.ClientSession() as session:
        await until(lambda: ("shop", "istio-ca-root-cert") in kube.objects["/api/v1/configmaps"])
        root = kube.objects["/api/v1/configmaps"]["shop", "istio-ca-root-cert"]["data"][
            "root-cert.pem"
        ]
        tls = ssl.create_default_context(cadata=root)
        base = f"https://127.0.0.1:{plane.ports['https']}"

        async def review(path: str, **request: Any) -> dict[str, Any]:
            body = {
                "apiVersion": "admission.k8s.io/v1",
                "kind": "AdmissionReview",
                "request": {"uid": "u1", "operation": "CREATE", **request},
            }
            async with session.post(
                base + path, json=body, ssl=tls, server_hostname="istiod.istio-system.svc"
            ) as answer:
                found: dict[str, Any] = (await answer.json())["response"]
                return found

        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "app", "image": "x"}]},
        }
        injected = await review("/inject", namespace="shop", object=pod)
        assert injected["allowed"]
        assert "istio-proxy" in base64.b64decode(injected["patch"]).decode()
        wrong = {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            **route("x", "echo", htpp=[]),
        }
        refused = await review("/validate", namespace="shop", object=wrong)
        assert not refused["allowed"]
        assert "htpp" in refused["status"]["message"]
        async with session.post(
            base + "/validate", data=b"{", ssl=False, headers={"Content-Type": "application/json"}
        ) as answer:
            assert answer.status == 400
        async with session.get(f"http://127.0.0.1:{plane.ports['monitoring']}/metrics") as answer:
            text = await answer.text()
        assert "sidecar_injection_success_total 1.0" in text
        assert 'galley_validation_failed{group=""' in text


async def test_a_deleted_root_secret_is_written_again(kube: KubeServer) -> None:
    """At once, and with the same root."""
    path, where = "/api/v1/secrets", ("istio-system", "istio-ca-secret")
    async with running(LOCAL, Connection(kube.url)):
        before = kube.objects[path][where]["data"]
        await kube.remove(path, *where)
        await until(lambda: where in kube.objects[path])
        assert kube.objects[path][where]["data"] == before


async def test_further_roots_of_the_mesh_are_published(kube: KubeServer) -> None:
    """Behind the mesh's own, as soon as the configuration has them, and no longer than it has them."""
    config = {"metadata": {"name": "istio", "namespace": "istio-system"}}
    maps = kube.objects["/api/v1/configmaps"]
    other = make_authority("other").root.decode()

    def roots() -> list[Any]:
        text = maps.get(("shop", "istio-ca-root-cert"), {}).get("data", {}).get("root-cert.pem", "")
        return x509.load_pem_x509_certificates(text.encode()) if text else []

    await kube.put("/api/v1/namespaces", {"metadata": {"name": "shop"}})
    async with running(LOCAL, Connection(kube.url)):
        await until(lambda: len(roots()) == 1)
        (own,) = roots()
        mesh = json.dumps({"caCertificates": [{"pem": other}]})
        await kube.put("/api/v1/configmaps", {**config, "data": {"mesh": mesh}})
        await until(lambda: len(roots()) == 2)
        assert roots() == [own, *x509.load_pem_x509_certificates(other.encode())]
        await kube.put("/api/v1/configmaps", {**config, "data": {"mesh": "{}"}})
        await until(lambda: roots() == [own])


async def test_every_debug_page_answers(kube: KubeServer) -> None:
    """All pages give JSON with a proxy connected; unknown ones say what there is."""
    await echo(kube, "10.0.0.1")
    async with (
        running(LOCAL, Connection(kube.url)) as plane,
        aiohttp.ClientSession() as session,
        aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel,
    ):
        client = XdsClient(channel, Mode.DELTA, router())
        await client.ask(CDS_TYPE)
        await client.answer()
        base = f"http://127.0.0.1:{plane.ports['http']}/debug"
        async with session.get(base) as answer:
            pages = await answer.json()
        assert {"/debug/syncz", "/debug/configz", "/debug/config_dump"} <= pages.keys()
        for page in pages:
            url = f"{base}{page.removeprefix('/debug')}?proxyID=gw-1.shop"
            async with session.get(url) as answer:
                assert answer.status == 200, page
                json.loads(await answer.text())
        async with session.get(f"{base}/config_dump?proxyID=nobody") as answer:
            assert answer.status == 404
            assert "gw-1.shop" in await answer.text()
        client.call.cancel()


async def test_a_taken_port_ends_the_start_with_its_name(tmp_path: Path) -> None:
    """The message names the port; nothing is left running."""
    async with running(files(tmp_path)) as plane:
        options = replace(files(tmp_path), monitoring=f"127.0.0.1:{plane.ports['http']}")
        with pytest.raises(PortTaken, match="monitoring"):
            async with running(options):
                pass


async def test_starts_before_the_api_server(kube: KubeServer) -> None:
    """An API server that is not there yet is waited for, with its trust domain."""
    config = {
        "metadata": {"name": "istio", "namespace": "istio-system"},
        "data": {"mesh": "trustDomain: late.example"},
    }
    await kube.put("/api/v1/configmaps", config)
    kube.refuse = lambda request: web.Response(status=500) if len(kube.requests) < 4 else None
    async with running(LOCAL, Connection(kube.url)) as plane:
        assert plane.pipeline is not None
        assert plane.pipeline.world.settings.trust_domain == "late.example"


async def test_stops_while_it_waits(kube: KubeServer) -> None:
    """A signal ends a start that waits for the API server."""
    kube.refuse = lambda request: web.Response(status=500)
    stop = asyncio.Event()
    plane = ControlPlane(LOCAL, Connection(kube.url))
    task = asyncio.ensure_future(plane.run(stop))
    await until(lambda: kube.requests)
    stop.set()
    async with asyncio.timeout(10):
        await task
    assert not plane.ready
