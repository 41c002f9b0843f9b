"""A rotation carried out by a whole istiod against a real HTTP server, with agents that ask over gRPC."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import replace
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


def phase(kube: KubeServer, plane: ControlPlane) -> str:
    kept: dict[str, Any] | None = kube.objects[SECRETS].get(("istio-system", rotation.SECRET))
    if kept is None:
        return ""

    text = base64.b64decode(kept["data"][rotation.STATE_KEY]).decode()
    return rotation.read_state(text).phase.value


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
            await until(lambda: phase(kube, plane) == "distribute")
    later = replace(OPTIONS, pod="istiod-2", rotation_settle_s=600.0)
    async with (
        running(later, Connection(kube.url)) as plane,
        aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel,
    ):
        await connect(kube, plane, channel)
        await until(lambda: len(authority.fingerprints(bundle_of(kube))) == 2)
        await renew(plane, name, bundle_of(kube))
        await until(lambda: phase(kube, plane) == "issue")
        path = f"/api/v1/namespaces/istio-system/secrets/{rotation.SECRET}"
        kept = await api.json("GET", path)

        text = base64.b64decode(kept["data"][rotation.STATE_KEY]).decode()
        back = rotation.abort(rotation.read_state(text), SystemClock().now())
        await ca_rotation.write_state(api, "istio-system", back, kept)
        await until(lambda: authority.fingerprints(bundle_of(kube))[0] == a)
        assert await renew(plane, name, bundle_of(kube)) == a
        await until(lambda: phase(kube, plane) == "")
        await until(lambda: bundle_of(kube) == old)
