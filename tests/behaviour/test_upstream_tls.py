"""DestinationRule tls, proxyProtocol and tunnel: what proxies speak to servers outside the mesh, and whom they trust."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from behaviour.edge import gateway, routes, secret, to
from behaviour.far_server import FarServer
from behaviour_rules import eventually
from meltemi.testing.client import Client
from meltemi.testing.control import Rejection
from meltemi.testing.mesh import Mesh
from meltemi.testing.response import NoAnswer
from pki import Authority, make_authority

pytestmark = pytest.mark.envoy

HOST = "bank.example.com"
URL = f"http://{HOST}/"
Serve = Callable[..., FarServer]


@pytest.fixture
def serve(tmp_path: Path, authority: Authority) -> Iterator[Serve]:
    """Start a server that shows a certificate for these names."""
    running: list[FarServer] = []

    def start(
        *names: str,
        plain: bool = False,
        clients: bool = False,
        certificate: tuple[bytes, bytes] | None = None,
    ) -> FarServer:
        made = certificate or authority.issue(*(names or (HOST,)))
        server = FarServer(tmp_path, None if plain else made, authority if clients else None)
        running.append(server)
        return server

    yield start
    for server in running:
        server.close()


@pytest.fixture
def root(tmp_path: Path, authority: Authority) -> str:
    """The authority's file."""
    file = tmp_path / "root.pem"
    file.write_bytes(authority.root)
    return str(file)


def bank(server: FarServer, *, protocol: str = "HTTP", number: int = 80) -> str:
    """The service at a server of this machine."""
    return f"""
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: bank}}
spec:
  hosts: [{HOST}]
  resolution: STATIC
  ports: [{{number: {number}, name: main, protocol: {protocol}, targetPort: {server.port}}}]
  endpoints: [{{address: 127.0.0.1}}]
"""


def rule(policy: str, *, namespace: str = "default") -> str:
    """Its traffic policy."""
    return f"""
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: bank, namespace: {namespace}}}
spec:
  host: {HOST}
  trafficPolicy: {policy}
"""


def simple(root: str, more: str = "") -> str:
    """TLS with an authority from a file."""
    return rule(f"{{tls: {{mode: SIMPLE, caCertificates: {root}{more}}}}}")


# --- whom a client trusts ---------------------------------------------------------------------------


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.tls.mode=SIMPLE",
    "DestinationRule.trafficPolicy.tls.caCertificates",
)
def test_the_server_must_be_of_the_authority_and_for_the_host(
    shop: Mesh, caller: Client, serve: Serve, root: str
) -> None:
    shop.apply(bank(serve()), simple(root))
    answer = caller.get(URL)
    assert answer.status == 200
    assert answer.json()["sni"] == HOST
    assert answer.json()["alpn"] == "http/1.1"
    shop.apply(bank(serve("thief.example.com")))
    assert caller.get(URL).status == 503
    shop.apply(bank(serve(certificate=make_authority("stranger").issue(HOST))))
    assert caller.get(URL).status == 503


def test_without_an_authority_those_of_the_system_count(
    shop: Mesh, caller: Client, serve: Serve
) -> None:
    shop.apply(bank(serve()), rule("{tls: {mode: SIMPLE}}"))
    assert caller.get(URL).status == 503


@pytest.mark.covers("DestinationRule.trafficPolicy.tls.insecureSkipVerify")
def test_insecure_skip_verify(shop: Mesh, caller: Client, serve: Serve) -> None:
    server = serve(certificate=make_authority("stranger").issue("x.example.com"))
    shop.apply(bank(server), rule("{tls: {mode: SIMPLE, insecureSkipVerify: true}}"))
    assert caller.get(URL).json()["sni"] == HOST


@pytest.mark.covers("DestinationRule.trafficPolicy.tls.subjectAltNames")
@pytest.mark.parametrize("name", ["bank.internal", "spiffe://bank/prod", "192.0.2.7"])
def test_subject_alt_names_replace_the_host(
    shop: Mesh, caller: Client, serve: Serve, root: str, name: str
) -> None:
    shop.apply(bank(serve(name)), simple(root, f', subjectAltNames: ["{name}"]'))
    assert caller.get(URL).status == 200
    shop.apply(bank(serve()))
    assert caller.get(URL).status == 503


@pytest.mark.covers("DestinationRule.trafficPolicy.tls.sni")
def test_sni_is_sent_and_is_the_name_that_is_verified(
    shop: Mesh, caller: Client, serve: Serve, root: str
) -> None:
    shop.apply(bank(serve("front.example.com")), simple(root, ", sni: front.example.com"))
    assert caller.get(URL).json()["sni"] == "front.example.com"
    shop.apply(bank(serve("thief.example.com")))
    assert caller.get(URL).status == 503


