"""Machines register themselves with a real istiod, over TLS with a token, and tell how they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from envoy.config.core.v3 import base_pb2
from google.protobuf import json_format
from grpc import aio

from istiod.kube_server import KubeServer, started_cluster
from istiod.plane import LOCAL, running
from istiod.test_with_envoy import Envoy, ask, free_port, reach
from istiod.waiting import until
from istiod.xds_client import XdsClient
from meltemi.adapters.kube_connection import Connection
from meltemi.ca import authority
from meltemi.discovery.protocol import Mode
from meltemi.model.names import CDS_TYPE, HEALTH_TYPE, LDS_TYPE
from meltemi.programs.control_plane import ControlPlane
from meltemi.protos import CREATE_CERTIFICATE, ca_pb2

API = "/apis/networking.istio.io/v1"
ENTRIES = f"{API}/workloadentries"
NAME = "vm-127.0.0.1"
GRACE_S = 0.5
OPTIONS = replace(LOCAL, pod="istiod-1", entry_grace_s=GRACE_S)
PROBED = {"readinessProbe": {"tcpSocket": {"port": 1}}}
GROUP = {
    "metadata": {
        "labels": {"app": "vm", "tier": "old"},
        "annotations": {"note": "of the group"},
    },
    "template": {
        "address": "192.0.2.1",
        "ports": {"http": 8080},
        "labels": {"class": "vm", "tier": "oldest"},
        "network": "lan",
        "locality": "eu/a/1",
        "weight": 7,
        "serviceAccount": "vm",
    },
}


@pytest.fixture
async def kube() -> AsyncIterator[KubeServer]:
    server = await started_cluster("istio-system", "shop", "other")
    for namespace, account in (("shop", "vm"), ("shop", "cart"), ("other", "vm")):
        user = {"username": f"system:serviceaccount:{namespace}:{account}"}
        server.tokens[f"{namespace}/{account}"] = {
            "authenticated": True,
            "audiences": ["istio-ca"],
            "user": user,
        }
    yield server
    await server.stop()


async def group(kube: KubeServer, namespace: str = "shop", **changes: Any) -> None:
    meta = {"name": "vm", "namespace": namespace, "uid": "u-1"}
    await kube.put(f"{API}/workloadgroups", {"metadata": meta, "spec": {**GROUP, **changes}})


def node(namespace: str = "shop", account: str = "vm", **metadata: Any) -> base_pb2.Node:
    made = base_pb2.Node(id=f"sidecar~127.0.0.1~host-1.{namespace}~{namespace}.svc.cluster.local")
    told = {
        "NAMESPACE": namespace,
        "SERVICE_ACCOUNT": account,
        "AUTO_REGISTER_GROUP": "vm",
        **metadata,
    }
    json_format.ParseDict(told, made.metadata)
    return made


async def root_of(kube: KubeServer) -> bytes:
    maps = kube.objects["/api/v1/configmaps"]
    found = await until(lambda: maps.get(("shop", "istio-ca-root-cert")))
    return bytes(found["data"]["root-cert.pem"].encode())


def channel_to(port: int, *proof: bytes) -> aio.Channel:
    """``proof`` is the root to trust and, if a certificate is shown, its key and the chain."""
    options = [("grpc.ssl_target_name_override", "istiod.istio-system.svc")]
    return aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(*proof), options)


@asynccontextmanager
async def secure(kube: KubeServer, plane: ControlPlane) -> AsyncIterator[aio.Channel]:
    """A channel to 15012 that trusts the mesh's root."""
    async with channel_to(plane.ports["secure-grpc"], await root_of(kube)) as channel:
        yield channel


async def connect(
    channel: aio.Channel, told: base_pb2.Node | None = None, token: str = "shop/vm"
) -> XdsClient:
    """A proxy that has its clusters."""
    client = XdsClient(channel, Mode.DELTA, told or node(), token)
    await client.ask(CDS_TYPE)
    await client.answer()
    return client


async def say(client: XdsClient, problem: str = "") -> None:
    """What an agent reports."""
    await client.ask(HEALTH_TYPE, error=problem)


