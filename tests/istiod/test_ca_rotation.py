"""A rotation carried out by a whole istiod against a real HTTP server, with agents that ask over gRPC."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import aio

from istiod.kube_server import KubeServer
from istiod.plane import LOCAL, running
from istiod.test_control_plane import kube
from istiod.waiting import until
from istiod.xds_client import XdsClient, node_of
from meltemi.adapters import ca_rotation
from meltemi.adapters.kube_api import KubeApi
from meltemi.adapters.kube_connection import Connection
from meltemi.ca import authority, rotation, secrets
from meltemi.discovery.protocol import Mode
from meltemi.kit.clock import SystemClock
from meltemi.model.names import CDS_TYPE
from meltemi.programs.control_plane import ControlPlane
from meltemi.protos import CREATE_CERTIFICATE, ca_pb2

__all__ = ["kube"]
OPTIONS = replace(LOCAL, registries=("Kubernetes",), rotation_pause_s=0.02, rotation_settle_s=0.0)
SECRETS, MAPS = "/api/v1/secrets", "/api/v1/configmaps"


@pytest.fixture
async def api(kube: KubeServer) -> AsyncIterator[KubeApi]:
    async with KubeApi(Connection(kube.url), "meltemi") as api:
        yield api


def bundle_of(kube: KubeServer) -> str:
    """What the namespace shop is told to trust."""
    found = kube.objects[MAPS].get(("shop", secrets.ROOT_CONFIG_MAP))
    return str(found["data"][secrets.ROOT_KEY]) if found else ""


async def renew(plane: ControlPlane, name: str, trusted: str) -> str:
    """Ask as the agent of a pod does; returns who signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    request = ca_pb2.IstioCertificateRequest(csr=csr)
    trusts = ",".join(authority.fingerprints(trusted))
    request.metadata.update({"MeshProxy": name, "MeshTrusts": trusts})
    async with aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel:
        call = channel.unary_unary(
            CREATE_CERTIFICATE,
            request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
            response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
        )
        answer = await call(request, metadata=[("authorization", "Bearer good")], timeout=20)
    leaf, root = (x509.load_pem_x509_certificate(answer.cert_chain[i].encode()) for i in (0, -1))
    leaf.verify_directly_issued_by(root)
    return authority.fingerprint(root)


async def begin(api: KubeApi, name: str = "r1") -> authority.Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    now = SystemClock().now()
    new = authority.self_signed(key, now, 7, "cluster.local")
    state = rotation.begin(name, secrets.SELF_SIGNED_SECRET, now)
    await ca_rotation.start(api, "istio-system", state, new)
    return new


async def order(
    api: KubeApi, change: Callable[[rotation.Rotation, float], rotation.Rotation]
) -> None:
    """What ``meltemi ca rotate --abort`` and ``--resume`` do."""
    path = f"/api/v1/namespaces/istio-system/secrets/{rotation.SECRET}"
    kept = await api.json("GET", path)
    text = base64.b64decode(kept["data"][rotation.STATE_KEY]).decode()
    following = change(rotation.read_state(text), SystemClock().now())
    await ca_rotation.write_state(api, "istio-system", following, kept)


def phase(kube: KubeServer, plane: ControlPlane) -> str:
    kept: dict[str, Any] | None = kube.objects[SECRETS].get(("istio-system", rotation.SECRET))
    if kept is None:
        return ""

    text = base64.b64decode(kept["data"][rotation.STATE_KEY]).decode()
    return rotation.read_state(text).phase.value


def shared(kube: KubeServer) -> dict[str, set[str]]:
    """The proxies that each replica says are connected to it, where it says so in a rotation."""
    found = kube.objects[MAPS].get(("istio-system", rotation.PROXIES_MAP)) or {}
    reports = {name: rotation.read_report(text) for name, text in found.get("data", {}).items()}
    return {name: set(report.connected) for name, report in reports.items() if report.token}


async def reached(
    kube: KubeServer, plane: ControlPlane, wanted: str, trusted: tuple[str, ...] = ()
) -> None:
    """Wait for a phase, and for what the mesh is told to trust in it."""
    await until(lambda: phase(kube, plane) == wanted)
    if trusted:
        await until(lambda: authority.fingerprints(bundle_of(kube)) == trusted)


async def connect(kube: KubeServer, plane: ControlPlane, channel: Any) -> str:
    """A proxy of namespace shop, connected; its name."""
    user = {"username": "system:serviceaccount:shop:default"}
    kube.tokens["good"] = {"authenticated": True, "audiences": ["istio-ca"], "user": user}
    client = XdsClient(channel, Mode.DELTA, node_of(namespace="shop"))
    await client.ask(CDS_TYPE)
    await client.answer()
    assert plane.pipeline is not None
    return next(iter(plane.pipeline.connections)).proxy.id  # type: ignore[no-any-return]