@pytest.mark.covers("DestinationRule.trafficPolicy.tls.caCrl")
def test_revoked_servers_are_not_trusted(
    shop: Mesh, caller: Client, serve: Serve, root: str, authority: Authority, tmp_path: Path
) -> None:
    good, bad = authority.issue(HOST), authority.issue(HOST)
    crl = tmp_path / "revoked.pem"
    crl.write_bytes(authority.revoke(bad[0]))
    shop.apply(bank(serve(certificate=good)), simple(root, f", caCrl: {crl}"))
    assert caller.get(URL).status == 200
    shop.apply(bank(serve(certificate=bad)))
    assert caller.get(URL).status == 503


def test_a_missing_file_stops_its_own_destination_alone(
    shop: Mesh, caller: Client, serve: Serve, root: str
) -> None:
    other = (
        bank(serve("shop.example.com"))
        .replace(HOST, "shop.example.com")
        .replace("name: bank", "name: other")
    )
    policy = simple(root).replace(HOST, "shop.example.com").replace("name: bank", "name: other")
    # Told when it is still the proxy's last word on secrets.
    with contextlib.suppress(Rejection):
        shop.apply(bank(serve()), simple("/nowhere/missing.pem"), other, policy)

    def fails() -> bool:
        try:
            return caller.get(URL).status == 503
        except NoAnswer:  # not known yet, so it goes where it is sent
            return False

    # The proxy waits two seconds for what it cannot get.
    eventually(fails, 20)
    assert caller.get("http://shop.example.com/").json()["workload"] == "far"
    assert caller.get("http://reviews:9080/").status == 200


# --- who the client is ------------------------------------------------------------------------------


def test_mutual_with_files_is_renewed_without_a_push(
    shop: Mesh, caller: Client, serve: Serve, root: str, authority: Authority, tmp_path: Path
) -> None:
    folder = tmp_path / "client"
    folder.mkdir()

    def install(name: str) -> None:
        version = folder / f"..{time.monotonic_ns()}"
        version.mkdir()
        for file, content in zip(("cert.pem", "key.pem"), authority.issue(name), strict=True):
            (version / file).write_bytes(content)
            if not (folder / file).is_symlink():
                (folder / file).symlink_to(f"..data/{file}")
        (folder / "..tmp").symlink_to(version.name)
        (folder / "..tmp").rename(folder / "..data")

    install("first.example.com")
    tls = (
        f"{{mode: MUTUAL, clientCertificate: {folder}/cert.pem, privateKey: {folder}/key.pem, "
        f"caCertificates: {root}}}"
    )
    pool = "{http: {maxRequestsPerConnection: 1}}"
    shop.apply(bank(serve(clients=True)), rule(f"{{tls: {tls}, connectionPool: {pool}}}"))
    assert caller.get(URL).json()["client"] == ["first.example.com"]
    install("second.example.com")
    eventually(lambda: caller.get(URL).json()["client"] == ["second.example.com"])


WAY_OUT = gateway(
    '- {port: {number: 8080, name: http, protocol: HTTP}, hosts: ["*"]}',
    name="way-out",
    selector="{istio: egressgateway}",
) + routes(to(HOST, 80), hosts=f"[{HOST}]", gateways="[way-out]", name="way-out")


@pytest.mark.covers("DestinationRule.trafficPolicy.tls.credentialName")
@pytest.mark.parametrize("place", ["trafficPolicy", "portLevelSettings", "subsets"])
def test_gateways_take_their_certificate_from_a_secret(
    shop: Mesh, serve: Serve, authority: Authority, place: str
) -> None:
    name = f"client-{place.lower()}"
    tls = f"{{mode: MUTUAL, credentialName: {name}}}"
    pool = "connectionPool: {http: {maxRequestsPerConnection: 1}}"
    policy = {
        "trafficPolicy": f"{{tls: {tls}, {pool}}}",
        "portLevelSettings": f"{{portLevelSettings: [{{port: {{number: 80}}, tls: {tls}, {pool}}}]}}",
        "subsets": "{connectionPool: {http: {maxRequestsPerConnection: 1}}}",
    }[place]
    given = rule(policy)
    out = WAY_OUT
    if place == "subsets":
        given += f"  subsets: [{{name: secure, trafficPolicy: {{tls: {tls}}}}}]\n"
        out = out.replace("port: {number: 80}", "port: {number: 80}, subset: secure")

    def credentials(who: str) -> str:
        chain, key = (part.decode() for part in authority.issue(who))
        return secret(name, {"tls.crt": chain, "tls.key": key, "ca.crt": authority.root.decode()})

    shop.apply(bank(serve(clients=True)), given, out, credentials("first.example.com"))
    visitor = shop.gateway("egressgateway")
    answer = visitor.get(f"http://{HOST}:8080/")
    assert answer.json()["client"] == ["first.example.com"]
    assert answer.json()["sni"] == HOST
    shop.apply(credentials("second.example.com"))
    eventually(
        lambda: visitor.get(f"http://{HOST}:8080/").json()["client"] == ["second.example.com"]
    )


