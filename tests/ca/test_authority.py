"""Certificates say who somebody authenticated the caller to be, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from meltemi.ca import authority, identity, secrets

NOW = 1_760_000_000.0
WHO = "spiffe://cluster.local/ns/bookinfo/sa/reviews"
ROOT_KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def root() -> authority.Authority:
    return authority.self_signed(ROOT_KEY, NOW, 1, "cluster.local")


def csr_for(key: Any, *uris: str) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")])
    )
    if uris:
        names = [x509.UniformResourceIdentifier(u) for u in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


def leaf_of(issued: authority.Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.chain[0].encode())


@pytest.mark.parametrize("kind", ["rsa", "p256"])
def test_issue(root: authority.Authority, kind: str) -> None:
    """Both key kinds are signed; the certificate verifies as a client's against the root."""
    key: Any = (
        rsa.generate_private_key(65537, 2048)
        if kind == "rsa"
        else ec.generate_private_key(ec.SECP256R1())
    )
    issued = authority.issue(root, csr_for(key, WHO), WHO, NOW, 7)
    leaf = leaf_of(issued)
    assert leaf.serial_number == 7
    assert leaf.not_valid_after_utc.timestamp() == NOW + authority.WORKLOAD_TTL_S
    assert leaf.not_valid_before_utc.timestamp() < NOW
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    store = Store([root.certificate])
    verifier = PolicyBuilder().store(store).time(leaf.not_valid_before_utc).build_client_verifier()
    verified = verifier.verify(leaf, [])
    assert verified.subjects is not None
    assert [s.value for s in verified.subjects] == [WHO]
    assert issued.chain[-1] == root.roots


def test_a_renewed_root_keeps_its_name_and_key(root: authority.Authority) -> None:
    """In its last part of life it gets another one; certificates of either verify against both."""
    early, late = NOW + 0.79 * authority.ROOT_TTL_S, NOW + 0.81 * authority.ROOT_TTL_S
    assert not authority.needs_renewal(root, early, 20)
    assert authority.needs_renewal(root, late, 20)
    made = authority.renewed(root, late, 2)
    assert made.expires == int(late + authority.ROOT_TTL_S)
    assert not authority.needs_renewal(made, late, 20)
    for signs, verifies in ((root, made), (made, root), (made, made)):
        issued = authority.issue(signs, csr_for(ROOT_KEY), WHO, late, 7)
        leaf = leaf_of(issued)
        builder = PolicyBuilder().store(Store([verifies.certificate]))
        verifier = builder.time(leaf.not_valid_before_utc).build_client_verifier()
        assert verifier.verify(leaf, [])


def test_a_signing_certificate_of_another_root_is_not_renewed(root: authority.Authority) -> None:
    """What is plugged in is its owner's to renew."""
    key = ec.generate_private_key(ec.SECP256R1())
    alone = authority.self_signed(key, NOW, 3, "other")
    below = authority.Authority(alone.certificate, key, (alone.certificate,), root.roots)
    assert not authority.needs_renewal(below, NOW + authority.ROOT_TTL_S, 20)


def test_another_identity_in_the_request_is_ignored(root: authority.Authority) -> None:
    """What the request asks for never reaches the certificate: neither names nor subject."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = csr_for(key, "spiffe://cluster.local/ns/istio-system/sa/istiod")
    leaf = leaf_of(authority.issue(root, csr, WHO, NOW, 1))
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert san.critical
    assert [n.value for n in san.value] == [WHO]
    assert leaf.subject == x509.Name([])


def test_lifetimes(root: authority.Authority) -> None:
    """Asked-for lifetimes count up to 90 days, and never beyond the authority's own end."""
    csr = csr_for(ec.generate_private_key(ec.SECP256R1()))
    assert authority.issue(root, csr, WHO, NOW, 1, 600).expires == NOW + 600
    assert authority.issue(root, csr, WHO, root.expires - 60, 1).expires == root.expires
    with pytest.raises(authority.RequestRefused, match="maximum"):
        authority.issue(root, csr, WHO, NOW, 1, 91 * 24 * 3600)
    with pytest.raises(authority.RequestRefused, match="expired"):
        authority.issue(root, csr, WHO, root.expires, 1)


