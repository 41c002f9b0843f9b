"""Mutual TLS between real Envoys whose certificates live and die: renewals under load, an absent istiod, who is refused."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from agent.control_plane import CDS, Authority, ControlPlane
from agent.world import Application, Container, eventually
from meltemi.envoy.tls import upstream_socket
from meltemi.ir.tls import WORKLOAD_CERTIFICATE, WORKLOAD_ROOTS, UpstreamTls

pytestmark = pytest.mark.envoy
DESCRIPTORS = (http_protocol_options_pb2,)  # for resources written as JSON
FAILED = 'istio_agent_num_failed_outgoing_requests{request_type="csr"}'
EXPIRY = 'istio_agent_cert_expiry_seconds{resource_name="default"}'
CALLER = "spiffe://cluster.local/ns/bookinfo/sa/productpage"


@dataclass
class Pair:
    """A request comes in plaintext at ``client``'s Envoy and goes over mTLS to ``server``'s, on a new connection each."""

    client: Container
    server: Container
    planes: tuple[ControlPlane, ControlPlane]
    authority: Authority

    def fetch(self) -> int:
        """One request through both."""
        return self.client.get(self.client.inbound, "/")[0]

    def lives(self, life_s: float) -> None:
        """The validity of certificates issued from now on."""
        for plane in self.planes:
            plane.life_s = life_s

    def stop(self) -> None:
        """istiod goes away."""
        for plane in self.planes:
            plane.stop()

    def start(self) -> None:
        """istiod comes (back)."""
        for plane in self.planes:
            plane.start()

    def serials(self) -> tuple[int, int]:
        """Serial numbers of the certificates in use."""
        return self.client.serial(), self.server.serial()

    def metric(self, name: str) -> float:
        """One of the server agent's own numbers."""
        text = self.server.get(self.server.status, "/stats/prometheus")[1]
        found = [line for line in text.splitlines() if line.startswith(name)]
        return float(found[0].rpartition(" ")[2]) if found else float("nan")


@pytest.fixture
def application() -> Iterator[Application]:
    app = Application()
    yield app
    app.close()


@pytest.fixture
def pair(tmp_path: Path, application: Application) -> Iterator[Pair]:
    """Not started yet: tests set lifetimes first."""
    authority = Authority()
    planes = (ControlPlane(authority), ControlPlane(authority))
    boxes = []
    for name, plane in zip(("client", "server"), planes, strict=True):
        plane.start()
        (tmp_path / name).mkdir()
        boxes.append(Container(tmp_path / name, plane))
    client, server = boxes
    server.serve(application, tls=True)
    client.forward(server.inbound)
    cluster = planes[0].resources[CDS]["app"]
    outbound = UpstreamTls(certificate=WORKLOAD_CERTIFICATE, roots=WORKLOAD_ROOTS)
    cluster["transportSocket"] = client.tls(upstream_socket(outbound))
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    cluster["typedExtensionProtocolOptions"] = {
        options: {
            "@type": f"type.googleapis.com/{options}",
            "commonHttpProtocolOptions": {"maxRequestsPerConnection": 1},
            "explicitHttpConfig": {"httpProtocolOptions": {}},
        }
    }
    made = Pair(client, server, planes, authority)
    try:
        yield made
    finally:
        for box in boxes:
            box.close()
        made.stop()


def begin(pair: Pair, life_s: float = 3600.0, grace_ratio: float = 0.5) -> None:
    """Both proxies run, with certificates of this life, renewed when that share of it is left."""
    pair.lives(life_s)
    for box in (pair.client, pair.server):
        box.environment["SECRET_GRACE_PERIOD_RATIO"] = str(grace_ratio)
    for box in (pair.client, pair.server):
        box.start()
    for box in (pair.client, pair.server):
        box.await_ready()
    eventually(lambda: pair.fetch() == 200, "a first request")


@contextmanager
def load(pair: Pair) -> Iterator[Counter[object]]:
    """Requests without a pause; what came back, counted."""
    seen: Counter[object] = Counter()
    over = threading.Event()

    def visit() -> None:
        while not over.is_set():
            try:
                seen[pair.fetch()] += 1
            except (OSError, http.client.HTTPException) as error:
                seen[repr(error)] += 1

    thread = threading.Thread(target=visit)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_keys_are_of_the_kind_that_is_asked_for(pair: Pair) -> None:
    """RSA on one side, a larger curve on the other: they understand each other."""
    pair.client.environment["WORKLOAD_RSA_KEY_SIZE"] = "2048"
    pair.server.environment |= {
        "WORKLOAD_RSA_KEY_SIZE": "4096",
        "ECC_SIGNATURE_ALGORITHM": "ECDSA",
        "ECC_CURVE": "P384",
    }
    begin(pair)
    mine, theirs = (box.certificate().public_key() for box in (pair.client, pair.server))
    assert isinstance(mine, rsa.RSAPublicKey) and mine.key_size == 2048
    assert isinstance(theirs, ec.EllipticCurvePublicKey)
    assert isinstance(theirs.curve, ec.SECP384R1)