def test_a_missing_secret_is_told_and_stops_nothing_else(shop: Mesh, serve: Serve) -> None:
    shop.apply(bank(serve()), rule("{tls: {mode: SIMPLE, credentialName: nowhere}}"), WAY_OUT)
    assert shop.gateway("egressgateway").get(f"http://{HOST}:8080/").status == 503
    assert "IST0101" in [f.code for f in shop.findings]


@pytest.mark.covers("DestinationRule.trafficPolicy.tls.credentialName")
def test_sidecars_are_given_secrets_by_rules_that_select_them(
    shop: Mesh, caller: Client, serve: Serve, authority: Authority
) -> None:
    chain, key = (part.decode() for part in authority.issue("client.example.com"))
    data = {"tls.crt": chain, "tls.key": key, "ca.crt": authority.root.decode()}
    given = rule("{tls: {mode: MUTUAL, credentialName: client}}")
    shop.apply(bank(serve(clients=True)), given, secret("client", data, namespace="default"))
    # The system's authorities are what is left to it.
    assert caller.get(URL).status == 503
    assert "kubernetes://client" not in str(shop.config("caller"))
    shop.apply(given + "  workloadSelector: {matchLabels: {app: caller}}\n")
    assert caller.get(URL).json()["client"] == ["client.example.com"]
    assert "kubernetes://client" not in str(shop.config("details-v1"))


# --- bytes ------------------------------------------------------------------------------------------


def test_bytes_are_encrypted_too(shop: Mesh, caller: Client, serve: Serve, root: str) -> None:
    shop.apply(bank(serve(), protocol="TCP", number=9999), simple(root, f", sni: {HOST}"))
    with caller.tcp(f"{HOST}:9999") as line:
        answer = line.ask("hello")
        assert answer["sni"] == HOST
        assert answer["alpn"] == ""
    shop.apply(bank(serve("thief.example.com"), protocol="TCP", number=9999))
    with caller.tcp(f"{HOST}:9999") as line:
        assert line.ask("hello") is None


@pytest.mark.covers("DestinationRule.trafficPolicy.proxyProtocol.version")
@pytest.mark.parametrize("version", ["V1", "V2"])
@pytest.mark.parametrize("secure", [False, True])
def test_the_proxy_protocol_comes_before_everything(
    shop: Mesh, caller: Client, serve: Serve, root: str, version: str, secure: bool
) -> None:
    tls = f", tls: {{mode: SIMPLE, caCertificates: {root}}}" if secure else ""
    shop.apply(
        bank(serve(plain=not secure)), rule(f"{{proxyProtocol: {{version: {version}}}{tls}}}")
    )
    seen = caller.get(URL).json()
    assert seen["proxy"].startswith("PROXY TCP4 127." if version == "V1" else "v2 127.")
    assert seen.get("sni", "") == (HOST if secure else "")


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.tunnel.protocol",
    "DestinationRule.trafficPolicy.tunnel.targetHost",
    "DestinationRule.trafficPolicy.tunnel.targetPort",
)
@pytest.mark.parametrize("protocol", ["CONNECT", "POST"])
@pytest.mark.parametrize("secure", [False, True])
def test_tunnels_through_an_http_proxy(
    shop: Mesh, caller: Client, serve: Serve, root: str, protocol: str, secure: bool
) -> None:
    tls = f", tls: {{mode: SIMPLE, caCertificates: {root}, sni: {HOST}}}" if secure else ""
    tunnel = f"tunnel: {{protocol: {protocol}, targetHost: db.example.com, targetPort: 5432}}"
    shop.apply(
        bank(serve(plain=not secure), protocol="TCP", number=9999), rule(f"{{{tunnel}{tls}}}")
    )
    with caller.tcp(f"{HOST}:9999") as line:
        answer = line.ask("hello")
    expected = "CONNECT db.example.com:5432" if protocol == "CONNECT" else "POST "
    assert answer["tunnel"].startswith(expected)


# --- inside the mesh --------------------------------------------------------------------------------


def test_istio_mutual_with_names_of_its_own(shop: Mesh, caller: Client) -> None:
    for account, status in (("reviews", 200), ("thief", 503)):
        name = f"spiffe://cluster.local/ns/default/sa/{account}"
        shop.apply(f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews}}
spec:
  host: reviews
  trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL, sni: my-sni.example.com, subjectAltNames: ["{name}"]}}}}
""")
        answer = caller.get("http://reviews:9080/")
        assert answer.status == status
        if status == 200:
            assert answer.mtls
            assert answer.last is not None and answer.last.sni == "my-sni.example.com"