def test_bad_requests_are_refused_with_a_reason(root: authority.Authority) -> None:
    """Garbage, tampered requests, and keys that are weak or unknown."""
    good = csr_for(ec.generate_private_key(ec.SECP256R1()))
    body = good.splitlines()
    body[3] = body[3][:-8] + ("A" * 8 if not body[3].endswith("A" * 8) else "B" * 8)
    for csr, why in [
        ("garbage", "not a PKCS #10"),
        ("", "not a PKCS #10"),
        ("x" * (authority.CSR_LENGTH_MAX + 1), "longer"),
        ("\n".join(body), "."),
        (csr_for(rsa.generate_private_key(65537, 1024)), "1024 bits"),
        (csr_for(ed25519.Ed25519PrivateKey.generate()), "RSA or elliptic"),
        (csr_for(ec.generate_private_key(ec.SECP256K1())), "curve"),
    ]:
        with pytest.raises(authority.RequestRefused, match=why):
            authority.issue(root, csr, WHO, NOW, 1)


def test_secret_round_trip(root: authority.Authority) -> None:
    """What is written to istio-ca-secret is the same authority when read."""
    secret = secrets.secret_of(root, "istio-system")
    data = {name: text.encode() for name, text in secret["stringData"].items()}
    again = secrets.authority_of(data)
    assert again.certificate == root.certificate
    assert again.roots == root.roots
    assert again.chain == ()
    assert "PRIVATE" not in repr(again)


def test_plugged_intermediate(root: authority.Authority) -> None:
    """With ``cacerts`` the chain goes leaf, intermediate, root."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "intermediate")])
    intermediate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(2)
        .not_valid_before(root.certificate.not_valid_before_utc)
        .not_valid_after(root.certificate.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ROOT_KEY, hashes.SHA256())
    )
    pem = intermediate.public_bytes(serialization.Encoding.PEM)
    data = {
        "ca-cert.pem": pem,
        "ca-key.pem": authority.key_pem(key).encode(),
        "cert-chain.pem": pem + root.roots.encode(),
        "root-cert.pem": root.roots.encode(),
    }
    plugged = secrets.authority_of(data)
    csr = csr_for(ec.generate_private_key(ec.SECP256R1()))
    chain = authority.issue(plugged, csr, WHO, NOW, 5).chain
    assert chain[1:] == (pem.decode(), root.roots)
    leaf = x509.load_pem_x509_certificate(chain[0].encode())
    leaf.verify_directly_issued_by(intermediate)


def test_unusable_secrets_are_explained(root: authority.Authority) -> None:
    """A foreign key, a missing part, a certificate that may not sign."""
    other = authority.key_pem(ec.generate_private_key(ec.SECP256R1())).encode()
    cert = authority.certificate_pem(root).encode()
    with pytest.raises(ValueError, match="does not belong"):
        secrets.authority_of({"ca-cert.pem": cert, "ca-key.pem": other})
    with pytest.raises(ValueError, match=r"ca-key\.pem"):
        secrets.authority_of({"ca-cert.pem": cert})
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = authority.issue(root, csr_for(key), WHO, NOW, 3).chain[0].encode()
    with pytest.raises(ValueError, match="may not sign"):
        secrets.authority_of({"ca-cert.pem": leaf, "ca-key.pem": authority.key_pem(key).encode()})


REVIEW = {
    "authenticated": True,
    "audiences": ["istio-ca"],
    "user": {"username": "system:serviceaccount:bookinfo:reviews"},
}


def test_identity_from_a_token_review() -> None:
    """The user name of a service account, for the right audience."""
    who = identity.from_token_review(REVIEW, "cluster.local", "istio-ca")
    assert who.spiffe == WHO


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"authenticated": False, "error": "token expired"}, "token expired"),
        ({"audiences": ["vault"]}, "audience vault"),
        ({"audiences": None}, "audience unknown"),
        ({"user": {"username": "admin"}}, "service account"),
        ({"user": {"username": "system:serviceaccount::x"}}, "service account"),
    ],
)
def test_token_reviews_that_do_not_identify(change: dict[str, Any], why: str) -> None:
    """Expired, for another audience, or not a service account's."""
    with pytest.raises(identity.NotAuthenticated, match=why):
        identity.from_token_review({**REVIEW, **change}, "cluster.local", "istio-ca")


def test_identity_from_a_certificate() -> None:
    """Exactly one SPIFFE id, of a trust domain of ours."""
    assert identity.from_certificate([WHO], ["cluster.local"]).service_account == "reviews"
    with pytest.raises(identity.NotAuthenticated, match=r"trust domain .cluster\.local."):
        identity.from_certificate([WHO], ["other"])
    with pytest.raises(identity.NotAuthenticated, match="holds 2"):
        identity.from_certificate([WHO, WHO], ["cluster.local"])
    with pytest.raises(identity.NotAuthenticated, match="holds 0"):
        identity.from_certificate(["https://x"], ["cluster.local"])