def test_renewals_lose_no_request(pair: Pair) -> None:
    """Both sides renew three times, a handshake for each request: every one is answered."""
    begin(pair, 60.0, 0.97)
    seen: tuple[set[int], set[int]] = (set(), set())

    def renewed() -> bool:
        for serials, serial in zip(seen, pair.serials(), strict=True):
            serials.add(serial)
        return min(map(len, seen)) >= 4

    with load(pair) as met:
        eventually(renewed, "three renewals on both sides", 60)
        enough = met.total() + 20
        eventually(lambda: met.total() >= enough, "requests with the last certificates")
    assert set(met) == {200}, met
    assert pair.server.debug()["envoy"]["epoch"] == 0


def test_istiod_may_be_away_for_more_than_half_a_life(pair: Pair) -> None:
    """Traffic goes on; the failed renewals are counted and logged long before the end; then it recovers by itself."""
    begin(pair, 30.0, 0.85)
    before = pair.serials()
    pair.stop()
    with load(pair) as met:
        eventually(lambda: pair.metric(FAILED) >= 2, "failed renewals in the metrics")
        eventually(lambda: pair.metric(EXPIRY) <= 15, "half of the life is over")
        assert pair.metric(EXPIRY) > 0, "it is warned of before the end"
        assert pair.metric("istio_agent_cert_renewal_failures_in_row") >= 2
        assert "renewal failed, the present certificate stays in use" in pair.server.text()
        pair.start()
        eventually(lambda: not set(before) & set(pair.serials()), "new certificates")
        eventually(lambda: pair.metric("istio_agent_cert_renewal_failures_in_row") == 0, "all well")
    assert set(met) == {200}, met


def test_an_expired_certificate_is_refused_and_replaced_once_istiod_is_back(pair: Pair) -> None:
    """An error in the log and a negative time to expiry; peers refuse it; nobody has to restart anything."""
    begin(pair)
    before = pair.serials()
    pair.lives(3.0)
    for box in (pair.client, pair.server):
        box.root.write_text("# renew\n" + box.root.read_text())
    eventually(lambda: not set(before) & set(pair.serials()), "short-lived certificates")
    pair.stop()
    eventually(lambda: pair.metric(EXPIRY) < 0, "expiry")
    eventually(lambda: pair.fetch() == 503, "refusal")
    eventually(lambda: "s ago and renewal fails" in pair.server.text(), "an error in the log")
    pair.lives(3600.0)
    pair.start()
    eventually(lambda: pair.fetch() == 200, "recovery")


class Caller:
    """A TLS client with a certificate of its own."""

    def __init__(self, folder: Path, signer: Authority, life_s: float = 600.0) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(CALLER)])
        chain = signer.sign(key.public_key(), names, life_s)
        self.serial = x509.load_pem_x509_certificate(chain.encode()).serial_number
        plain = serialization.NoEncryption()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain
        )
        path = folder / f"caller-{self.serial:x}.pem"
        path.write_bytes(chain.encode() + pem)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        self.context.load_cert_chain(path)

    def passes(self, box: Container) -> bool:
        """Whether a request gets an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", box.inbound, timeout=10)
        try:
            raw = socket.create_connection(("127.0.0.1", box.inbound), 10)
            connection.sock = self.context.wrap_socket(raw)
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except (ssl.SSLError, ConnectionError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def revocations(signer: Authority, *serials: int) -> str:
    """The authority's list, in PEM."""
    now = signer.certificate.not_valid_before_utc
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.certificate.subject)
        .last_update(now)
        .next_update(signer.certificate.not_valid_after_utc)
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return (
        builder.sign(signer.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    )


def test_who_is_refused(pair: Pair, tmp_path: Path) -> None:
    """Expired, of an unknown root, and revoked by a list that is published while the proxy runs, and withdrawn again."""
    good, bad = Caller(tmp_path, pair.authority), Caller(tmp_path, pair.authority)
    stranger = Caller(tmp_path, Authority())
    brief = Caller(tmp_path, pair.authority, 2.0)
    ended = time.time() + 2.5
    begin(pair)
    server = pair.server
    assert good.passes(server) and bad.passes(server)
    assert not stranger.passes(server)
    eventually(lambda: time.time() > ended, "its end")
    assert not brief.passes(server)
    lists = server.root.with_name("ca-crl.pem")
    lists.write_text(revocations(pair.authority, bad.serial))
    eventually(lambda: not bad.passes(server), "the revoked one refused")
    assert good.passes(server)
    assert pair.fetch() == 200
    lists.unlink()
    eventually(lambda: bad.passes(server), "no list any more")
    assert pair.planes[1].requests == 1, "a list is no reason for a new certificate"


def test_a_restart_does_not_forget_what_was_revoked_or_published_meanwhile(
    pair: Pair, tmp_path: Path
) -> None:
    """The container comes back with the certificate it had, and with the roots and lists of now."""
    bad = Caller(tmp_path, pair.authority)
    begin(pair)
    server, other = pair.server, Authority()
    server.signal(9)
    server.wait()
    server.root.write_text(other.pem + pair.authority.pem)
    server.root.with_name("ca-crl.pem").write_text(revocations(pair.authority, bad.serial))
    pair.planes[1].stop()
    server.start()
    eventually(lambda: server.text().count("Envoy started") == 2, "another Envoy")
    assert other.pem in server.roots()
    pair.planes[1].start()
    server.await_ready()
    assert not bad.passes(server)
    eventually(lambda: pair.planes[1].requests > 1, "a certificate under the new roots")
