"""Who speaks mutual TLS with whom: what servers take, what clients do about it, and what rules change."""

from __future__ import annotations

import pytest

from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh
from meltemi.testing.response import NoAnswer

pytestmark = pytest.mark.envoy
URL = "http://server:8080/"
SELF = "spiffe://cluster.local/ns/default/sa/server"
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: server, namespace: default}
spec:
  selector: {app: server}
  ports:
  - {name: http, port: 8080}
  - {name: http-other, port: 8081}
  - {name: tcp, port: 9000}
  - {name: https, port: 8443}
"""


def workload(name: str, app: str = "", *, sidecar: bool = True, account: str = "") -> str:
    """A Deployment of one pod."""
    off = "" if sidecar else ", sidecar.istio.io/inject: 'false'"
    return f"""
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: default}}
spec:
  template:
    metadata: {{labels: {{app: {app or name}, version: {name}{off}}}}}
    spec: {{serviceAccountName: {account or app or name}, containers: [{{name: app}}]}}
"""


def peer(spec: str, name: str = "p", namespace: str = "default") -> str:
    """A PeerAuthentication."""
    return f"""
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
"""


def rule(policy: str = "{}") -> str:
    """A DestinationRule for the server. A connection for each request: kept ones are as they were when they were made."""
    pool = "connectionPool: {http: {maxRequestsPerConnection: 1}}"
    more = policy.strip("{}") and f", {policy[1:-1]}"
    return f"""
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: server, namespace: default}}
spec: {{host: server, trafficPolicy: {{{pool}{more}}}}}
"""


@pytest.fixture
def pair(mesh: Mesh) -> Mesh:
    """A client and a server, both with sidecars."""
    return mesh.apply(SERVICE + workload("client") + workload("server") + rule())


def outcome(client: Client, url: str = URL) -> str:
    """``mtls`` or ``plain`` as the server saw it, ``refused`` without an answer, or the status."""
    try:
        answer = client.get(url)
    except (NoAnswer, OSError):
        return "refused"
    if answer.status != 200:
        return f"{answer.status}"
    return "mtls" if answer.mtls else "plain"


def answered(client: Client) -> bool:
    """Whether a line over TCP is answered."""
    try:
        with client.tcp("server:9000") as connection:
            return bool(connection.ask("hello"))
    except OSError:
        return False


@pytest.mark.covers("PeerAuthentication.mtls.mode=PERMISSIVE", "MeshConfig.enableAutoMtls")
def test_clients_encrypt_by_themselves_and_servers_take_both(pair: Mesh) -> None:
    """Without any object; without auto mTLS, clients do as they are told only."""
    assert outcome(pair.client("client")) == "mtls"
    assert pair.client("client").get(URL).peer_identity == SELF.replace("server", "client")
    assert outcome(pair.outside) == "plain"
    pair.apply(mesh_config="enableAutoMtls: false")
    assert outcome(pair.client("client")) == "plain"
    pair.apply(rule("{tls: {mode: ISTIO_MUTUAL}}"))
    assert outcome(pair.client("client")) == "mtls"


@pytest.mark.covers("PeerAuthentication.mtls.mode=STRICT", "PeerAuthentication.mtls.mode=DISABLE")
@pytest.mark.parametrize(
    ("mode", "inside", "outside"),
    [("PERMISSIVE", "mtls", "plain"), ("STRICT", "mtls", "refused"), ("DISABLE", "plain", "plain")],
)
def test_clients_follow_the_servers_mode(pair: Mesh, mode: str, inside: str, outside: str) -> None:
    """Sidecars hear of it; others must put up with it."""
    pair.apply(peer(f"{{mtls: {{mode: {mode}}}}}"))
    assert (outcome(pair.client("client")), outcome(pair.outside)) == (inside, outside)
    assert answered(pair.client("client"))
    assert answered(pair.outside) == (outside != "refused")


@pytest.mark.covers(
    "PeerAuthentication.portLevelMtls.mode", "PeerAuthentication.selector.matchLabels"
)
def test_a_port_may_have_a_mode_of_its_own(pair: Mesh) -> None:
    """STRICT but for one port, and DISABLE for another: clients follow each port."""
    ports = "{8080: {mode: PERMISSIVE}, 8081: {mode: DISABLE}}"
    pair.apply(
        peer(
            "{selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}, "
            f"portLevelMtls: {ports}}}"
        )
    )
    other = URL.replace("8080", "8081")
    inside, outside = pair.client("client"), pair.outside
    assert (outcome(inside), outcome(outside)) == ("mtls", "plain")
    assert (outcome(inside, other), outcome(outside, other)) == ("plain", "plain")
    assert not answered(outside)
    assert answered(inside)


@pytest.mark.covers("PeerAuthentication.mtls.mode=UNSET")
def test_unset_inherits(pair: Mesh) -> None:
    """Mesh, namespace, workload, port: each asks the one above."""
    strict = peer("{mtls: {mode: STRICT}}", namespace="istio-system")
    own = "{selector: {matchLabels: {app: server}}, mtls: {mode: UNSET}, portLevelMtls: {8080: {mode: UNSET}}}"
    pair.apply(strict, peer("{mtls: {mode: UNSET}}"), peer(own, name="w"))
    assert (outcome(pair.client("client")), outcome(pair.outside)) == ("mtls", "refused")
    pair.apply(peer("{mtls: {mode: PERMISSIVE}}"))
    assert outcome(pair.outside) == "plain"
    pair.apply(peer("{}"), peer("{selector: {matchLabels: {app: server}}}", name="w"))
    assert outcome(pair.outside) == "refused"


def test_tls_of_the_application_itself(pair: Mesh) -> None:
    """PERMISSIVE passes it on as it is; from a sidecar it travels inside mTLS; STRICT takes it inside mTLS only."""
    url = "https://server:8443/"

    def served(client: Client) -> bool:
        try:
            return bool(client.get(url).json()["tls"])
        except (NoAnswer, OSError):
            return False

    assert served(pair.client("client"))
    assert served(pair.outside)
    pair.apply(peer("{mtls: {mode: STRICT}}"))
    assert served(pair.client("client"))
    assert not served(pair.outside)


def test_endpoints_with_and_without_a_sidecar_in_one_service(mesh: Mesh) -> None:
    """Each gets what it understands, request by request."""
    mesh.apply(
        SERVICE
        + workload("client")
        + workload("server-new", "server")
        + workload("server-old", "server", sidecar=False)
        + rule()
    )
    answers = mesh.client("client").send(URL, n=60, new_connections=True)
    assert answers.statuses == {200: 60}
    seen = {
        (answer.workload, bool(answer.json()["headers"].get("x-forwarded-client-cert")))
        for answer in answers.responses
    }
    assert seen == {("server-new", True), ("server-old", False)}
    mesh.apply(rule("{tls: {mode: ISTIO_MUTUAL}}"))
    found = mesh.client("client").send(URL, n=40, new_connections=True).statuses
    assert 200 in found, "told to encrypt everything, it reaches the one with a sidecar"
    mesh.apply(rule("{tls: {mode: DISABLE}}"))
    found = mesh.client("client").send(URL, n=20, new_connections=True).statuses
    assert found == {200: 20}


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.tls.mode=DISABLE",
    "DestinationRule.trafficPolicy.portLevelSettings.tls",
)
def test_rules_override_what_clients_would_do(pair: Mesh) -> None:
    """Against STRICT that breaks; a port's settings win over the rule's."""
    pair.apply(peer("{mtls: {mode: STRICT}}"))
    client = pair.client("client")
    pair.apply(rule("{tls: {mode: DISABLE}}"))
    assert outcome(client) == "503"
    pair.apply(
        rule(
            "{tls: {mode: DISABLE}, portLevelSettings: "
            "[{port: {number: 8080}, tls: {mode: ISTIO_MUTUAL}}]}"
        )
    )
    assert outcome(client) == "mtls"
    assert outcome(client, URL.replace("8080", "8081")) == "503"


@pytest.mark.covers("DestinationRule.trafficPolicy.tls.subjectAltNames")
@pytest.mark.parametrize(
    ("names", "result"),
    [(SELF, "mtls"), ("spiffe://cluster.local/ns/default/sa/other", "503")],
)
def test_the_server_must_be_who_the_rule_names(pair: Mesh, names: str, result: str) -> None:
    """A certificate of the mesh is not enough."""
    pair.apply(rule(f"{{tls: {{mode: ISTIO_MUTUAL, subjectAltNames: ['{names}']}}}}"))
    assert outcome(pair.client("client")) == result


@pytest.mark.covers("MeshConfig.trustDomain", "MeshConfig.trustDomainAliases")
def test_servers_of_an_old_trust_domain_are_trusted_by_its_alias(pair: Mesh) -> None:
    """After the mesh's domain changes, clients take a server's old and new name, and nobody else's."""
    pair.apply(mesh_config="trustDomain: old.example")
    client = pair.client("client")
    assert client.get(URL).peer_identity == "spiffe://old.example/ns/default/sa/client"
    pair.apply(mesh_config="trustDomain: old.example\ntrustDomainAliases: [older.example]")
    context = pair.config("client")
    names = {
        entry["matcher"]["exact"]
        for entry in _matchers(context)
        if entry.get("san_type") == "URI" and "exact" in entry["matcher"]
    }
    assert names == {
        f"spiffe://{domain}/ns/default/sa/server" for domain in ("old.example", "older.example")
    }
    assert outcome(client) == "mtls"


def _matchers(value: object) -> list[dict[str, dict[str, str]]]:
    """All SAN matchers somewhere in a configuration dump."""
    if isinstance(value, dict):
        found = list(value.get("match_typed_subject_alt_names", ()))
        return found + [entry for part in value.values() for entry in _matchers(part)]
    if isinstance(value, list):
        return [entry for part in value for entry in _matchers(part)]
    return []