def entry(kube: KubeServer, name: str = NAME) -> dict[str, Any]:
    return kube.objects[ENTRIES].get(("shop", name), {})


async def grace_passes(kube: KubeServer, channel: aio.Channel) -> None:
    """Another machine comes and leaves; that its entry is removed shows that a grace period has gone by since."""
    told = node()
    told.id = told.id.replace("127.0.0.1", "127.0.0.9")
    other = await connect(channel, told)
    await until(lambda: entry(kube, "vm-127.0.0.9"))
    other.call.cancel()
    await until(lambda: not entry(kube, "vm-127.0.0.9"))


def annotations(kube: KubeServer) -> dict[str, str]:
    found: dict[str, str] = entry(kube).get("metadata", {}).get("annotations", {})
    return found


def health(kube: KubeServer, name: str = NAME) -> tuple[str, str] | None:
    for condition in entry(kube, name).get("status", {}).get("conditions", ()):
        if condition["type"] == "Healthy":
            return condition["status"], condition.get("message", "")
    return None


@pytest.mark.covers(
    "WorkloadGroup.metadata.labels",
    "WorkloadGroup.metadata.annotations",
    "WorkloadGroup.template.address",
    "WorkloadGroup.template.ports",
    "WorkloadGroup.template.labels",
    "WorkloadGroup.template.network",
    "WorkloadGroup.template.locality",
    "WorkloadGroup.template.weight",
    "WorkloadGroup.template.serviceAccount",
)
async def test_an_entry_is_made_of_the_template_and_goes_with_the_machine(kube: KubeServer) -> None:
    """The address is the machine's own, whatever the template says."""
    await group(kube)
    async with running(OPTIONS, Connection(kube.url)) as plane, secure(kube, plane) as channel:
        client = await connect(channel, node(LABELS={"tier": "own"}))
        made = await until(lambda: entry(kube))
        assert made["spec"] == {
            "address": "127.0.0.1",
            "ports": {"http": 8080},
            "labels": {"app": "vm", "class": "vm", "tier": "own"},
            "network": "lan",
            "locality": "eu/a/1",
            "weight": 7,
            "serviceAccount": "vm",
        }
        meta = made["metadata"]
        assert meta["labels"] == made["spec"]["labels"]
        (owner,) = meta["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("WorkloadGroup", "vm", "u-1")
        told = dict(meta["annotations"])
        assert told.pop("istio.io/connectedAt")
        assert told == {
            "note": "of the group",
            "istio.io/autoRegistrationGroup": "vm",
            "istio.io/workloadController": "istiod-1",
        }
        client.call.cancel()
        await until(lambda: "istio.io/disconnectedAt" in annotations(kube))
        assert "istio.io/connectedAt" not in annotations(kube)
        await until(lambda: not entry(kube))


async def test_what_a_machine_knows_itself_comes_first(kube: KubeServer) -> None:
    """Its network is part of the name, as in Istio; its locality replaces the template's."""
    await group(kube)
    async with running(OPTIONS, Connection(kube.url)) as plane, secure(kube, plane) as channel:
        told = node(NETWORK="dmz")
        told.locality.region, told.locality.zone = "us", "b"
        await connect(channel, told)
        made = await until(lambda: entry(kube, f"{NAME}-dmz"))
        assert (made["spec"]["network"], made["spec"]["locality"]) == ("dmz", "us/b")


async def test_a_machine_that_comes_back_in_time_stays(kube: KubeServer) -> None:
    await group(kube)
    async with running(OPTIONS, Connection(kube.url)) as plane, secure(kube, plane) as channel:
        client = await connect(channel)
        uid_like = (await until(lambda: entry(kube)))["metadata"]["annotations"]
        client.call.cancel()
        await until(lambda: "istio.io/disconnectedAt" in annotations(kube))
        await connect(channel)
        await until(lambda: "istio.io/connectedAt" in annotations(kube))
        assert "istio.io/disconnectedAt" not in annotations(kube)
        assert annotations(kube)["istio.io/connectedAt"] > uid_like["istio.io/connectedAt"]
        await grace_passes(kube, channel)
        assert "istio.io/connectedAt" in annotations(kube)


async def test_another_istiod_takes_a_machine_over(kube: KubeServer) -> None:
    """The first one sees its stream end later, and lets the entry be."""
    await group(kube)
    second = replace(OPTIONS, pod="istiod-2")
    async with running(OPTIONS, Connection(kube.url)) as one, secure(kube, one) as to_one:
        old = await connect(to_one)
        await until(lambda: annotations(kube).get("istio.io/workloadController") == "istiod-1")
        async with running(second, Connection(kube.url)) as two, secure(kube, two) as to_two:
            new = await connect(to_two)
            await until(lambda: annotations(kube).get("istio.io/workloadController") == "istiod-2")
            old.call.cancel()
            assert one.pipeline is not None
            await until(lambda: not len(one.pipeline.connections))
            await grace_passes(kube, to_one)
            assert annotations(kube)["istio.io/workloadController"] == "istiod-2"
            assert "istio.io/connectedAt" in annotations(kube)
            new.call.cancel()
            await until(lambda: not entry(kube))


async def test_an_entry_of_an_istiod_that_is_gone_goes_too(kube: KubeServer) -> None:
    """Its machine and its istiod went at once, so nobody wrote that it left; or this is that istiod, started anew."""
    await group(kube)
    for name in ("istiod-1", "istiod-alive"):
        pod = {
            "metadata": {"name": name, "namespace": "istio-system"},
            "status": {"podIP": f"10.0.0.{len(name)}"},
        }
        await kube.put("/api/v1/pods", pod)
    entries = {"lost": "istiod-dead", "kept": "istiod-alive", "forgotten": "istiod-1"}
    for name, controller in entries.items():
        told = {
            "istio.io/autoRegistrationGroup": "vm",
            "istio.io/workloadController": controller,
            "istio.io/connectedAt": "2024-01-01T00:00:00.000000Z",
        }
        meta = {"name": name, "namespace": "shop", "annotations": told}
        await kube.put(ENTRIES, {"metadata": meta, "spec": {"address": "10.1.1.1"}})
    async with running(replace(OPTIONS, entry_grace_s=0.05), Connection(kube.url)):
        await until(lambda: not entry(kube, "lost") and not entry(kube, "forgotten"))
        assert entry(kube, "kept")


@pytest.mark.parametrize(
    ("told", "token", "code", "why"),
    [
        (node(), "other/vm", grpc.StatusCode.PERMISSION_DENIED, "caller is of 'other'"),
        (
            node("other"),
            "other/vm",
            grpc.StatusCode.FAILED_PRECONDITION,
            "no WorkloadGroup other/vm",
        ),
        (
            node(account="cart"),
            "shop/cart",
            grpc.StatusCode.PERMISSION_DENIED,
            "takes service account 'vm'",
        ),
        (
            node(INSTANCE_IPS="../../pods/x"),
            "shop/vm",
            grpc.StatusCode.PERMISSION_DENIED,
            "is no name of a WorkloadEntry",
        ),
    ],
    ids=["namespace", "group", "account", "address"],
)
@pytest.mark.covers("WorkloadGroup.template.serviceAccount")
async def test_machines_of_others_are_refused(
    kube: KubeServer, told: base_pb2.Node, token: str, code: grpc.StatusCode, why: str
) -> None:
    await group(kube)
    async with running(OPTIONS, Connection(kube.url)) as plane, secure(kube, plane) as channel:
        client = XdsClient(channel, Mode.DELTA, told, token)
        await client.ask(CDS_TYPE)
        found, text = await client.status()
        assert found is code
        assert why in text
        assert not kube.objects[ENTRIES]


async def test_a_certificate_is_a_proof_too(kube: KubeServer) -> None:
    """Got by the token, shown on the port that requires one; the refusal is the same."""
    await group(kube)
    await group(kube, "other")
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    async with running(OPTIONS, Connection(kube.url)) as plane:
        async with secure(kube, plane) as channel:
            create = channel.unary_unary(
                CREATE_CERTIFICATE,
                request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
                response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
            )
            metadata = [("authorization", "Bearer shop/vm")]
            answer = await create(ca_pb2.IstioCertificateRequest(csr=pem), metadata=metadata)
        chain = "".join(answer.cert_chain).encode()
        pair = authority.key_pem(key).encode(), chain
        async with channel_to(plane.ports["mtls-grpc"], await root_of(kube), *pair) as channel:
            await connect(channel, token="")
            await until(lambda: entry(kube))
            stranger = XdsClient(channel, Mode.DELTA, node("other"))
            await stranger.ask(CDS_TYPE)
            code, text = await stranger.status()
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert "the caller is of 'shop'" in text
        await until(lambda: not entry(kube))
        url = f"http://127.0.0.1:{plane.ports['monitoring']}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as page:
            counted = await page.text()
        for event in ("success", "unregister", "deletes"):
            assert f"auto_registration_{event}_total 1.0" in counted


async def test_a_machine_must_prove_itself(kube: KubeServer) -> None:
    """The port without TLS proves nothing."""
    await group(kube)
    async with (
        running(OPTIONS, Connection(kube.url)) as plane,
        aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel,
    ):
        client = XdsClient(channel, Mode.DELTA, node())
        await client.ask(CDS_TYPE)
        code, text = await client.status()
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "must prove who it is" in text


async def test_a_write_that_fails_is_tried_again(kube: KubeServer) -> None:
    """Registration and health; and a condition that another writer drops comes back."""
    await group(kube)
    refused: list[str] = []

    def refuse(request: web.Request) -> web.Response | None:
        writes = "workloadentries" in request.path and request.method in ("POST", "PATCH")
        if writes and refused.count(request.method) < 2:
            refused.append(request.method)
            return web.json_response({"message": "not now"}, status=500)
        return None

    kube.refuse = refuse
    async with running(OPTIONS, Connection(kube.url)) as plane, secure(kube, plane) as channel:
        client = await connect(channel, node(PROXY_CONFIG=PROBED))
        await until(lambda: entry(kube))
        await say(client)
        await until(lambda: health(kube) == ("True", ""))
        assert refused == ["POST", "POST", "PATCH", "PATCH"]
        await kube.put(ENTRIES, {**entry(kube), "status": {"conditions": []}})
        await until(lambda: health(kube) == ("True", ""))


async def test_somebody_elses_entry_is_left_alone(kube: KubeServer) -> None:
    """And an entry that somebody deletes while its machine is connected comes back."""
    await group(kube)
    mine = {"metadata": {"name": NAME, "namespace": "shop"}, "spec": {"address": "10.9.9.9"}}
    await kube.put(ENTRIES, mine)
    async with running(OPTIONS, Connection(kube.url)) as plane, secure(kube, plane) as channel:
        await connect(channel)
        await until(
            lambda: ("GET", f"{API}/namespaces/shop/workloadentries/{NAME}", {}) in kube.requests
        )
        assert entry(kube)["spec"] == {"address": "10.9.9.9"}
        await kube.remove(ENTRIES, "shop", NAME)
        await until(lambda: entry(kube).get("spec", {}).get("address") == "127.0.0.1")


async def test_health_is_written_for_entries_that_people_made_too(kube: KubeServer) -> None:
    """Their proxies name them; what is theirs stays."""
    meta = {
        "name": "mine",
        "namespace": "shop",
        "annotations": {"proxy.istio.io/health-checks-enabled": "true"},
    }
    await kube.put(ENTRIES, {"metadata": meta, "spec": {"address": "10.9.9.9"}})
    async with running(OPTIONS, Connection(kube.url)) as plane, secure(kube, plane) as channel:
        client = await connect(channel, node(AUTO_REGISTER_GROUP="", WORKLOAD_ENTRY="mine"))
        await say(client, "the disk is full")
        await until(lambda: health(kube, "mine") == ("False", "the disk is full"))
        await say(client)
        await until(lambda: health(kube, "mine") == ("True", ""))
        client.call.cancel()
    assert set(entry(kube, "mine")["metadata"]["annotations"]) == {
        "proxy.istio.io/health-checks-enabled"
    }


async def test_a_machine_serves_the_ports_of_its_template(kube: KubeServer) -> None:
    """Its inbound listener is for the port that the group maps the service's to."""
    await group(kube)
    await kube.put("/api/v1/services", SERVICE)
    async with running(OPTIONS, Connection(kube.url)) as plane, secure(kube, plane) as channel:
        client = await connect(channel)
        await client.ask(LDS_TYPE)
        answer = await client.answer()
        inbound = next(r for r in answer.resources if r.name == "virtualInbound")
        assert b"inbound|8080||" in inbound.resource.value


# --- traffic ----------------------------------------------------------------------------------------------

SERVICE = {
    "metadata": {"name": "echo", "namespace": "shop"},
    "spec": {
        "clusterIP": "10.96.7.7",
        "selector": {"app": "vm"},
        "ports": [{"name": "http", "port": 80, "targetPort": 8000}],
    },
}
SERVICE_ENTRY = {
    "metadata": {"name": "echo", "namespace": "shop"},
    "spec": {
        "hosts": ["echo.internal"],
        "location": "MESH_INTERNAL",
        "resolution": "STATIC",
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        "workloadSelector": {"labels": {"app": "vm"}},
    },
}


async def front(kube: KubeServer, port: int, host: str) -> None:
    """A gateway on ``port`` that sends all to ``host``, without mTLS: the machine here has no proxy."""
    meta = {"name": "echo", "namespace": "shop"}
    listener = {"port": {"number": port, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    route = {
        "headers": {"response": {"set": {"x-config": "machine"}}},
        "route": [{"destination": {"host": host, "port": {"number": 80}}}],
    }
    for plural, spec in (
        ("gateways", {"selector": {"istio": "ingressgateway"}, "servers": [listener]}),
        ("virtualservices", {"hosts": ["*"], "gateways": ["echo"], "http": [route]}),
        ("destinationrules", {"host": host, "trafficPolicy": {"tls": {"mode": "DISABLE"}}}),
    ):
        await kube.put(f"{API}/{plural}", {"metadata": dict(meta), "spec": spec})


@pytest.mark.envoy
@pytest.mark.covers("WorkloadGroup.template.ports", "WorkloadGroup.template.labels")
@pytest.mark.parametrize(
    ("plural", "behind", "host"),
    [
        ("/api/v1/services", SERVICE, "echo.shop.svc.cluster.local"),
        (f"{API}/serviceentries", SERVICE_ENTRY, "echo.internal"),
    ],
    ids=["Service", "ServiceEntry"],
)
async def test_traffic_reaches_a_machine_while_it_is_healthy(
    kube: KubeServer, tmp_path: Path, backends: dict[str, int], plural: str, behind: Any, host: str
) -> None:
    """Registered by its proxy's stream; a Service or a ServiceEntry selects it; a real Envoy calls it."""
    gateway = free_port()
    await front(kube, gateway, host)
    await kube.put(plural, behind)
    await group(kube, template={"ports": {"http": backends["one"]}, "labels": {"app": "vm"}})
    there = (200, "machine", "one")
    async with (
        aiohttp.ClientSession() as session,
        running(OPTIONS, Connection(kube.url)) as plane,
        secure(kube, plane) as channel,
        Envoy(tmp_path, plane.ports["grpc"], "DELTA_GRPC"),
    ):

        async def refused() -> None:
            async with asyncio.timeout(20):
                while (await ask(session, gateway))[0] != 503:
                    await asyncio.sleep(0.02)

        await refused()
        machine = await connect(channel, node(PROXY_CONFIG=PROBED))
        await until(lambda: annotations(kube).get("proxy.istio.io/health-checks-enabled") == "true")
        assert health(kube) is None
        assert (await ask(session, gateway))[0] == 503, "nobody has said that it is healthy"
        await say(machine)
        await reach(session, gateway, there)
        await say(machine, "connection refused")
        await refused()
        assert health(kube) == ("False", "connection refused")
        await say(machine)
        await reach(session, gateway, there)
        machine.call.cancel()
        await refused()
        await until(lambda: not entry(kube))
