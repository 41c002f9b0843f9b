"""TLS that a Sidecar's ingress listener ends for clients outside the mesh. Certificates are files of the proxy."""

from __future__ import annotations

import base64
import hashlib
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from meltemi.testing.client import TlsOptions
from meltemi.testing.mesh import Mesh, WrongConfiguration
from meltemi.testing.response import NoAnswer, Response
from pki import Authority, make_authority

pytestmark = pytest.mark.envoy

HOST = "details.example.com"
URL = "https://details:9080/"
REFUSED = (NoAnswer, ssl.SSLError, ConnectionError)


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Signs for the server and its clients."""
    return make_authority("outside")


@pytest.fixture(scope="module")
def files(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """server.crt and server.key (ECDSA), rsa.crt and rsa.key, ca.crt."""
    folder = tmp_path_factory.mktemp("certificates")
    for name, with_rsa in (("server", False), ("rsa", True)):
        chain, key = authority.issue(HOST, with_rsa=with_rsa)
        (folder / f"{name}.crt").write_bytes(chain)
        (folder / f"{name}.key").write_bytes(key)
    (folder / "ca.crt").write_bytes(authority.root)
    return folder


def serve(mesh: Mesh, tls: str) -> None:
    """``details`` ends TLS on port 9080; mTLS of the mesh is off there."""
    mesh.apply(f"""
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: details}}
spec:
  workloadSelector: {{labels: {{app: details}}}}
  ingress:
  - port: {{number: 9080, protocol: HTTP, name: web}}
    tls: {{{tls}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: details}}
spec:
  selector: {{matchLabels: {{app: details}}}}
  portLevelMtls: {{9080: {{mode: DISABLE}}}}
""")


def pair_of(files: Path, name: str = "server") -> str:
    """The fields for a certificate."""
    return f"serverCertificate: {files}/{name}.crt, privateKey: {files}/{name}.key"


def simple(files: Path, more: str = "") -> str:
    """One-sided TLS."""
    return f"mode: SIMPLE, {pair_of(files)}{more}"


def mutual(files: Path, more: str = "") -> str:
    """TLS that asks for the client's certificate, too."""
    return f"mode: MUTUAL, {pair_of(files)}, caCertificates: {files}/ca.crt{more}"


def ask(mesh: Mesh, tls: TlsOptions | None = None) -> Response | None:
    """The answer to a client outside, None when it is refused."""
    try:
        return mesh.outside.get(URL, tls=tls, sni=HOST)
    except REFUSED:
        return None


def showing(authority: Authority, *names: str) -> TlsOptions:
    """A client with a certificate."""
    chain, key = authority.issue(*(names or ("client.example.com",)))
    return TlsOptions(cert=(chain.decode(), key.decode()))


@pytest.mark.covers(
    "Sidecar.ingress.tls.mode=SIMPLE",
    "Sidecar.ingress.tls.serverCertificate",
    "Sidecar.ingress.tls.privateKey",
)
def test_simple(shop: Mesh, files: Path, authority: Authority) -> None:
    serve(shop, simple(files))
    answer = ask(shop, TlsOptions(ca=authority.root.decode()))
    assert answer is not None
    assert answer.workload == "details-v1"
    assert answer.certificate == (HOST,)
    with pytest.raises(NoAnswer):
        shop.outside.get("http://details:9080/")
    assert shop.client("caller").get("http://details:9081/").status == 200


@pytest.mark.covers("Sidecar.ingress.tls.mode=MUTUAL", "Sidecar.ingress.tls.caCertificates")
def test_mutual(shop: Mesh, files: Path, authority: Authority) -> None:
    serve(shop, mutual(files))
    assert ask(shop, showing(authority))
    assert not ask(shop)
    assert not ask(shop, showing(make_authority("stranger")))


@pytest.mark.covers("Sidecar.ingress.tls.caCrl")
def test_revoked_clients(shop: Mesh, files: Path, authority: Authority) -> None:
    revoked, valid = authority.issue("a.example.com"), authority.issue("b.example.com")
    (files / "ca.crl").write_bytes(authority.revoke(revoked[0]))
    serve(shop, mutual(files, f", caCrl: {files}/ca.crl"))
    assert ask(shop, TlsOptions(cert=(valid[0].decode(), valid[1].decode())))
    assert not ask(shop, TlsOptions(cert=(revoked[0].decode(), revoked[1].decode())))


@pytest.mark.covers(
    "Sidecar.ingress.tls.tlsCertificates.serverCertificate",
    "Sidecar.ingress.tls.tlsCertificates.privateKey",
    "Sidecar.ingress.tls.tlsCertificates.caCertificates",
)
def test_two_certificates(shop: Mesh, files: Path, authority: Authority) -> None:
    entries = ", ".join(
        f"{{{pair_of(files, name)}, caCertificates: {files}/ca.crt}}" for name in ("server", "rsa")
    )
    serve(shop, f"mode: MUTUAL, tlsCertificates: [{entries}]")
    chain, key = authority.issue("client.example.com")
    cert = (chain.decode(), key.decode())
    for kind in ("ECDSA", "RSA"):
        answer = ask(
            shop,
            TlsOptions(
                cert=cert,
                maximum=ssl.TLSVersion.TLSv1_2,
                ciphers=f"ECDHE-{kind}-AES128-GCM-SHA256",
            ),
        )
        assert answer is not None
    assert not ask(shop)


