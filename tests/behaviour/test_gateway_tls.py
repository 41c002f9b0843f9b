"""TLS at gateways: modes, certificates from Secrets and files, who may come in, versions and ciphers."""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from behaviour.edge import gateway, routes, secret, to
from meltemi.config.validate_topology import CIPHERS, CURVES
from meltemi.testing.client import TlsOptions
from meltemi.testing.mesh import Mesh
from meltemi.testing.response import NoAnswer, Response
from pki import Authority, make_authority

pytestmark = pytest.mark.envoy

HOST = "shop.example.com"
URL = f"https://{HOST}:8443/"
REFUSED = (NoAnswer, ssl.SSLError, ConnectionError)


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Signs for servers and clients outside the mesh."""
    return make_authority("outside")


@pytest.fixture
def fresh() -> str:
    """The name of a Secret that no proxy has had: Envoy keeps the last good one of a name."""
    return f"secret-{next(_NUMBERS)}"


_NUMBERS = itertools.count()


@functools.cache
def rsa_pair(authority: Authority, *names: str) -> tuple[bytes, bytes]:
    """RSA keys take long to make."""
    return authority.issue(*names, with_rsa=True)


def pair(authority: Authority, *names: str, with_rsa: bool = False) -> tuple[str, str]:
    """(certificate, key) as text."""
    chain, key = rsa_pair(authority, *names) if with_rsa else authority.issue(*names)
    return chain.decode(), key.decode()


def tls_secret(
    name: str, made: tuple[str, str], namespace: str = "istio-system", **more: str
) -> str:
    """A Secret of type kubernetes.io/tls; ``ca`` and ``crl`` as text."""
    files = {"ca": "ca.crt", "crl": "ca.crl"}
    data = {"tls.crt": made[0], "tls.key": made[1]} | {files[k]: v for k, v in more.items()}
    return secret(name, data, namespace=namespace, kind="kubernetes.io/tls")


def https(
    tls: str,
    *,
    hosts: str = f"[{HOST}]",
    name: str = "https",
    protocol: str = "HTTPS",
    number: int = 8443,
) -> str:
    """One server with TLS."""
    port = f"{{number: {number}, name: {name}, protocol: {protocol}}}"
    return f"- {{port: {port}, hosts: {hosts}, tls: {tls}}}"


def eventually(check: Callable[[], bool], deadline_s: float = 10.0) -> None:
    """Secrets are taken over by Envoy's workers a moment after they are acknowledged."""
    end = time.monotonic() + deadline_s
    while not check():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def refused(mesh: Mesh, url: str = URL, options: TlsOptions | None = None, **more: str) -> bool:
    """Whether a visitor gets no answer."""
    try:
        mesh.gateway().get(url, tls=options, **more)
    except REFUSED:
        return True
    return False


# --- certificates of servers ------------------------------------------------------------------------


@pytest.mark.covers("Gateway.servers.tls.mode=SIMPLE", "Gateway.servers.tls.credentialName")
@pytest.mark.parametrize("keys", [("tls.crt", "tls.key"), ("cert", "key")])
def test_simple_shows_the_certificate_of_a_secret(
    shop: Mesh, authority: Authority, keys: tuple[str, str]
) -> None:
    made = pair(authority, HOST)
    shop.apply(
        gateway(https("{mode: SIMPLE, credentialName: shop}")),
        routes(to("details")),
        secret("shop", dict(zip(keys, made, strict=True))),
    )
    answer = shop.gateway().get(URL, tls=TlsOptions(ca=authority.root.decode()))
    assert answer.status == 200
    assert answer.certificate == (HOST,)
    assert answer.json()["headers"]["x-forwarded-proto"] == "https"
    assert refused(shop, sni="other.example.com")
    assert not shop.findings


def test_every_name_has_its_own_certificate(shop: Mesh, authority: Authority) -> None:
    names = ("a.example.com", "*.example.com", "b.example.com")
    servers = "\n".join(
        https(f"{{mode: SIMPLE, credentialName: c{n}}}", hosts=f'["{name}"]', name=f"h{n}")
        for n, name in enumerate(names)
    )
    shop.apply(
        gateway(servers),
        routes(to("details")),
        *(tls_secret(f"c{n}", pair(authority, name)) for n, name in enumerate(names)),
    )
    visitor = shop.gateway()
    for asked, shown in (("a", "a"), ("b", "b"), ("x", "*"), ("x.y", "*")):
        answer = visitor.get(f"https://{asked}.example.com:8443/")
        assert answer.certificate == (f"{shown}.example.com",)
        assert answer.status == 200
    # A host of another server is not served on a connection that was opened for this one.
    answer = visitor.get("https://a.example.com:8443/", host="b.example.com")
    assert answer.status == 404


