"""The signing controller against a real API server."""

import base64
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from localkube.client.resources import CERTIFICATE_SIGNING_REQUESTS as REQUESTS
from localkube.controllers.group import Controllers
from localkube.controllers.signing import SIGNER
from localkube_control.conftest import Api

NAME = x509.UniformResourceIdentifier("spiffe://cluster.local/ns/a/sa/b")


def csr_of(key: Any, *extra: x509.ExtensionType) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for extension in (x509.SubjectAlternativeName([NAME]), *extra):
        builder = builder.add_extension(extension, critical=True)
    hashed = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    pem = builder.sign(key, hashed).public_bytes(serialization.Encoding.PEM)
    return base64.b64encode(pem).decode()


async def submit(api: Api, name: str, request: str, signer: str = SIGNER, **spec: Any) -> Any:
    body = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {"request": request, "signerName": signer, "usages": ["client auth"], **spec},
    }
    return await api.client.create(REQUESTS, body)


async def decide(api: Api, made: Any, kind: str) -> None:
    condition = {"type": kind, "status": "True", "reason": "Test"}
    body = {**made, "status": {"conditions": [condition]}}
    path = REQUESTS.path(name=made["metadata"]["name"], subresource="approval")
    await api.client.request_json("PUT", path, body=body)


async def status_of(api: Api, name: str) -> Any:
    found = await api.client.get(REQUESTS, name)
    return found.get("status") or {}


async def test_what_is_approved_is_signed(api: Api, controllers: Controllers) -> None:
    """For the key and the names of the request; never an authority; for the time that was asked for."""
    key = ec.generate_private_key(ec.SECP256R1())
    wish = x509.BasicConstraints(ca=True, path_length=None)
    made = await submit(api, "one", csr_of(key, wish), expirationSeconds=600)
    await decide(api, made, "Approved")

    async def signed() -> str:
        return str((await status_of(api, "one")).get("certificate", ""))

    chain = base64.b64decode(await api.until(signed))
    leaf, root = x509.load_pem_x509_certificates(chain)
    leaf.verify_directly_issued_by(root)
    assert leaf.public_key() == key.public_key()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [NAME]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() < 1200
    # The API server does not know this authority: nobody becomes a user by it.
    assert root.public_bytes(serialization.Encoding.PEM).decode() != api.ca_pem


async def test_what_nobody_approved_or_others_sign_is_left_alone(
    api: Api, controllers: Controllers
) -> None:
    """No decision, a denial, another signer; the next good one is signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    await submit(api, "open", csr_of(key))
    await decide(api, await submit(api, "denied", csr_of(key)), "Denied")
    await decide(api, await submit(api, "others", csr_of(key), "example.com/x"), "Approved")
    await decide(api, await submit(api, "good", csr_of(key)), "Approved")

    async def signed() -> bool:
        return "certificate" in await status_of(api, "good")

    await api.until(signed)
    for name in ("open", "denied", "others"):
        assert "certificate" not in await status_of(api, name)


@pytest.mark.parametrize("case", ["a key of another kind", "no use"])
async def test_what_cannot_be_signed_fails_with_a_reason(
    api: Api, controllers: Controllers, case: str
) -> None:
    """The condition Failed, as the API says."""
    key: Any = ec.generate_private_key(ec.SECP256R1())
    if case == "a key of another kind":
        key = ed25519.Ed25519PrivateKey.generate()
    usages = ["digital signature"] if case == "no use" else ["client auth"]
    made = await submit(api, "bad", csr_of(key), usages=usages)
    await decide(api, made, "Approved")

    async def failed() -> str:
        conditions = (await status_of(api, "bad")).get("conditions") or []
        return next((c["message"] for c in conditions if c["type"] == "Failed"), "")

    assert await api.until(failed)