async def test_each_phase_waits_for_the_proxy(kube: KubeServer, api: KubeApi) -> None:
    """Through all phases to the end; the new authority then lives where the old one did."""
    async with running(OPTIONS, Connection(kube.url)) as plane:
        await until(lambda: bundle_of(kube))
        old = bundle_of(kube)
        async with aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel:
            name = await connect(kube, plane, channel)
            a = await renew(plane, name, old)
            new = await begin(api)
            b = authority.fingerprint(new.certificate)
            await until(lambda: authority.fingerprints(bundle_of(kube)) == (a, b))
            assert await renew(plane, name, old) == a
            assert phase(kube, plane) == "distribute"
            assert await renew(plane, name, bundle_of(kube)) == a
            await until(lambda: phase(kube, plane) == "issue")
            await until(lambda: authority.fingerprints(bundle_of(kube)) == (b, a))
            await renew(plane, name, bundle_of(kube))
            await until(lambda: phase(kube, plane) == "retire")
            await until(lambda: authority.fingerprints(bundle_of(kube)) == (b,))
            await renew(plane, name, bundle_of(kube))
            await until(lambda: phase(kube, plane) == "")
        kept = kube.objects[SECRETS]["istio-system", secrets.SELF_SIGNED_SECRET]["data"]

        assert base64.b64decode(kept["root-cert.pem"]).decode() == new.roots


async def test_another_replica_goes_on_and_the_way_back_is_open(
    kube: KubeServer, api: KubeApi
) -> None:
    """istiod dies between two phases; its successor knows what was known, and an abort ends as it began."""
    async with running(OPTIONS, Connection(kube.url)) as plane:
        await until(lambda: bundle_of(kube))
        old = bundle_of(kube)
        async with aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel:
            name = await connect(kube, plane, channel)
            a = await renew(plane, name, old)
            await begin(api)
            await until(lambda: shared(kube).get(OPTIONS.pod) == {name})
    later = replace(OPTIONS, pod="istiod-2", rotation_settle_s=600.0)
    async with (
        running(later, Connection(kube.url)) as plane,
        aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel,
    ):
        await connect(kube, plane, channel)
        await until(lambda: len(authority.fingerprints(bundle_of(kube))) == 2)
        await renew(plane, name, bundle_of(kube))
        await until(lambda: phase(kube, plane) == "issue")
        await order(api, rotation.abort)
        await until(lambda: authority.fingerprints(bundle_of(kube))[0] == a)
        assert await renew(plane, name, bundle_of(kube)) == a
        await until(lambda: phase(kube, plane) == "")
        await until(lambda: bundle_of(kube) == old)


async def test_istiod_dies_in_every_phase(kube: KubeServer, api: KubeApi) -> None:
    """Each phase is ended by another replica than the one that began it; the result is the same."""
    options = replace(OPTIONS, rotation_settle_s=600.0, rotation_pause_s=0.1)
    async with running(options, Connection(kube.url)) as plane:
        await until(lambda: bundle_of(kube))
        old = bundle_of(kube)
        async with aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel:
            name = await connect(kube, plane, channel)
            a = await renew(plane, name, old)
            new = await begin(api)
            await until(lambda: shared(kube).get(OPTIONS.pod) == {name})
    b = authority.fingerprint(new.certificate)
    way = ("distribute", (a, b)), ("issue", (b, a)), ("retire", (b,)), ("commit", (b,))
    for (before, trusted), (following, _) in itertools.pairwise(way):
        async with (
            running(replace(options, pod=f"istiod-{before}"), Connection(kube.url)) as plane,
            aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel,
        ):
            await connect(kube, plane, channel)
            await reached(kube, plane, before, trusted)
            await renew(plane, name, bundle_of(kube))
            await reached(kube, plane, following)
    async with running(replace(options, pod="istiod-last"), Connection(kube.url)) as plane:
        await until(lambda: phase(kube, plane) == "")
        held = kube.objects[SECRETS]["istio-system", secrets.SELF_SIGNED_SECRET]
        assert base64.b64decode(held["data"]["root-cert.pem"]).decode() == new.roots
        assert authority.fingerprints(bundle_of(kube)) == (b,)
        assert await renew(plane, name, bundle_of(kube)) == b