@pytest.mark.covers("Gateway.servers.tls.credentialNames")
def test_rsa_and_ecdsa_certificates_beside_each_other(shop: Mesh, authority: Authority) -> None:
    shop.apply(
        gateway(https("{mode: SIMPLE, credentialNames: [rsa, ecdsa]}")),
        routes(to("details")),
        tls_secret("rsa", pair(authority, HOST, with_rsa=True)),
        tls_secret("ecdsa", pair(authority, HOST)),
    )
    for kind in ("RSA", "ECDSA"):
        options = TlsOptions(
            ca=authority.root.decode(),
            maximum=ssl.TLSVersion.TLSv1_2,
            ciphers=f"ECDHE-{kind}-AES128-GCM-SHA256",
        )
        assert shop.gateway().get(URL, tls=options).cipher == f"ECDHE-{kind}-AES128-GCM-SHA256"


def test_a_new_certificate_is_used_at_once(shop: Mesh, authority: Authority) -> None:
    server = gateway(https("{mode: SIMPLE, credentialName: shop}"))
    shop.apply(server, routes(to("details")), tls_secret("shop", pair(authority, HOST)))
    shop.apply(tls_secret("shop", pair(authority, HOST, "second.example.com")))
    eventually(lambda: "second.example.com" in shop.gateway().get(URL).certificate)


@pytest.mark.parametrize(
    "broken", [{}, {"tls.crt": "CERT", "tls.key": "OTHER"}], ids=["missing", "mismatched"]
)
def test_a_bad_secret_stops_its_own_host_alone(
    shop: Mesh, authority: Authority, broken: dict[str, str], fresh: str
) -> None:
    one, other = pair(authority, HOST), pair(authority, HOST)
    data = {
        name: {"CERT": one[0], "OTHER": other[1]}.get(text, text) for name, text in broken.items()
    }
    servers = (
        https("{mode: SIMPLE, credentialName: good}")
        + "\n"
        + https(f"{{mode: SIMPLE, credentialName: {fresh}}}", hosts="[bad.example.com]", name="bad")
    )
    shop.apply(
        gateway(servers),
        routes(to("details")),
        tls_secret("good", one),
        *([secret(fresh, data)] if data else []),
    )
    assert shop.gateway().get(URL).status == 200
    assert refused(shop, "https://bad.example.com:8443/")
    code = "IST0161" if data else "IST0101"
    (finding,) = [f for f in shop.findings if f.code == code]
    assert fresh in finding.text
    assert finding.origin.path.startswith("spec.servers[1].tls")
    # It serves as soon as the Secret is good.
    shop.apply(tls_secret(fresh, pair(authority, "bad.example.com")))
    eventually(lambda: not refused(shop, "https://bad.example.com:8443/"))


def test_secrets_of_other_namespaces_are_not_used(
    shop: Mesh, authority: Authority, fresh: str
) -> None:
    shop.apply(
        gateway(https(f"{{mode: SIMPLE, credentialName: {fresh}}}")),
        routes(to("details")),
        tls_secret(fresh, pair(authority, HOST), namespace="default"),
    )
    assert refused(shop)
    assert [f.code for f in shop.findings] == ["IST0101"]


@pytest.mark.covers("Gateway.servers.tls.serverCertificate", "Gateway.servers.tls.privateKey")
def test_certificates_from_files(shop: Mesh, authority: Authority, tmp_path: Path) -> None:
    folder = mounted(tmp_path, pair(authority, HOST))
    tls = f"{{mode: SIMPLE, serverCertificate: {folder}/tls.crt, privateKey: {folder}/tls.key}}"
    shop.apply(gateway(https(tls)), routes(to("details")))
    assert shop.gateway().get(URL).certificate == (HOST,)
    # As the kubelet changes a mounted Secret.
    mounted(tmp_path, pair(authority, HOST, "second.example.com"))
    eventually(lambda: "second.example.com" in shop.gateway().get(URL).certificate)


def mounted(folder: Path, made: tuple[str, str], **more: str) -> Path:
    """Files behind links of which one is swapped, as in a mounted Secret."""
    version = folder / f"..{time.monotonic_ns()}"
    version.mkdir()
    files = {"tls.crt": made[0], "tls.key": made[1], **more}
    for name, text in files.items():
        (version / name.replace("_", ".")).write_text(text)
    fresh = folder / "..tmp"
    fresh.symlink_to(version.name)
    fresh.rename(folder / "..data")
    for name in files:
        link = folder / name.replace("_", ".")
        if not link.is_symlink():
            link.symlink_to(f"..data/{link.name}")
    return folder


