"""The cluster signs: istiod's requests to a real API server with a real signing controller."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import aio

from istiod.test_ca_callers import CART, create, serving
from localkube.client.resources import CERTIFICATE_SIGNING_REQUESTS
from localkube.controllers.group import Controllers
from localkube_control.conftest import Api, api, controllers
from meltemi.adapters.ca_external import ExternalRefused
from meltemi.adapters.ca_kubernetes import KubernetesSigner, root_of_signer
from meltemi.adapters.kube_api import KubeApi
from meltemi.adapters.kube_connection import load
from meltemi.adapters.metrics import Metrics
from meltemi.model.mesh import CertificateData, MeshConfig

__all__ = ["api", "controllers"]  # fixtures
SIGNER = "localkube.dev/workloads"


@pytest.fixture
async def kube(api: Api, controllers: Controllers) -> AsyncIterator[KubeApi]:
    """istiod's own client of that API server."""
    async with KubeApi(load(str(api.kubeconfig)), "istiod") as made:
        yield made


def csr_of(*names: x509.GeneralName, subject: str = "") -> str:
    attributes = [x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    key = ec.generate_private_key(ec.SECP256R1())
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


async def test_the_cluster_signs_what_istiod_approved(kube: KubeApi, api: Api) -> None:
    """A chain with its root, for the identity; the request is cleaned up; the caller's own choice of signer counts."""
    signer = KubernetesSigner(kube, SIGNER, "localkube.dev")
    for wanted in ("", "workloads"):
        name = x509.UniformResourceIdentifier(CART)
        chain = await signer.sign(csr_of(name), CART, 3600, wanted)
        leaf, root = (x509.load_pem_x509_certificate(pem.encode()) for pem in chain)
        leaf.verify_directly_issued_by(root)
    assert not (await api.client.list(CERTIFICATE_SIGNING_REQUESTS))["items"]


@pytest.mark.parametrize(
    ("csr", "wanted", "why"),
    [
        (csr_of(x509.UniformResourceIdentifier(CART + "2")), "", "something else"),
        (csr_of(x509.UniformResourceIdentifier(CART), x509.DNSName("x")), "", "something else"),
        (csr_of(), "", "no signing request for"),
        (csr_of(x509.UniformResourceIdentifier(CART), subject="system:masters"), "", "subject"),
        ("garbage", "", "no signing request for"),
        (csr_of(x509.UniformResourceIdentifier(CART)), "../x", "no signer"),
    ],
)
async def test_requests_that_istiod_does_not_approve(
    kube: KubeApi, api: Api, csr: str, wanted: str, why: str
) -> None:
    """The signer would sign them: they never reach it."""
    with pytest.raises(ExternalRefused, match=why):
        await KubernetesSigner(kube, SIGNER, "localkube.dev").sign(csr, CART, 3600, wanted)
    assert not (await api.client.list(CERTIFICATE_SIGNING_REQUESTS))["items"]


async def test_a_signer_that_does_not_answer(
    kube: KubeApi, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is given up after a while, with its name; nothing is left behind."""
    monkeypatch.setattr("meltemi.adapters.ca_kubernetes.DEADLINE_S", 0.3)
    csr = csr_of(x509.UniformResourceIdentifier(CART))
    with pytest.raises(ExternalRefused, match=r"example\.com/none did not answer"):
        await KubernetesSigner(kube, "example.com/none").sign(csr, CART, 3600)
    assert not (await api.client.list(CERTIFICATE_SIGNING_REQUESTS))["items"]


async def test_callers_hear_of_it(kube: KubeApi) -> None:
    """Over gRPC, for the proven identity; a request that does not name it is refused."""
    async with serving(Metrics(), external=KubernetesSigner(kube, SIGNER)) as address:
        with pytest.raises(aio.AioRpcError, match="no signing request for"):
            await create(address, "pod")


@pytest.mark.covers("MeshConfig.caCertificates.certSigners")
def test_roots_of_signers() -> None:
    """From caCertificates, by the signer's name."""
    mesh = MeshConfig(ca_certificates=(CertificateData(pem="ROOT", cert_signers=(SIGNER,)),))
    assert root_of_signer(mesh, SIGNER) == "ROOT"
    assert root_of_signer(mesh, "example.com/other") == ""