@pytest.mark.parametrize("until_phase", ["distribute", "issue", "retire"])
async def test_every_phase_leads_back(kube: KubeServer, api: KubeApi, until_phase: str) -> None:
    """An order to abort, given at any time, ends with what there was before; istiod restarts on the way."""
    options = replace(OPTIONS, rotation_settle_s=600.0, rotation_pause_s=0.1)
    async with running(options, Connection(kube.url)) as plane:
        await until(lambda: bundle_of(kube))
        old = bundle_of(kube)
        a = authority.fingerprints(old)[0]
        async with aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel:
            name = await connect(kube, plane, channel)
            await renew(plane, name, old)
            b = authority.fingerprint((await begin(api)).certificate)
            for each, trusted in (("distribute", (a, b)), ("issue", (b, a)), ("retire", (b,))):
                await reached(kube, plane, each, trusted)
                if each == until_phase:
                    break
                await renew(plane, name, bundle_of(kube))
            await order(api, rotation.abort)
            # The proxy was not told to forget the old root yet, so that restoring it is done at once.
            await until(lambda: phase(kube, plane) == "revert")
    async with (
        running(replace(options, pod="istiod-2"), Connection(kube.url)) as plane,
        aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel,
    ):
        await connect(kube, plane, channel)
        await until(lambda: authority.fingerprints(bundle_of(kube))[0] == a)
        await renew(plane, name, bundle_of(kube))
        await until(lambda: phase(kube, plane) == "")
        await until(lambda: bundle_of(kube) == old)
        assert await renew(plane, name, old) == a


async def test_the_command_only_looks_and_orders(
    kube: KubeServer, api: KubeApi, tmp_path: Path
) -> None:
    """Killed while it watches, nothing is lost; a second rotation is refused; it shows the proof; abort ends it."""
    config = tmp_path / "config"
    clusters = [{"name": "k", "cluster": {"server": kube.url}}]
    contexts = [{"name": "k", "context": {"cluster": "k", "user": ""}}]
    config.write_text(
        json.dumps({"clusters": clusters, "contexts": contexts, "current-context": "k"})
    )

    async def meltemi(*words: str) -> asyncio.subprocess.Process:
        line = [sys.executable, "-m", "meltemi.commands.main", "ca", *words, "-c", str(config)]
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(*line, stdout=pipe, stderr=pipe)

    async def said(*words: str) -> str:
        out, err = await (await meltemi(*words)).communicate()
        return (out + err).decode()

    async with running(OPTIONS, Connection(kube.url)) as plane:
        await until(lambda: bundle_of(kube))
        old = bundle_of(kube)
        async with aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel:
            name = await connect(kube, plane, channel)
            a = await renew(plane, name, old)
            assert "so there is nothing to abort" in await said("rotate", "--abort")
            watching = await meltemi("rotate", "--watch")
            assert watching.stdout is not None
            assert b"has begun" in await watching.stdout.readline()
            watching.kill()
            await watching.wait()
            await until(lambda: phase(kube, plane) == "distribute")
            await until(lambda: len(authority.fingerprints(bundle_of(kube))) == 2)
            pod = {
                "metadata": {
                    "name": OPTIONS.pod,
                    "namespace": "istio-system",
                    "labels": {"app": "istiod"},
                }
            }
            await kube.put("/api/v1/pods", {**pod, "status": {"phase": "Running"}})
            assert "a rotation runs already" in await said("rotate")
            found = json.loads(await said("status", "-o", "json"))
            assert found["rotation"]["phase"] == "distribute"
            assert found["rotation"]["waitingFor"] == [f"1 of 1 proxies: {name}"]
            assert (found["trustedBy"], found["issuedBy"]) == ({a: 1}, {a: 1})
            ending = await meltemi("rotate", "--abort", "--watch")
            await until(lambda: phase(kube, plane) == "revert")
            await renew(plane, name, bundle_of(kube))
            out, _ = await ending.communicate()
            assert ending.returncode == 0
            assert "no rotation runs" in out.decode()
            assert "going back: the old authority signs" in out.decode()
            await until(lambda: bundle_of(kube) == old)


async def test_nothing_goes_on_before_proxies_are_back(kube: KubeServer, api: KubeApi) -> None:
    """istiod died before it could say who is connected: its successor waits, and then forgets what it had shared."""
    async with running(OPTIONS, Connection(kube.url)) as plane:
        await until(lambda: bundle_of(kube))
        await until(lambda: ("istio-system", rotation.PROXIES_MAP) in kube.objects[MAPS])
    await begin(api)
    later = replace(OPTIONS, pod="istiod-2", rotation_settle_s=600.0)
    async with (
        running(later, Connection(kube.url)) as plane,
        aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel,
    ):
        name = await connect(kube, plane, channel)
        await until(lambda: shared(kube).get("istiod-2") == {name})
        assert phase(kube, plane) == "distribute"
    last = replace(OPTIONS, pod="istiod-3")
    async with running(last, Connection(kube.url)) as plane:
        await until(lambda: phase(kube, plane) == "")
        maps = kube.objects[MAPS]
        await until(lambda: {*maps["istio-system", rotation.PROXIES_MAP]["data"]} == {"istiod-3"})
