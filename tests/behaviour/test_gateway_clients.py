"""Clients of gateways: who may come in over mutual TLS, by authority, name, pin and revocation."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from behaviour.edge import gateway, routes, secret, to
from behaviour.edge_tls import HOST, URL, https, mounted, pair, refused, showing, tls_secret
from behaviour_rules import eventually
from meltemi.testing.client import TlsOptions
from meltemi.testing.mesh import Mesh
from pki import Authority, make_authority

pytestmark = pytest.mark.envoy


def mutual(
    shop: Mesh, authority: Authority, more: str = "", *, mode: str = "MUTUAL", **data: str
) -> Mesh:
    """A gateway that asks for client certificates of ``authority``."""
    data = data or {"ca": authority.root.decode()}
    return shop.apply(
        gateway(https(f"{{mode: {mode}, credentialName: shop{more}}}")),
        routes(to("details")),
        tls_secret("shop", pair(authority, HOST), **data),
    )


@pytest.mark.covers("Gateway.servers.tls.mode=MUTUAL")
def test_mutual_takes_clients_of_its_authority_alone(shop: Mesh, authority: Authority) -> None:
    mutual(shop, authority)
    answer = shop.gateway().get(URL, tls=showing(authority, "client.example.com"))
    assert answer.status == 200
    shown = answer.json()["headers"]["x-forwarded-client-cert"]
    assert "DNS=client.example.com" in shown
    assert "Cert=" in shown
    assert refused(shop)
    assert refused(shop, options=showing(make_authority("stranger"), "client.example.com"))


@pytest.mark.covers("Gateway.servers.tls.mode=OPTIONAL_MUTUAL")
def test_optional_mutual_verifies_those_that_are_shown(shop: Mesh, authority: Authority) -> None:
    mutual(shop, authority, mode="OPTIONAL_MUTUAL")
    assert shop.gateway().get(URL).status == 200
    answer = shop.gateway().get(URL, tls=showing(authority, "client.example.com"))
    assert "client.example.com" in answer.json()["headers"]["x-forwarded-client-cert"]
    assert refused(shop, options=showing(make_authority("stranger"), "client.example.com"))


@pytest.mark.covers("Gateway.servers.tls.insecureSkipVerify")
def test_insecure_skip_verify_takes_any_certificate(shop: Mesh, authority: Authority) -> None:
    mutual(shop, authority, ", insecureSkipVerify: true")
    assert refused(shop)
    answer = shop.gateway().get(URL, tls=showing(make_authority("stranger"), "x.example.com"))
    assert answer.status == 200


def test_the_authority_may_be_in_a_secret_of_its_own(shop: Mesh, authority: Authority) -> None:
    shop.apply(
        gateway(https("{mode: MUTUAL, credentialName: shop}")),
        routes(to("details")),
        tls_secret("shop", pair(authority, HOST)),
        secret("shop-cacert", {"cacert": authority.root.decode()}),
    )
    assert shop.gateway().get(URL, tls=showing(authority, "client.example.com")).status == 200
    assert refused(shop)


def test_without_an_authority_nobody_comes_in(shop: Mesh, authority: Authority, fresh: str) -> None:
    shop.apply(
        gateway(https(f"{{mode: MUTUAL, credentialName: {fresh}}}")),
        routes(to("details")),
        tls_secret(fresh, pair(authority, HOST)),
    )
    assert refused(shop)
    assert refused(shop, options=showing(authority, "client.example.com"))
    assert "IST0161" in [f.code for f in shop.findings]


@pytest.mark.covers("Gateway.servers.tls.caCertCredentialName")
def test_ca_cert_credential_name(shop: Mesh, authority: Authority) -> None:
    clients = make_authority("clients")
    shop.apply(
        gateway(https("{mode: MUTUAL, credentialName: shop, caCertCredentialName: visitors}")),
        routes(to("details")),
        tls_secret("shop", pair(authority, HOST), ca=authority.root.decode()),
        secret("visitors", {"ca.crt": clients.root.decode()}),
    )
    assert shop.gateway().get(URL, tls=showing(clients, "client.example.com")).status == 200
    assert refused(shop, options=showing(authority, "client.example.com"))


def test_revoked_clients_are_refused_as_soon_as_the_list_says_so(
    shop: Mesh, authority: Authority
) -> None:
    bad, good = (pair(authority, f"{n}.example.com") for n in ("bad", "good"))
    root = authority.root.decode()
    mutual(shop, authority, ca=root, crl=authority.revoke().decode())
    assert shop.gateway().get(URL, tls=TlsOptions(cert=bad)).status == 200
    revoked = authority.revoke(bad[0].encode()).decode()
    shop.apply(tls_secret("shop", pair(authority, HOST), ca=root, crl=revoked))
    eventually(lambda: refused(shop, options=TlsOptions(cert=bad)))
    assert shop.gateway().get(URL, tls=TlsOptions(cert=good)).status == 200


@pytest.mark.covers("Gateway.servers.tls.caCertificates", "Gateway.servers.tls.caCrl")
def test_authority_and_revocations_from_files(
    shop: Mesh, authority: Authority, tmp_path: Path
) -> None:
    bad = pair(authority, "bad.example.com")
    made = pair(authority, HOST)
    root = authority.root.decode()
    folder = mounted(tmp_path, made, ca_crt=root, ca_crl=authority.revoke().decode())
    shop.apply(
        gateway(
            https(
                f"{{mode: MUTUAL, serverCertificate: {folder}/tls.crt, privateKey: {folder}/tls.key, "
                f"caCertificates: {folder}/ca.crt, caCrl: {folder}/ca.crl}}"
            )
        ),
        routes(to("details")),
    )
    assert shop.gateway().get(URL, tls=TlsOptions(cert=bad)).status == 200
    assert refused(shop)
    mounted(tmp_path, made, ca_crt=root, ca_crl=authority.revoke(bad[0].encode()).decode())
    eventually(lambda: refused(shop, options=TlsOptions(cert=bad)))


@pytest.mark.covers("Gateway.servers.tls.subjectAltNames")
@pytest.mark.parametrize(
    "name",
    ["client.example.com", "spiffe://outside/client", "10.1.2.3", "someone@example.com"],
)
def test_subject_alt_names(shop: Mesh, authority: Authority, name: str) -> None:
    mutual(shop, authority, f', subjectAltNames: ["{name}", "another.example.com"]')
    assert shop.gateway().get(URL, tls=showing(authority, name)).status == 200
    assert refused(shop, options=showing(authority, "stranger.example.com"))


@pytest.mark.covers(
    "Gateway.servers.tls.verifyCertificateHash", "Gateway.servers.tls.verifyCertificateSpki"
)
@pytest.mark.parametrize("kind", ["Hash", "Spki"])
def test_pinned_certificates(shop: Mesh, authority: Authority, kind: str) -> None:
    known, other = pair(authority, "client.example.com"), pair(authority, "client.example.com")
    certificate = x509.load_pem_x509_certificate(known[0].encode())
    if kind == "Hash":
        pin = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    else:
        public = certificate.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        pin = base64.b64encode(hashlib.sha256(public).digest()).decode()
    mutual(shop, authority, f', verifyCertificate{kind}: ["{pin}"]')
    assert shop.gateway().get(URL, tls=TlsOptions(cert=known)).status == 200
    assert refused(shop, options=TlsOptions(cert=other))


@pytest.mark.covers("Gateway.servers.tls.tlsCertificates.caCertificates")
def test_authority_beside_the_certificates_from_files(
    shop: Mesh, authority: Authority, tmp_path: Path
) -> None:
    folder = mounted(tmp_path, pair(authority, HOST), ca_crt=authority.root.decode())
    entry = (
        f"{{serverCertificate: {folder}/tls.crt, privateKey: {folder}/tls.key, "
        f"caCertificates: {folder}/ca.crt}}"
    )
    shop.apply(
        gateway(https(f"{{mode: MUTUAL, tlsCertificates: [{entry}]}}")), routes(to("details"))
    )
    assert shop.gateway().get(URL, tls=showing(authority, "client.example.com")).status == 200
    assert refused(shop)
    assert refused(shop, options=showing(make_authority("stranger"), "client.example.com"))