@pytest.mark.covers(
    "Gateway.servers.tls.tlsCertificates.serverCertificate",
    "Gateway.servers.tls.tlsCertificates.privateKey",
)
def test_several_certificates_from_files(shop: Mesh, authority: Authority, tmp_path: Path) -> None:
    entries = []
    for kind in ("rsa", "ecdsa"):
        (tmp_path / kind).mkdir()
        folder = mounted(tmp_path / kind, pair(authority, HOST, with_rsa=kind == "rsa"))
        entries.append(f"{{serverCertificate: {folder}/tls.crt, privateKey: {folder}/tls.key}}")
    shop.apply(
        gateway(https(f"{{mode: SIMPLE, tlsCertificates: [{', '.join(entries)}]}}")),
        routes(to("details")),
    )
    for kind in ("RSA", "ECDSA"):
        options = TlsOptions(
            maximum=ssl.TLSVersion.TLSv1_2, ciphers=f"ECDHE-{kind}-AES128-GCM-SHA256"
        )
        assert kind in shop.gateway().get(URL, tls=options).cipher


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


# --- certificates of clients ------------------------------------------------------------------------


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


def showing(authority: Authority, *names: str) -> TlsOptions:
    """A client with a certificate."""
    return TlsOptions(cert=pair(authority, *names))


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


def test_of_two_servers_for_one_host_the_older_stays(shop: Mesh, authority: Authority) -> None:
    shop.apply(
        gateway(https("{mode: SIMPLE, credentialName: shop}"), name="older"),
        gateway(
            https(
                "{mode: SIMPLE, credentialName: other}",
                hosts=f"[{HOST}, second.example.com]",
                protocol="HTTPS",
            ),
            name="younger",
        ),
        routes(to("details"), gateways="[older, younger]"),
        tls_secret("shop", pair(authority, HOST)),
        tls_secret("other", pair(authority, "second.example.com")),
    )
    assert shop.gateway().get(URL).certificate == (HOST,)
    assert refused(shop, "https://second.example.com:8443/")
    told = {f.origin.name for f in shop.findings if f.code == "MLT0104"}
    assert told == {"older", "younger"}


# --- TLS itself -------------------------------------------------------------------------------------


def spoken(shop: Mesh, version: ssl.TLSVersion) -> str:
    """The version that a client gets that speaks only this one, '' for none."""
    options = TlsOptions(minimum=version, maximum=version, ciphers="ALL:@SECLEVEL=0")
    try:
        return shop.gateway().get(URL, tls=options).tls_version
    except REFUSED:
        return ""