@pytest.mark.covers("Sidecar.ingress.tls.subjectAltNames")
def test_subject_alt_names(shop: Mesh, files: Path, authority: Authority) -> None:
    serve(shop, mutual(files, ", subjectAltNames: [spiffe://outside/client]"))
    assert ask(shop, showing(authority, "spiffe://outside/client"))
    assert not ask(shop, showing(authority, "spiffe://outside/other"))


@pytest.mark.covers(
    "Sidecar.ingress.tls.verifyCertificateHash", "Sidecar.ingress.tls.verifyCertificateSpki"
)
@pytest.mark.parametrize("kind", ["Hash", "Spki"])
def test_pinned_certificates(shop: Mesh, files: Path, authority: Authority, kind: str) -> None:
    chain, key = authority.issue("client.example.com")
    known = x509.load_pem_x509_certificate(chain)
    pin = hashlib.sha256(known.public_bytes(Encoding.DER)).hexdigest()
    if kind == "Spki":
        public = known.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        pin = base64.b64encode(hashlib.sha256(public).digest()).decode()
    serve(shop, mutual(files, f", verifyCertificate{kind}: ['{pin}']"))
    assert ask(shop, TlsOptions(cert=(chain.decode(), key.decode())))
    assert not ask(shop, showing(authority))


@pytest.mark.covers("Sidecar.ingress.tls.insecureSkipVerify")
def test_insecure_skip_verify(shop: Mesh, files: Path) -> None:
    serve(shop, mutual(files, ", insecureSkipVerify: true"))
    assert ask(shop, showing(make_authority("stranger")))


@pytest.mark.covers(
    "Sidecar.ingress.tls.minProtocolVersion", "Sidecar.ingress.tls.maxProtocolVersion"
)
def test_protocol_versions(shop: Mesh, files: Path) -> None:
    old = TlsOptions(maximum=ssl.TLSVersion.TLSv1_2)
    serve(shop, simple(files, ", minProtocolVersion: TLSV1_3"))
    assert ask(shop)
    assert not ask(shop, old)
    serve(shop, simple(files, ", maxProtocolVersion: TLSV1_2"))
    assert ask(shop, old)
    answer = ask(shop)
    assert answer is not None


@pytest.mark.covers("Sidecar.ingress.tls.cipherSuites")
def test_cipher_suites(shop: Mesh, files: Path) -> None:
    serve(shop, simple(files, ", cipherSuites: [ECDHE-ECDSA-AES256-GCM-SHA384]"))
    for suite, taken in (
        ("ECDHE-ECDSA-AES256-GCM-SHA384", True),
        ("ECDHE-ECDSA-AES128-GCM-SHA256", False),
    ):
        options = TlsOptions(maximum=ssl.TLSVersion.TLSv1_2, ciphers=suite)
        assert (ask(shop, options) is not None) is taken


@pytest.mark.covers("Sidecar.ingress.tls.ecdhCurves")
def test_curves(shop: Mesh, files: Path) -> None:
    serve(shop, simple(files, ", ecdhCurves: [P-384]"))
    assert ask(shop, TlsOptions(curve="secp384r1"))
    assert not ask(shop, TlsOptions(curve="prime256v1"))


@pytest.mark.covers("Sidecar.ingress.tls.alpnProtocols")
def test_alpn_protocols(shop: Mesh, files: Path) -> None:
    serve(shop, simple(files, ", alpnProtocols: [http/1.1]"))
    answer = ask(shop, TlsOptions(alpn=("h2", "http/1.1")))
    assert answer is not None
    assert answer.http_version == "1.1"
    serve(shop, simple(files, ", alpnProtocols: [h2]"))
    answer = ask(shop, TlsOptions(alpn=("h2", "http/1.1")))
    assert answer is not None
    assert answer.http_version == "2"


@pytest.mark.parametrize(
    "field", ["credentialName: shop", "credentialNames: [shop]", "caCertCredentialName: shop"]
)
def test_secrets_are_for_gateways(shop: Mesh, files: Path, field: str) -> None:
    """Waiting for a Secret that no sidecar is given would stop the whole workload."""
    with pytest.raises(WrongConfiguration, match="is not supported in a Sidecar"):
        serve(shop, f"{mutual(files)}, {field}")


def test_tls_has_no_effect_while_mtls_is_on(shop: Mesh, files: Path) -> None:
    serve(shop, simple(files))
    shop.delete("PeerAuthentication", "details")
    assert shop.client("caller").get("http://details:9080/").mtls
    assert "MLT0106" in {finding.code for finding in shop.findings}
