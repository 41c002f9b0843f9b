"""TLS of gateways' servers: certificates from Secrets and files, versions, ciphers and curves."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from behaviour.edge import gateway, routes, secret, to
from behaviour.edge_tls import (
    HOST,
    REFUSED,
    URL,
    https,
    mounted,
    pair,
    refused,
    tls_secret,
)
from behaviour_rules import eventually
from meltemi.config.validate_topology import CIPHERS, CURVES
from meltemi.testing.client import TlsOptions
from meltemi.testing.mesh import Mesh
from meltemi.testing.response import Response
from pki import Authority

pytestmark = pytest.mark.envoy

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