@pytest.mark.covers(
    "Gateway.servers.tls.minProtocolVersion", "Gateway.servers.tls.maxProtocolVersion"
)
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", "TLSv1.2 TLSv1.3"),
        (", minProtocolVersion: TLSV1_3", "TLSv1.3"),
        (", maxProtocolVersion: TLSV1_2", "TLSv1.2"),
        (", minProtocolVersion: TLSV1_0, maxProtocolVersion: TLSV1_2", "TLSv1 TLSv1.1 TLSv1.2"),
        (", maxProtocolVersion: TLSV1_1", "TLSv1.1"),
        (", minProtocolVersion: TLS_AUTO, maxProtocolVersion: TLS_AUTO", "TLSv1.2 TLSv1.3"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_protocol_versions(shop: Mesh, authority: Authority, settings: str, expected: str) -> None:
    # The usual suites need TLS 1.2.
    ciphers = "ECDHE-RSA-AES128-GCM-SHA256, ECDHE-RSA-AES128-SHA"
    shop.apply(
        gateway(
            https(f"{{mode: SIMPLE, credentialName: shop, cipherSuites: [{ciphers}]{settings}}}")
        ),
        routes(to("details")),
        tls_secret("shop", pair(authority, HOST, with_rsa=True)),
    )
    versions = ssl.TLSVersion
    asked = (versions.TLSv1, versions.TLSv1_1, versions.TLSv1_2, versions.TLSv1_3)
    assert [v for v in (spoken(shop, version) for version in asked) if v] == expected.split()


@pytest.mark.covers("Gateway.servers.tls.cipherSuites")
def test_cipher_suites(shop: Mesh, authority: Authority) -> None:
    wanted = "ECDHE-ECDSA-AES256-GCM-SHA384"
    shop.apply(
        gateway(
            https(
                f"{{mode: SIMPLE, credentialName: shop, cipherSuites: [{wanted}, NO-SUCH, {wanted}]}}"
            )
        ),
        routes(to("details")),
        tls_secret("shop", pair(authority, HOST)),
    )
    options = TlsOptions(maximum=ssl.TLSVersion.TLSv1_2)
    assert shop.gateway().get(URL, tls=options).cipher == wanted
    other = TlsOptions(maximum=ssl.TLSVersion.TLSv1_2, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    assert refused(shop, options=other)


def test_every_known_cipher_suite_and_curve_is_accepted(shop: Mesh, authority: Authority) -> None:
    servers = [
        https(
            f"{{mode: SIMPLE, credentialName: shop, {field}: [{word}]}}",
            hosts=f"[h{number}.example.com]",
            name=f"h{number}",
        )
        for number, (field, word) in enumerate(
            [("cipherSuites", name) for name in sorted(CIPHERS)]
            + [("ecdhCurves", name) for name in sorted(CURVES)]
        )
    ]
    shop.apply(
        gateway("\n".join(servers)),
        routes(to("details")),
        tls_secret("shop", pair(authority, HOST)),
    )
    assert shop.gateway().get("https://h0.example.com:8443/", tls=TlsOptions()).status == 200


@pytest.mark.covers("Gateway.servers.tls.ecdhCurves")
def test_curves(shop: Mesh, authority: Authority) -> None:
    shop.apply(
        gateway(https("{mode: SIMPLE, credentialName: shop, ecdhCurves: [P-384, NO-SUCH]}")),
        routes(to("details")),
        tls_secret("shop", pair(authority, HOST)),
    )
    assert shop.gateway().get(URL, tls=TlsOptions(curve="secp384r1")).status == 200
    assert refused(shop, options=TlsOptions(curve="prime256v1"))


@pytest.mark.covers("Gateway.servers.tls.alpnProtocols")
def test_alpn_protocols(shop: Mesh, authority: Authority) -> None:
    shop.apply(
        gateway(https("{mode: SIMPLE, credentialName: shop, alpnProtocols: [http/1.1]}")),
        routes(to("details")),
        tls_secret("shop", pair(authority, HOST)),
    )
    options = TlsOptions(alpn=("h2", "http/1.1"))
    assert shop.gateway().get(URL, tls=options).http_version == "1.1"


@pytest.mark.covers(
    "MeshConfig.tlsDefaults.minProtocolVersion",
    "MeshConfig.tlsDefaults.ecdhCurves",
    "MeshConfig.tlsDefaults.cipherSuites",
)
def test_defaults_of_the_mesh(shop: Mesh, authority: Authority) -> None:
    suite = "ECDHE-RSA-AES256-GCM-SHA384"
    own = "{mode: SIMPLE, credentialName: shop, ecdhCurves: [P-256], minProtocolVersion: TLSV1_3}"
    shop.apply(
        gateway(
            https("{mode: SIMPLE, credentialName: shop}")
            + "\n"
            + https(own, hosts="[own.example.com]", name="own")
        ),
        routes(to("details")),
        tls_secret("shop", pair(authority, HOST, with_rsa=True)),
        mesh_config=f"tlsDefaults: {{ecdhCurves: [P-384], cipherSuites: [{suite}]}}",
    )
    visitor = shop.gateway()
    old = ssl.TLSVersion.TLSv1_2
    answer = visitor.get(URL, tls=TlsOptions(curve="secp384r1", maximum=old))
    assert answer.cipher == suite
    assert refused(shop, options=TlsOptions(curve="prime256v1"))
    answer = visitor.get("https://own.example.com:8443/", tls=TlsOptions(curve="prime256v1"))
    assert answer.tls_version == "TLSv1.3"
    shop.apply(mesh_config="tlsDefaults: {minProtocolVersion: TLSV1_3}")
    assert refused(shop, options=TlsOptions(maximum=old))


def test_http2_and_http1_are_negotiated(shop: Mesh, authority: Authority) -> None:
    shop.apply(
        gateway(https("{mode: SIMPLE, credentialName: shop}")),
        routes(to("details")),
        tls_secret("shop", pair(authority, HOST)),
    )
    assert shop.gateway().get(URL).http_version == "1.1"
    answer: Response = shop.gateway().get(URL, http2=True)
    assert answer.http_version == "2"
